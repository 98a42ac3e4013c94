"""Fast path: with it and without it a server gives the same answers, in the order of the requests, whatever comes."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from aiaas_magics.backend.net import limited_http
from aiaas_magics.backend.net.guard import Guard
from aiaas_magics.backend.serving.http import connection as connections
from aiaas_magics.backend.serving.http.connection import InferenceConnection
from aiaas_magics.backend.serving.http.fast_path import fast_connection
from aiaas_magics.backend.serving.http.fast_path.fast_connection import FastConnection, FastPath
from aiaas_magics.backend.serving.http.inference_app import JSON_BYTES, App
from aiaas_magics.backend.serving.http.request_handler import RequestHandler
from aiaas_magics.backend.serving.models.batching import Limits
from aiaas_magics.backend.serving.models.registry import Registry, Version
from aiaas_magics.backend.serving.models.replicas import Inline, Replicas
from aiaas_magics.backend.serving.process.supervisor import PROGRAM
from aiaas_magics.core.routing import Routing
from tests.backend.serving.support.byte_edits import EDITS, Edit, edited
from tests.backend.serving.support.serving_models import plus, spec_of, tensor
from tests.backend.serving.support.serving_rig import Rig

ALLOWED = b"Authorization: Bearer right"
OFFERED = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"
V1, V2 = b"/v1/models/double:predict", b"/v2/models/double/infer"


class Doubling:
    kind = "doubling"
    closed = False

    def run(self, inputs: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] * 2}

    def close(self) -> None:
        self.closed = True


class Wire:
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        self.sent, self.closed, self.reading = b"", False, True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes) -> None:
        if not self.closed:  # as a real one: what is written after the end is lost
            self.sent += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 100_000

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def configured(app: App) -> uvicorn.Config:
    config = uvicorn.Config(app, ws="none", lifespan="off", interface="asgi3", log_config=None, proxy_headers=False)
    config.load()
    return config


class Served:
    """A registry with one model, and connections to it without a network."""

    def __init__(self, *, body_s: float = 60.0, json_bytes: int = JSON_BYTES, **limits: Any) -> None:
        registry = Registry()
        spec = spec_of("double", [tensor("x", "float32", -1, 2)], [tensor("y", "float32", -1, 2)])
        version = Version(number=1, spec=spec, created_s=0.0)
        registry.begin(version)
        shared = {"batchable": True, "limits": Limits(**limits), "stats": version.stats, "row_bytes": 8}
        self.engines = Doubling(), Doubling()
        larger = Replicas([self.engines[0]], name="double", **shared)
        version.executor = Inline(self.engines[1], larger=larger, **shared)
        registry.ready(version)
        registry.route("double", Routing(live=1))
        self.version, handler = version, RequestHandler(registry)
        self.app = App(handler, Guard(b"right"), body_s=body_s, json_bytes=json_bytes)
        self._fast, self._slow = configured(self.app), configured(App(handler, Guard(b"right"), body_s=body_s))
        self.fast_path = FastPath(self.app)
        self.state = ServerState()

    def connection(self, way: type[InferenceConnection] = FastConnection) -> InferenceConnection:
        shared = {"server_state": self.state, "app_state": {}, "_loop": asyncio.get_running_loop()}
        if way is FastConnection:
            return self.fast_path.connection(config=self._fast, **shared)
        return way(config=self._slow, **shared)

    def connect(self, way: type[InferenceConnection] = FastConnection) -> tuple[Any, Wire]:
        wire, made = Wire(), self.connection(way)
        made.connection_made(wire)
        return made, wire

    async def answers(self, way: type[InferenceConnection], data: list[bytes]) -> tuple[bytes, bool]:
        """What comes back for these reads of one connection, and whether it was closed then."""
        made, wire = self.connect(way)
        for part in data:
            if wire.closed:
                break
            made.data_received(part)
            await asyncio.sleep(0)
        for _ in range(2000):
            if wire.closed or ((made.cycle is None or made.cycle.response_complete) and not made.pipeline):
                break
            await asyncio.sleep(0)
        closed = wire.closed
        if not closed:
            made.connection_lost(None)  # which closes
        return wire.sent, closed


async def until(there: Callable[[], bool]) -> None:
    """Let the loop go on until `there`."""
    while not there():  # noqa: ASYNC110 - the connection under test has no event for it
        await asyncio.sleep(0.001)


def request(
    path: bytes, body: bytes, *headers: bytes, method: bytes = b"POST", version: bytes = b"1.1", host: bytes = b"localhost"
) -> bytes:
    lines = [b"%b %b HTTP/%b" % (method, path, version), b"Host: " + host, *headers]
    if method == b"POST":
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body if method == b"POST" else b"")


def some_request(chance: random.Random) -> bytes:
    """A request of which each part is mostly right and sometimes not."""

    def mostly(right: bytes, *others: bytes) -> bytes:
        return right if chance.random() < 0.75 else chance.choice(others)

    rows = [[chance.randrange(100) / 4 for _ in range(2)] for _ in range(chance.randrange(1, 4))]
    v1 = json.dumps({"instances": rows}).encode()
    binary = np.asarray(rows, "<f4").tobytes()
    given = {"name": "x", "shape": [len(rows), 2], "datatype": "FP32"}
    v2 = json.dumps({"id": "i", "inputs": [given | {"data": rows}]}).encode()
    head = json.dumps({"inputs": [given | {"parameters": {"binary_data_size": len(binary)}}]}).encode()
    method = mostly(b"POST", b"GET", b"PUT", b"HEAD", b"OPTIONS")
    headers = [mostly(ALLOWED, b"Authorization: Bearer wrong", b"X-Nothing: 1")]
    if chance.random() < 0.2:
        headers.append(
            chance.choice(
                [b"Connection: close", b"Connection: keep-alive", OFFERED, b"Accept-Encoding: gzip", b"Origin: https://evil.example"]
            )
        )
    host = mostly(b"localhost", b"evil.example", b"127.0.0.1:80")
    version = b"1.0" if chance.random() < 0.05 else b"1.1"
    if chance.random() < 0.3:
        headers.append(b"Inference-Header-Content-Length: " + mostly(b"%d" % len(head), b"0", b"9999", b"x"))
        return request(mostly(V2, V1), head + binary, *headers, method=method, version=version, host=host)
    path = mostly(V1, V2, V1 + b"?token=right", b"/v1/models/double/versions/1:predict", b"/v1/models/none:predict", b"/v2", b"/", b"/%zz")
    body = mostly(
        v2 if path == V2 else v1, b"", b"{", b"[]", b'{"instances": [[1]]}', b'{"instances": [[NaN, 1e39]]}', b'{"inputs": 1}', v1 + b" x"
    )
    return request(path, body, *headers, method=method, version=version, host=host)


def cut(data: bytes, chance: random.Random) -> list[bytes]:
    """`data` as a few reads may bring it."""
    places = sorted(chance.randrange(len(data)) for _ in range(chance.choice([0, 0, 0, 1, 3])))
    return [data[low:high] for low, high in zip([0, *places], [*places, len(data)], strict=True) if high > low]


@pytest.mark.parametrize("count", [4_000, pytest.param(20_000, marks=pytest.mark.nightly)])
async def test_thousands_of_requests_are_answered_alike_on_both_ways(count: int) -> None:
    served, chance = Served(), random.Random(1)
    short = seen = 0
    codes: set[bytes] = set()
    while seen < count:
        requests = [some_request(chance) for _ in range(chance.choice([1, 1, 2, 4]))]
        reads = cut(b"".join(requests), chance)
        before = served.state.total_requests
        quick = await served.answers(FastConnection, reads)
        short += served.state.total_requests - before
        slow = await served.answers(InferenceConnection, reads)
        assert quick == slow, b"".join(requests)
        seen += len(requests)
        codes.update(re.findall(rb"HTTP/1.1 (\d+)", quick[0]))

    assert {b"200", b"400", b"401", b"404", b"405", b"421"} <= codes
    assert b"500" not in codes
    assert served.version.stats.requests > count / 4
    await served.version.drain_and_close()


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.integers(0, 2**32), EDITS, st.binary(max_size=8))
def test_bytes_that_are_almost_requests_are_answered_alike_on_both_ways(seed: int, edits: list[Edit], after: bytes) -> None:
    chance = random.Random(seed)
    data = edited(some_request(chance) + some_request(chance), edits) + after
    reads = cut(data, chance)

    async def both() -> tuple[tuple[bytes, bool], tuple[bytes, bool]]:
        served = Served()
        answers = await served.answers(FastConnection, reads), await served.answers(InferenceConnection, reads)
        await served.version.drain_and_close()
        return answers

    quick, slow = asyncio.run(both())

    assert quick == slow
    assert not re.search(rb"HTTP/1.1 50[02-9]|Traceback", quick[0])


ROW = b'{"instances": [[1.0, 2.0]]}'
DOUBLED = b'{"predictions":[[2.0,4.0]]}'
SHORT = request(V1, ROW, ALLOWED)
LONG = request(b"/v2", b"", ALLOWED, method=b"GET")
CHUNKED = b"POST %b HTTP/1.1\r\nHost: localhost\r\n%b\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
    V1,
    ALLOWED,
    len(ROW),
    ROW,
)


def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Grows by the URL of each request whose head is parsed."""
    seen: list[bytes] = []
    complete = FastConnection.on_headers_complete

    def counted(self: FastConnection) -> None:
        seen.append(self.url)
        complete(self)

    monkeypatch.setattr(FastConnection, "on_headers_complete", counted)
    return seen


