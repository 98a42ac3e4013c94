"""Keras file: a model as a `.keras` file.

Owns writing it, loading it again, and naming what of the notebook a reader must have.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from aiaas_magics.packing.export.keras_answers import outputs_of
from aiaas_magics.packing.export.onnx_session import Form
from aiaas_magics.packing.formats.export_source import ExportSource, NotExpressible

STOCK: Final = ("keras", "builtins", "numpy", "tensorflow")  # modules that every reader has


def write(source: ExportSource, path: Path) -> tuple[str, ...]:
    """Write the file; sentences on what a reader needs."""
    if source.model is None:
        raise NotExpressible("what is exported is no Keras model any more")
    source.model.save(path)
    names = sorted(set(own_objects(path)))
    if not names:
        return ()
    return (
        f"The file names {', '.join(names[:6])}, whose code is not in it. Before keras.models.load_model, import or define "
        f"{'it' if len(names) == 1 else 'them'} there, or pass custom_objects.",
    )


def open_file(source: ExportSource, path: Path) -> Form:
    """The file, loaded by Keras without its loss, as a function of named rows."""
    import keras

    model = keras.models.load_model(path, compile=False)
    interface = source.interface
    assert interface is not None  # `write` has refused what has none
    return lambda rows: outputs_of(model, interface, rows)


def own_objects(path: Path) -> Iterator[str]:
    """The classes and functions that the file names and no library of every reader holds."""
    with zipfile.ZipFile(path) as archive:
        yield from _named_in(json.loads(archive.read("config.json")))


def _named_in(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if (name := _own_name(config)) is not None:
            yield name
        for key, value in config.items():
            if key != "compile_config":  # of no use to whoever predicts
                yield from _named_in(value)
    elif isinstance(config, list):
        for value in config:
            yield from _named_in(value)


def _own_name(config: dict[str, Any]) -> str | None:
    """The name of what a serialized object is made of, where not every reader has it."""
    name, module = config.get("class_name"), str(config.get("module") or "")
    if not isinstance(name, str) or "config" not in config or name.startswith("__"):  # Keras' own: __tensor__, __lambda__
        return None
    if name == "function":
        return str(config["config"])
    return None if module.partition(".")[0] in STOCK else str(config.get("registered_name") or name)
