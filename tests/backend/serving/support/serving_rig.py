"""A real inference process for tests: the host in a thread with a loop of its own, calls over plain sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import psutil

from aiaas_magics.backend.folders.small_files import write_private
from aiaas_magics.backend.serving.process.supervisor import PROGRAM, InferenceHost, Recorded
from aiaas_magics.core.routing import Routing
from aiaas_magics.core.spec import VersionView
from tests.backend.serving.support.serving_models import Made

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        assert self.document.keys() == {"error"}, self.body
        return str(self.document["error"])


class Rig:
    """An `InferenceHost` with its process, in a `with`; after it no process is left."""

    def __init__(
        self,
        state: Path,
        *,
        recorded: tuple[Recorded, ...] = (),
        tls: tuple[str, str] | None = None,
        cors: tuple[str, ...] = (),
        trusted_keys: tuple[str, ...] = (),
        program: tuple[str, ...] = PROGRAM,
    ) -> None:
        self.state, self._recorded, self._tls, self._cors, self._program = state, recorded, tls, cors, program
        self._trusted_keys = trusted_keys
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rig")

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.host = self.run(_made(self._cors, self._trusted_keys, self._program))
            self.run(self.host.start(self.state, tls=self._tls, recorded=self._recorded))
        except BaseException:
            self._end_loop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        pid = self.host.pid
        try:
            self.run(self.host.stop())
        finally:
            self._end_loop()
        assert is_gone(pid), "an inference process was left behind"

    def leave(self) -> None:
        """End this host without ending the process, as an API server that is killed."""
        self.run(self.host.close())
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(120)

    def load(self, made: Made, version: int = 1) -> VersionView:
        """A version that answers everything, as soon as it can."""
        return self.deploy(made, version, Routing(live=version))

    def deploy(self, made: Made, version: int, routing: Routing) -> VersionView:
        view = self.run(self.host.load(made.hashed, version, made.artefact, made.samples))
        self.run(self.host.route(made.spec.name, routing, restores=True))
        return view

    @property
    def api_token(self) -> str:
        """That of the API server whose folder it is; made when there is none."""
        path = self.state / "token"
        if not path.exists():
            write_private(path, b"aiaas_the-api-token-of-this-folder\n")
        return path.read_text().strip()

    def manage(self, name: str, action: str, body: bytes = b"{}") -> Answer:
        """Have a model loaded or unloaded, as whoever may do that."""
        return self.call("POST", f"/v2/repository/models/{name}/{action}", body, token=self.api_token)

    @property
    def address(self) -> tuple[str, int]:
        where = urlsplit(self.host.url)
        assert where.hostname
        assert where.port
        return where.hostname, where.port

    def call(
        self, method: str, path: str, body: bytes | None = None, *, headers: dict[str, str] | None = None, token: str | None = ""
    ) -> Answer:
        """One request on a connection of its own; `token` of "" is the right one, of None none."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token or self.host.token}"
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, response.read(), {name.lower(): value for name, value in response.getheaders()})
        finally:
            connection.close()

    def predict(self, name: str, document: Any, *, version: int | None = None) -> Answer:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        which = f"/versions/{version}" if version is not None else ""
        return self.call("POST", f"/v1/models/{name}{which}:predict", body)

    def raw(self, data: bytes, *, timeout_s: float = 20.0) -> bytes:
        """What comes back for bytes as they are, until the other side closes or is silent for a moment after answering."""
        with socket.create_connection(self.address, timeout=timeout_s) as plain:
            plain.sendall(data)
            got = b""
            try:
                while chunk := plain.recv(65536):
                    got += chunk
                    if is_whole(got):
                        break
            except TimeoutError:
                pass
            return got

    def raws(self, *requests: bytes) -> list[bytes]:
        """The answers to requests as they are, one after the other on one connection; it ends early where the other side closes."""
        answers: list[bytes] = []
        with socket.create_connection(self.address, timeout=20) as plain:
            for request in requests:
                plain.sendall(request)
                got = b""
                while not is_whole(got) and (chunk := plain.recv(65536)):
                    got += chunk
                answers.append(got)
                if b"connection: close" in got:
                    break
        return answers


def is_gone(pid: int) -> bool:
    """Also when it was started by an earlier host of this very test process, which nobody reaped."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def is_whole(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return True


async def _made(cors: tuple[str, ...], trusted_keys: tuple[str, ...], program: tuple[str, ...]) -> InferenceHost:
    return InferenceHost(cors=cors, trusted_keys=trusted_keys, program=program)
