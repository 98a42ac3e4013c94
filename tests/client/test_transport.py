"""What a client does with a backend that lies, and what it says of its own requests."""

from __future__ import annotations

import gzip
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from aiaas_magics.client import transport as transports
from aiaas_magics.client.backend import Backend
from aiaas_magics.client.serving.endpoint import Endpoint
from aiaas_magics.client.transport import Transport, checked_url, sibling_url
from aiaas_magics.core import errors, wire
from aiaas_magics.core.spec import About, EndpointView, JobView, TensorSpec, Versions
from tests.support.impostors import Proving


@contextmanager
def answering(head: str, body: Iterator[bytes] | bytes) -> Iterator[Transport]:
    """A backend that proves itself and answers every request with `head` and `body`, until its client hangs up."""

    class Scripted(Proving):
        def do_GET(self) -> None:
            if self.path.startswith("/v1/proof"):
                super().do_GET()
                return
            seen.append(self)
            self.close_connection = True
            with suppress(ConnectionError):
                self.wfile.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
                for part in [body] if isinstance(body, bytes) else body:
                    self.wfile.write(part)

        do_POST = do_GET

    seen: list[Scripted] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with Transport(f"http://127.0.0.1:{server.server_port}", token="t", answer_s=5.0) as transport:
                yield transport
        finally:
            server.shutdown()
            thread.join()
    assert all(request.headers["Accept-Encoding"] == "identity" for request in seen)


def endless(part: bytes = b" " * 65536) -> Iterator[bytes]:
    while True:
        yield part


@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_without_end_is_read_up_to_a_bound(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(transports, "JSON_BYTES", 2**20)

    with answering(f"HTTP/1.1 {status} OK", endless()) as transport, pytest.raises(errors.BackendRefused, match="more than 1 MB"):
        transport.get("/v1/jobs", list[JobView])


def test_an_answer_that_drips_ends_with_the_deadline() -> None:
    def dripping() -> Iterator[bytes]:
        while True:
            time.sleep(0.05)
            yield b" "

    with answering("HTTP/1.1 200 OK", dripping()) as transport, pytest.raises(errors.BackendTooSlow):
        transport.get("/v1/jobs", list[JobView], answer_s=0.3)


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, gzip"])
def test_nothing_is_decompressed(encoding: str) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    head = f"HTTP/1.1 200 OK\ncontent-encoding: {encoding}\ncontent-length: {len(bomb)}"

    with answering(head, bomb) as transport:
        for ask in (lambda: transport.get("/v1/jobs", list[JobView]), lambda: transport.read("/v1/blobs/x")):
            with pytest.raises(errors.BackendRefused, match="compressed"):
                ask()
        with pytest.raises(errors.BackendRefused, match="compressed"):
            transport.infer("/v2/models/m/infer", b"", headers={})


def test_a_prediction_has_a_bound_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "OUTPUT_BYTES", 2**20)

    with answering("HTTP/1.1 200 OK", endless()) as transport, pytest.raises(errors.BackendRefused, match="more than 1 MB"):
        transport.infer("/v2/models/m/infer", b"", headers={})


@pytest.mark.parametrize("head", ["HTTP/1.1 200 OK", "HTTP/1.1 200 OK\ntransfer-encoding: chunked"])
def test_a_download_says_beforehand_how_long_it_is(head: str) -> None:
    with answering(head, b"0\r\n\r\n") as transport, pytest.raises(errors.BackendRefused, match="does not say how long"):
        transport.read("/v1/blobs/x")


def test_a_download_that_does_not_fit_into_memory_is_not_begun() -> None:
    with (
        answering(f"HTTP/1.1 200 OK\ncontent-length: {2**60}", endless()) as transport,
        pytest.raises(errors.BackendRefused, match="memory"),
    ):
        transport.read("/v1/blobs/x")


def test_a_download_ends_where_it_was_announced_to_end() -> None:
    with answering("HTTP/1.1 200 OK\ncontent-length: 4", b"good" + b"bad" * 1000) as transport:
        assert transport.read("/v1/blobs/x") == b"good"
    with answering("HTTP/1.1 200 OK\ncontent-length: 40", b"half") as transport, pytest.raises(errors.BackendUnreachable):
        transport.read("/v1/blobs/x")


# --------------------------------------------------------------------------- addresses


@pytest.mark.parametrize("url", ["http://gpu-box.example:8443", "http://10.0.0.1", "http://[2001:db8::1]:80", "http://localhost.example:1"])
def test_the_token_never_crosses_the_network_in_the_clear(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("it was dialled"))

    with pytest.raises(errors.InvalidSpec, match=r"in clear text\. Nothing was sent\. Use https://"):
        Transport(url, token="aiaas_SECRET")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "http://127.8.8.8:1", "https://gpu-box:8443"]
)
def test_what_stays_on_this_machine_or_is_encrypted_is_an_address(url: str) -> None:
    assert checked_url(url + "/") == url


