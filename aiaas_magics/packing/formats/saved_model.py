"""SavedModel: a model as a folder of TensorFlow, with one signature `serving_default`.

Owns writing it and loading it again with TensorFlow.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from aiaas_magics.packing.export import export_formats, model_folders, sample_bytes
from aiaas_magics.packing.export.export_formats import SAVED_MODEL
from aiaas_magics.packing.export.foreign_models import SIGNATURE
from aiaas_magics.packing.export.onnx_session import Form, Named
from aiaas_magics.packing.formats.export_source import ExportSource, NotExpressible


def write(source: ExportSource, path: Path) -> tuple[str, ...]:
    """Write the folder."""
    if source.function is not None:
        export_formats.write_saved_model(source.model, source.function, path)
    elif source.format == SAVED_MODEL:
        model_folders.unzipped(io.BytesIO(source.artefact), path)
    else:
        raise NotExpressible("it is served as an ONNX file, and no SavedModel is made of that")
    return ()


def open_folder(source: ExportSource, path: Path) -> Form:
    """The folder's signature as a function of named rows, computed by TensorFlow."""
    return signature_form(path)


def signature_form(folder: Path) -> Form:
    """The signature `serving_default` of a SavedModel's folder as a function of named rows."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))
    function = loaded.signatures[SIGNATURE]
    takes = function.structured_input_signature[1]

    def computed(rows: Named) -> dict[str, np.ndarray]:
        feed = {name: tf.constant(sample_bytes.as_text(rows[name]), dtype=spec.dtype) for name, spec in takes.items()}
        return {name: _array(tensor) for name, tensor in function(**feed).items()}

    computed.holder = loaded  # type: ignore[attr-defined]  # its variables live as long as it does
    return computed


def _array(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.numpy())
