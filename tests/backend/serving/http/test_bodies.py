"""Bodies that are too large, broken off, lied about or smuggled: refused, and the server goes on."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.backend.serving.support.serving_models import plus
from tests.backend.serving.support.serving_rig import Rig, is_whole
from tests.support.waiting import until

MEGABYTE = 1024 * 1024
PREDICT = "/v1/models/plus:predict"


def head_of(rig: Rig, *lines: str) -> bytes:
    first = ("POST /v1/models/plus:predict HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {rig.host.token}")
    return "\r\n".join([*first, *lines, "", ""]).encode()


@pytest.fixture(autouse=True)
def _still_answers(shared: Rig) -> Iterator[None]:
    yield
    assert shared.predict("plus", {"instances": [[1.0]]}).document == {"predictions": [[2.0]]}


def answer_within(plain: socket.socket, seconds: float) -> bytes:
    plain.settimeout(seconds)
    got = b""
    while not is_whole(got) and (chunk := plain.recv(65536)):
        got += chunk
    return got


def test_a_body_of_100_mb_is_refused_before_it_is_sent(shared: Rig) -> None:
    with socket.create_connection(shared.address, timeout=10) as plain:
        plain.sendall(head_of(shared, f"Content-Length: {100 * MEGABYTE}", "Expect: 100-continue"))

        answer = answer_within(plain, 10)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert "at most 4194304 are taken. Send binary tensors instead" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def test_binary_tensors_of_100_mb_are_refused_before_they_are_sent(shared: Rig) -> None:
    first = ("POST /v2/models/plus/infer HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {shared.host.token}")
    lines = (*first, f"Content-Length: {100 * MEGABYTE}", "Inference-Header-Content-Length: 90", "Expect: 100-continue", "", "")
    with socket.create_connection(shared.address, timeout=10) as plain:
        plain.sendall("\r\n".join(lines).encode())

        answer = answer_within(plain, 10)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert "at most 67108864 are taken. Send fewer rows at once." in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


V2 = "/v2/models/plus/infer"
LARGE = b"[" + b"1.5," * (2 * MEGABYTE) + b"1.5]"


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        pytest.param(PREDICT, b'{"instances": [[1.0], ' + b"[1.0]," * MEGABYTE + b"[1.0]]}", {}, id="rows"),
        pytest.param(PREDICT, b'{"instances": ' + LARGE + b"}", {}, id="ragged"),
        pytest.param(PREDICT, b'{"instances": [[NaN],' + b"[NaN]," * MEGABYTE + b"[1]]}", {}, id="the lenient parser"),
        pytest.param(PREDICT, b'{"instances": [[' + b"9" * (5 * MEGABYTE) + b"]]}", {}, id="a long number"),
        pytest.param("/v1/models/plus:regress", b'{"examples": ' + LARGE + b"}", {}, id="examples"),
        pytest.param(V2, b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": ' + LARGE + b"}]}", {}, id="tensors"),
        pytest.param(V2, LARGE, {"Inference-Header-Content-Length": str(len(LARGE))}, id="JSON before tensors"),
        pytest.param(V2, LARGE, {"Inference-Header-Content-Length": "9" * 30}, id="a lie"),
        pytest.param(PREDICT, gzip.compress(LARGE, 1), {"Content-Encoding": "gzip"}, id="packed"),
    ],
)
def test_large_json_is_refused_unread_and_the_sentence_names_binary_tensors(
    shared: Rig, path: str, body: bytes, headers: dict[str, str]
) -> None:
    answer = shared.call("POST", path, body, headers=headers)

    assert answer.status == (400 if headers.get("Inference-Header-Content-Length") == "9" * 30 else 413)
    if answer.status == 413:
        assert "Send binary tensors instead, to /v2/models/plus/infer" in answer.error


def test_binary_tensors_beyond_the_limit_on_json_are_computed(shared: Rig) -> None:
    rows = 2 * MEGABYTE
    head = json.dumps(
        {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 1], "parameters": {"binary_data_size": 4 * rows}}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    ).encode()

    answer = shared.call("POST", V2, head + bytes(4 * rows), headers={"Inference-Header-Content-Length": str(len(head))})

    assert answer.status == 200
    assert len(answer.body) > 4 * rows


def test_others_are_answered_while_json_of_the_largest_size_is_read(shared: Rig) -> None:
    """Ten bodies of 4 MB would hold the loop for four seconds; what others wait is the interpreter's turn."""
    body = b'{"instances": [' + b"[1.0]," * (4 * MEGABYTE // 6 - 10) + b"[1.0]]}"
    waits: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(lambda: [shared.call("POST", PREDICT, body).status for _ in range(5)])
        while not sending.done():
            began_s = time.perf_counter()
            assert shared.predict("scalar", {"instances": [1.0]}).status == 200
            waits.append(time.perf_counter() - began_s)

    assert sending.result() == [200] * 5
    assert sorted(waits)[len(waits) // 2] < 0.1


def test_a_client_that_sends_100_mb_without_asking_reads_the_refusal_and_costs_no_memory(shared: Rig) -> None:
    process = psutil.Process(shared.host.pid)
    before = process.memory_info().rss

    answer = shared.call("POST", "/v1/models/plus:predict", b"[" + b"1," * (50 * MEGABYTE - 1) + b"1]")

    assert answer.status == 413
    assert process.memory_info().rss - before < 32 * MEGABYTE


def test_a_body_without_a_length_is_cut_at_the_limit(shared: Rig) -> None:
    chunk = b"100000\r\n" + b" " * MEGABYTE + b"\r\n"
    answer = b""
    with socket.create_connection(shared.address, timeout=20) as plain:
        plain.sendall(head_of(shared, "Transfer-Encoding: chunked"))
        try:
            for _ in range(80):
                plain.sendall(chunk)
        except OSError:
            pass  # cut in the middle of our sending, as it should be
        else:
            plain.sendall(b"0\r\n\r\n")
        answer = answer_within(plain, 20)

    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_is_read_like_any_other(shared: Rig) -> None:
    body = b'{"instances": [[1.0], [5.0]]}'
    chunks = b"".join(f"{1:x}\r\n".encode() + body[i : i + 1] + b"\r\n" for i in range(len(body))) + b"0\r\n\r\n"

    answer = shared.raw(head_of(shared, "Transfer-Encoding: chunked") + chunks)

    assert answer.partition(b"\r\n\r\n")[2] == b'{"predictions":[[2.0],[6.0]]}'


def test_a_sender_that_breaks_off_leaves_nothing_behind(shared: Rig) -> None:
    for _ in range(20):
        with socket.create_connection(shared.address, timeout=10) as plain:
            plain.sendall(head_of(shared, "Content-Length: 1000") + b'{"instances": [[')

    until = time.monotonic() + 10
    mine = [c for c in psutil.Process(shared.host.pid).net_connections("tcp") if c.status == psutil.CONN_CLOSE_WAIT]
    while mine and time.monotonic() < until:
        time.sleep(0.05)
        mine = [c for c in psutil.Process(shared.host.pid).net_connections("tcp") if c.status == psutil.CONN_CLOSE_WAIT]
    assert mine == []


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: -1",),
        ("Content-Length: five",),
        ("Transfer-Encoding: chunked, identity",),
        ("Content-Length : 5",),
        ("X: a\r\n folded", "Content-Length: abc"),
        ("X: a\r\n folded", "Content-Length: 5"),
        ("X: a\nContent-Length: 5",),
        ("X: a\rContent-Length: 5",),
        ("X: \0", "Content-Length: 5"),
        (" X: y", "Content-Length: 5"),
        ("Content-Length: 5", "Content-Length: 5"),
        ("Content-Length: 5, 5",),
        ("Content-Length: +5",),
        ("Content-Length: 0x5",),
        ("Content-Length: 1_0",),
        ("Content-Length:",),
        ("Content-Length: 18446744073709551617",),
        ("Transfer-Encoding: chunked", "Content-Length: 5"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        ("Transfer-Encoding: identity",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: \vchunked",),
        ('Transfer-Encoding: "chunked"',),
        ("Host: other", "Content-Length: 5"),
    ],
)
def test_a_request_with_two_meanings_is_refused_and_nothing_after_it_runs(shared: Rig, lines: tuple[str, ...]) -> None:
    smuggled = head_of(shared, "Content-Length: 22") + b'{"instances": [[41.0]]}'

    answer = shared.raw(head_of(shared, *lines) + b"0\r\n\r\n" + smuggled)

    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b"42.0" not in answer


CHUNK = b'17\r\n{"instances": [[41.0]]}\r\n'


@pytest.mark.parametrize(
    "chunks",
    [
        b"-1\r\n\r\n",
        b"0x5\r\n12345\r\n0\r\n\r\n",
        b"ffffffffffffffff1\r\n12345\r\n0\r\n\r\n",
        b"5\n12345\n0\n\n",
        b"5\r\n123456\r\n0\r\n\r\n",
        b"5;a\nb\r\n12345\r\n0\r\n\r\n",
        CHUNK + b"0\r\nContent-Length: 5\r\n\r\n",
        CHUNK + b"0\r\nno trailer\r\n\r\n",
    ],
)
def test_chunks_with_two_meanings_are_refused_and_nothing_after_them_runs(shared: Rig, chunks: bytes) -> None:
    smuggled = head_of(shared, "Content-Length: 22") + b'{"instances": [[41.0]]}'

    answer = shared.raw(head_of(shared, "Transfer-Encoding: chunked") + chunks + smuggled)

    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b"42.0" not in answer


def test_what_comes_behind_the_chunks_is_no_head(shared: Rig) -> None:
    """A token in a trailer opens nothing."""
    head = head_of(shared, "Transfer-Encoding: chunked").replace(b"Authorization", b"X-Other")
    trailer = f"0\r\nAuthorization: Bearer {shared.host.token}\r\n\r\n".encode()

    answer = shared.raw(head + CHUNK + trailer)

    assert answer.startswith(b"HTTP/1.1 401 ")


def test_a_transfer_encoding_that_is_not_undone_here_is_said(shared: Rig) -> None:
    answer = shared.raw(head_of(shared, "Transfer-Encoding: gzip, chunked") + CHUNK + b"0\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 501 ")
    assert b"Transfer-Encoding 'gzip, chunked' is not read here. Send chunked, or a Content-Length." in answer


def test_a_head_that_never_ends_is_cut(shared: Rig) -> None:
    with socket.create_connection(shared.address, timeout=20) as plain:
        sent = 0
        with contextlib.suppress(OSError):
            plain.sendall(b"GET /v1/models/plus HTTP/1.1\r\nX-Long: ")
            while sent < 8 * MEGABYTE:
                sent += plain.send(b"x" * 16384)
    assert sent < 8 * MEGABYTE


def test_a_head_of_many_fields_is_answered(shared: Rig) -> None:
    fields = "".join(f"X-{n}: {n}\r\n" for n in range(1000))
    token = f"Authorization: Bearer {shared.host.token}\r\n"

    answer = shared.raw(f"GET /v1/models/plus HTTP/1.1\r\nHost: 127.0.0.1\r\n{token}{fields}\r\n".encode())

    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.slow
def test_a_sender_that_dribbles_its_head_is_cut_and_holds_nobody_up(shared: Rig) -> None:
    slow = [socket.create_connection(shared.address, timeout=30) for _ in range(50)]
    for plain in slow:
        plain.sendall(b"GET /v1/models/plus HTTP/1.1\r\nHost: 127.")

    assert shared.predict("plus", {"instances": [[1.0]]}).status == 200
    answers = [answer_within(plain, 30) for plain in slow]
    for plain in slow:
        plain.close()

    assert {answer[:12] for answer in answers} == {b"HTTP/1.1 400"}


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\r\n\r\n\r\nnonsense\r\n\r\n",
    ],
)
def test_another_protocol_is_refused(shared: Rig, data: bytes) -> None:
    answer = shared.raw(data, timeout_s=5)

    assert not answer or answer.startswith(b"HTTP/1.1 400 "), answer


