"""Tracebacks: errors as blocks that show the user's own cell.

Owns the rendering and the mapping to "Cell In[n], line k". What an error says belongs to
`errors`; which class is raised belongs to whoever raises it.
"""

from __future__ import annotations

import linecache
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from msgspec.structs import replace

from aiaas_magics.core.errors import AiaasError, RemoteTrainingError
from aiaas_magics.core.errors.cell_errors import remote_move
from aiaas_magics.core.remote_error import ErrorReport, Frame

CONTEXT: Final = 2  # lines before and after, as IPython shows
NO_FILE: Final = (
    "Workers run in their own folder. Read files before fit, or use absolute paths that exist on the backend. "
    "The model in the kernel is unchanged."
)
NEXT: Final = {"FileNotFoundError": NO_FILE, "NotFoundError": NO_FILE}  # Python's, and TensorFlow's
OURS: Final = str(Path(__file__).parents[1]) + os.sep
CAPTURE: Final = str(Path(__file__).with_name("capture.py"))
TIMED: Final = ("<timed exec>", "<timed eval>")  # IPython's %%time and %time
TIME_CALL: Final = "%%time"
MOST_FRAMES: Final = 6  # of the user's own; a recursion is cut in the middle (guess)


class Interrupted(KeyboardInterrupt):
    """The user interrupted a cell and the job was told. Shown as one line, and Run All stops."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.said = sentence

    def _render_traceback_(self) -> list[str]:
        return [self.said]


def attach(error: BaseException, lines: Sequence[str]) -> None:
    """Make IPython show exactly `lines` for `error`; its class and `sys.last_value` stay as they are."""
    error._render_traceback_ = lambda: list(lines)  # type: ignore[attr-defined]


def show_blocks(shell: Any) -> None:
    """From now on our own errors are shown as blocks wherever they are raised: in a magic, by `job.result()`, by a guarded model."""

    def render(error: AiaasError) -> list[str]:
        return block(error, shell)

    AiaasError._render_traceback_ = render  # type: ignore[attr-defined]


def stop_showing_blocks() -> None:
    if hasattr(AiaasError, "_render_traceback_"):
        del AiaasError._render_traceback_


def block(error: AiaasError, shell: Any) -> list[str]:
    """Where in the cell, what, and the next move; no frames of ours."""
    # A line magic alone in its cell is all of the cell: nothing is gained by showing what IPython made of it.
    where = [frame for frame in cell_frames(error.__traceback__, shell) if not frame.source.startswith("get_ipython().run_")]
    if isinstance(error, RemoteTrainingError):
        return remote_block(error.report, shell, where[-1:])
    return [
        *(line for frame in where[-1:] for line in frame_block(frame, shell)),
        f"{type(error).__name__}: {_with_cells(str(error), shell)}",
    ]


def _with_cells(text: str, shell: Any) -> str:
    """What a library says of lines of cells, with the cells' own names."""
    for file in getattr(getattr(shell, "compile", None), "_filename_map", {}):
        text = text.replace(f'File "{file}"', place(file, shell))
    return text


def attach_local(error: BaseException, shell: Any, file: str) -> None:
    """An exception of the cell's own code: IPython's traceback, beginning in the cell instead of in ours."""
    if isinstance(error, SyntaxError):
        attach(error, shell.SyntaxTB.structured_traceback(type(error), error, []))
        return
    attach(error, shell.InteractiveTB.structured_traceback(type(error), error, _of_cell(error.__traceback__, file), tb_offset=0))


def _of_cell(trace: TracebackType | None, file: str) -> TracebackType | None:
    """The part that begins in the cell, without frames of ours. An error of our own keeps them: they are what a report of it needs."""
    parts = [] if trace is None else [trace]
    while parts and parts[-1].tb_next is not None:
        parts.append(parts[-1].tb_next)
    names = [part.tb_frame.f_code.co_filename for part in parts]
    first = names.index(file) if file in names else 0
    is_ours = bool(names) and names[-1].startswith(OURS) and names[-1] != CAPTURE  # which refuses a wrong call, as Python does
    frames: TracebackType | None = None
    for part, name in reversed(list(zip(parts[first:], names[first:], strict=True))):
        if is_ours or not name.startswith(OURS):
            frames = TracebackType(frames, part.tb_frame, part.tb_lasti, part.tb_lineno)
    return frames


