"""Model files: writes a model in a format, computes it there with the format's own runtime, and keeps it only if it answers the same.

Owns the order of the steps, the temporary name until the comparison, and what is said of the result. Writing and opening belong to the
module of each format, `format_table` lists them.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiaas_magics.core import settings, wire
from aiaas_magics.core.export_names import REFUSED
from aiaas_magics.core.precision import Precision
from aiaas_magics.packing.export import export_formats
from aiaas_magics.packing.formats import huggingface_folder
from aiaas_magics.packing.formats.export_source import CannotExport, ExportSource, NotExpressible, SampleSet, source_of
from aiaas_magics.packing.formats.format_table import ELSEWHERE, FORMATS, ModelFormat
from aiaas_magics.packing.formats.output_differences import OutputDifference, differences, worst_of

REPORT: Final = "aiaas_export.json"  # in a folder that we wrote: such a folder may be replaced
PARTNERS: Final = {".xml": (".bin",)}  # files that stand beside one of this suffix
# Logits of a language model, whose products are summed in another order by another library.
NEAR_LOGITS: Final = Precision(of_largest=1e-4)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """A model file that was compared with the model.

    Args:
        path: the file or folder.
        format: its name, "onnx" for one.
        runtime: what computed it for the comparison, with its version.
        nbytes: size of all its files, in bytes.
        rows: how many sample rows were compared.
        origin: what it was compared with: "Keras", or "the endpoint's answers".
        differences: one for each output.
        notes: sentences on what a reader must know.
        sha256: of the file; of a folder that of all its files, by name.
    """

    path: Path
    format: str
    title: str
    runtime: str
    nbytes: int
    rows: int
    origin: str
    differences: tuple[OutputDifference, ...]
    notes: tuple[str, ...] = ()
    sha256: str = ""

    @property
    def largest(self) -> float:
        """The largest absolute difference of any output."""
        return worst_of(self.differences).largest

    @property
    def relative(self) -> float:
        """The same as a part of the largest answer of that output."""
        return worst_of(self.differences).relative

    @property
    def sentence(self) -> str:
        """What was written and how far it is from the model."""
        return (
            f"{shown(self.path)} ({self.title}, {size_text(self.nbytes)}) answers as {self.origin} on {self.rows} sample "
            f"row{'s' if self.rows != 1 else ''} in {self.runtime}: largest difference {self.largest:.2g}, "
            f"{self.relative:.1g} of the largest answer."
        )

    def __str__(self) -> str:
        return "\n".join((self.sentence, *self.notes))

    def report(self) -> bytes:
        """The same as JSON, for programs."""
        return wire.encode(
            {
                "format": self.format,
                "runtime": self.runtime,
                "bytes": self.nbytes,
                "rows": self.rows,
                "origin": self.origin,
                "differences": {
                    difference.output: {"largest": difference.largest, "relative": difference.relative} for difference in self.differences
                },
                "notes": self.notes,
                "sha256": self.sha256,
                "aiaas_magics": settings.package_version(),
            }
        )


def export_model(
    model: Any,
    to: str,
    *,
    out: str | Path | None = None,
    name: str | None = None,
    sample: Any = None,
    other_samples: Sequence[Any] = (),
    on_step: Callable[[str], None] = lambda step: None,
) -> ExportedModel:
    """Write `model` to a file or folder that another program reads, and compare its answers with the model's own.

    The file is opened by the format's own runtime and computes the sample rows. It gets its name only if every answer is near enough;
    else nothing is left behind.

    Args:
        model: a Keras model, a task of KerasHub, or anything else that `Backend.deploy` takes.
        to: "onnx", "saved_model", "keras", "tflite", "openvino" or "huggingface".
        out: the folder to write into, or the file itself if it ends with the format's suffix; None is the working directory.
        name: the file's name without its suffix; None is the model's name.
        sample: typical rows, in the form that `predict` takes, of shape `(rows, ...)`; None uses rows of the last fit.
        other_samples: rows that differ from `sample` in the size of a dimension, which is free then in the file.
        on_step: called with a few words before each step.

    Raises:
        CannotExport: the format cannot hold the model, its runtime is not installed, or the file answers differently.
        DataMismatch, NoSamples: the sample rows are not known or do not fit.
    """
    kind = format_of(to)
    check_installed(kind)
    on_step("computing sample rows")
    if kind.name == "huggingface" and sample is None and huggingface_folder.is_language_model(model):
        return export_source(_of_language_model(model), kind, out=out, name=name or str(model.name), on_step=on_step)
    with source_of(model, sample, other_samples, name=name or "") as source:
        return export_source(source, kind, out=out, name=name or source.name, on_step=on_step)


def export_source(
    source: ExportSource,
    kind: ModelFormat,
    *,
    out: str | Path | None = None,
    name: str = "",
    at: Path | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> ExportedModel:
    """As `export_model`, of a source that was made already.

    Args:
        at: the very file or folder, in the place of `out` and `name`.
    """
    target = at or target_of(kind, out, name)
    on_step(f"writing it as {kind.title}")
    with partial_path(target, kind) as partial:
        notes, measured = _written_and_compared(source, kind, partial, on_step)
        exported = ExportedModel(
            path=target,
            format=kind.name,
            title=kind.title,
            runtime=kind.reader,
            nbytes=_size(partial),
            rows=sum(sample.count for sample in source.samples),
            origin=source.origin,
            differences=measured,
            notes=(*notes, *source.notes),
            sha256=hash_of(partial),
        )
        if kind.is_folder:
            (partial / REPORT).write_bytes(exported.report())
        put_in_place(partial, target)
    return exported


def _written_and_compared(
    source: ExportSource, kind: ModelFormat, partial: Path, on_step: Callable[[str], None]
) -> tuple[tuple[str, ...], tuple[OutputDifference, ...]]:
    try:
        with export_formats.quiet():
            notes = kind.write(source, partial)
    except (NotExpressible, CannotExport) as error:
        raise CannotExport(f"{source.title} cannot be written as {kind.title}: {error}. Try {_elsewhere(source, kind)}.") from error
    except Exception as error:
        reason = export_formats.reason_of(error)
        raise CannotExport(f"{source.title} cannot be written as {kind.title}: {reason}. Try {_elsewhere(source, kind)}.") from error
    on_step(f"computing the sample rows with {kind.reader}")
    try:
        with export_formats.quiet():
            measured = differences(source.samples, kind.open(source, partial), source.allowed)
    except Exception as error:
        reason = export_formats.reason_of(error)
        raise CannotExport(
            f"{source.title} was written as {kind.title}, but {kind.reader} does not compute it: {reason}. The file was removed. "
            f"Try {_elsewhere(source, kind)}."
        ) from error
    worst = worst_of(measured)
    if not worst.agrees:
        raise CannotExport(
            f"{source.title} was written as {kind.title}, but {kind.reader} answers otherwise than {source.origin}: output "
            f"{worst.output!r} differs by {worst.largest:.2g}, {worst.relative:.1g} of its largest answer. The file was removed. "
            f"Try {_elsewhere(source, kind)}."
        )
    return notes, measured


def _elsewhere(source: ExportSource, kind: ModelFormat) -> str:
    """What holds the model instead: of an endpoint the very form that it serves."""
    if source.model is None:
        return f"--to {source.format}, or export the Keras model"
    return ELSEWHERE[kind.name]


def _of_language_model(model: Any) -> ExportSource:
    """A language model of KerasHub, with its logits of made-up tokens."""
    rows = huggingface_folder.token_rows(model)
    answers = {huggingface_folder.LOGITS: huggingface_folder.logits_of(model, rows)}
    return ExportSource(
        name=str(model.name),
        inputs=(),
        outputs=(),
        samples=(SampleSet(rows, answers),),
        allowed=NEAR_LOGITS,
        origin="Keras",
        model=model,
    )


def size_text(nbytes: int) -> str:
    """A size as people read it.

    >>> size_text(1_534), size_text(2_000_000)
    ('1.5 kB', '2.0 MB')
    """
    return f"{nbytes / 1e6:,.1f} MB" if nbytes >= 1_000_000 else f"{nbytes / 1e3:,.1f} kB"


# --------------------------------------------------------------------------- formats, by name and by suffix


def format_of(name: str) -> ModelFormat:
    """The format of this name.

    Raises:
        CannotExport: there is none, or nothing that is kept writes it.
    """
    if name in REFUSED:
        raise CannotExport(REFUSED[name])
    if name not in FORMATS:
        raise CannotExport(f"{name!r} is no format of a model file. Use one of {', '.join(FORMATS)}.")
    return FORMATS[name]


def format_of_path(path: str | Path) -> ModelFormat:
    """The format that a path's suffix says; a folder is a SavedModel."""
    suffix = Path(path).suffix
    kind = next((kind for kind in FORMATS.values() if kind.suffix == suffix and suffix), None)
    if kind is None and suffix:
        suffixes = ", ".join(kind.suffix for kind in FORMATS.values() if kind.suffix)
        raise CannotExport(f"{str(path)!r} says no format. Use a path that ends with one of {suffixes}, or name the format.")
    return kind or FORMATS["saved_model"]


