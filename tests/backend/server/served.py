"""A real server process with scripted workers, and how the tests speak to it."""

from __future__ import annotations

import functools
import hashlib
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiaas_magics.client.transport import Transport
from aiaas_magics.core import settings
from aiaas_magics.core.events import AnyEvent, Entry
from aiaas_magics.core.spec import FitShape, FitSpec, JobState, JobView
from tests.conftest import processes_of
from tests.support import waiting

WAIT_S = 30.0
SHAPE = FitShape(rows=100, global_batch=10, steps_per_epoch=10, initial_epoch=0, epochs=3, parameters=7, model="scripted")


until = functools.partial(waiting.until, wait_s=WAIT_S)


class Served:
    """A server on `folder`; it can be killed and started again."""

    def __init__(self, folder: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.options = options
        self.environment = environment or {}
        self.transport: Transport
        self.process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return self.folder.with_suffix(".log").read_text()

    def start(self) -> None:
        log = self.folder.with_suffix(".log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "aiaas_magics.testing.scripted_server", "--state", str(self.folder), *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )

        def told() -> dict[str, Any] | None:
            assert self.process.poll() is None, self.log
            try:
                note: dict[str, Any] = json.loads((self.folder / "server.json").read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                return None
            return note if note["pid"] == self.process.pid else None

        self.url = until(told, "the server did not come up")["url"]
        self.token = (self.folder / "token").read_text().strip()
        self.transport = Transport(self.url, token=self.token)

    def kill(self) -> None:
        """SIGKILL to the server alone."""
        self.process.kill()
        self.process.wait(WAIT_S)
        self.transport.close()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(WAIT_S)
        self.transport.close()
        return code

    def raw(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, *, token: str | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """One request as it is: nothing is added but the token, and nothing is raised."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=WAIT_S)
        try:
            token = self.token if token is None else token
            given = {"Authorization": f"Bearer {token}"} if token else {}
            connection.request(method, path, body=body, headers={**given, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    def put(self, data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        self.transport.upload(f"/v1/blobs/{sha}", [data], size=len(data))
        return sha

    def spec(self, *steps: dict[str, Any], **changes: Any) -> FitSpec:
        payload = self.put(json.dumps(steps).encode())
        given = {"name": "scripted", "workers": 1, "arrays": (), **changes}
        return FitSpec(payload=payload, shape=SHAPE, versions=settings.versions(), seed=1, **given)

    def submit(self, *steps: dict[str, Any], key: str | None = None, **changes: Any) -> str:
        view = self.transport.post("/v1/jobs", self.spec(*steps, **changes), JobView, key=key or secrets.token_hex(8))
        return view.id

    def view(self, job: str) -> JobView:
        return self.transport.get(f"/v1/jobs/{job}", JobView)

    def entries(self, job: str, *, after: int = 0, wait_s: float = 0) -> list[Entry]:
        return self.transport.get(f"/v1/jobs/{job}/events", list[Entry], after=after, wait_s=wait_s)

    def events(self, job: str, kind: type[AnyEvent]) -> list[Any]:
        return [entry.event for entry in self.entries(job) if isinstance(entry.event, kind)]

    def end(self, job: str) -> JobView:
        """The job when it is over."""
        return until(lambda: (view := self.view(job)).state.final and view, f"job {job} did not end: {self.log}")  # type: ignore[no-any-return]

    def wait_for(self, job: str, kind: type[AnyEvent], count: int = 1) -> list[Any]:
        return until(lambda: len(found := self.events(job, kind)) >= count and found, f"no {kind.__name__}: {self.log}")  # type: ignore[no-any-return]

    def result(self, job: str) -> bytes:
        view = self.end(job)
        assert view.state is JobState.SUCCEEDED, (view, self.log)
        return self.transport.read(f"/v1/blobs/{view.result}")

    def leftovers(self) -> list[str]:
        return [str(process) for process in processes_of(self.folder)]


@contextmanager
def served(folder: Path, *options: str, **environment: str) -> Iterator[Served]:
    """A running server, ended in good order; nothing of it may be left."""
    server = Served(folder, *options, environment=environment)
    server.start()
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()
        server.transport.close()
        until(lambda: not server.leftovers(), f"left behind: {server.leftovers()}")