async def test_a_head_that_came_before_is_not_parsed_again_on_any_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    served, seen = Served(), parsed(monkeypatch)
    one = request(V1, ROW, ALLOWED)

    for reads in ([one, one, one], [one]):
        answer, _ = await served.answers(FastConnection, reads)
        assert answer.count(DOUBLED) == len(reads)

    assert seen == [V1]
    await served.version.drain_and_close()


@pytest.mark.parametrize(
    ("reads", "said"),
    [
        pytest.param([b"\r\n\r\n", request(V1, ROW, ALLOWED)], [b"200"], id="empty lines before"),
        pytest.param([request(V1, ROW, ALLOWED) * 2], [b"200", b"200"], id="two in one read"),
        pytest.param([request(V1, ROW, ALLOWED)[:-5], ROW[-5:]], [b"200"], id="the body in two reads"),
        pytest.param([request(V1, ROW, ALLOWED) + b"POST", request(V1, ROW, ALLOWED)[4:]], [b"200", b"200"], id="the next one's beginning"),
        pytest.param([request(V1, ROW, b"Authorization: Bearer wrong")], [b"401"], id="another token"),
        pytest.param([request(V1, ROW, ALLOWED, host=b"evil.example")], [b"421"], id="another host"),
        pytest.param([request(b"/", b"", ALLOWED, method=b"GET") + request(V1, ROW, ALLOWED)], [b"200", b"200"], id="behind a page"),
        pytest.param([b"GET / HTTP/1.1\r\n", request(V1, ROW, ALLOWED)], [b"400"], id="within another's head"),
    ],
)
async def test_what_only_looks_like_a_head_that_came_before_is_parsed(reads: list[bytes], said: list[bytes]) -> None:
    served = Served()
    await served.answers(FastConnection, [request(V1, ROW, ALLOWED)] * 2)

    quick, slow = await served.answers(FastConnection, reads), await served.answers(InferenceConnection, reads)

    assert quick == slow
    assert re.findall(rb"HTTP/1.1 (\d+)", quick[0]) == said
    assert set(served.fast_path.heads) == {request(V1, ROW, ALLOWED).removesuffix(ROW)}
    await served.version.drain_and_close()


