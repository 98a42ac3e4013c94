"""Fingerprint of a model without its numbers: equal for two models only where the same step is traced of both.

Owns the digest. It is that of the bytes by which a model travels (`state_pickle`): the state of every Keras object, the user's
classes and functions by value, constants; of variables all but their values. Who goes by it is an engine's.

Keras numbers the names that nobody gives (`dense_7`), so a model that is built once more has others. They count by their order
where no code but that of Keras could look at them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import sys
import types
from collections.abc import Collection, Container, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from aiaas_magics.packing.live.model_variables import VariableSpec, spec_of
from aiaas_magics.packing.pickling import state_pickle
from aiaas_magics.packing.pickling.state_pickle import Failed, OutOfBand, Pickler

# Their versions stand in the fingerprint; of any other package the files do, by size and time.
VERSIONED: Final = ("keras", "tensorflow", "numpy", "ml_dtypes", "cloudpickle", "aiaas_magics")
BY_NAME: Final = (*VERSIONED, *sys.stdlib_module_names, "__main__", "__mp_main__")
# No part of what is traced: what `compile` was given and what hangs on an object, kept to write a model into a file; a cache; what a seed
# generator began with, which is in its variable.
LEFT_OUT: Final = frozenset(
    {
        "_compile_config",
        "_self_unconditional_checkpoint_dependencies",
        "_self_unconditional_dependency_names",
        "_exclude_from_weight_decay_cache",
        "_initial_seed",
    }
)
OWN_PREFIX: Final = "aiaas_magics.backend."


def fingerprint(model: Any) -> str | None:
    """The digest of `model`; None where something in it cannot be pickled, and so has none."""
    names = _Names(model)
    pickled = _pickled(model, names)
    if pickled is None:
        return None
    body, out_of_band, files = pickled
    # Code that is not Keras' may go by a name, as logs of several outputs and an optimizer's exceptions do.
    if names.are_looked_at or out_of_band.code or files:
        names = _Names(None)
        if (pickled := _pickled(model, names)) is None:
            return None
        body, out_of_band, files = pickled
    specs = [names.without_numbers(spec_of(variable)) for variable in out_of_band.variables]
    digest = hashlib.sha256(body)
    digest.update(repr((_versions(), files, specs)).encode())
    for array in out_of_band.arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def automatic_names(model: Any) -> tuple[str, ...]:
    """Names that Keras has numbered, of the model and its layers, in an order that equal models share."""
    return tuple(layer.name for layer in model._flatten_layers() if _is_automatic(layer))


def any_of(names: Iterable[str], *, alone: Container[str] = ()) -> re.Pattern[str]:
    """Finds each of `names`, also where others follow (`dense_1_kernel_momentum`), but for those that stand `alone`."""
    longest_first = sorted(names, key=len, reverse=True)
    parts = [re.escape(name) + ("(?!_)" if name in alone else "") for name in longest_first]
    return re.compile(f"(?<![a-zA-Z0-9])(?:{'|'.join(parts)})(?![a-zA-Z0-9])")


def _pickled(model: Any, names: _Names) -> tuple[bytes, OutOfBand, list[tuple[str, int, int]]] | None:
    """The bytes, what was met on the way, and the files of packages whose versions nobody knows."""
    out_of_band, registered, body = OutOfBand(), list[types.ModuleType](), io.BytesIO()
    pickler = _FingerprintPickler(body, out_of_band, registered, names)
    try:
        state_pickle.write(pickler, model)
        return body.getvalue(), out_of_band, _files_of(pickler.packages)
    except (Failed, OSError):
        return None
    finally:
        state_pickle.unregister(registered)


class _FingerprintPickler(Pickler):
    """Leaves out what stands on the model for the time of one `fit`, and notes the packages that classes and functions are taken from."""

    def __init__(self, file: io.BytesIO, out_of_band: OutOfBand, registered: list[types.ModuleType], names: _Names) -> None:
        super().__init__(file, out_of_band, registered)
        self.packages: set[str] = set()
        self._names = names

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is str:
            text = self._names.in_order(obj)
            return None if text == obj else ("text", text)
        return super().persistent_id(obj)

    def state(self, obj: Any) -> dict[str, Any]:
        # With a line before each, so that no attribute (a Dropout's seed_generator) is taken for a name.
        return {f"_{name}": value for name, value in super().state(obj).items() if name not in LEFT_OUT}

    def reducer_override(self, obj: Any) -> Any:
        import keras

        name = getattr(obj, "__module__", None) if isinstance(obj, (type, types.FunctionType)) else None
        if isinstance(obj, types.FunctionType) and str(name).startswith(OWN_PREFIX):
            return str, (f"{name}.{obj.__qualname__}",)
        if isinstance(obj, type) and issubclass(obj, tuple) and getattr(sys.modules.get(str(name)), obj.__name__, None) is not obj:
            # Keras makes one at every build of a loss; by value each would have a number of its own.
            return str, (f"{obj.__name__} {getattr(obj, '_fields', '')}",)
        if isinstance(obj, types.ModuleType):
            name = obj.__name__
        if isinstance(name, str) and (package := name.partition(".")[0]) not in BY_NAME:
            self.packages.add(package)
        if self._names.in_use and isinstance(obj, keras.Initializer):
            return str, (type(obj).__name__,)  # it has done its work; where no seed was given it has one of its own
        reduced = super().reducer_override(obj)
        self._names.meet(obj)
        return reduced


class _Names:
    """Automatic names by the order in which they are met: first those of the layers and the optimizer."""

    def __init__(self, model: Any) -> None:
        self._order: dict[str, str] = {}
        self._alone: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self.in_use = model is not None
        self.are_looked_at = model is not None and _are_looked_at(model)
        for part in (*model._flatten_layers(), getattr(model, "optimizer", None)) if model is not None else ():
            self.meet(part)

    def meet(self, obj: Any) -> None:
        if self.in_use and _is_automatic(obj) and obj.name not in self._order:
            self._order[obj.name], self._pattern = f"#{len(self._order)}", None
            if not isinstance(obj, _named_in_slots()):
                self._alone.add(obj.name)

    def in_order(self, text: str) -> str:
        """`text` with each automatic name in it as its number here: a variable's path has several."""
        # Attributes are none (Keras has one that is called _functional), nor are modules.
        if not self._order or text.startswith("_") or "." in text:
            return text
        self._pattern = self._pattern or any_of(self._order, alone=self._alone)
        return self._pattern.sub(lambda match: self._order[match[0]], text)

    def without_numbers(self, spec: VariableSpec) -> VariableSpec:
        return dataclasses.replace(spec, name=self.in_order(spec.name))


