"""Fit lines: one line per fit in one output, for cells that fit again and again (folds, tuners, loops).

Owns the one output and how many lines it keeps. What a line says comes from `job_picture`, and at the end from `present`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from html import escape
from typing import Any, Final

from IPython.display import display

from aiaas_magics.notebook.views.job_picture import JobPicture
from aiaas_magics.notebook.views.panel import INK

Bundle = dict[str, Any]

FULL_FITS: Final = 2  # guess: so many panels of a cell fit a screen; from the next fit on each has a line
LAST_LINES: Final = 100  # guess: of a loop of thousands the newest are looked at


class LinesPainter:
    """Draws the picture of whatever fit runs as the last line; `close` makes a line of each line that stays of it.

    One painter serves all such fits of a cell, one after another. Without `draws` it prints lines when fits have ended.
    """

    def __init__(self, *, draws: bool) -> None:
        self._draws = draws
        self._handle: Any = None
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._older = 0
        self._shown: tuple[str, ...] = ()

    def open(self, picture: JobPicture) -> None:
        self.paint(picture)

    def paint(self, picture: JobPicture) -> None:
        self._draw(f"{picture.title}: {picture.status}")

    def close(self, bundles: Sequence[Bundle]) -> None:
        for line in (line for bundle in bundles for line in bundle.get("text/plain", "").splitlines()):
            self._older += len(self._lines) == LAST_LINES
            self._lines.append(line)
            if not self._draws:
                print(line, flush=True)
        self._draw()

    def _draw(self, *running: str) -> None:
        older = [f"({self._older:,} earlier lines)"] if self._older else []
        lines = (*older, *self._lines, *running)
        if not self._draws or lines == self._shown:
            return
        self._shown = lines
        rows = "".join(f"<div>{escape(line)}</div>" for line in lines)
        bundle = {"text/html": f'<div style="{INK};line-height:1.4">{rows}</div>', "text/plain": "\n".join(lines)}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