async def test_heads_are_kept_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_connection, "HEADS", 3)
    served = Served()

    for spaces in range(10):
        answer, _ = await served.answers(FastConnection, [request(V1, ROW + b" " * spaces, ALLOWED)])
        assert answer.endswith(DOUBLED)
    long_head = await served.answers(FastConnection, [request(V1, ROW, ALLOWED, b"X-Long: " + b"x" * fast_connection.LEARNED_HEAD_BYTES)])

    assert long_head[0].endswith(DOUBLED)
    assert 0 < len(served.fast_path.heads) <= 3
    assert max(map(len, served.fast_path.heads)) <= fast_connection.LEARNED_HEAD_BYTES
    await served.version.drain_and_close()


async def test_a_prediction_takes_the_short_way_and_what_is_not_plain_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    served, long = Served(), 0
    begin_asgi = FastConnection._begin_asgi

    def counted(self: FastConnection) -> None:
        nonlocal long
        long += 1
        begin_asgi(self)

    monkeypatch.setattr(FastConnection, "_begin_asgi", counted)
    body = b'{"instances": [[1.0, 2.0]]}'
    plain = request(V1, body, ALLOWED)

    async def ways(*requests: bytes) -> int:
        before = long
        await served.answers(FastConnection, list(requests))
        return long - before

    assert await ways(plain, plain, request(V1 + b"?a=1", body, ALLOWED), request(V1, body, ALLOWED, b"X: 1")) == 0
    assert await ways(request(V1, body)) == 1, "the guard's refusal is the app's to send"
    assert await ways(plain, request(V1, b"", ALLOWED, method=b"GET")) == 1, "the same head with another method is another request"
    assert await ways(request(V1, body, ALLOWED, b"Expect: 100-continue")) == 1
    assert await ways(request(V1, body, ALLOWED, b"Content-Encoding: gzip")) == 1
    assert await ways(request(V1, b"x" * (fast_connection.FAST_BYTES + 1), ALLOWED)) == 1
    chunked = b"POST " + V1 + b" HTTP/1.1\r\nHost: localhost\r\n" + ALLOWED + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert await ways(chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)) == 1
    await served.version.drain_and_close()


