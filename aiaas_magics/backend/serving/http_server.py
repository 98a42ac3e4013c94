"""The HTTP server of a front end: uvicorn's, on a socket that it is given.

Owns its configuration and how it starts and ends. What is said on a connection belongs to `http1` and `app`, who takes the
connections of a socket that several front ends share to `taking`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

import uvicorn

from aiaas_magics.backend.serving.app import App
from aiaas_magics.backend.serving.http1 import Http1
from aiaas_magics.backend.serving.taking import Table, Taking

BACKLOG: Final = 2048  # uvicorn's own default
DRAIN_S: Final = 10  # guess: what a request that runs at SIGTERM may still take
KEEP_ALIVE_S: Final = 75  # nginx's default; load balancers and clients count on more than uvicorn's 5 s


def configured(app: App, tls_cert: str = "", tls_key: str = "") -> uvicorn.Config:
    """Files of a certificate and its key, or neither."""
    tls: dict[str, Any] = {"ssl_certfile": tls_cert, "ssl_keyfile": tls_key} if tls_cert else {}
    return uvicorn.Config(
        app,
        http=Http1,
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        **tls,
    )


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: they would end the process before `run` has cleaned up.

    Args:
        table: How many connections each front end has, where several take them from one socket.
        ends_with: What is to end while this server does.
    """

    def __init__(
        self, config: uvicorn.Config, *, table: Table | None = None, ends_with: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        super().__init__(config)
        self._table, self._ends_with = table, ends_with
        self._taking: list[Taking] = []
        self.is_up = asyncio.Event()

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._table is None:
            await super().startup(sockets)
        else:
            await self.lifespan.startup()
            self._taking = [self._take(listener, self._table) for listener in sockets or ()]
            self.servers = list(self._taking)  # type: ignore[arg-type]
            self.started = True
        self.is_up.set()

    def _take(self, listener: socket.socket, table: Table) -> Taking:
        """As uvicorn's own startup, but for who accepts."""
        config, state = self.config, self.server_state

        def protocol() -> asyncio.Protocol:
            return Http1(config=config, server_state=state, app_state=self.lifespan.state)

        return Taking(listener, protocol=protocol, connections=state.connections, table=table, tls=config.ssl)

    async def on_tick(self, counter: int) -> bool:
        for taking in self._taking:
            taking.say()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.gather(super().shutdown(sockets), *([] if self._ends_with is None else [self._ends_with()]))
