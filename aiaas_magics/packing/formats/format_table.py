"""Format table: the forms in which a model leaves the kernel, one row each.

Owns the table. Writing and opening belong to the module of each format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiaas_magics.core import settings
from aiaas_magics.packing.export.onnx_session import Form
from aiaas_magics.packing.formats import huggingface_folder, keras_file, litert_file, onnx_file, openvino_ir, saved_model
from aiaas_magics.packing.formats.export_source import ExportSource


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFormat:
    """A form that a model can be written in.

    Args:
        title: what people call it.
        suffix: of the file; "" is a folder.
        runtime: what computes it, in words; "" is called as its distribution is.
        distribution: the installed distribution of that runtime.
        extra: the extra of this package that installs it; "" is installed with it.
        write: writes the file or folder and returns sentences on what a reader must know.
        open: the file as a function of named rows, computed by the runtime.
    """

    name: str
    title: str
    suffix: str
    runtime: str
    distribution: Callable[[], str]
    write: Callable[[ExportSource, Path], tuple[str, ...]]
    open: Callable[[ExportSource, Path], Form]
    extra: str = ""

    @property
    def is_folder(self) -> bool:
        return not self.suffix

    @property
    def is_installed(self) -> bool:
        return bool(settings.installed_version(self.distribution()))

    @property
    def reader(self) -> str:
        """The runtime with its version: "ONNX Runtime 1.32.0"."""
        return f"{self.runtime or self.distribution()} {settings.installed_version(self.distribution())}"

    def path_in(self, folder: Path, name: str) -> Path:
        """Where a model of this name is written: `churn.onnx`, or the folder `churn_saved_model`."""
        return folder / (f"{name}_{self.name}" if self.is_folder else f"{name}{self.suffix}")


FORMATS: Final = {
    row.name: row
    for row in (
        ModelFormat(
            name="onnx",
            title="ONNX",
            suffix=".onnx",
            runtime="ONNX Runtime",
            distribution=lambda: "onnxruntime",
            write=onnx_file.write,
            open=onnx_file.open_file,
        ),
        ModelFormat(
            name="saved_model",
            title="a SavedModel",
            suffix="",
            runtime="TensorFlow",
            distribution=lambda: "tensorflow",
            write=saved_model.write,
            open=saved_model.open_folder,
        ),
        ModelFormat(
            name="keras",
            title="a Keras file",
            suffix=".keras",
            runtime="Keras",
            distribution=lambda: "keras",
            write=keras_file.write,
            open=keras_file.open_file,
        ),
        ModelFormat(
            name="tflite",
            title="LiteRT",
            suffix=".tflite",
            runtime="LiteRT",
            distribution=lambda: "ai-edge-litert",
            write=litert_file.write,
            open=litert_file.open_file,
            extra="export",
        ),
        ModelFormat(
            name="openvino",
            title="OpenVINO IR",
            suffix=".xml",
            runtime="OpenVINO",
            distribution=lambda: "openvino",
            write=openvino_ir.write,
            open=openvino_ir.open_file,
            extra="export",
        ),
        ModelFormat(
            name="huggingface",
            title="a Hugging Face folder",
            suffix="",
            runtime="",
            distribution=huggingface_folder.reader,
            write=huggingface_folder.write,
            open=huggingface_folder.open_folder,
            extra="hub",
        ),
    )
}
# What else goes where a format cannot hold a model, by the format.
ELSEWHERE: Final = {
    "onnx": "--to saved_model, which holds every operator of TensorFlow",
    "tflite": "--to onnx, or --to saved_model, which holds every operator of TensorFlow",
    "openvino": "--to onnx, or --to saved_model, which holds every operator of TensorFlow",
    "saved_model": "--to keras, which holds the model as Keras has it",
    "keras": "--to onnx or --to saved_model, which hold the computation without the code",
    "huggingface": "--to keras or --to saved_model, which hold any model",
}