OFFERING = request(V1, ROW, ALLOWED, OFFERED)


@pytest.mark.parametrize("way", [FastConnection, InferenceConnection])
@pytest.mark.parametrize(
    ("reads", "answers"),
    [
        pytest.param([OFFERING], 1, id="one"),
        pytest.param([OFFERING, OFFERING], 2, id="twice"),
        pytest.param([OFFERING * 3 + SHORT + OFFERING], 5, id="in one read"),
        pytest.param([OFFERING[:100], OFFERING[100:]], 1, id="the head in two reads"),
        pytest.param([OFFERING[:-5], OFFERING[-5:] + SHORT], 2, id="the body in two reads"),
        pytest.param([OFFERING[place : place + 1] for place in range(len(OFFERING))], 1, id="byte by byte"),
        pytest.param([CHUNKED.replace(b"Transfer", OFFERED + b"\r\nTransfer"), SHORT], 2, id="in chunks"),
        pytest.param(
            [LONG + OFFERING + LONG.replace(b"\r\n\r\n", b"\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n") + SHORT], 4, id="mixed"
        ),
    ],
)
async def test_a_client_that_offers_another_protocol_is_answered_in_this_one(
    way: type[InferenceConnection], reads: list[bytes], answers: int
) -> None:
    """As Java's HttpClient does on its own, and curl with --http2."""
    served = Served()

    sent, closed = await served.answers(way, reads)

    assert re.findall(rb"HTTP/1.1 (\d+)", sent) == [b"200"] * answers
    assert sent.count(DOUBLED) == b"".join(reads).count(ROW)
    assert not closed
    await served.version.drain_and_close()


async def test_an_offer_to_close_as_well_closes() -> None:
    served = Served()

    sent, closed = await served.answers(FastConnection, [OFFERING.replace(b"Connection: Upgrade", b"Connection: close, Upgrade")])

    assert (DOUBLED in sent, b"connection: close" in sent, closed) == (True, True, True)
    await served.version.drain_and_close()