@pytest.mark.parametrize(
    ("own", "named", "found"),
    [
        ("http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:2"),
        ("http://localhost:1", "http://127.0.0.1:2/", "http://127.0.0.1:2"),
        ("https://gpu-box:1", "https://gpu-box:2", "https://gpu-box:2"),
        ("https://gpu-box.example:1", "https://gpu-box:2", "https://gpu-box.example:2"),
        ("https://gpu-box:1", "https://10.0.0.7:2", "https://gpu-box:2"),
    ],
)
def test_endpoints_are_on_the_backends_own_machine(own: str, named: str, found: str) -> None:
    assert sibling_url(named, own) == found


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ("https://gpu-box:1", "http://127.0.0.1:18999/internal/api"),
        ("https://gpu-box:1", "http://gpu-box:2"),
        ("https://gpu-box:1", "https://gpu-box:2/internal"),
        ("https://gpu-box:1", "https://u:p@gpu-box:2"),
        ("https://gpu-box:1", "https://gpu-box:2/?x=1"),
        ("https://gpu-box:1", "https://gpu-box:2/#x"),
        ("http://127.0.0.1:1", "http://10.0.0.7:2"),
        ("http://127.0.0.1:1", "http://metadata.internal:80"),
        ("http://127.0.0.1:1", "https://127.0.0.1:2"),
        ("http://127.0.0.1:1", "file:///etc/passwd"),
        ("http://127.0.0.1:1", "http://[bad"),
        ("http://127.0.0.1:1", ""),
    ],
)
def test_another_machine_scheme_or_path_is_refused_with_both_addresses(own: str, named: str) -> None:
    tensor = TensorSpec(name="x", dtype="float32", shape=(-1, 1))
    view = EndpointView(name="churn", url=named, token="secret", replicas=1, versions=(), inputs=(tensor,), outputs=(tensor,))

    with Transport(own, token="t") as transport, pytest.raises(errors.UntrustedAddress, match=r"Nothing was sent there\. Check") as caught:
        Endpoint(transport, view)

    assert own in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("state", "taken"), [(None, False), ("elsewhere", False), ("state", True)])
def test_arrays_are_written_into_no_folder_but_the_local_servers(tmp_path: Path, state: str | None, taken: bool) -> None:
    dropbox = tmp_path / "state" / "dropbox"
    dropbox.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    versions = Versions(python="3.11.7", keras="3.15.1", tensorflow="2.21.0", aiaas_magics="0.1.0")
    about = About(
        backend="local", protocol=1, versions=versions, devices=(), hardware="", memory_bytes=1, started_s=0.0, dropbox=str(dropbox)
    )
    body = wire.encode(about)

    class Lies(Transport):
        def post(self, *_: Any, **__: Any) -> Any:
            return None

    with answering(f"HTTP/1.1 200 OK\ncontent-length: {len(body)}", body) as transport:
        backend = Backend(Lies(transport.url, token="t"), state=None if state is None else tmp_path / state)

    assert (backend.blobs._dropbox == dropbox) is taken
    assert (backend.blobs._dropbox is None) is not taken


# --------------------------------------------------------------------------- logging


def test_our_requests_are_not_in_the_users_log_and_his_own_are(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)  # of the root, as logging.basicConfig does

    with answering("HTTP/1.1 200 OK\ncontent-length: 2", b"[]") as transport:
        transport.get("/v1/jobs", list[JobView])
        transport.read("/v1/blobs/x")
        url = transport.url
        ours = [record for record in caplog.records if record.name.startswith("http")]
        httpx.get(f"{url}/v1/proof")
    theirs = [record for record in caplog.records if record.name.startswith("http")]

    assert ours == []
    assert any(record.name == "httpx" and "/v1/proof" in record.getMessage() for record in theirs)
    assert any(record.name.startswith("httpcore") for record in theirs)


def test_a_request_of_the_users_in_another_thread_is_logged_while_ours_waits(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    begun, go_on = threading.Event(), threading.Event()

    def waits() -> Iterator[bytes]:
        begun.set()
        go_on.wait(10)
        yield b"[]"

    with answering("HTTP/1.1 200 OK\ncontent-length: 2", waits()) as transport:
        ours = threading.Thread(target=transport.get, args=("/v1/jobs", list[JobView]))
        ours.start()
        begun.wait(10)
        httpx.get(f"{transport.url}/v1/proof")
        go_on.set()
        ours.join()

    assert [record.getMessage().split(" ")[3].rpartition("/")[2] for record in caplog.records if record.name == "httpx"] == ["proof"]
