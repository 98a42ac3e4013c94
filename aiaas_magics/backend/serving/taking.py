"""Taking connections from the socket that front ends share, so that each of them gets its part.

Owns accepting, and the table in shared memory of how many connections each has. What is spoken on a connection belongs to
`http1`. Where there is one front end, the event loop's own server accepts.

Left to themselves, whoever is awake first takes all that waits: of sixteen connections that came at once, between eight and
all went to one of two processes (measured here), and clients keep their connections for long. So one that has more than another
lets a moment pass before it takes the next. Nobody is waited for longer than that.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import socket
import ssl
from collections.abc import Callable, Collection, Sized
from pathlib import Path
from typing import Any, Final

from aiaas_magics.backend.serving.control import MOST_FRONT_ENDS

MOMENT_S: Final = 1e-3  # guess: an idle process wakes and accepts in a tenth of that
RETRY_S: Final = 1.0  # as asyncio's own server, when descriptors or memory are used up
USED_UP: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


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


class Taking:
    """Stands where uvicorn has an asyncio server: accepts until `close`."""

    def __init__(
        self,
        listener: socket.socket,
        *,
        protocol: Callable[[], asyncio.Protocol],
        connections: Sized,
        table: Table,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._listener, self._protocol, self._connections, self._table, self._tls = listener, protocol, connections, table, tls
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[Any]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._has_paused = False
        listener.setblocking(False)
        self.say()
        self._loop.add_reader(listener, self._ready)

    def say(self) -> None:
        self._table.say(len(self._connections) + len(self._beginning))

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)
        self._table.leave()

    async def wait_closed(self) -> None:
        """It is closed at once."""

    def _ready(self) -> None:
        """One at a time, so that what it brings is answered, and others wake, before the next."""
        own = len(self._connections) + len(self._beginning)
        if not self._has_paused and is_anothers_turn(own, self._table.others()):
            self._wait(MOMENT_S)
            return
        self._has_paused = False
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # another was quicker, or the caller is gone
            return
        except OSError as error:
            if error.errno not in USED_UP:
                raise
            self._wait(RETRY_S)
            return
        self._begin(accepted)

    def _wait(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._pause, self._has_paused = None, True
        self._loop.add_reader(self._listener, self._ready)

    def _begin(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._protocol, accepted, ssl=self._tls))
        self._beginning.add(task)
        task.add_done_callback(self._begun)
        self.say()

    def _begun(self, task: asyncio.Task[Any]) -> None:
        self._beginning.discard(task)
        if not task.cancelled():
            task.exception()  # a handshake that failed is the caller's affair
