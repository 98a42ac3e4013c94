"""LiteRT file: a model as a `.tflite` file of builtin operators, which every LiteRT runtime computes.

Owns the conversion by TensorFlow, with a fixed batch of one row where a free one cannot be had, what the converter's messages mean,
and opening the file with LiteRT's own runtime. It is the only home of `ai_edge_litert`.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from aiaas_magics.packing.export.foreign_models import SIGNATURE
from aiaas_magics.packing.export.keras_answers import function_of
from aiaas_magics.packing.export.onnx_session import Form
from aiaas_magics.packing.formats import saved_model
from aiaas_magics.packing.formats.export_source import ExportSource, NotExpressible, no_operator_for
from aiaas_magics.packing.formats.output_differences import parts_of, row_by_row

ONE_ROW: Final = "The file takes one row per call: LiteRT does not compute this model for a free number of rows."
# What TensorFlow's converter says of operators that no builtin of LiteRT computes.
UNKNOWN: Final = (
    re.compile(r"TF Select ops: ([\w, ]+)"),
    re.compile(r"Custom ops: ([\w, ]+)"),
    re.compile(r"'tf\.(\w+)' op is neither a custom op nor a flex op"),
    re.compile(r"failed to legalize operation 'tf\.(\w+)'"),
)
LOOPS: Final = "TensorList"  # lists of a loop, which need sizes that are known beforehand


def write(source: ExportSource, path: Path) -> tuple[str, ...]:
    """Write the file; a sentence where it takes one row only.

    Raises:
        NotExpressible: LiteRT has no operator for a part of the model.
    """
    if any(spec.dtype == "string" for spec in source.inputs):
        raise NotExpressible("texts go into it, and LiteRT's builtin operators take numbers")
    try:
        path.write_bytes(_converted(source, source.function))
        if _computes(source, path):
            return ()
    except NotExpressible as error:
        if LOOPS not in str(error):
            raise
    path.write_bytes(_converted(source, _of_one_row(source)))
    return (ONE_ROW,)


def open_file(source: ExportSource, path: Path) -> Form:
    """The file as a function of named rows, computed by LiteRT on one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    runner = interpreter.get_signature_runner(SIGNATURE)
    details = runner.get_input_details()

    def computed(rows: Any) -> dict[str, np.ndarray]:
        return {name: np.array(array) for name, array in runner(**{name: rows[name] for name in details}).items()}

    is_fixed = any(detail["shape_signature"][0] == 1 for detail in details.values())
    return row_by_row(computed) if is_fixed else computed


def _computes(source: ExportSource, path: Path) -> bool:
    """Whether LiteRT takes other numbers of rows than the one that the converter assumed. What it answers is compared later."""
    try:
        form = open_file(source, path)
        for part in parts_of(source.samples[0]):
            form(part.rows)
    except (RuntimeError, ValueError):
        return False
    return True


def _converted(source: ExportSource, function: Any) -> bytes:
    """The file's bytes. `function` of None takes what the source's SavedModel holds."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory(prefix="aiaas-export-") as scratch:
        folder = Path(scratch) / "model"
        saved_model.write(source if function is source.function else replace(source, function=function), folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[SIGNATURE])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            return bytes(converter.convert())
        except Exception as error:
            if operators := unknown_operators(str(error)):
                raise NotExpressible(no_operator_for(operators, source)) from error
            raise


def _of_one_row(source: ExportSource) -> Any:
    """The source's function for exactly one row."""
    if source.interface is None:
        raise NotExpressible("LiteRT has no loop with a free number of rows, and an endpoint takes any number")
    shapes = tuple((1, *shape[1:]) for shape in source.interface.shapes)
    return function_of(source.model, replace(source.interface, shapes=shapes))


def unknown_operators(message: str) -> tuple[str, ...]:
    """The operators that a converter's message says it cannot express, in order, each once."""
    names = [name.strip() for pattern in UNKNOWN for match in pattern.finditer(message) for name in match[1].split(",")]
    return tuple(dict.fromkeys(name.removeprefix("Flex") for name in names if name))
