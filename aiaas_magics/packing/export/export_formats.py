"""Export formats: ONNX, and a zip of a SavedModel where ONNX cannot express the model.

Owns trying one after the other, why one is not to be had and what to do about that. The conversion to ONNX belongs to
`onnx_export`, the function that is written to `keras_answers`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from aiaas_magics.core.agreement import compare, largest_of
from aiaas_magics.core.errors import UsageError
from aiaas_magics.core.precision import Precision
from aiaas_magics.packing.export import onnx_export
from aiaas_magics.packing.export.onnx_session import onnx_form

ONNX: Final = "onnx"
SAVED_MODEL: Final = "saved_model"
WORDS: Final = {ONNX: "ONNX", SAVED_MODEL: "a SavedModel"}
NOISY: Final = ("tf2onnx", "tensorflow", "absl")
MOST_ONNX_BYTES: Final = 2**31 - 1  # of a protobuf message, and an ONNX file is one


class CannotServe(UsageError):
    """The model cannot be exported. The argument is the whole sentence, next move included."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Keras' own answers to a set of sample rows, and how near a form must come to them."""

    rows: Mapping[str, np.ndarray]
    answers: Mapping[str, np.ndarray]
    allowed: Precision


def write_first_possible(
    model: Any,
    function: Any,
    formats: list[str],
    expected: Sequence[Expected],
    *,
    put_back: Callable[[], None],
    on_step: Callable[[str], None],
) -> tuple[str, bytes, str]:
    """The first of the formats that can be had, and why not the ones before it.

    Args:
        put_back: puts the model's state back, which a computation may change.

    Raises:
        CannotServe: none can.
    """
    makers: dict[str, Callable[[Any, Any, Path], bytes]] = {ONNX: _onnx, SAVED_MODEL: _saved_model}
    reasons: list[str] = []
    for kind in formats:
        on_step(f"writing it as {WORDS[kind]}")
        with tempfile.TemporaryDirectory(prefix="aiaas-export-") as folder:
            try:
                if kind == SAVED_MODEL:
                    for answers in expected:
                        _check_shapes(function, answers)
                    put_back()
                artefact = makers[kind](model, function, Path(folder))
                if kind == ONNX:
                    on_step("comparing the ONNX file's answers with Keras'")
                    for answers in expected:
                        check_answers(artefact, answers)
                return kind, artefact, "; ".join(reasons)
            except Exception as error:  # noqa: BLE001 - border: the exporters raise anything over an operator they do not know
                reasons.append(reason_of(error))
    why = "; ".join(dict.fromkeys(reasons))
    raise CannotServe(f"Model {model.name!r} cannot be exported ({' and '.join(formats)}: {why}). {_move(why, function)}")


def reason_of(error: BaseException) -> str:
    """What an exporter or a runtime said, as a clause of at most 300 characters."""
    behind = error.__cause__ or error.__context__
    if behind is not None and isinstance(behind, MemoryError):  # Keras makes another error of it, without its words
        return reason_of(behind)
    words = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())[:300]
    if isinstance(error, MemoryError) or re.search(r"bad.alloc|OOM when allocating|[Uu]nable to allocate", words):
        return "there is not enough memory for it"
    if "incompatible with expected resource" in words:
        return "a call changes its state, which an ONNX file cannot hold"
    if isinstance(error, OSError) and error.errno is not None:
        return f"its files cannot be written to {tempfile.gettempdir()}: {error.strerror}"
    return words.rstrip(".") or type(error).__name__


# What the exporters say, and what to do about it.
MOVES: Final = (
    (
        r"not enough memory",
        "An export takes several times the weights for a moment. Free memory in this kernel, or deploy where there is more of it.",
    ),
    (r"cannot be written to", "Make room there, or set TMPDIR to a folder with room before starting the kernel."),
    (r"valid (root )?scope name", "Rename the model and its layers: letters, digits, '.', '_', '/' and '-', with a letter or digit first."),
    (r"numpy|py_?func", "Replace Python and numpy code in call by keras.ops or TensorFlow operators."),
)
FREE_SIZE: Final = "Give every dimension of its Input but the first a size, or deploy the part of the model without the layer named there."
ANY_LAYER: Final = "Replace the layer that is named there, or deploy the part of the model without it."


