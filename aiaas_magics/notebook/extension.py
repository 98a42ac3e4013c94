"""The IPython extension: finds the families of magics, registers them as one class, and takes them away again.

Owns loading, unloading and the displays of our objects. What a magic does belongs to its file in `magics/`.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, Final

from aiaas_magics.notebook import completion, model_outputs, present, present_explanations, tracebacks, trust_outputs
from aiaas_magics.notebook import magics as folder
from aiaas_magics.notebook.border import Family

# What the client's objects look like as the last expression of a cell; the client itself knows no IPython.
DISPLAYS: Final[dict[tuple[str, str], Callable[[Any], present.Bundle]]] = {
    ("aiaas_magics.client.training.job", "Job"): present.job_bundle,
    ("aiaas_magics.client.explain.explain_job", "ExplainJob"): present_explanations.explain_job_bundle,
    ("aiaas_magics.client.training.study", "Study"): present.study_table,
    ("aiaas_magics.client.training.planning", "FitPlan"): present.plan_table,
    ("aiaas_magics.client.serving.endpoint", "Endpoint"): present.endpoint_bundle,
    ("aiaas_magics.client.serving.drift", "Drift"): trust_outputs.drift_bundle,
    ("aiaas_magics.attacks.attack_run", "Attacks"): trust_outputs.attacks_bundle,
    ("aiaas_magics.packing.formats.model_files", "ExportedModel"): model_outputs.exported_bundle,
    ("aiaas_magics.client.training.reproduction", "Reproduction"): model_outputs.reproduction_bundle,
    ("aiaas_magics.core.training_record", "TrainingRecord"): model_outputs.record_bundle,
}
LOADED: Final[dict[int, tuple[Any, Any]]] = {}  # by id of the shell: its magics and its matcher


def families() -> Iterator[type[Family]]:
    """Every family that a file of `magics/` defines."""
    for file in pkgutil.iter_modules(folder.__path__):
        module = import_module(f"{folder.__name__}.{file.name}")
        for value in vars(module).values():
            if inspect.isclass(value) and issubclass(value, Family) and value.__module__ == module.__name__:
                yield value


def magics() -> dict[str, Any]:
    """Every magic's method by its name, in the order of the alphabet."""
    methods = {name: method for family in families() for name, method in vars(family).items() if hasattr(method, "magic_kinds")}
    return dict(sorted(methods.items()))


def parsers() -> dict[str, Any]:
    """Every magic's parser by the magic's name."""
    return {name: method.parser for name, method in magics().items()}


def composed() -> Any:
    """One class of all families: the user configures `AiaasMagics`, and all magics share its session."""
    kinds = {kind: {name: name for name, method in magics().items() if kind in method.magic_kinds} for kind in ("line", "cell")}
    text = "Train, serve and measure Keras models on a backend, from the cell that defines them."
    # As IPython's `magics_class` does for a class whose methods it has seen.
    metaclass: Any = type(Family)
    return metaclass("AiaasMagics", tuple(families()), {"__doc__": text, "__module__": __name__, "registered": True, "magics": kinds})


AiaasMagics: Final = composed()


# --------------------------------------------------------------------------- loading


def load(ip: Any) -> None:
    """Register the magics, their completion and the displays of our objects. Opens no connection."""
    if id(ip) in LOADED:
        return
    ip.register_magics(AiaasMagics)
    loaded = ip.magics_manager.registry["AiaasMagics"]
    matcher = completion.make_matcher(ip, parsers(), loaded.session.names_seen)
    ip.Completer.custom_matchers.append(matcher)
    ip.input_transformers_cleanup.insert(0, with_body)
    for (module, name), show in DISPLAYS.items():
        ip.display_formatter.mimebundle_formatter.for_type_by_name(module, name, show)
    png = ip.display_formatter.formatters["image/png"]
    if ("matplotlib.figure", "Figure") not in png.deferred_printers and "matplotlib.figure" not in sys.modules:
        # `study.plot()` as the last expression: without pyplot nobody else tells IPython how to show a Figure.
        png.for_type_by_name("matplotlib.figure", "Figure", present.figure_png)
    tracebacks.show_blocks(ip)
    LOADED[id(ip)] = (loaded, matcher)


def with_body(lines: list[str]) -> list[str]:
    """A cell of the %%aiaas_train line alone gets an empty line: IPython would refuse it and advise %aiaas_train, which is no help."""
    alone = len(lines) == 1 and re.match(r"%%aiaas_train(\s|$)", lines[0])
    return [lines[0].rstrip("\n") + "\n", "\n"] if alone else lines


def unload(ip: Any) -> None:
    """Take away what `load` brought."""
    loaded, matcher = LOADED.pop(id(ip), (None, None))
    if loaded is None:
        return
    ip.Completer.custom_matchers[:] = [registered for registered in ip.Completer.custom_matchers if registered is not matcher]
    ip.input_transformers_cleanup[:] = [transform for transform in ip.input_transformers_cleanup if transform is not with_body]
    for kind, names in loaded.magics.items():
        for name in names:
            ip.magics_manager.magics[kind].pop(name, None)
    ip.magics_manager.registry.pop("AiaasMagics", None)
    if loaded in ip.configurables:
        ip.configurables.remove(loaded)
    for module, name in DISPLAYS:
        ip.display_formatter.mimebundle_formatter.pop(f"{module}.{name}", None)
    tracebacks.stop_showing_blocks()
    loaded.session.close()
