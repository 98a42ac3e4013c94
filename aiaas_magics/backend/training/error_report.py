"""Error report: an exception of the user's code as data.

Owns which frames are the user's own: not the standard library's, not an installed package's, not
ours. Cells keep the file names that they had in the kernel, so that lines can be shown there.
"""

from __future__ import annotations

import functools
import linecache
import os
import site
import sysconfig
import traceback
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from aiaas_magics.core import keras_messages
from aiaas_magics.core.errors import BackendError, DataMismatch, InvalidSpec, UsageError
from aiaas_magics.core.events import Phase
from aiaas_magics.core.remote_error import ErrorReport, Frame

FRAMES: Final = 60  # guess: recursion shows in fewer
TEXT: Final = 20_000  # characters of a traceback and of a message; guess


def report_of(error: BaseException, *, rank: int, phase: str = "") -> ErrorReport:
    """What happened, bounded in size, without a reference to anything of the process."""
    frames = [frame_of(frame) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append(
            Frame(file=error.filename, line=error.lineno or 0, function="", source=(error.text or "").strip(), user=is_user(error.filename))
        )
    # An operation that fails within a compiled step has no frame of the line that made it; TensorFlow remembers it in words.
    graph_frames = (
        Frame(file=at.file, line=at.line, function=at.function, user=True) for at in keras_messages.lines_of(error) if is_user(at.file)
    )
    frames += [replace(frame, source=linecache.getline(frame.file, frame.line).strip()) for frame in graph_frames]
    text = "".join(traceback.format_exception(error))
    kind, arguments = own_kind(error, phase)
    return ErrorReport(
        type=type(error).__name__,
        bases=tuple(_name_of(cls) for cls in type(error).__mro__ if cls is not object),
        message=keras_messages.message_of(error)[:TEXT],
        frames=tuple(frames[-FRAMES:]),
        ranks=(rank,),
        phase=phase,
        kind=kind,
        args=arguments,
        traceback=text if len(text) <= TEXT else f"{text[: TEXT // 2]}\n...\n{text[-TEXT // 2 :]}",
    )


def own_kind(error: BaseException, phase: str) -> tuple[str, tuple[str, ...]]:
    """The class of ours and its arguments, as which an error is raised again in the kernel; "" for an error of the user's code.

    What is wrong with an explanation is found out where the model is, and is no fault of the model's code.
    """
    if isinstance(error, BackendError):
        return type(error).__name__, tuple(map(str, error.args))
    if isinstance(error, UsageError) and phase == Phase.EXPLAINING:
        return (DataMismatch if isinstance(error, DataMismatch) else InvalidSpec).__name__, (str(error),)
    return "", ()


def _name_of(cls: type) -> str:
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"


def frame_of(frame: traceback.FrameSummary) -> Frame:
    source = frame.line or linecache.getline(frame.filename, frame.lineno or 0)
    return Frame(file=frame.filename, line=frame.lineno or 0, function=frame.name, source=source.strip(), user=is_user(frame.filename))


def is_user(file: str) -> bool:
    """Whether a line of this file is the user's own. Cells and code that came by value have no file here: they are."""
    if file.startswith("<frozen") or file in ("<string>", "<__array_function__ internals>") or "__autograph_generated_file" in file:
        return False
    return not file.startswith(_not_the_users())


@functools.cache
def _not_the_users() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {*site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parents[2])}
    folders |= {str(Path(folder).resolve()) for folder in folders}
    return tuple(folder.rstrip(os.sep) + os.sep for folder in folders)
