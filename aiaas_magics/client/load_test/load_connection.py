"""Load connection: one caller of a load generator, on a keep-alive HTTP/1.1 connection.

Owns just as much of the protocol as answers to predictions have. When to ask, and what is counted, belongs to `load_generator`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from aiaas_magics.core import server_proof
from aiaas_magics.core.errors import AiaasError

CHUNKED: Final = -1  # the answer's length is not told before
LAST_CHUNK: Final = b"0\r\n\r\n"


class Proving(asyncio.Protocol):
    """A new connection whose server is asked for its proof; `proven` ends when it is there, with an error where it is wrong."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._token = url, token
        self._received = b""
        self._challenge: server_proof.Challenge | None = None
        self.proven: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        address = transport.get_extra_info("peername")
        if address is None:  # it was reset at once; `connection_lost` follows
            return
        try:
            self._challenge = server_proof.Challenge(self._url, token=self._token, peer=address[:2])
            transport.write(self._challenge.request)
        except AiaasError as error:
            self._end(error)

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            if self._challenge is not None and self._challenge.is_proven(self._received):
                self._end(None)
        except AiaasError as error:
            self._end(error)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(ConnectionError("the connection ended before the server had proved itself"))

    def _end(self, error: Exception | None) -> None:
        if self.proven.done():
            return
        if error is None:
            self.proven.set_result(None)
        else:
            self.proven.set_exception(error)


class Caller(asyncio.Protocol):
    """Asks one request at a time. `answered(caller, status)` is told of each whole answer, `lost(caller)` of the connection's end.

    `due_s` is the time that the request on the way counts from; `is_waiting` says whether there is one.
    """

    __slots__ = ("_answered", "_at", "_lost", "_received", "_transport", "_whole", "due_s", "is_waiting")

    def __init__(self, answered: Callable[[Caller, int], None], lost: Callable[[Caller], None]) -> None:
        self._answered, self._lost = answered, lost
        self._transport: Any = None
        self._received = b""
        self._at = 0  # where the answer's body begins
        self._whole = 0  # bytes of the answer that is coming, or `CHUNKED`, once its head is there
        self.due_s = 0.0
        self.is_waiting = False

    def ask(self, request: bytes, due_s: float) -> None:
        self.due_s, self.is_waiting = due_s, True
        self._received, self._whole = b"", 0
        self._transport.write(request)

    @property
    def body(self) -> bytes:
        """Of the last answer; a chunked one as it came."""
        return self._received[self._at :]

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(self)

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data if self._received else data
        if not self.is_waiting:  # what nobody asked for
            self.hang_up()
            return
        try:
            if not self._whole and not self._read_head(received):
                return
            if not received.endswith(LAST_CHUNK) if self._whole == CHUNKED else len(received) < self._whole:
                return
            status = int(received[9:12])
        except ValueError:  # this is no HTTP answer
            self.hang_up()
            return
        self.is_waiting = False
        self._answered(self, status)

    def _read_head(self, received: bytes) -> bool:
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return False
        self._at = end + 4
        head = received[:end].lower()
        place = head.find(b"\r\ncontent-length:")
        if place >= 0:
            self._whole = self._at + int(head[place + 17 :].split(b"\r\n", 1)[0])
        elif b"\r\ntransfer-encoding: chunked" in head:
            self._whole = CHUNKED
        else:
            raise ValueError("an answer without its length")
        return True
