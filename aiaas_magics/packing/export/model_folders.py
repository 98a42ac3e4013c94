"""Model folders: finds the model in a folder that a server starts from.

Owns the layouts of Triton, TensorFlow Serving, KServe and of our own folders, as far as finding the newest version goes. Opening what is
found belongs to `foreign_models`.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import BinaryIO, Final

from aiaas_magics.core import bundle
from aiaas_magics.packing.export.export_formats import CannotServe

SAVED: Final = "saved_model.pb"
# What a version's folder of Triton holds, in the order in which it is looked for.
OF_TRITON: Final = ("model.onnx", "model.savedmodel")
DEPTH: Final = 4  # of a KServe folder: the repository, the model, the version, the SavedModel
HUGGING_FACE: Final = "config.json"


def model_in(folder: Path) -> Path:
    """The one model in `folder`: an ONNX file, a SavedModel's folder, or a zip of one. Of several versions the newest.

    Raises:
        CannotServe: there is none, or more than one.
    """
    models = _models_in(folder, DEPTH)
    if len(models) == 1:
        return models[0]
    if models:
        names = ", ".join(sorted(str(model.relative_to(folder)) for model in models)[:6])
        raise CannotServe(f"The folder {str(folder)!r} holds several models ({names}). Give the folder of one of them.")
    if (folder / HUGGING_FACE).is_file():
        raise CannotServe(
            f"The folder {str(folder)!r} is one of Hugging Face. Load it, model = keras_hub.models.CausalLM.from_preset({str(folder)!r}), "
            "and deploy the variable."
        )
    raise CannotServe(
        f"The folder {str(folder)!r} holds no saved_model.pb, and no model as Triton, TensorFlow Serving or %aiaas_export keep one. "
        "Give the folder that holds the model."
    )


def _models_in(folder: Path, depth: int) -> list[Path]:
    if (folder / SAVED).is_file():
        return [folder]
    own = [path for name in bundle.MODELS.values() if (folder / bundle.ENDPOINT).is_file() and (path := folder / name).is_file()]
    triton = [path for name in OF_TRITON if (path := folder / name).exists()]
    if own or triton:
        return (own or triton)[:1]
    if depth == 0:
        return []
    subfolders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))]
    versions = sorted((path for path in subfolders if path.name.isdecimal()), key=lambda path: int(path.name), reverse=True)
    for version in versions:
        if models := _models_in(version, depth - 1):
            return models
    return [model for path in subfolders if path not in versions for model in _models_in(path, depth - 1)]


def unzipped(archive: BinaryIO | Path, folder: Path) -> Path:
    """Write the files of a SavedModel that travels as a zip into `folder`; the folder.

    Raises:
        CannotServe: a name in it leads out of the folder.
    """
    with zipfile.ZipFile(archive) as file:
        for entry in file.infolist():
            if entry.filename.startswith("/") or ".." in Path(entry.filename).parts:
                raise CannotServe(f"The zip names a file outside of it ({entry.filename[:80]!r}). Write it anew.")
        file.extractall(folder)
    return folder
