"""Accepting: a server that takes one connection per turn of the event loop, within limits.

Owns what happens before anything is read: the pace, TLS handshakes that do not end, and what to do when descriptors are used up.
What is spoken on a connection, and how many there may be, belongs to `limited_http`.

The event loop's own server accepts all that waits before any of it is looked at. With descriptors used up, uvloop then closes
whatever waits, good and bad. Here each is made, and another closed for it if need be, before the next is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sized
from typing import Any, Final

import uvicorn

from aiaas_magics.backend.net.limited_http import HEAD_S, Connections, most_connections, raise_descriptors

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0  # as asyncio's own server, when descriptors or memory are used up
SAY_S: Final = 60.0  # guess: how often that is worth a line in the log
USED_UP: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
FREED: Final = 8  # guess: idle connections that are closed at once for that
FAREWELL_S: Final = 5.0  # guess: what the other side of a TLS connection gets to say that it is over; asyncio's own is 30 s
HANDSHAKES: Final = 1024  # guess: TLS handshakes under way


class LimitedServer(uvicorn.Server):
    """uvicorn's server with a limit on its connections, which are accepted one by one on sockets that it is given."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.connections = Connections(most_connections(raise_descriptors()))
        self.server_state.connections = self.connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if sys.platform == "win32":  # where no event loop tells when a socket can be accepted from
            await super().startup(sockets)
            return
        await self.lifespan.startup()
        self.servers = [self.accepting(listener) for listener in sockets or ()]  # type: ignore[misc]
        self.started = True

    def accepting(self, listener: socket.socket) -> Accepting:
        return Accepting(
            listener,
            protocol=self.protocol,
            connections=self.connections,
            make_room=self.connections.close_one,
            handshakes=self.connections.most // 2,
            tls=self.config.ssl,
        )

    def protocol(self) -> asyncio.Protocol:
        """A new connection."""
        connection: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return connection


class Accepting:
    """Stands where uvicorn has an asyncio server: accepts until `close`.

    Args:
        make_room: Closes a connection that is idle, and says whether there was one.
        handshakes: How many TLS handshakes may be under way; for another one the oldest is given up.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        protocol: Callable[[], asyncio.Protocol],
        connections: Sized,
        make_room: Callable[[], bool] = lambda: False,
        handshakes: int = HANDSHAKES,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._listener, self._protocol, self._connections, self._tls = listener, protocol, connections, tls
        self._make_room, self._handshakes = make_room, handshakes
        self._loop = asyncio.get_running_loop()
        self._beginning: dict[asyncio.Task[Any], socket.socket] = {}  # in the order in which they came
        self._ending: set[asyncio.Task[Any]] = set()  # handshakes that were given up
        self._pause: asyncio.TimerHandle | None = None
        self._said_s = -SAY_S
        listener.setblocking(False)
        self._loop.add_reader(listener, self._ready)

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)

    async def wait_closed(self) -> None:
        """It is closed at once."""

    def _ready(self) -> None:
        """One at a time, so that what it brings is answered, and others wake, before the next."""
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # another was quicker, or the caller is gone
            return
        except OSError as error:
            if error.errno not in USED_UP:
                raise
            self._starved(error)
            return
        self._begin(accepted)

    def _starved(self, error: OSError) -> None:
        """Nothing can be accepted: what waits goes on waiting, and idle connections make room."""
        freed = sum(self._make_room() for _ in range(FREED))
        if time.monotonic() - self._said_s >= SAY_S:
            self._said_s = time.monotonic()
            log.warning(
                "no connection can be accepted (%s), with %d open; %d idle ones are closed, and it is tried again. Raise `ulimit -n`.",
                error.strerror,
                len(self._connections),
                freed,
            )
        self._wait(RETRY_S)

    def _wait(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._ready)

    def _begin(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        if len(self._beginning) >= self._handshakes:
            self._give_up(next(iter(self._beginning)))
        handshake = {"ssl": self._tls, "ssl_handshake_timeout": HEAD_S, "ssl_shutdown_timeout": FAREWELL_S} if self._tls else {}
        task = self._loop.create_task(self._handshake_made(accepted, handshake))
        self._beginning[task] = accepted
        task.add_done_callback(self._begun)

    def _give_up(self, task: asyncio.Task[Any]) -> None:
        """End a handshake. Cancelled it would wait for the other side's farewell; so it reads the end of its connection."""
        accepted = self._beginning.pop(task)
        self._ending.add(task)
        with contextlib.suppress(OSError):
            accepted.shutdown(socket.SHUT_RDWR)

    async def _handshake_made(self, accepted: socket.socket, handshake: dict[str, Any]) -> None:
        await self._loop.connect_accepted_socket(self._protocol, accepted, **handshake)

    def _begun(self, task: asyncio.Task[Any]) -> None:
        self._beginning.pop(task, None)
        self._ending.discard(task)
        if not task.cancelled():
            task.exception()  # a handshake that failed is the caller's affair
