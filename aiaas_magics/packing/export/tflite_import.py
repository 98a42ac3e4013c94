"""TFLite import: a `.tflite` file as ONNX, by tf2onnx.

Owns the conversion, the names of the signature, and that the ONNX form answers as TensorFlow's own interpreter of the file does.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from aiaas_magics.core.agreement import compare, largest_of
from aiaas_magics.core.precision import Precision
from aiaas_magics.packing.export import export_formats
from aiaas_magics.packing.export.export_formats import CannotServe
from aiaas_magics.packing.export.onnx_session import onnx_form

OPSET: Final = 18
ROWS: Final = 3
UNKNOWN: Final = re.compile(r"No Op registered for TFL_(\w+)")


def onnx_bytes(path: Path) -> bytes:
    """The file as ONNX.

    Raises:
        CannotServe: tf2onnx knows no translation, or the ONNX form answers otherwise.
    """
    try:
        with export_formats.quiet():
            artefact = _converted(path)
            apart = _largest_difference(path, artefact)
    except CannotServe:
        raise
    except Exception as error:
        unknown = UNKNOWN.search(str(error))
        reason = f"ONNX has no operator for LiteRT's {unknown[1]}" if unknown else export_formats.reason_of(error)
        raise CannotServe(
            f"{str(path)!r} cannot be served: tf2onnx makes no ONNX file of it ({reason}). Deploy the model that it was made of."
        ) from error
    if apart is not None:
        raise CannotServe(
            f"{str(path)!r} cannot be served: as ONNX its output {apart[0]!r} differs by {apart[1]:.2g} from what LiteRT computes. "
            "Deploy the model that it was made of."
        )
    return artefact


def _runner(path: Path) -> Any:
    """TensorFlow's own interpreter of such files, by signature."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_path=str(path))
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        raise CannotServe(f"{str(path)!r} has {len(signatures)} signatures, and one is served. Write it with one.")
    return interpreter.get_signature_runner(next(iter(signatures)))


def _converted(path: Path) -> bytes:
    import onnx
    from tf2onnx import convert

    from aiaas_magics.core.internals.keras_internals import patch_tf2onnx

    patch_tf2onnx()
    runner = _runner(path)
    proto, _ = convert.from_tflite(str(path), opset=OPSET)
    graph = proto.graph
    names = {detail["name"]: name for name, detail in runner.get_input_details().items()}
    names |= {detail["name"]: name for name, detail in runner.get_output_details().items()}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in (*graph.input, *graph.output):
        tensor.name = names.get(tensor.name, tensor.name)
    for tensor in graph.value_info:
        tensor.name = names.get(tensor.name, tensor.name)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def _largest_difference(path: Path, artefact: bytes) -> tuple[str, float] | None:
    """The first output that is not near enough on made-up rows, with its difference; None where all are."""
    runner, form = _runner(path), onnx_form(artefact)
    draw = np.random.default_rng(0)
    rows = {name: _rows(detail, draw) for name, detail in runner.get_input_details().items()}
    answers, own = form(rows), runner(**rows)
    for name, expected in own.items():
        if answers[name].shape != expected.shape:
            return name, float("inf")
        agreement = compare(answers[name], expected, Precision(), largest=largest_of(expected))
        if not agreement:
            return name, agreement.largest
    return None


def _rows(detail: Any, draw: np.random.Generator) -> np.ndarray:
    shape = [size if size > 0 else (ROWS if place == 0 else 8) for place, size in enumerate(detail["shape_signature"])]
    if np.issubdtype(detail["dtype"], np.floating):
        return draw.standard_normal(shape).astype(detail["dtype"])
    return np.zeros(shape, detail["dtype"])
