"""HTTP/1.1 on the socket: uvicorn's own protocol class, with limits on a request's head.

Owns what uvicorn leaves open: how large a head may grow and how long it may take. The body's
limits belong to `app`, which knows what it wants of a body.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES: Final = 64 * 1024  # as h11, uvicorn's other protocol, by default
HEAD_S: Final = 10.0  # guess: a head is one packet; a sender that needs longer holds a connection for nothing


class Http1(HttpToolsProtocol):
    """A connection whose sender must finish each head within `HEAD_S`, and within `HEAD_BYTES` give or take one read."""

    _in_head = True
    _head_bytes = 0
    _head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # A whole request in one read, which is nearly every one, costs two comparisons here.
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.send_400_response(f"The request's head has more than {HEAD_BYTES} bytes.")
            elif self._head_deadline is None:
                self._arm()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._disarm()
        super().on_headers_complete()

    def _arm(self) -> None:
        self._head_deadline = self.loop.call_later(HEAD_S, self._too_slow)

    def _disarm(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _too_slow(self) -> None:
        self._head_deadline = None
        if not self.transport.is_closing():
            self.send_400_response(f"The request's head did not come within {HEAD_S:g} s.")