def _is_automatic(obj: Any) -> bool:
    """Whether Keras has made the name of a part of a model out of its class'. A metric's stands in the logs."""
    import keras

    from aiaas_magics.core.internals.keras_internals import Operation, to_snake_case

    if not isinstance(obj, (Operation, keras.Optimizer, keras.KerasTensor, keras.random.SeedGenerator)):
        return False
    name, automatic = getattr(obj, "name", None), to_snake_case(type(obj).__name__)
    return isinstance(name, str) and (name == automatic or (name.startswith(f"{automatic}_") and name[len(automatic) + 1 :].isdecimal()))


def _named_in_slots() -> tuple[type, ...]:
    """What an optimizer makes names for its variables of."""
    import keras

    return keras.Layer, keras.Optimizer


def _are_looked_at(model: Any) -> bool:
    optimizer = getattr(model, "optimizer", None)
    return len(getattr(model, "output_names", None) or ()) > 1 or hasattr(optimizer, "_exclude_from_weight_decay_pattern")


def _versions() -> list[str]:
    # Of what is imported: a distribution may have another name (tensorflow-cpu).
    return [sys.version, *(str(getattr(sys.modules.get(name), "__version__", "")) for name in VERSIONED)]


def _files_of(packages: Collection[str]) -> list[tuple[str, int, int]]:
    """Every module of these that is imported, with its file's size and time: they may be edited in their place."""
    files = [(package, 0, 0) for package in sorted(packages)]
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None)
        # One that has travelled by value has no file; it is in the bytes.
        if name.partition(".")[0] in packages and path is not None:
            stat = Path(path).stat()
            files.append((name, stat.st_size, stat.st_mtime_ns))
    return files
