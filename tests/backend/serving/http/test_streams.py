"""Answers that are streamed, by a protocol that streams: real clients at a real process, and what ends a stream early."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from aiaas_magics.backend.serving.http.request_handler import RequestHandler, refusal
from aiaas_magics.backend.serving.http.rest_protocols import REST_PROTOCOLS, routes_of
from aiaas_magics.backend.serving.http.streams import AnswerStream, runner
from aiaas_magics.backend.serving.models import registry as registries
from aiaas_magics.backend.serving.models.registry import Registry, Version
from aiaas_magics.backend.serving.protocols import Request, Response, StreamFault
from aiaas_magics.core.routing import Routing
from tests.backend.serving.http.test_tracing import Receiver, receiver  # noqa: F401 - a fixture
from tests.backend.serving.support import chat_protocol
from tests.backend.serving.support.chat_protocol import JOURNAL, Chat, ChatCall
from tests.backend.serving.support.serving_models import plus, spec_of, tensor
from tests.backend.serving.support.serving_rig import Rig
from tests.support.waiting import until

CHAT = "/v1/chat/completions"
PROGRAM = (sys.executable, "-m", "tests.backend.serving.support.chat_protocol")
SOON_S = 5.0


class Chats:
    """A process that speaks the protocol, with a model that adds 1."""

    def __init__(self, rig: Rig, journal: Path) -> None:
        self.rig, self._journal = rig, journal
        self._connections: list[http.client.HTTPConnection] = []

    def lines(self) -> list[str]:
        """What was made, and closed, since the last `forget`."""
        return self._journal.read_text().splitlines() if self._journal.exists() else []

    def forget(self) -> None:
        self._journal.unlink(missing_ok=True)

    def is_closed(self) -> bool:
        return "closed" in self.lines()

    def open(self, *, headers: dict[str, str] | None = None, **chat: Any) -> http.client.HTTPResponse:
        """The answer, of which nothing is read yet but its head."""
        self.connection = http.client.HTTPConnection(*self.rig.address, timeout=30)
        self._connections.append(self.connection)
        sent = {"Authorization": f"Bearer {self.rig.host.token}", **(headers or {})}
        self.connection.request("POST", CHAT, json.dumps({"model": "plus", **chat}), sent)
        return self.connection.getresponse()

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def outcomes(self) -> dict[str, int]:
        lines = self.rig.call("GET", "/metrics").body.decode().splitlines()
        found = [line for line in lines if line.startswith('aiaas_requests_total{endpoint="plus",version="1"')]
        return {line.partition('outcome="')[2].partition('"')[0]: int(line.rpartition(" ")[2]) for line in found}

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.rig.host.pid)


def made_until_it_waits(chats: Chats) -> int:
    """How many chunks there are when no more have been made for half a second."""
    seen: list[int] = []

    def is_still() -> bool:
        seen.append(len(chats.lines()))
        return len(seen) > 25 and len(set(seen[-25:])) == 1

    until(is_still, "the model does not wait for the reader", 20)
    return seen[-1]


def words(events: bytes) -> list[float]:
    return [json.loads(event.removeprefix(b"data: "))["word"] for event in events.split(b"\n\n") if event.startswith(b"data: {")]


def start(tmp_path: Path, patch: pytest.MonkeyPatch) -> Chats:
    patch.setenv(JOURNAL, str(tmp_path / "journal"))
    return Chats(Rig(tmp_path / "state", program=PROGRAM), tmp_path / "journal")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chats]:
    folder = tmp_path_factory.mktemp("chats")
    with pytest.MonkeyPatch.context() as patch:
        chats = start(folder, patch)
        with chats.rig as rig:
            rig.load(plus(folder, "plus", 1.0))
            yield chats


@pytest.fixture
def chats(running: Chats) -> Iterator[Chats]:
    running.forget()
    with contextlib.closing(running):
        yield running


# --------------------------------------------------------------------------- what arrives


def test_a_chunk_arrives_before_the_next_one_is_made(chats: Chats) -> None:
    answer = chats.open(count=3, pause_s=1.0)

    first = answer.readline()
    made = [line for line in chats.lines() if line.startswith("made")]
    whole = first + answer.read()

    assert (answer.status, answer.getheader("content-type"), answer.getheader("transfer-encoding")) == (200, "text/event-stream", "chunked")
    assert made == ["made 0"]
    assert words(whole) == [1.0, 2.0, 3.0]
    assert whole.endswith(b"data: [DONE]\n\n")


def test_httpx_reads_the_events(chats: Chats) -> None:
    headers = {"Authorization": f"Bearer {chats.rig.host.token}"}
    with httpx.stream("POST", chats.rig.host.url + CHAT, json={"model": "plus", "start": 5, "count": 2}, headers=headers) as answer:
        lines = [line for line in answer.iter_lines() if line]

    assert [json.loads(line.removeprefix("data: ")).get("word") for line in lines[:-1]] == [6.0, 7.0]
    assert lines[-1] == "data: [DONE]"


def curl(chats: Chats, *options: str) -> subprocess.CompletedProcess[bytes]:
    token, body = f"Authorization: Bearer {chats.rig.host.token}", '{"model": "plus", "count": 2, "padding": 100000}'
    command = ["curl", "-sS", "-N", "-i", *options, "-H", token, "-d", body, chats.rig.host.url + CHAT]
    return subprocess.run(command, capture_output=True, timeout=30, check=True)


def test_a_stream_is_not_compressed_for_curl_that_would_take_it(chats: Chats) -> None:
    answer = curl(chats, "-H", "Accept-Encoding: gzip").stdout

    assert b"content-encoding" not in answer.lower()
    assert b"data: [DONE]" in answer
    assert len(answer) > 200_000


def test_http_1_0_has_no_streams_and_is_told_so(chats: Chats) -> None:
    answer = curl(chats, "--http1.0").stdout

    assert answer.split()[1] == b"505"
    assert b"Ask by HTTP/1.1" in answer
    assert "made 0" not in chats.lines()


def test_a_connection_goes_on_behind_a_stream_with_streams_and_plain_predictions(chats: Chats) -> None:
    headers = {"Authorization": f"Bearer {chats.rig.host.token}"}
    connection = http.client.HTTPConnection(*chats.rig.address, timeout=30)
    answers = []
    for path, body in [(CHAT, {"model": "plus"}), ("/v1/models/plus:predict", {"instances": [[4.0]]}), (CHAT, {"model": "plus"})]:
        connection.request("POST", path, json.dumps(body), headers)
        answers.append(connection.getresponse().read())
    connection.close()

    assert [words(answers[0]), json.loads(answers[1]), words(answers[2])] == [[1.0, 2.0, 3.0], {"predictions": [[5.0]]}, [1.0, 2.0, 3.0]]


def test_a_request_for_one_piece_is_answered_by_one(chats: Chats) -> None:
    answer = chats.open(stream=False, start=3)

    assert (answer.getheader("content-length"), json.loads(answer.read())) == ("12", {"word": 4.0})


def test_a_request_that_is_not_to_be_computed_streams_zeros(chats: Chats) -> None:
    assert words(chats.open(headers={"aiaas-no-op": "1"}, start=7).read()) == [0.0, 0.0, 0.0]


# --------------------------------------------------------------------------- one table of all protocols


def test_protocols_share_the_beginning_of_a_path_and_each_refuses_in_its_own_words(chats: Chats) -> None:
    rig = chats.rig

    assert rig.predict("plus", {"instances": [[1.0]]}).document == {"predictions": [[2.0]]}
    assert rig.call("GET", "/v1/chat").document == {}
    assert (rig.call("GET", CHAT).status, rig.call("GET", CHAT).error) == (405, "GET is not taken. Chat takes POST.")
    assert rig.call("GET", "/v1/chat/nothing").error.startswith("Malformed request"), "as TensorFlow Serving has it below /v1/"
    operation = rig.call("GET", "/openapi.json").document["paths"][CHAT]["post"]
    assert (operation["tags"], list(operation["responses"]["200"]["content"])) == (["Chat"], ["text/event-stream", "application/json"])


def test_two_protocols_with_the_same_operation_are_refused() -> None:
    with pytest.raises(ValueError, match=f"POST {CHAT} is in two protocols' tables"):
        routes_of((*REST_PROTOCOLS, chat_protocol, chat_protocol))  # type: ignore[arg-type]


# --------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("chat", "status", "text"),
    [
        ({"count": 0}, 400, "count is at least 1"),
        ({"fails_at": 0}, 400, "No more words"),
        ({"model": "nobody"}, 404, "No such model."),
        ({"model": 7}, 400, "Not a chat"),
        ({"timeout_s": 0.0}, 504, "was over before the answer was whole"),
    ],
)
def test_a_fault_before_the_first_chunk_is_an_answer_as_any_other(chats: Chats, chat: dict[str, Any], status: int, text: str) -> None:
    answer = chats.open(**chat)

    assert (answer.status, answer.getheader("content-type")) == (status, "application/json")
    assert text in json.loads(answer.read())["error"]


def test_a_later_fault_is_said_in_the_stream(chats: Chats) -> None:
    before = chats.outcomes()

    events = chats.open(fails_at=2, count=5).read()

    assert words(events) == [1.0, 2.0]
    assert events.endswith(b'event: error\ndata: {"error":"No more words"}\n\n')
    assert chats.outcomes()["failed"] == before["failed"] + 1
    assert chats.is_closed()


def test_a_later_fault_of_a_protocol_without_words_for_it_cuts_the_answer(chats: Chats) -> None:
    answer = chats.open(fails_at=2, count=5, cuts=True)

    with pytest.raises(http.client.IncompleteRead) as cut:
        answer.read()

    assert words(cut.value.partial) == [1.0, 2.0]


def test_a_deadline_ends_a_stream_with_a_sentence(chats: Chats) -> None:
    began_s = time.monotonic()

    events = chats.open(timeout_s=0.5, pause_s=30).read()

    assert time.monotonic() - began_s < SOON_S
    assert words(events) == [1.0]
    assert b"event: error" in events
    assert b"timeout of 0.5 s was over" in events
    assert chats.is_closed()


# --------------------------------------------------------------------------- readers


def test_a_slow_reader_makes_the_model_wait_and_memory_does_not_grow(chats: Chats) -> None:
    chunks, size = 600, 100_000
    before = chats.process.memory_info().rss

    answer = chats.open(count=chunks, padding=size)
    first = answer.readline()
    made = made_until_it_waits(chats)
    grown = chats.process.memory_info().rss - before
    rest = answer.read()

    assert made < chunks / 3, "the system's buffers hold some megabytes"
    assert grown < 32 * 1024 * 1024
    assert len(words(first + rest)) == chunks


@pytest.mark.parametrize("has_paused", [False, True], ids=["while nothing is made", "after it had not read for a while"])
def test_a_stream_is_closed_soon_after_its_reader_has_left(chats: Chats, has_paused: bool) -> None:
    before = chats.outcomes()
    answer = chats.open(count=50 if has_paused else 3, padding=200_000 if has_paused else 0, pause_s=0.01 if has_paused else 60)
    answer.readline()
    if has_paused:
        made_until_it_waits(chats)

    assert chats.connection.sock is not None
    chats.connection.sock.shutdown(socket.SHUT_RDWR)
    answer.close()
    chats.connection.close()

    until(chats.is_closed, "the generator is closed", SOON_S)
    until(lambda: chats.outcomes()["abandoned"] == before["abandoned"] + 1, "it is counted", SOON_S)


# --------------------------------------------------------------------------- versions that go


@pytest.mark.process
def test_a_version_that_is_replaced_ends_its_streams_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chats = start(tmp_path, monkeypatch)
    with chats.rig as rig, contextlib.closing(chats):
        rig.load(plus(tmp_path, "plus", 1.0))
        answer = chats.open(count=4, pause_s=0.5)
        first = answer.readline()

        rig.deploy(plus(tmp_path, "plus", 10.0), 2, Routing(live=2))
        after = words(chats.open(count=1).read())
        old = words(first + answer.read())

        assert (old, after) == ([1.0, 2.0, 3.0, 4.0], [10.0])
        assert not rig.call("GET", "/v1/models/plus/versions/1").document["ready"]


@pytest.mark.process
def test_sigterm_lets_a_stream_come_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chats = start(tmp_path, monkeypatch)
    rig = chats.rig.__enter__()
    rig.load(plus(tmp_path, "plus", 1.0))
    pid, answer = rig.host.pid, chats.open(count=4, pause_s=0.5)
    first = answer.readline()
    rig.leave()

    os.kill(pid, signal.SIGTERM)
    events = first + answer.read()
    chats.close()

    assert words(events) == [1.0, 2.0, 3.0, 4.0]
    assert events.endswith(b"data: [DONE]\n\n")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Adds:
    """An executor that adds 1."""

    batch_rows = 1

    def submit(self, *_: Any, **__: Any) -> None: ...

    async def run(self, tensors: Any, _rows: int | None) -> Any:
        await asyncio.sleep(0)
        return {"y": tensors["x"] + 1}

    async def close(self) -> None: ...


def served() -> tuple[Registry, Version]:
    registry = Registry()
    version = Version(number=1, spec=spec_of("plus", [tensor("x", "float32", -1, 1)], [tensor("y", "float32", -1, 1)]), created_s=0.0)
    registry.begin(version)
    version.executor = Adds()
    registry.ready(version)
    registry.route("plus", Routing(live=1))
    return registry, version


async def test_a_drain_that_has_taken_its_time_cuts_what_is_still_streamed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(JOURNAL, str(tmp_path / "journal"))
    monkeypatch.setattr(registries, "DRAIN_S", 0.1)
    _, version = served()
    ended: list[int] = []
    call = ChatCall(chat=Chat(model="plus", pause_s=60), version=version)
    run = runner(version, None)
    stream = AnswerStream(version, call, run, began_ns=0, refusal=refusal, on_end=lambda response: ended.append(response.status))
    assert b'"word":1.0' in await anext(stream)

    draining = asyncio.create_task(version.drain_and_close())
    with pytest.raises(StreamFault) as fault:
        await anext(stream)
    await draining

    assert (fault.value.response.status, version.state, ended) == (503, "END", [503])
    assert b"Version 1 of plus was taken down" in (fault.value.closing_chunk or b"")
    assert (tmp_path / "journal").read_text().splitlines()[-1] == "closed"
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_stream_that_nobody_begins_to_read_gives_its_version_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOURNAL, str(tmp_path / "journal"))
    registry, version = served()
    _, route = routes_of((*REST_PROTOCOLS, chat_protocol)).find("POST", CHAT)  # type: ignore[arg-type]
    assert not isinstance(route, Response)
    request = Request(method="POST", path=CHAT, body=b'{"model": "plus"}')
    response = await RequestHandler(registry).respond(chat_protocol, route, request)  # type: ignore[arg-type]
    assert response.stream is not None

    await response.stream.aclose()
    await response.stream.aclose()

    await asyncio.wait_for(version.drain_and_close(), 1.0)
    assert (version.stats.abandoned, version.stats.requests) == (1, 0)


# --------------------------------------------------------------------------- traces


def test_a_span_ends_with_its_stream(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811 - a fixture
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    chats = start(tmp_path, monkeypatch)
    with chats.rig as rig, contextlib.closing(chats):
        rig.load(plus(tmp_path, "plus", 1.0))
        chats.open(count=3, pause_s=0.2).read()
        whole = receiver.next()
        chats.open(count=3, fails_at=1).read()
        failed = receiver.next()

    assert (whole.name, whole.said["aiaas.protocol"]) == (f"POST {CHAT}", "chat")
    assert (whole.said["aiaas.rows"], whole.said["aiaas.version"]) == (3, 1)
    assert whole.said["aiaas.endpoint"] == "plus"
    assert whole.said["http.response.status_code"] == 200
    assert whole.took_ns > 0.4e9
    assert failed.said["http.response.status_code"] == 400


# --------------------------------------------------------------------------- gRPC


@pytest.fixture
def complete(chats: Chats) -> Iterator[Any]:
    """A server-streaming call: a chat, and options of the call, to an iterator of documents."""
    with grpc.insecure_channel(chats.rig.host.grpc) as channel:
        call = channel.unary_stream("/test.Chat/Complete", StringValue.SerializeToString, lambda raw: json.loads(raw))
        metadata = (("authorization", f"Bearer {chats.rig.host.token}"),)
        yield lambda timeout=30, **chat: call(StringValue(value=json.dumps({"model": "plus", **chat})), metadata=metadata, timeout=timeout)


def test_grpc_streams_a_message_for_each_chunk_as_it_is_made(chats: Chats, complete: Any) -> None:
    call = complete(count=3, pause_s=1.0)

    first = next(call)
    made = [line for line in chats.lines() if line.startswith("made")]

    assert made == ["made 0"]
    assert [first["word"], *(message["word"] for message in call)] == [1.0, 2.0, 3.0]
    assert call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("chat", "code", "text"),
    [
        ({"fails_at": 1}, grpc.StatusCode.INVALID_ARGUMENT, "No more words"),
        ({"fails_at": 0}, grpc.StatusCode.INVALID_ARGUMENT, "No more words"),
        ({"model": "nobody"}, grpc.StatusCode.NOT_FOUND, "No such model"),
        ({"model": 7}, grpc.StatusCode.INVALID_ARGUMENT, "Not a chat"),
    ],
)
def test_a_fault_ends_a_grpc_stream_with_its_status(complete: Any, chat: dict[str, Any], code: grpc.StatusCode, text: str) -> None:
    with pytest.raises(grpc.RpcError) as ended:
        list(complete(**chat))

    assert ended.value.code() is code
    assert text in ended.value.details()


def test_a_grpc_deadline_ends_the_stream_and_what_makes_it(chats: Chats, complete: Any) -> None:
    with pytest.raises(grpc.RpcError) as ended:
        list(complete(timeout=0.5, pause_s=30))

    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(chats.is_closed, "the generator is closed", SOON_S)


def test_a_grpc_caller_that_cancels_ends_what_makes_the_stream(chats: Chats, complete: Any) -> None:
    call = complete(pause_s=60)
    next(call)

    call.cancel()

    until(chats.is_closed, "the generator is closed", SOON_S)


def test_a_slow_grpc_reader_makes_the_model_wait(chats: Chats, complete: Any) -> None:
    call = complete(count=600, padding=100_000)
    next(call)
    made = made_until_it_waits(chats)

    assert made < 200
    assert len(list(call)) == 599
