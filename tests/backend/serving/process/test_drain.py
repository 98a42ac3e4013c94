"""SIGTERM to a real process with requests on the way: what was asked is answered, on every port, and then it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from tests.backend.serving.grpc.test_grpc import Client, infer_request
from tests.backend.serving.support.serving_models import matrix
from tests.backend.serving.support.serving_rig import Rig
from tests.support.waiting import until

SIZE = 384
ROWS = 64
CONNECTIONS = 40


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Rig]:
    """With a model whose requests take a while each, one after the other."""
    with Rig(tmp_path / "state") as rig:
        rig.load(matrix(tmp_path, "slow", size=SIZE, steps=60))
        yield rig


def request_of(rig: Rig, *, chunked: bool) -> bytes:
    body = json.dumps({"instances": [[1.0] * SIZE] * ROWS}).encode()
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    how = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    head = b"POST /v1/models/slow:predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n" % rig.host.token.encode()
    return head + how + b"\r\n\r\n" + sent


def rest_of(plain: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    plain.settimeout(30)
    got = b""
    while chunk := plain.recv(1 << 20):
        got += chunk
    return got


def refuses(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError:
        return True
    return False


def test_sigterm_answers_everything_that_was_asked_and_closes_idle_connections(slow: Rig) -> None:
    """By the short way, by the app and over gRPC; and what had begun to come, when the rest of it has come."""
    process, address = psutil.Process(slow.host.pid), slow.address
    client = Client(slow)
    message = infer_request("slow", x=np.ones((ROWS, SIZE), np.float32))
    idle = [socket.create_connection(address, timeout=30) for _ in range(20)]
    asking = [socket.create_connection(address, timeout=30) for _ in range(CONNECTIONS)]
    sending = [(socket.create_connection(address, timeout=30), request_of(slow, chunked=chunked)) for chunked in (False, True)]
    over_grpc: list[object] = []

    def call() -> None:
        try:
            over_grpc.append(len(client.infer(message).raw_output_contents[0]))
        except grpc.RpcError as error:
            over_grpc.append(error.code())

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for place, plain in enumerate(asking):
        plain.sendall(request_of(slow, chunked=bool(place % 2)))
    for plain, request in sending:
        plain.sendall(request[:-1000])
    seen = slow.call("GET", "/endpoints/slow").document["figures"]["requests"]
    until(lambda: slow.call("GET", "/endpoints/slow").document["figures"]["requests"] > seen, "it answers one after the other", 60)
    slow.run(slow.host.close())

    os.kill(process.pid, signal.SIGTERM)
    until(lambda: refuses(address), "it takes no new connections", 30)
    for plain, request in sending:
        plain.sendall(request[-1000:])
    asking += [plain for plain, _ in sending]
    answers = [rest_of(plain) for plain in asking]
    for caller in callers:
        caller.join(60)

    assert [answer.partition(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 200 OK"] * (CONNECTIONS + 2)
    assert all(len(json.loads(answer.partition(b"\r\n\r\n")[2])["predictions"]) == ROWS for answer in answers)
    assert over_grpc == [4 * ROWS * SIZE] * 4
    assert [rest_of(plain) for plain in idle] == [b""] * 20
    assert os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1]) == 0
    for plain in (*idle, *asking):
        plain.close()
    client.channel.close()