def test_requests_that_are_pipelined_are_answered_in_order(shared: Rig) -> None:
    bodies = [json.dumps({"instances": [[float(n)]]}).encode() for n in range(20)]
    data = b"".join(head_of(shared, f"Content-Length: {len(body)}") + body for body in bodies)
    with socket.create_connection(shared.address, timeout=10) as plain:
        plain.sendall(data)
        got = b""
        while got.count(b"predictions") < 20:
            got += plain.recv(65536)

    assert [f"[[{n + 1}.0]]".encode() in part for n, part in enumerate(got.split(b'{"predictions":')[1:])] == [True] * 20


# --------------------------------------------------------------------------- compressed bodies


ROW = b'{"instances": [[1.0]]}'
# Without the time of packing: the bytes, and with them a test's name, are the same in every process that collects it.
ZIPPED = gzip.compress(ROW, mtime=0)


@pytest.mark.parametrize(
    ("encoding", "body", "status", "said"),
    [
        pytest.param("gzip", ZIPPED, 200, "", id="gzip"),
        pytest.param("GZIP", ZIPPED, 200, "", id="capitals"),
        pytest.param("deflate", zlib.compress(ROW), 200, "", id="deflate"),
        pytest.param("identity", ROW, 200, "", id="identity"),
        pytest.param("gzip", ROW, 400, "not gzip", id="not gzip"),
        pytest.param("gzip", ZIPPED[:-4], 400, "one whole gzip stream", id="cut short"),
        pytest.param("gzip", ZIPPED + b"more", 400, "one whole gzip stream", id="more behind it"),
        pytest.param("gzip", b"", 400, "one whole gzip stream", id="empty"),
        pytest.param("deflate", ZIPPED, 400, "not deflate", id="not deflate"),
        pytest.param("br", ROW, 415, "'br' is not read", id="brotli"),
        pytest.param("gzip, gzip", gzip.compress(ZIPPED, mtime=0), 415, "is not read", id="twice"),
        pytest.param("gzip", gzip.compress(bytes(200 * 1024 * 1024), 1, mtime=0), 413, "when it is unpacked", id="bomb"),
    ],
)
def test_a_compressed_body_is_unpacked_within_the_limit(shared: Rig, encoding: str, body: bytes, status: int, said: str) -> None:
    answer = shared.call("POST", PREDICT, body, headers={"Content-Encoding": encoding})

    assert answer.status == status, answer.body
    if status != 200:
        assert said in answer.error


