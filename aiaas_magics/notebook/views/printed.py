"""Workers' lines below the cell that trains.

Owns how many of them a cell takes; which lines there are belongs to `printout`. They are ordinary standard output, so that a saved
notebook, a static viewer and papermill have them. Called in the cell's own thread: in another one they could come up in a later cell.
"""

from __future__ import annotations

from typing import Final

from aiaas_magics.plain_text import visible
from aiaas_magics.printout import Printout, differing

CELL_LINES: Final = 1_000  # guess: some screens; a page with more is slow to open, and nobody reads it
CELL_CHARACTERS: Final = 200_000  # guess


class CellLines:
    """Prints what the workers of one cell's fits print, up to a bound for all of them together."""

    def __init__(self) -> None:
        self._lines, self._characters = CELL_LINES, CELL_CHARACTERS
        self._is_cut = False

    def show(self, printout: Printout, job: str) -> None:
        """What is new."""
        lines = [visible(line) for line in printout.take()]
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
            print(f"(The workers print more than a cell shows; the rest is in %aiaas_logs {job} --lines 100000)", flush=True)

    def end(self, printout: Printout, job: str, *, succeeded: bool) -> None:
        """The rest, and who of the workers printed something else: of a job that was ended none has come equally far."""
        self.show(printout, job)
        if succeeded and (said := differing(printout.ranks_that_differ(), job)):
            print(said, flush=True)