async def test_answers_of_both_ways_leave_in_the_order_of_their_requests() -> None:
    served = Served()
    paths = [V1, b"/v1/models/double", V1, V1, b"/v2", b"/v2/models/double/ready", V1]
    requests = [
        request(path, b'{"instances": [[%d, 0]]}' % place, ALLOWED, method=b"POST" if path == V1 else b"GET")
        for place, path in enumerate(paths)
    ]

    sent, _ = await served.answers(FastConnection, [b"".join(requests)])

    documents = [json.loads(part.partition(b"\r\n\r\n")[2]) for part in sent.split(b"HTTP/1.1 200 OK")[1:]]
    assert len(documents) == len(paths)
    for place, (path, document) in enumerate(zip(paths, documents, strict=True)):
        assert ("predictions" in document) == (path == V1)
        if path == V1:
            assert document == {"predictions": [[2.0 * place, 0.0]]}
    await served.version.drain_and_close()


async def test_what_came_whole_before_nonsense_is_answered_and_the_last_answer_closes() -> None:
    served = Served()
    asks = request(V1, b'{"instances": [[1, 2]]}', ALLOWED), request(b"/v2", b"", ALLOWED, method=b"GET")

    for before in ([0, 0], [1, 1], [0, 1], [1, 0, 1]):
        sent, closed = await served.answers(FastConnection, [b"".join(asks[kind] for kind in before) + b"nonsense\r\n\r\n"])

        assert re.findall(rb"HTTP/1.1 (\d+)", sent) == [b"200"] * len(before) + [b"400"]
        assert sent.count(b"connection: close") == 1
        assert sent.partition(b"HTTP/1.1 400")[2].count(b"connection: close") == 1
        assert closed
    await served.version.drain_and_close()


async def test_a_connection_with_many_waiting_predictions_is_not_read_on_until_they_are_answered() -> None:
    served = Served()
    made, wire = served.connect()

    made.data_received(request(V1, b'{"instances": [[1, 2]]}', ALLOWED) * fast_connection.PENDING)
    assert not wire.reading
    await until(lambda: made.cycle.response_complete)

    assert wire.reading
    assert wire.sent.count(b"200 OK") == fast_connection.PENDING
    made.pause_writing()
    assert not wire.reading, "who does not read answers is not read from"
    made.resume_writing()
    assert wire.reading
    made.connection_lost(None)
    await served.version.drain_and_close()


async def test_who_never_reads_an_answer_is_cut_and_who_reads_slowly_is_not() -> None:
    served = Served(body_s=0.05)
    (never, never_wire), (slowly, slow_wire), (late, late_wire) = served.connect(), served.connect(), served.connect()
    looks: list[int] = []

    def less_each_time() -> int:
        looks.append(1_000_000 - len(looks))
        return looks[-1]

    slow_wire.get_write_buffer_size = less_each_time  # type: ignore[method-assign]
    for made in (never, slowly, late):
        made.data_received(SHORT)
        made.pause_writing()
    late.resume_writing()

    await until(lambda: never_wire.closed and len(looks) > 4)

    assert (slow_wire.closed, late_wire.closed) == (False, False)
    for made in (never, slowly, late):
        made.connection_lost(None)
    await served.version.drain_and_close()


async def test_an_answer_that_nobody_takes_off_a_real_connection_is_not_kept() -> None:
    served = Served(body_s=0.2, json_bytes=2**23)  # more than the system's buffers hold
    loop = asyncio.get_running_loop()
    server = await loop.create_server(served.connection, "127.0.0.1")
    rows = json.dumps({"instances": [[1.0, 2.0]] * 400_000}).encode()

    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setblocking(False)
        await loop.sock_connect(plain, server.sockets[0].getsockname())
        await loop.sock_sendall(plain, request(V1, rows, ALLOWED))
        await until(lambda: served.version.stats.requests == 1)
        await until(lambda: not served.state.connections)

    server.close()
    await served.version.drain_and_close()