def _move(why: str, function: Any) -> str:
    moves = [move for pattern, move in MOVES if re.search(pattern, why, re.IGNORECASE)]
    is_free = any(None in tuple(spec.shape)[1:] for spec in function.input_signature)
    return moves[0] if moves else FREE_SIZE if is_free else ANY_LAYER


def _onnx(model: Any, function: Any, folder: Path) -> bytes:
    check_onnx_size(model)
    return onnx_export.export(function)


def check_onnx_size(model: Any) -> None:
    """Raises `ValueError` for weights that no ONNX file holds."""
    from aiaas_magics.core.internals.keras_internals import weight_memory_size

    nbytes = weight_memory_size(model.variables)
    if nbytes > MOST_ONNX_BYTES:
        raise ValueError(f"its weights have {nbytes / 1e9:.1f} GB, and an ONNX file holds {MOST_ONNX_BYTES / 1e9:.1f} GB at most")


def _check_shapes(function: Any, expected: Expected) -> None:
    """Raises `ValueError` where the traced model gives other shapes: Keras fixes some of them by the sizes that are free in its Input."""
    answers = function(*expected.rows.values())
    for name, own in expected.answers.items():
        if tuple(answers[name].shape) != own.shape:
            shape = tuple(answers[name].shape)
            raise ValueError(f"traced with free sizes, Keras gives its output {name!r} the shape {shape} instead of {own.shape}")


def check_answers(artefact: bytes, expected: Expected) -> None:
    """Raises `ValueError` for a file whose answers the host's parity check would refuse, as of half precision and rare operators.

    The host decides; asked here first, by the same rule, such a model is served as a SavedModel instead of not at all.
    """
    rows, allowed = expected.rows, expected.allowed
    form, count = onnx_form(artefact), len(next(iter(rows.values())))
    for number in replayed(count):
        places = np.arange(number) % count
        answers = form({name: np.ascontiguousarray(array[places]) for name, array in rows.items()})
        for name, whole in expected.answers.items():
            per_row = len(whole) == count
            if whole.dtype.kind in "OSU" or not (per_row or number == count):
                continue
            part = whole[places] if per_row else whole
            if answers[name].shape != part.shape:
                raise ValueError(f"its output {name!r} has the shape {answers[name].shape} instead of {part.shape}")
            agreement = compare(answers[name], part, allowed, largest=largest_of(whole))
            if not agreement:
                raise ValueError(f"its answers differ from Keras' by {agreement.largest:.2g}")


def replayed(count: int) -> tuple[int, ...]:
    """How many of `count` sample rows are computed at once, one number after the other, as the host's parity check does."""
    return tuple(dict.fromkeys((1, 3, count)))


def _saved_model(model: Any, function: Any, folder: Path) -> bytes:
    write_saved_model(model, function, folder / "model")
    return zipped(folder / "model", folder / "model.zip")


def write_saved_model(model: Any, function: Any, folder: Path) -> None:
    """Write `function`, which calls `model`, as the signature `serving_default` of a SavedModel."""
    from aiaas_magics.core.internals.keras_internals import ExportArchive

    archive = ExportArchive()
    archive.track(model)
    function.get_concrete_function()
    archive.add_endpoint("serving_default", function)
    archive.write_out(str(folder), verbose=False)


def zipped(folder: Path, target: Path) -> bytes:
    """The files of a SavedModel's folder as the bytes of a zip, which is made on the disk: in memory it would stand twice."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(folder).as_posix())
    return target.read_bytes()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' log lines and warnings from the notebook.

    TensorFlow's C++ writes to the process's standard error, which Jupyter shows in the cell:
    the descriptor points elsewhere for the second that an export takes.
    """
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    sys.stderr.flush()
    stderr_copy = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        os.dup2(stderr_copy, 2)
        os.close(stderr_copy)
        os.close(nowhere)