def check_installed(kind: ModelFormat) -> None:
    """Raises `CannotExport` where the runtime that compares is not here."""
    if not kind.is_installed:
        raise CannotExport(
            f"{kind.title} is compared with Keras by {kind.distribution()}, which is not installed. "
            f"Run %pip install 'aiaas_magics[{kind.extra}]', or %pip install {kind.distribution()}."
        )


# --------------------------------------------------------------------------- files


def target_of(kind: ModelFormat, out: str | Path | None, name: str) -> Path:
    """Where the model goes: `out` itself if it has the format's suffix, else a file or folder of the model's name in it.

    Raises:
        CannotExport: something is there that is not ours to replace.
    """
    given_path = Path.cwd() if out is None else Path(out).expanduser()
    own = re.sub(r"[/\\\0]+", "_", name)
    target = given_path if kind.suffix and given_path.suffix == kind.suffix else kind.path_in(given_path, own)
    check_replaceable(target)
    return target


def check_replaceable(target: Path) -> None:
    """Raises `CannotExport` for a folder that no export wrote."""
    if target.is_dir() and any(target.iterdir()) and not (target / REPORT).is_file():
        raise CannotExport(f"The folder {str(target)!r} is there already, and no export wrote it. Give another --out, or remove it first.")


@contextmanager
def partial_path(target: Path, kind: ModelFormat | None = None) -> Iterator[Path]:
    """A path for writing, on the same disk; whatever is there at the end is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".aiaas-{secrets.token_hex(4)}-", dir=target.parent) as folder:
        yield Path(folder) / (target.name if kind is None or kind.suffix else "folder")


def put_in_place(partial: Path, target: Path) -> None:
    """Give what was written its name, in the place of what an earlier export left there."""
    if partial.is_dir() and target.exists():
        check_replaceable(target)
        aside = partial.parent / "before"
        os.replace(target, aside)
        try:
            os.replace(partial, target)
        except OSError:
            os.replace(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
        return
    for suffix in PARTNERS.get(partial.suffix, ()):
        os.replace(partial.with_suffix(suffix), target.with_suffix(suffix))
    os.replace(partial, target)


def shown(path: Path) -> Path:
    """The path as the user's folder sees it: a notebook that is passed on does not name the folders of its author."""
    with suppress(OSError, ValueError):
        return path.relative_to(Path.cwd())
    return path


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and file.name != REPORT)
    return [path, *(path.with_suffix(suffix) for suffix in PARTNERS.get(path.suffix, ()))]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path))


def hash_of(path: Path) -> str:
    """SHA-256 of a file; of several files that of their names and hashes, in the order of the names."""
    files = _files(path)
    hashes = [_sha256(file) for file in files]
    if len(files) == 1 and not path.is_dir():
        return hashes[0]
    names = [file.relative_to(path if path.is_dir() else path.parent).as_posix() for file in files]
    return hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in zip(names, hashes, strict=True)).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