@pytest.mark.parametrize("way", [FastConnection, InferenceConnection])
@pytest.mark.parametrize("cut", [len(SHORT) - 20, len(CHUNKED) - 20])
async def test_a_body_that_comes_byte_by_byte_is_408_when_its_time_is_over(way: type[InferenceConnection], cut: int) -> None:
    served, data = Served(body_s=0.1), SHORT if cut < len(SHORT) else CHUNKED
    made, wire = served.connect(way)

    made.data_received(data[:cut])
    for place in range(cut, len(data) - 1):
        await asyncio.sleep(0.02)
        if wire.closed:
            break
        made.data_received(data[place : place + 1])
    await until(lambda: wire.closed)

    assert re.findall(rb"HTTP/1.1 (\d+)", wire.sent) == [b"408"]
    assert b"did not come within 0.1 s. Send fewer rows at once." in wire.sent
    assert served.app.held.bytes == 0
    made.connection_lost(None)
    await served.version.drain_and_close()


async def test_a_head_that_comes_byte_by_byte_is_400_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_http, "HEAD_S", 0.1)
    served = Served()
    made, wire = served.connect()

    for place in range(len(SHORT) - len(ROW) - 1):
        made.data_received(SHORT[place : place + 1])
        await asyncio.sleep(0.01)
        if wire.closed:
            break

    assert re.findall(rb"HTTP/1.1 (\d+)", wire.sent) == [b"400"]
    assert b"did not come within 0.1 s" in wire.sent
    made.connection_lost(None)
    await served.version.drain_and_close()


async def test_a_body_that_does_not_come_is_408_after_the_answers_before_it() -> None:
    served = Served(body_s=0.05)
    made, wire = served.connect()
    whole = request(V1, b'{"instances": [[1, 2]]}', ALLOWED)

    made.data_received(whole + whole[:-5])
    assert served.app.held.bytes == 23
    await until(lambda: wire.closed)

    assert re.findall(rb"HTTP/1.1 (\d+)", wire.sent) == [b"200", b"408"]
    assert b"connection: close" in wire.sent
    assert served.app.held.bytes == 0
    made.connection_lost(None)
    await served.version.drain_and_close()


async def test_a_shutdown_waits_for_predictions_and_closes_idle_connections_soon() -> None:
    served = Served()
    (busy, busy_wire), (_, idle_wire) = served.connect(), served.connect()
    busy.data_received(request(V1, b'{"instances": [[1, 2]]}', ALLOWED))

    for connection in list(served.state.connections):
        connection.shutdown()
    assert not busy_wire.closed
    await until(lambda: busy_wire.closed and idle_wire.closed)

    assert b"200 OK" in busy_wire.sent
    assert b"connection: close" in busy_wire.sent
    assert idle_wire.sent == b""
    await served.version.drain_and_close()


@pytest.mark.parametrize("way", [FastConnection, InferenceConnection])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(b"", SHORT, id="on its way"),
        pytest.param(b"", LONG, id="another on its way"),
        pytest.param(SHORT[:10], SHORT[10:], id="in the head"),
        pytest.param(SHORT[:-5], SHORT[-5:], id="in the body"),
        pytest.param(CHUNKED[:-9], CHUNKED[-9:], id="in a chunk"),
        pytest.param(SHORT + SHORT[:-5], SHORT[-5:], id="behind a whole one"),
        pytest.param(LONG + SHORT[:-5], SHORT[-5:], id="behind a whole one of another kind"),
        pytest.param(SHORT + LONG[:-5], LONG[-5:], id="another behind a whole one"),
        pytest.param(SHORT + LONG + SHORT + LONG, b"", id="whole ones"),
        pytest.param(LONG + LONG + LONG, b"", id="whole ones of one kind"),
    ],
)
async def test_what_had_begun_to_come_when_a_shutdown_came_is_answered_and_the_last_answer_says_so(
    way: type[InferenceConnection], before: bytes, after: bytes
) -> None:
    served = Served()
    made, wire = served.connect(way)
    if before:
        made.data_received(before)

    made.shutdown()
    if before and after:
        await asyncio.sleep(2 * connections.LAST_LOOK_S)  # what is there already is answered, and the rest may still come
    if after:
        made.data_received(after)
    await until(lambda: wire.closed)

    asked = (before + after).count(b"HTTP/1.1\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+)", wire.sent) == [b"200"] * asked
    assert wire.sent.count(b"connection: close") == 1
    assert wire.sent.rpartition(b"HTTP/1.1 200")[2].count(b"connection: close") == 1
    made.connection_lost(None)
    await served.version.drain_and_close()


