"""Shown figures: what the user's code draws while it trains, kept as PNG in the job's folder.

Owns which figures are kept and how many. matplotlib is imported by the user's code or not at all; what it then draws with is
`matplotlib_backend`. Serving the files belongs to `server`, fetching them to `backend`.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from pathlib import Path
from typing import Any, Final

from aiaas_magics.backend.folders.small_files import is_no_room, write_private
from aiaas_magics.backend.training.event_channel import EventChannel
from aiaas_magics.core.events import MOST_FIGURE_BYTES, FigureShown

MOST_FIGURES: Final = 50  # of an attempt; guess: more do not fit a notebook
BACKEND: Final = "module://aiaas_magics.backend.training.matplotlib_backend"


class ShownFigures:
    """Keeps what is shown, of worker 0. Others draw as well, and nobody looks at it."""

    def __init__(self, folder: Path, channel: EventChannel, *, attempt: int, rank: int) -> None:
        self._folder, self._channel, self._attempt, self._rank = folder, channel, attempt, rank
        self._count = 0

    def keep(self, figure: Any) -> None:
        if self._rank:
            return
        self._count += 1
        if self._count > MOST_FIGURES:
            if self._count == MOST_FIGURES + 1:
                print(f"(More than {MOST_FIGURES} figures were shown; the rest is left out.)", flush=True)
            return
        png = io.BytesIO()
        figure.savefig(png, format="png", bbox_inches="tight")  # as Jupyter's inline figures are
        data = png.getvalue()
        if len(data) > MOST_FIGURE_BYTES:
            print(f"(Figure {self._count} has {len(data) / 1e6:.1f} MB and is left out: use a smaller dpi or figsize.)", flush=True)
            return
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_private(self._folder / f"{self._attempt}-{self._count}.png", data)
        except OSError as error:
            if not is_no_room(error):
                raise
            print(f"(Figure {self._count} is left out: there is no room on the disk of the backend.)", flush=True)
            return
        self._channel.send(FigureShown(number=self._count))


current: ShownFigures | None = None  # of this process


def begin(figures: ShownFigures) -> None:
    """From now on what matplotlib shows in this process is kept. After unpacking, which brings the kernel's own MPLBACKEND."""
    global current
    current = figures
    os.environ["MPLBACKEND"] = BACKEND
    if (matplotlib := sys.modules.get("matplotlib")) is not None:
        matplotlib.use(BACKEND)


def show_open() -> None:
    """What is still open when training has ended is shown then, as at a cell's end."""
    if (module := sys.modules.get("aiaas_magics.backend.training.matplotlib_backend")) is not None:
        try:
            module.FigureManager.pyplot_show()
        except Exception:  # noqa: BLE001 - border: a user's figure that cannot be drawn must not cost the training that is done
            traceback.print_exc()
