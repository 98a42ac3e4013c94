"""Servers that tests put in a backend's place: some know its token, some do not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

from aiaas_magics.core import server_proof


class Proving(BaseHTTPRequestHandler):
    """Base of scripted servers: shows that it knows `token`, as a server of ours does."""

    protocol_version = "HTTP/1.1"
    token: ClassVar[str] = "t"

    def do_GET(self) -> None:
        proof = server_proof.answer(lambda _: self.token.encode(), self.path.partition("?")[2].encode(), self.connection.getsockname()[:2])
        self.send_response(200 if proof else 404)
        self.send_header("content-length", str(len(proof or b"")))
        self.end_headers()
        self.wfile.write(proof or b"")

    def log_message(self, *_: Any) -> None:
        """Nothing on the test's output."""


class Squatter:
    """Listens at `address`, keeps every byte that it is sent, and answers what `answer` makes of them."""

    def __init__(self, address: tuple[str, int], answer: bytes | None) -> None:
        self._answer = answer
        self._listener = socket.create_server(address)
        self.port: int = self._listener.getsockname()[1]
        self.received = b""
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._listen_to, args=(connection,), daemon=True).start()

    def _listen_to(self, connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):
            while data := connection.recv(65536):
                self.received += data
                if self._answer is not None:
                    connection.sendall(self._answer)

    @property
    def paths(self) -> list[bytes]:
        """Of the requests that came, without their queries."""
        lines = [line for line in self.received.split(b"\r\n") if line.endswith(b" HTTP/1.1")]
        return [line.split(b" ")[1].partition(b"?")[0] for line in lines]


@contextmanager
def squatting(port: int = 0, *, answer: bytes | None = None) -> Iterator[Squatter]:
    squatter = Squatter(("127.0.0.1", port), answer)
    squatter._thread.start()
    try:
        yield squatter
    finally:
        squatter._listener.shutdown(socket.SHUT_RDWR)
        squatter._listener.close()
        squatter._thread.join(10)


def answer_of(body: bytes, *, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (status.encode(), len(body), body)
