"""Serving folders: a model as a folder that a server starts from: Triton, KServe, TensorFlow Serving, or a container of its own.

Owns the layouts, and which form of the model goes into each. Texts of configurations belong to `triton_config`, `kserve_manifest` and
`container_files`; writing and comparing the model itself belongs to `model_files`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from aiaas_magics.core import bundle, snippets, wire
from aiaas_magics.core.spec import DeploySpec, checked_name
from aiaas_magics.packing.export import export_formats, sample_bytes
from aiaas_magics.packing.export.export_formats import ONNX, SAVED_MODEL
from aiaas_magics.packing.formats import container_files, kserve_manifest, model_files, triton_config
from aiaas_magics.packing.formats.export_source import CannotExport, ExportSource, source_of
from aiaas_magics.packing.formats.format_table import FORMATS
from aiaas_magics.packing.formats.model_files import ExportedModel

STORAGE: Final = "pvc://models/{name}"  # of the manifest, where nobody says another
REPOSITORY: Final = "model_repository"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderKind:
    """A folder that a server starts from.

    Args:
        title: what people call it.
        formats: the forms of the model that the server takes, the better ones first.
        model: where the model stands in the folder, for its name and format.
        finish: writes everything else, and returns sentences on how to start it.
    """

    title: str
    formats: tuple[str, ...]
    model: Callable[[str, str], str]
    finish: Callable[[FolderContents], tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderContents:
    """What a folder is finished with: its path, the model in it, and the source that it was made of."""

    folder: Path
    name: str
    source: ExportSource
    exported: ExportedModel
    storage: str
    label: str  # what the folder will be called


def export_folder(
    model: Any,
    kind: str,
    *,
    name: str,
    out: str | Path | None = None,
    sample: Any = None,
    other_samples: Sequence[Any] = (),
    storage: str = "",
    on_step: Callable[[str], None] = lambda step: None,
) -> ExportedModel:
    """Write a folder that a server starts from. The model in it is compared with the model's own answers first.

    Args:
        model: as in `export_model`.
        kind: "triton", "kserve", "tfserving" or "docker".
        name: what the server calls the model.
        out: the folder to write into; None is the working directory.
        sample: as in `export_model`.
        other_samples: as in `export_model`.
        storage: where KServe will find the model (s3://, gs://, pvc://); "" is a claim called models.
        on_step: called with a few words before each step.

    Raises:
        CannotExport: the server takes no form that holds the model, or the form answers differently.
    """
    checked_name("an endpoint", name)
    folder_kind(kind)
    on_step("computing sample rows")
    with source_of(model, sample, other_samples, name=name) as source:
        return export_source_folder(source, kind, name=name, out=out, storage=storage, on_step=on_step)


def export_source_folder(
    source: ExportSource,
    kind: str,
    *,
    name: str,
    out: str | Path | None,
    storage: str = "",
    on_step: Callable[[str], None] = lambda step: None,
) -> ExportedModel:
    """As `export_folder`, of a source that was made already."""
    row = folder_kind(kind)
    target = (Path.cwd() if out is None else Path(out).expanduser()) / f"{name}_{kind}"
    model_files.check_replaceable(target)
    with model_files.partial_path(target) as partial:
        partial.mkdir()
        exported = _model_in(partial, source, row, name, on_step)
        contents = FolderContents(
            folder=partial, name=name, source=source, exported=exported, storage=storage or STORAGE.format(name=name), label=target.name
        )
        notes = row.finish(contents)
        place = exported.path.relative_to(partial)
        finished = replace(exported, path=target / place, notes=(*exported.notes, *notes))
        (partial / model_files.REPORT).write_bytes(finished.report())
        model_files.put_in_place(partial, target)
    return replace(finished, path=target, title=row.title)


def folder_kind(kind: str) -> FolderKind:
    """The kind of this name.

    Raises:
        CannotExport: there is none.
    """
    if kind not in FOLDERS:
        raise CannotExport(f"{kind!r} is no kind of serving folder. Use one of {', '.join(FOLDERS)}.")
    return FOLDERS[kind]


def _model_in(folder: Path, source: ExportSource, row: FolderKind, name: str, on_step: Callable[[str], None]) -> ExportedModel:
    """The first form that the server takes and that holds the model."""
    reasons: list[str] = []
    for number, kind in enumerate(row.formats, start=1):
        target = folder / row.model(name, kind)
        try:
            exported = model_files.export_source(source, FORMATS[kind], at=target, on_step=on_step)
        except CannotExport as error:
            reasons.append(str(error))
            if number == len(row.formats):
                raise
            continue
        if target.is_dir():
            (target / model_files.REPORT).unlink()  # the whole folder has one
        return replace(exported, notes=(*(_instead(reason, row.title) for reason in reasons), *exported.notes))
    raise CannotExport(f"{row.title} takes no form of this model. Use another --for.")


def _instead(reason: str, title: str) -> str:
    return f"The model stands in the folder for {title} as a SavedModel. {reason.partition(' Try ')[0]}"


# --------------------------------------------------------------------------- the layouts


def _finish_triton(contents: FolderContents) -> tuple[str, ...]:
    source = contents.source
    _check_dtypes(source)
    text = triton_config.config_text(contents.name, contents.exported.format, source.inputs, source.outputs)
    (contents.folder / contents.name / "config.pbtxt").write_text(text, encoding="utf-8")
    notes = [f"Start it: tritonserver --model-repository={contents.label}"]
    if contents.exported.format == SAVED_MODEL:
        notes.append("Triton's images have had no TensorFlow backend since 25.04: use one of 25.03 or before for a SavedModel.")
    return tuple(notes)


def _finish_kserve(contents: FolderContents) -> tuple[str, ...]:
    kind, name = contents.exported.format, contents.name
    if kind == ONNX:
        _check_dtypes(contents.source)
        text = triton_config.config_text(name, kind, contents.source.inputs, contents.source.outputs)
        (contents.folder / REPOSITORY / name / "config.pbtxt").write_text(text, encoding="utf-8")
    manifest = kserve_manifest.manifest_text(name, kind, contents.storage)
    (contents.folder / "inference_service.yaml").write_text(manifest, encoding="utf-8")
    return (
        f"Copy the content of {REPOSITORY} to {contents.storage}, then: kubectl apply -f inference_service.yaml. "
        "--storage sets another address.",
    )


def _finish_tfserving(contents: FolderContents) -> tuple[str, ...]:
    name = contents.name
    fields = (f'name: "{name}"', f'base_path: "/models/{name}"', 'model_platform: "tensorflow"')
    text = "model_config_list {\n  config {\n" + "".join(f"    {field}\n" for field in fields) + "  }\n}\n"
    (contents.folder / "models.config").write_text(text, encoding="utf-8")
    return (
        f"Start it: docker run -p 127.0.0.1:8501:8501 -v $PWD/{contents.label}/{name}:/models/{name} -e MODEL_NAME={name} "
        "tensorflow/serving",
    )


def _finish_docker(contents: FolderContents) -> tuple[str, ...]:
    folder, name = contents.folder, contents.name
    write_bundle(folder / container_files.MODEL, contents)
    container_files.copy_package(folder)
    texts = {
        "requirements.txt": container_files.requirements_text(contents.exported.format),
        "Dockerfile": container_files.dockerfile_text(),
        "compose.yaml": container_files.compose_text(name),
        ".dockerignore": f"{model_files.REPORT}\n**/__pycache__\n",
    }
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")
    return (
        f"Start it in a container: cd {contents.label} && {snippets.TOKEN}=SECRET docker compose up --build. "
        f"Without one: aiaas serve-model {contents.label}/{container_files.MODEL}",
    )


def write_bundle(folder: Path, contents: FolderContents) -> None:
    """Turn the folder with the exported model into one that `aiaas serve-model` starts from."""
    source, kind = contents.source, contents.exported.format
    model = folder / bundle.MODELS[kind]
    if kind == SAVED_MODEL:
        written = contents.exported.path
        export_formats.zipped(written, model)
        shutil.rmtree(written)
    samples = sample_bytes.as_safetensors([one.rows for one in source.samples], [one.answers for one in source.samples])
    (folder / bundle.SAMPLES).write_bytes(samples)
    spec = DeploySpec(
        name=contents.name,
        artefact=model_files.hash_of(model),
        format=kind,
        samples=hashlib.sha256(samples).hexdigest(),
        inputs=source.inputs,
        outputs=source.outputs,
        precision=source.allowed,
        model=source.name,
        origin=source.origin,
        example=snippets.example_of(source.samples[0].rows),
    )
    (folder / bundle.ENDPOINT).write_bytes(wire.encode(spec))


def _check_dtypes(source: ExportSource) -> None:
    unknown = next((spec for spec in (*source.inputs, *source.outputs) if spec.dtype not in triton_config.DTYPES), None)
    if unknown is not None:
        raise CannotExport(f"Triton has no dtype {unknown.dtype} (tensor {unknown.name!r}). Cast it inside the model, or use --for docker.")


def _in_repository(name: str, kind: str) -> str:
    return f"{name}/1/{triton_config.MODELS[kind]}"


def _in_store(name: str, kind: str) -> str:
    """KServe mounts a model repository for Triton, and a folder of versions for TensorFlow Serving."""
    return f"{REPOSITORY}/{_in_repository(name, kind)}" if kind == ONNX else f"{REPOSITORY}/1"


def _in_bundle(name: str, kind: str) -> str:
    return f"{container_files.MODEL}/{bundle.MODELS[ONNX] if kind == ONNX else 'saved_model'}"


FOLDERS: Final = {
    "triton": FolderKind(title="Triton", formats=(ONNX, SAVED_MODEL), model=_in_repository, finish=_finish_triton),
    "kserve": FolderKind(title="KServe", formats=(ONNX, SAVED_MODEL), model=_in_store, finish=_finish_kserve),
    "tfserving": FolderKind(
        title="TensorFlow Serving", formats=(SAVED_MODEL,), model=lambda name, kind: f"{name}/1", finish=_finish_tfserving
    ),
    "docker": FolderKind(title="a container", formats=(ONNX, SAVED_MODEL), model=_in_bundle, finish=_finish_docker),
}
