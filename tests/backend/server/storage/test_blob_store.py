"""Bytes named by their hash: whole, true, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psutil
import pytest
import xxhash
from starlette.requests import Request

from aiaas_magics.backend.server.api.api_answers import upload_of
from aiaas_magics.backend.server.storage.blob_store import DAY_S, BlobStore
from aiaas_magics.core import errors
from aiaas_magics.core.events import WorkerStarted
from aiaas_magics.core.spec import JobState, JobView
from tests.backend.server.served import Served, served, until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("blobs") / "state", "--local") as server:
        yield server


@pytest.fixture(autouse=True)
def no_part_is_left(server: Served) -> Iterator[None]:
    yield
    until(lambda: not list((server.folder / "blobs" / "partial").iterdir()), "a part of an upload was left")


def sha_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def missing(server: Served, *names: str) -> list[str]:
    return msgspec.json.decode(server.raw("POST", "/v1/blobs/missing", msgspec.json.encode({"blobs": names}))[1])["missing"]  # type: ignore[no-any-return]


def test_what_was_sent_is_what_comes_back(server: Served) -> None:
    for data in (b"", b"small", os.urandom(5_000_000)):
        sha = server.put(data)

        assert server.transport.read(f"/v1/blobs/{sha}") == data
        assert missing(server, sha, "0" * 64) == ["0" * 64]


def test_other_bytes_than_the_name_says_are_refused_and_not_kept(server: Served) -> None:
    sha = sha_of(b"this")

    with pytest.raises(errors.BlobDamaged, match="is damaged: what arrived has the hash"):
        server.transport.upload(f"/v1/blobs/{sha}", [b"that"], size=4)

    assert missing(server, sha) == [sha]


def test_the_same_blob_again_changes_nothing(server: Served) -> None:
    sha = server.put(b"twice")

    assert server.put(b"twice") == sha
    assert server.transport.read(f"/v1/blobs/{sha}") == b"twice"


@pytest.mark.parametrize("name", ["..", "%2e%2e%2ftoken", "x", "0" * 63, "0" * 65, "0" * 63 + "G", "A" * 64, "0" * 32 + "%2f" + "0" * 31])
def test_what_is_no_hash_never_reaches_a_path(server: Served, name: str) -> None:
    for method, path, body in (("PUT", "", b"x"), ("GET", "", None), ("POST", "/adopt", b'{"file": "x"}')):
        status, answer, _ = server.raw(method, f"/v1/blobs/{name}{path}", body)
        assert status in {400, 404, 405}
        assert server.token.encode() not in answer


def test_an_upload_that_breaks_off_leaves_nothing(server: Served) -> None:
    data = os.urandom(3_000_000)
    parts = urlsplit(server.url)
    head = put_head(server, data, len(data))
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as connection:
        connection.sendall(head + data[: len(data) // 2])

    until(lambda: not list((server.folder / "blobs" / "partial").iterdir()), "a part was left")
    assert missing(server, sha_of(data)) == [sha_of(data)]


def test_a_length_that_lies_keeps_nothing(server: Served) -> None:
    data = b"twelve bytes"
    parts = urlsplit(server.url)
    for told in (len(data) - 4, len(data) + 4):
        head = put_head(server, data, told)
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as connection:
            connection.sendall(head + data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        assert missing(server, sha_of(data)) == [sha_of(data)]


def test_a_body_that_is_too_large_gets_one_sentence_and_costs_no_memory(server: Served) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss

    status, answer, _ = server.raw("POST", "/v1/jobs", b" " * 100_000_000)

    assert status == 413
    assert "larger than 16 MB" in msgspec.json.decode(answer)["error"]
    assert process.memory_info().rss - before < 50_000_000


@pytest.mark.parametrize(("method", "path"), [("PUT", f"/v1/blobs/{'0' * 64}"), ("PUT", "feed"), ("POST", "/v1/jobs")])
def test_a_body_that_says_it_is_far_too_large_is_refused_before_it_comes(server: Served, method: str, path: str) -> None:
    if path == "feed":
        path = f"/v1/jobs/{server.submit({'do': 'wait', 'seconds': 2})}/feed/x/0/0"
    parts = urlsplit(server.url)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.token}\r\nContent-Length: {10**12}\r\n\r\n"
    began_s = time.monotonic()
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as connection:
        connection.sendall(head.encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece

    assert answer.startswith(b"HTTP/1.1 413")
    assert b"larger than" in answer
    assert time.monotonic() - began_s < 10  # it waited 30 s for the body once


def test_a_large_batch_of_a_kernel_goes_to_the_disk_and_not_into_the_servers_memory(server: Served) -> None:
    job = server.submit({"do": "wait", "seconds": 20})
    server.wait_for(job, WorkerStarted)
    before = psutil.Process(server.process.pid).memory_info().rss

    status, _, _ = server.raw("PUT", f"/v1/jobs/{job}/feed/x/0/0", b"x" * 200_000_000)

    assert status == 200
    assert psutil.Process(server.process.pid).memory_info().rss - before < 60_000_000
    feed = server.folder / "jobs" / job / "feed" / "x"
    assert {path.name: path.stat().st_size for path in feed.glob("*frame*")} == {"frame-0-0": 200_000_000}
    server.transport.post(f"/v1/jobs/{job}/cancel", None, JobView)


async def test_a_body_that_grows_beyond_what_may_come_is_cut() -> None:
    sent = [b"x" * 600_000] * 3

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": sent.pop(), "more_body": bool(sent)}

    request = Request({"type": "http", "method": "PUT", "headers": []}, receive)
    upload = upload_of(request, most_bytes=2**20)

    assert len(await anext(upload)) == 600_000
    with pytest.raises(errors.BackendRefused, match="larger than 1 MB"):
        await anext(upload)


def test_a_file_in_the_dropbox_becomes_a_blob(server: Served) -> None:
    data = b"dropped"
    (server.folder / "dropbox" / "mine").write_bytes(data)

    for _ in range(2):  # the second time: asked again after the answer was lost
        assert server.raw("POST", f"/v1/blobs/{sha_of(data)}/adopt", b'{"file": "mine"}')[0] == 201

    assert server.transport.read(f"/v1/blobs/{sha_of(data)}") == data
    assert not (server.folder / "dropbox" / "mine").exists()


@pytest.mark.parametrize("file", ["../token", "/etc/hostname", ".", "..", "", "a/b", "absent", "link", "hard", "folder"])
def test_only_plain_files_of_the_dropbox_are_adopted(server: Served, file: str) -> None:
    dropbox = server.folder / "dropbox"
    (dropbox / "folder").mkdir(exist_ok=True)
    for name, make in (("link", os.symlink), ("hard", os.link)):
        if not os.path.lexists(dropbox / name):
            make(server.folder / "token", dropbox / name)

    status, _, _ = server.raw("POST", f"/v1/blobs/{'1' * 64}/adopt", msgspec.json.encode({"file": file}))

    assert status in {400, 404}
    assert (server.folder / "token").read_text().strip() == server.token
    assert missing(server, "1" * 64) == ["1" * 64]


def test_a_server_that_is_not_local_has_no_dropbox(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server:
        (server.folder / "dropbox" / "mine").write_bytes(b"x")

        status, answer, _ = server.raw("POST", f"/v1/blobs/{sha_of(b'x')}/adopt", b'{"file": "mine"}')

        assert status == 400
        assert b"no dropbox" in answer


def test_what_nothing_refers_to_goes_after_a_day(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    kept, old, fresh = (store.keep(written(tmp_path, name)) for name in ("kept", "old", "fresh"))
    now_s = store.path(fresh).stat().st_mtime
    for sha in (kept, old):
        os.utime(store.path(sha), (now_s - DAY_S - 1, now_s - DAY_S - 1))

    assert store.sweep({kept}, now_s=now_s) == 1

    assert store.missing([kept, old, fresh]) == [old]


def test_beside_each_blob_stands_what_a_worker_checks_it_by(server: Served, tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    (server.folder / "dropbox" / "mine").write_bytes(data)
    server.raw("POST", f"/v1/blobs/{sha_of(data)}/adopt", b'{"file": "mine"}')
    server.put(data[1:])

    kept, there = store.keep(tmp_path / "file"), BlobStore(server.folder / "blobs")

    assert store.check_of(kept) == there.check_of(kept) == xxhash.xxh3_128_hexdigest(data)
    assert there.check_of(sha_of(data[1:])) == xxhash.xxh3_128_hexdigest(data[1:])
    assert there.check_of("0" * 64) == ""
    assert store.sweep(set(), now_s=time.time() + 2 * DAY_S) == 1
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


def test_a_blob_that_a_worker_says_is_damaged_is_dropped_if_it_is_its_jobs(server: Served) -> None:
    def crash(sha: str) -> str:
        return (
            "from aiaas_magics.core.events import Crashed; from aiaas_magics.core.remote_error import ErrorReport; "
            f"play.send(Crashed(report=ErrorReport(type='x', message='', kind='BlobDamaged', args=({sha!r}, 'rotten')))); code = 3"
        )

    arrays = [server.put(b"its own"), server.put(b"another's")]
    for sha in arrays:
        payload = server.put(json.dumps([{"do": "python", "text": crash(sha)}]).encode())
        spec = msgspec.structs.replace(server.spec(), payload=payload, arrays=tuple(arrays[:1]))
        view = server.transport.post("/v1/jobs", spec, JobView, key=sha)
        assert server.end(view.id).state is JobState.FAILED
        if sha == arrays[0]:
            assert missing(server, *arrays) == [sha]
            server.put(b"its own")

    assert missing(server, *arrays) == []


def test_asking_for_a_blob_keeps_it(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    sha = store.keep(written(tmp_path, "asked for"))
    now_s = store.path(sha).stat().st_mtime
    os.utime(store.path(sha), (now_s - 2 * DAY_S, now_s - 2 * DAY_S))

    assert store.missing([sha]) == []

    assert store.sweep(set(), now_s=now_s) == 0


async def test_a_disk_that_takes_no_more_is_named(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    data = b"x" * 3_000_000

    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 65536):
            yield data[start : start + 65536]

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))
    try:
        with pytest.raises(errors.StoreNotWritable, match="File too large"):
            await store.put(sha_of(data), body())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert list((tmp_path / "blobs" / "partial").iterdir()) == []
    await store.put(sha_of(data), body())
    assert store.get_path(sha_of(data)).read_bytes() == data


def put_head(server: Served, data: bytes, told: int) -> bytes:
    lines = (
        f"PUT /v1/blobs/{sha_of(data)} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {server.token}",
        f"Content-Length: {told}",
    )
    return "\r\n".join((*lines, "", "")).encode()


def written(folder: Path, text: str) -> Path:
    path = folder / text
    path.write_text(text)
    return path
