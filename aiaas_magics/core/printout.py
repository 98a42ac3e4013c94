"""Printout: what workers print, as the cell that trains would have shown it.

Owns which lines those are; pure. Reading the output belongs to `backend.workers`, where it is written to `notebook`.

The output of a rank is a file that also holds what is no concern of a cell's: messages of TensorFlow's C++ parts, and what we say
in it ourselves. `%aiaas_logs` shows all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from aiaas_magics.core.events import Entry, FigureShown, Output

OWN_PREFIX: Final = "aiaas_magics: "  # begins each line that we print in a worker ourselves
ENDING: Final = f"{OWN_PREFIX}the worker ended:"  # what follows is told as the job's error
_NOISE: Final = re.compile(
    rf"""(?x)
    {re.escape(OWN_PREFIX)}
    | [IWEF]\d{{4}}[ ]\d\d:\d\d:\d+\.\d+[ ]+\d+[ ]\S+:\d+\]     # absl's C++ log
    | \d{{4}}-\d\d-\d\d[ ]\d\d:\d\d:\d\d\.\d+:[ ][IWEF][ ]\S+:\d+\]  # TensorFlow's, before absl
    | WARNING:[ ]All[ ]log[ ]messages[ ]before[ ]absl::InitializeLog
    | To[ ]enable[ ]the[ ]following[ ]instructions:
    | WARNING:tensorflow:\d+[ ]out[ ]of[ ]the[ ]last[ ]\d+[ ]calls  # retracing: the steps are ours
    """
)
# How long something took differs between two ranks that print the same.
_DURATION: Final = re.compile(r"\d[\d.]*[ ]?(?:us|µs|ms|s|min)\b(?:/\w+)?")


@dataclass(frozen=True, slots=True)
class Figure:
    """One that worker 0 showed."""

    attempt: int
    number: int


class Printout:
    """The lines of a job's workers, collected from its log. Worker 0's are shown; of the others it is known who printed other lines."""

    def __init__(self) -> None:
        self.lines = 0  # that a cell shows, in all
        self._pending: list[str | Figure] = []
        self._ended: set[tuple[int, int]] = set()  # attempt and rank
        self._shown: set[str] = set()
        self._other_ranks: dict[int, set[str]] = {}

    def add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if isinstance(entry.event, Output) and entry.rank is not None:
                self._print(entry.attempt, entry.rank, entry.event.text.split("\n"))
            elif isinstance(entry.event, FigureShown) and entry.rank == 0:
                self._pending.append(Figure(entry.attempt, entry.event.number))

    def take(self) -> list[str | Figure]:
        """Worker 0's lines and figures since this was asked last."""
        pending, self._pending = self._pending, []
        return pending

    def ranks_that_differ(self) -> list[int]:
        """Ranks that printed a line that worker 0 did not. Asked at the end, since ranks do not print in step."""
        return [rank for rank, lines in sorted(self._other_ranks.items()) if not lines <= self._shown]

    def _print(self, attempt: int, rank: int, lines: Sequence[str]) -> None:
        for line in lines:
            if line.startswith(ENDING):
                self._ended.add((attempt, rank))
            if (attempt, rank) in self._ended or _NOISE.match(line):
                continue
            same = _DURATION.sub("…", line)
            if rank:
                self._other_ranks.setdefault(rank, set()).add(same)
            else:
                self._shown.add(same)
                self._pending.append(line)
                self.lines += 1


def differing(ranks: Sequence[int], job: str) -> str:
    """Who printed other lines than the one that is shown, as a sentence; empty where nobody did."""
    if not ranks:
        return ""
    subject = (
        f"Worker {ranks[0]}" if len(ranks) == 1 else f"Workers {', '.join(map(str, ranks[:8]))}{' and more' if len(ranks) > 8 else ''}"
    )
    return f"{subject} printed different lines; %aiaas_logs {job} shows them"


def counted(printout: Printout, job: str) -> str:
    """That there is something to read, where its lines are not shown; empty where nothing was printed."""
    if not printout.lines:
        return ""
    return f"The workers printed {printout.lines:,} line{'' if printout.lines == 1 else 's'}; %aiaas_logs {job} shows them"
