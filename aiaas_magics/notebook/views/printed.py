"""Printed output: workers' lines and figures below the cell that trains.

Owns how many of them a cell takes; which there are belongs to `printout`. They are ordinary outputs, so that a saved
notebook, a static viewer and papermill have them. Called in the cell's own thread: in another one they could come up in a later cell.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Final

from IPython.display import display

from aiaas_magics.core.errors import AiaasError
from aiaas_magics.core.plain_text import visible
from aiaas_magics.core.printout import Figure, Printout, differing

CELL_LINES: Final = 1_000  # guess: some screens; a page with more is slow to open, and nobody reads it
CELL_CHARACTERS: Final = 200_000  # guess
CELL_FIGURES: Final = 50  # guess, as of one job

Fetch = Callable[[int, int], bytes]  # the PNG of a figure, by attempt and number


class CellLines:
    """Shows what the workers of one cell's fits print and draw, up to a bound for all of them together."""

    def __init__(self) -> None:
        self._lines, self._characters, self._figures = CELL_LINES, CELL_CHARACTERS, CELL_FIGURES
        self._is_cut = False

    def show(self, printout: Printout, job: str, fetch: Fetch) -> None:
        """What is new."""
        lines: list[str] = []
        for item in printout.take():
            if isinstance(item, Figure):
                self._print(lines, job)
                lines = []
                self._draw(item, fetch)
            else:
                lines.append(visible(item))
        self._print(lines, job)

    def end(self, printout: Printout, job: str, fetch: Fetch, *, succeeded: bool) -> None:
        """The rest, and who of the workers printed something else: of a job that was ended none has come equally far."""
        self.show(printout, job, fetch)
        if succeeded and (sentence := differing(printout.ranks_that_differ(), job)):
            print(sentence, flush=True)

    def _print(self, lines: list[str], job: str) -> None:
        shown = 0
        for line in lines:
            if not self._lines or len(line) > self._characters:
                self._lines = 0
                break
            self._lines, self._characters, shown = self._lines - 1, self._characters - len(line), shown + 1
        if shown:
            print("\n".join(lines[:shown]), flush=True)
        if shown < len(lines) and not self._is_cut:
            self._is_cut = True
            print(f"(The cell shows only part of the output; %aiaas_logs {job} --lines 100000 shows the rest.)", flush=True)

    def _draw(self, figure: Figure, fetch: Fetch) -> None:
        self._figures -= 1
        if self._figures < 0:
            if self._figures == -1:
                print(f"(Only the first {CELL_FIGURES} figures are shown.)", flush=True)
            return
        try:
            data = fetch(figure.attempt, figure.number)
        except AiaasError as error:  # a figure less, and the training goes on
            print(f"(Figure {figure.number} is not shown: {error})", flush=True)
            return
        display({"image/png": base64.b64encode(data).decode("ascii"), "text/plain": f"Figure {figure.number} of worker 0"}, raw=True)