async def test_who_leaves_before_the_answer_harms_nobody() -> None:
    served = Served()
    (gone, wire), (stays, other) = served.connect(), served.connect()
    for connection in (gone, stays):
        connection.data_received(request(V1, b'{"instances": [[1, 2]]}', ALLOWED))
    wire.close()
    gone.connection_lost(ConnectionResetError())
    await until(lambda: stays.cycle.response_complete)

    assert b"200 OK" in other.sent
    assert served.version.stats.requests == 2
    await served.version.drain_and_close()


async def test_a_request_of_more_rows_than_the_loop_may_be_kept_for_runs_in_a_thread() -> None:
    served = Served(batch_rows=4)
    rows = [[float(n), 0.0] for n in range(5)]

    made, wire = served.connect()
    made.data_received(request(V1, json.dumps({"instances": rows}).encode(), ALLOWED))
    await until(lambda: made.cycle.response_complete)

    assert json.loads(wire.sent.partition(b"\r\n\r\n")[2]) == {"predictions": [[2 * n, 0.0] for n, _ in rows]}
    assert served.version.stats.batches.keys() == {5}
    await served.version.drain_and_close()
    assert all(engine.closed for engine in served.engines)


async def test_requests_of_one_turn_run_together_and_are_counted() -> None:
    served = Served()
    connections = [served.connect() for _ in range(8)]
    for made, _ in connections:
        made.data_received(request(V1, b'{"instances": [[1, 2]]}', ALLOWED))
    await until(lambda: all(made.cycle.response_complete for made, _ in connections))

    figures = served.version.stats
    assert {rows: spent.count for rows, spent in figures.batches.items()} == {8: 1}
    assert (figures.requests, figures.rows, figures.dispatch) == (8, 8, {"all that waited": 1})
    assert len(figures.latency) == 8
    await served.version.drain_and_close()


async def test_a_batch_is_held_back_for_company_only_where_that_was_asked_for() -> None:
    served = Served(delay_s=0.2)
    (first, _), (second, _) = served.connect(), served.connect()
    body = request(V1, b'{"instances": [[1, 2]]}', ALLOWED)
    first.data_received(body)
    await asyncio.sleep(0.02)
    second.data_received(body)
    await until(lambda: first.cycle.response_complete and second.cycle.response_complete)

    assert served.version.stats.batches.keys() == {2}
    await served.version.drain_and_close()


# --------------------------------------------------------------------------- a real process


def test_one_real_connection_carries_every_kind_of_request_in_order(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "mixed", 1.0))
    token = f"Authorization: Bearer {rig.host.token}".encode()
    path, body = b"/v1/models/mixed:predict", b'{"instances": [[1.0]]}'
    host = {"host": b"127.0.0.1"}
    chunked = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\n%b\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
        path,
        token,
        len(body),
        body,
    )
    expecting = request(path, body, token, b"Expect: 100-continue", **host)
    requests = [
        request(path, body, token, **host),
        request(b"/v1/models/mixed", b"", token, method=b"GET", **host),
        chunked,
        request(path, b"no json", token, **host),
        request(path, body, token, **host),
        expecting,
        request(path, body, token, b"Connection: close", **host),
    ]
    with socket.create_connection(rig.address, timeout=20) as plain:
        plain.sendall(b"".join(requests))
        got = b""
        while chunk := plain.recv(65536):
            got += chunk

    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200", b"200", b"200", b"400", b"200", b"100", b"200", b"200"]
    assert got.count(b'{"predictions":[[2.0]]}') == 5