def test_a_bomb_costs_no_more_memory_than_a_body_may_have(shared: Rig) -> None:
    process = psutil.Process(shared.host.pid)
    before = process.memory_info().rss
    bomb = gzip.compress(bytes(1024**3), 1)

    for _ in range(4):
        assert shared.call("POST", PREDICT, bomb, headers={"Content-Encoding": "gzip"}).status == 413

    assert process.memory_info().rss - before < 256 * 1024**2


def test_ten_thousand_idle_connections_keep_nobody_from_an_answer(shared: Rig) -> None:
    resource = pytest.importorskip("resource", reason="this system has no limits of open files to ask for")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = min(hard, psutil.Process(shared.host.pid).rlimit(psutil.RLIMIT_NOFILE)[0]) - 500
    if allowed < 10_000:
        pytest.skip(f"a process may have {allowed + 500} files open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as idle:
        for _ in range(10_000):
            idle.enter_context(socket.create_connection(shared.address, timeout=20))
        assert shared.predict("plus", {"instances": [[1.0]]}).status == 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_without_a_free_descriptor_answers_who_is_there_and_everybody_again_later(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "plus", 1.0))
    process = psutil.Process(rig.host.pid)
    if not hasattr(process, "rlimit"):
        pytest.skip("this system has no limits of open files to set")
    one = head_of(rig, f"Content-Length: {len(ROW)}") + ROW
    with contextlib.ExitStack() as held:
        there = held.enter_context(socket.create_connection(rig.address, timeout=20))
        there.sendall(one)
        assert b"predictions" in answer_within(there, 20)
        process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + 10, process.rlimit(psutil.RLIMIT_NOFILE)[1]))
        more = [held.enter_context(socket.create_connection(rig.address, timeout=20)) for _ in range(50)]
        there.sendall(one)
        assert b"predictions" in answer_within(there, 20), "who was there is served"
        for plain in more:
            plain.close()

    def answered() -> bool:
        with contextlib.suppress(ConnectionError):
            return rig.predict("plus", {"instances": [[1.0]]}).status == 200
        return False

    until(answered, "with descriptors free again everybody is served", 20)
