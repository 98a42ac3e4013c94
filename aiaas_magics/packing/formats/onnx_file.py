"""ONNX file: a model as one ONNX file.

Owns writing it and opening it with ONNX Runtime. The conversion belongs to `onnx_export`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from aiaas_magics.packing.export import export_formats, onnx_export
from aiaas_magics.packing.export.onnx_session import Form, onnx_form
from aiaas_magics.packing.formats.export_source import ExportSource, NotExpressible, no_operator_for

UNKNOWN: Final = re.compile(r"ONNX has no operator for ([\w, ]+)")  # of `onnx_export`


def write(source: ExportSource, path: Path) -> tuple[str, ...]:
    """Write the file."""
    path.write_bytes(onnx_bytes(source))
    return ()


def onnx_bytes(source: ExportSource) -> bytes:
    """The ONNX form of the source.

    Raises:
        NotExpressible: it has none. The converter raises anything else over an operator that it does not know.
    """
    if source.is_onnx:
        return source.artefact
    if source.function is None:
        raise NotExpressible("it is served as a SavedModel, and no ONNX file is made of that")
    if any(spec.dtype == "string" for spec in source.inputs):
        raise NotExpressible("texts go into it, and ONNX has no operators for texts")
    export_formats.check_onnx_size(source.model)
    try:
        return onnx_export.export(source.function)
    except ValueError as error:
        if match := UNKNOWN.search(str(error)):
            raise NotExpressible(no_operator_for(match[1].split(", "), source)) from error
        raise


def open_file(source: ExportSource, path: Path) -> Form:
    """The file as a function of named rows, computed by ONNX Runtime."""
    return onnx_form(path.read_bytes())
