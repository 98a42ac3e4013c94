"""Taking connections from the socket that front ends share, so that each of them gets its part.

Owns whose turn it is, and the table in shared memory of how many connections each has. Accepting itself belongs to `accepting`.

Left to themselves, whoever is awake first takes all that waits: of sixteen connections that came at once, between eight and
all went to one of two processes (measured here), and clients keep their connections for long. So one that has more than another
lets a moment pass before it takes the next. Nobody is waited for longer than that.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from aiaas_magics.backend.net.accepting import Accepting
from aiaas_magics.backend.serving.process.control import MOST_FRONT_ENDS

MOMENT_S: Final = 1e-3  # guess: an idle process wakes and accepts in a tenth of that


class Table:
    """How many connections each front end has, in a file that all of them map.

    Args:
        index: This front end's number; that of the first is 0, and it makes the table anew.
    """

    def __init__(self, path: Path, index: int) -> None:
        self._index = index
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | (0 if index else os.O_TRUNC), 0o600)
        try:
            os.ftruncate(descriptor, 4 * MOST_FRONT_ENDS)
            self._counts = memoryview(mmap.mmap(descriptor, 4 * MOST_FRONT_ENDS)).cast("I")  # one more than there are; 0 is nobody
        finally:
            os.close(descriptor)

    def say(self, connections: int) -> None:
        """So many does this front end have."""
        self._counts[self._index] = connections + 1

    def leave(self, index: int | None = None) -> None:
        """A front end takes no more; this one, unless said otherwise."""
        self._counts[self._index if index is None else index] = 0

    def others(self) -> list[int]:
        return [count - 1 for index, count in enumerate(self._counts) if count and index != self._index]


def is_anothers_turn(own: int, others: Collection[int]) -> bool:
    """Whether a front end with so many connections lets the others have the next one."""
    return own > min(others, default=own)


class Taking(Accepting):
    """Accepts in turn with the others of a table."""

    def __init__(self, listener: socket.socket, *, table: Table, **options: Any) -> None:
        super().__init__(listener, **options)
        self._table, self._has_paused = table, False
        self.say()

    def say(self) -> None:
        self._table.say(len(self._connections) + len(self._beginning))

    def close(self) -> None:
        super().close()
        self._table.leave()

    def _ready(self) -> None:
        own = len(self._connections) + len(self._beginning)
        if not self._has_paused and is_anothers_turn(own, self._table.others()):
            self._wait(MOMENT_S)
            return
        self._has_paused = False
        super()._ready()

    def _go_on(self) -> None:
        self._has_paused = True
        super()._go_on()

    def _begin(self, accepted: socket.socket) -> None:
        super()._begin(accepted)
        self.say()