EVERY_KIND = [
    *(request(path, body, b"TOKEN", *headers, host=b"127.0.0.1") for path, body, *headers in (
        (b"/v1/models/mixed:predict", b'{"instances": [[1.0]]}'),
        (b"/v1/models/mixed:predict", b'{"instances": [[1.0], [2.5]]}', b"Content-Type: text/plain"),
        (b"/v1/models/mixed:predict", b'{"inputs": {"x": [[1.0]]}}'),
        (b"/v1/models/mixed/versions/1:predict", b'{"instances": [{"x": [1.0]}]}'),
        (b"/v1/models/mixed/versions/9:predict", b'{"instances": [[1.0]]}'),
        (b"/V1/Models/mixed:Predict?a=1", b'{"instances": [[-1e30]]}'),
        (b"/v1/models/nobody:predict", b'{"instances": [[1.0]]}'),
        (b"/v1/models/mixed:predict", b'{"instances": [[1.0, 2.0]]}'),
        (b"/v1/models/mixed:predict", b"no json"),
        (b"/v1/models/mixed:regress", b'{"examples": [{"x": 1.0}]}'),
        (b"/v1/models/mixed:explode", b"{}"),
        (b"/v1/models/mixed:predict", b'{"instances": [[1.0]]}', b"aiaas-no-op: 1"),
        (b"/v1/models/mixed:predict", b'{"instances": [[1.0]]}', b"Origin: https://elsewhere.example"),
        (b"/v1/models/mixed:predict", b'{"instances": [%b]}' % b",".join([b"[0.25]"] * 9000), b"Accept-Encoding: gzip"),
        (b"/v2/models/mixed/infer", b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}'),
        (b"/v2/models/mixed/infer", b"\x00\x00\x80?", b"Inference-Header-Content-Length: 0"),
        (b"/v2/models/mixed/infer", b"{}", b"Inference-Header-Content-Length: 99"),
        (b"/v2/repository/index", b"{}"),
    )),
    request(b"/v1/models/mixed", b"", b"TOKEN", method=b"GET", host=b"127.0.0.1"),
    request(b"/v1/models/mixed:predict", b'{"instances": [[1.0]]}', host=b"127.0.0.1"),
    request(b"/v1/models/mixed:predict", b'{"instances": [[1.0]]}', b"TOKEN", host=b"elsewhere.example"),
]  # fmt: skip


@pytest.mark.process
def test_a_process_answers_byte_for_byte_the_same_with_and_without_the_fast_path(tmp_path: Path) -> None:
    ways, batches = [], []
    for name, program in (("with", PROGRAM), ("without", (*PROGRAM, "--no-fast-path"))):
        with Rig(tmp_path / name, program=program) as rig:
            rig.load(plus(tmp_path, "mixed", 1.0))
            token = f"Authorization: Bearer {rig.host.token}".encode()
            # Twice on one connection: the second time the fast path knows the head.
            sent = [kind.replace(b"TOKEN", token) for kind in EVERY_KIND]
            ways.append([re.sub(rb"date: [^\r]*", b"date:", b"".join(rig.raws(one, one))) for one in sent])
            before = rig.call("GET", "/endpoints/mixed").document["figures"]["batches"]
            pipelined = request(b"/v1/models/mixed:predict", b'{"instances": [[1.0]]}', token, host=b"127.0.0.1")
            with socket.create_connection(rig.address, timeout=20) as plain:
                plain.sendall(pipelined * 5)
                got = b""
                while got.count(b"predictions") < 5:
                    got += plain.recv(65536)
            batches.append(rig.call("GET", "/endpoints/mixed").document["figures"]["batches"] - before)

    assert ways[0] == ways[1]
    assert batches[0] < batches[1] == 5, "only the fast path computes what came in one read together"
    statuses = [re.findall(rb"HTTP/1.1 (\d+)", answers) for answers in ways[0]]
    assert {status for found in statuses for status in found} == {b"200", b"400", b"401", b"403", b"404", b"421"}
