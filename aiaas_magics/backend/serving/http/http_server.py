"""The HTTP server of a front end: uvicorn's, on a socket that it is given.

Owns its configuration and how it starts and ends. What is said on a connection belongs to `http1` and `app`, who takes the
connections of a socket that several front ends share to `accept_balancing`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

import uvicorn

from aiaas_magics.backend.net.accepting import Accepting, LimitedServer
from aiaas_magics.backend.net.limited_http import KEEP_ALIVE_S
from aiaas_magics.backend.serving.front_ends.accept_balancing import Table, Taking
from aiaas_magics.backend.serving.http.fast_path.http1 import Http1
from aiaas_magics.backend.serving.http.inference_app import App

BACKLOG: Final = 2048  # uvicorn's own default
DRAIN_S: Final = 10  # guess: what a request that runs at SIGTERM may still take


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


class InferenceServer(LimitedServer):
    """A limited server without uvicorn's signal handlers: they would end the process before `run` has cleaned up.

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
        await super().startup(sockets)
        self.is_up.set()

    def accepting(self, listener: socket.socket) -> Accepting:
        if self._table is None:
            return super().accepting(listener)
        taking = Taking(
            listener,
            table=self._table,
            protocol=self.protocol,
            connections=self.connections,
            make_room=self.connections.close_one,
            handshakes=self.connections.most // 2,
            tls=self.config.ssl,
        )
        self._taking.append(taking)
        return taking

    async def on_tick(self, counter: int) -> bool:
        for taking in self._taking:
            taking.say()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.gather(super().shutdown(sockets), *([] if self._ends_with is None else [self._ends_with()]))
