"""HTTP server of the inference process: uvicorn's, on a socket that it is given.

Owns its configuration. What is said on a connection belongs to `connection`, `fast_path` and `inference_app`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

import uvicorn

from aiaas_magics.backend.net.accepting import LimitedServer
from aiaas_magics.backend.net.limited_http import KEEP_ALIVE_S
from aiaas_magics.backend.serving.http.connection import InferenceConnection
from aiaas_magics.backend.serving.http.inference_app import App

BACKLOG: Final = 2048  # uvicorn's own default
DRAIN_S: Final = 10  # guess: what a request that runs at SIGTERM may still take


def configured(
    app: App, *, connection: Callable[..., InferenceConnection] = InferenceConnection, tls_cert: str = "", tls_key: str = ""
) -> uvicorn.Config:
    """uvicorn's configuration.

    Args:
        connection: Makes a connection, as uvicorn calls it: `FastPath(app).connection` answers plain predictions below ASGI.
        tls_cert: File of the certificate; with `tls_key`, or neither.
        tls_key: File of its key.
    """
    tls: dict[str, Any] = {"ssl_certfile": tls_cert, "ssl_keyfile": tls_key} if tls_cert else {}
    return uvicorn.Config(
        app,
        http=connection,  # type: ignore[arg-type] # uvicorn calls it, and nothing else
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
    """A limited server without uvicorn's signal handlers: they would end the process before `run` has cleaned up."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()