# --------------------------------------------------------------------------- remote errors


def remote_block(report: ErrorReport, shell: Any, where: Sequence[Frame] = ()) -> list[str]:
    """The user's own frames with their lines; a library's frames are counted, equal ranks were folded before.

    Where no line of the user's was running in the worker, `where` stands for it: the `fit` in the cell.
    """
    during = f" while {report.phase}" if report.phase else ""
    lines = [f"{report.type} on {report.where()}{during}"]
    running = [frame for frame in report.frames if frame.user]
    own = running or list(where) or list(report.frames[-1:])
    frames = own if len(own) <= MOST_FRAMES else [*own[: MOST_FRAMES // 2], *own[-MOST_FRAMES // 2 :]]
    for index, frame in enumerate(frames):
        if len(frames) < len(own) and index == MOST_FRAMES // 2:
            lines.append(f"... {len(own) - len(frames)} more of your frames ...")
        lines += frame_block(frame, shell)
    inner = _library_frames_after(report.frames, own[-1]) if running else len(report.frames) if where else 0
    if inner:
        last = report.frames[-1]
        lines.append(f"  (then {inner} frames in libraries, the last in {last.function}, {_short(last.file)}:{last.line})")
    move = NEXT.get(report.type, f"{remote_move(report)}; the model in the kernel is unchanged.")
    return [*lines, "", f"{report.type}: {report.message}", move]


def _library_frames_after(frames: Sequence[Frame], last_own: Frame) -> int:
    position = max((index for index, frame in enumerate(frames) if frame is last_own), default=len(frames) - 1)
    return len(frames) - 1 - position


def frame_block(frame: Frame, shell: Any) -> list[str]:
    """`Cell In[3], line 4, in train_step` and the lines around it, an arrow at the line."""
    inside = f", in {frame.function}" if frame.function not in {"", "<module>"} else ""
    head = f"{place(frame.file, shell)}, line {frame.line}{inside}"
    lines = linecache.getlines(frame.file)
    if not 0 < frame.line <= len(lines):
        return [head, f"----> {frame.line} {frame.source.strip()}"] if frame.source else [head]
    first, last = max(1, frame.line - CONTEXT), min(len(lines), frame.line + CONTEXT)
    return [
        head,
        *(_numbered(number, lines[number - 1].rstrip("\n"), is_current=number == frame.line) for number in range(first, last + 1)),
    ]


def _numbered(number: int, line: str, *, is_current: bool) -> str:
    arrow = "-" * max(1, 5 - len(str(number))) + "> " if is_current else ""
    return f"{arrow}{number:>{7 - len(arrow)}} {line}".rstrip() if not is_current else f"{arrow}{number} {line}".rstrip()


def place(file: str, shell: Any) -> str:
    """ "Cell In[3]" for a cell's file, else the file's name."""
    name = getattr(getattr(shell, "compile", None), "format_code_name", lambda _: None)(file)
    if name:
        kind, shown = name
        return f"{kind} {shown}"
    return f"File {_short(file)}"


def cell_frames(trace: TracebackType | None, shell: Any) -> list[Frame]:
    """The frames of a local traceback that lie in cells, outermost first."""
    files = getattr(getattr(shell, "compile", None), "_filename_map", {})
    frames: list[Frame] = []
    for entry in traceback.extract_tb(trace):
        line = entry.lineno or 0
        if entry.filename in files:
            frames.append(Frame(file=entry.filename, line=line, function=entry.name, source=entry.line or "", user=True))
        elif entry.filename in TIMED and frames and TIME_CALL in frames[-1].source:
            # %%time compiles what stands below it by itself: its first line is the one after %%time.
            cell = frames[-1]
            at = cell.line + line
            frames.append(replace(cell, line=at, function=entry.name, source=linecache.getline(cell.file, at).strip()))
    return frames


def _short(file: str) -> str:
    """The last two parts of a path: enough to find a library's module, and no machine's folders in a saved output."""
    return "/".join(file.replace("\\", "/").split("/")[-2:])
