"""OpenVINO IR: a model as a pair of files, `.xml` and `.bin`.

Owns the conversion (of the ONNX form, or of the SavedModel where there is none) and opening the pair with OpenVINO's own runtime. It is
the only home of `openvino`.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from aiaas_magics.packing.export.onnx_session import Form
from aiaas_magics.packing.formats import onnx_file, saved_model
from aiaas_magics.packing.formats.export_source import ExportSource, NotExpressible, no_operator_for

# Left to itself, OpenVINO computes in bfloat16 on processors that have it.
COMPILED: Final = {"INFERENCE_PRECISION_HINT": "f32"}
UNKNOWN: Final = re.compile(r"(?:[Nn]o (?:conversion rule|translator) found for operations?:?|not supported operations?:?)\s+([\w:., ]+)")


def write(source: ExportSource, path: Path) -> tuple[str, ...]:
    """Write `path` (.xml) and the .bin beside it, weights in full precision.

    Raises:
        NotExpressible: OpenVINO has no operator for a part of the model.
    """
    import openvino

    with tempfile.TemporaryDirectory(prefix="aiaas-export-") as scratch:
        model = _converted(source, Path(scratch))
        for place, spec in enumerate(source.inputs):
            _name(model.inputs[_place(model.inputs, spec.name, place)], spec.name)
        for place, spec in enumerate(source.outputs):
            _name(model.outputs[_place(model.outputs, spec.name, place)], spec.name)
        openvino.save_model(model, path, compress_to_fp16=False)
    return ()


def _converted(source: ExportSource, scratch: Path) -> Any:
    import openvino

    try:
        file = scratch / "model.onnx"
        try:
            file.write_bytes(onnx_file.onnx_bytes(source))
        except Exception:  # noqa: BLE001 - border: the ONNX converter raises anything; OpenVINO reads a SavedModel too
            file = scratch / "model"
            saved_model.write(source, file)
        # Not by `convert_model`, which sends usage data to its makers; the runtime reads both forms by itself.
        return openvino.Core().read_model(file)
    except NotExpressible:
        raise
    except Exception as error:
        if match := UNKNOWN.search(str(error)):
            operators = [name.strip(" .") for name in re.split(r"[,\s]+", match[1]) if name.strip(" .")]
            raise NotExpressible(no_operator_for(operators, source)) from error
        raise


def open_file(source: ExportSource, path: Path) -> Form:
    """The pair as a function of named rows, computed by OpenVINO on the CPU in float32."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", COMPILED)
    names = [spec.name for spec in source.outputs]

    def computed(rows: Any) -> dict[str, np.ndarray]:
        answers = compiled(dict(rows))
        return {name: np.array(answers[name]) for name in names}

    return computed


def _place(ports: Any, name: str, place: int) -> int:
    """Where the tensor `name` is: by one of its names (a SavedModel's begin with the signature's), else at its own place."""
    for number, port in enumerate(ports):
        if any(own.removeprefix("serving_default_").partition(":")[0] == name for own in port.get_names()):
            return number
    return place


def _name(port: Any, name: str) -> None:
    port.get_node().set_friendly_name(name)
    port.get_tensor().set_names({name})
