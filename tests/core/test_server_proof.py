"""A server on loopback shows that it knows the token before it is told anything."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

import aiaas_magics
from aiaas_magics.client import connections, local_server
from aiaas_magics.client.load_test.load_plan import BodyForm, LoadPlan
from aiaas_magics.client.load_test.load_run import carry_out
from aiaas_magics.client.serving.endpoint import Endpoint
from aiaas_magics.client.transport import Transport
from aiaas_magics.core import errors, server_proof, wire
from aiaas_magics.core.spec import About, EndpointView, JobView, TensorSpec
from tests.backend.server.served import Served, served, until
from tests.conftest import processes_of
from tests.support.impostors import Proving, answer_of, squatting

TOKEN = "aiaas_a-secret-that-nobody-may-see"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("proof") / "state") as server:
        yield server


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("AIAAS_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    local_server.stop_local()
    until(lambda: not processes_of(tmp_path), f"left behind: {processes_of(tmp_path)}")


NONSENSE = [
    answer_of(b"{}"),
    answer_of(b'{"address":"127.0.0.1:1","proof":"' + b"0" * 64 + b'"}'),
    answer_of(b'{"backend":"local"}'),
    answer_of(b"", status="401 Unauthorized"),
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"x" * 100_000,
]


@pytest.mark.parametrize("answer", NONSENSE, ids=lambda answer: repr(answer[:40]))
def test_a_program_that_does_not_know_the_token_is_sent_nothing_but_the_question(answer: bytes) -> None:
    with squatting(answer=answer) as squatter, Transport(f"http://127.0.0.1:{squatter.port}", token=TOKEN) as transport:
        with pytest.raises(errors.BackendNotProven, match=r"Nothing was sent to it\. Set AIAAS_TOKEN to the output of `aiaas token`"):
            transport.get("/v1/jobs", list[JobView])
        with pytest.raises(errors.BackendNotProven):
            transport.upload("/v1/blobs/x", [b"training data"], size=13)
        with pytest.raises(errors.BackendNotProven):
            transport.infer("/v2/models/m/infer", b"rows of a prediction", headers={})

    assert set(squatter.paths) == {b"/v1/proof"}
    assert not any(secret in squatter.received for secret in (TOKEN.encode(), b"Bearer", b"data", b"rows"))


def test_one_that_says_nothing_is_given_up_in_time() -> None:
    with squatting() as squatter, pytest.raises(errors.BackendTooSlow):
        Transport(f"http://127.0.0.1:{squatter.port}", token=TOKEN, answer_s=0.2).delete("/v1/endpoints/x")

    assert TOKEN.encode() not in squatter.received


def test_one_that_passes_the_question_on_to_the_real_server_is_sent_nothing(server: Served) -> None:
    """It has the right answer, of another address."""

    class Relay(Proving):
        def do_GET(self) -> None:
            status, body, _ = server.raw("GET", self.path, token="")
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            paths.append(self.path)

    paths: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Relay) as relay:
        thread = threading.Thread(target=relay.serve_forever, args=(0.01,))
        thread.start()
        with pytest.raises(errors.BackendNotProven, match="same address and port at both ends of a tunnel"):
            Transport(f"http://127.0.0.1:{relay.server_port}", token=server.token).get("/v1/about", About)
        relay.shutdown()
        thread.join()

    assert [path.partition("?")[0] for path in paths] == [server_proof.PATH]


def test_an_answer_of_before_is_worth_nothing(server: Served) -> None:
    recorded = server.raw("GET", f"{server_proof.PATH}?nonce={'ab' * 32}", token="")[1]

    with squatting(answer=answer_of(recorded)) as squatter, pytest.raises(errors.BackendNotProven):
        Transport(f"http://127.0.0.1:{squatter.port}", token=server.token).get("/v1/about", About)


def test_a_connection_is_asked_once_and_then_used_on(server: Served) -> None:
    asked: list[bytes] = []

    class Counts(Proving):
        token = TOKEN

        def do_GET(self) -> None:
            asked.append(self.path.partition("?")[0].encode())
            if self.path.startswith(server_proof.PATH):
                super().do_GET()
                return
            assert self.headers["Authorization"] == f"Bearer {TOKEN}"
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

    with ThreadingHTTPServer(("127.0.0.1", 0), Counts) as counts:
        thread = threading.Thread(target=counts.serve_forever, args=(0.01,))
        thread.start()
        with Transport(f"http://localhost:{counts.server_port}", token=TOKEN) as transport:
            for _ in range(3):
                assert transport.get("/v1/jobs", list[JobView]) == []
        counts.shutdown()
        thread.join()

    assert asked == [b"/v1/proof", b"/v1/jobs", b"/v1/jobs", b"/v1/jobs"]


@pytest.mark.parametrize("query", ["", "nonce=", "nonce=xyz", f"nonce={'AB' * 32}", f"nonce={'ab' * 33}", f"x=1&nonce={'ab' * 32}"])
def test_a_server_proves_itself_for_whole_questions_only(server: Served, query: str) -> None:
    assert server.raw("GET", f"{server_proof.PATH}?{query}", token="")[0] == 400


def test_a_stranger_gets_a_proof_and_a_web_page_does_not(server: Served) -> None:
    path = f"{server_proof.PATH}?nonce={'ab' * 32}"

    status, body, _ = server.raw("GET", path, token="")

    address = server.url.removeprefix("http://")
    assert (status, wire.decode(body, server_proof.ServerProof)) == (
        200,
        server_proof.ServerProof(address=address, proof=server_proof.proof_of(server.token, "ab" * 32, address)),
    )
    assert server.raw("GET", path, token="", headers={"Origin": "http://evil.example"})[0] == 403
    assert server.raw("GET", path, token="", headers={"Host": "evil.example"})[0] in {400, 421}
    assert server.raw("POST", path, token="")[0] == 401
    assert server.raw("GET", server_proof.PATH + "/", token="")[0] == 401


def test_a_pool_that_opens_its_connections_in_another_way_is_not_used() -> None:
    peer = connections.PeerConnections(connections.Peer("http://127.0.0.1:1", TOKEN))

    with pytest.raises(errors.AiaasBug, match="httpx"):
        connections.put_into(object(), peer)


@pytest.mark.process
def test_the_load_generator_sends_nothing_to_another_program_either() -> None:
    form = BodyForm(name="json", path="/v1/models/m:predict", bodies=(b'{"instances":[[41.5]]}',))
    with squatting(answer=answer_of(b'{"predictions":[1]}')) as squatter:
        plan = LoadPlan(
            url=f"http://127.0.0.1:{squatter.port}", token=TOKEN, forms=(form,), concurrency=(1,), duration_s=0.1, rows=1, rates=()
        )
        with pytest.raises(errors.BackendNotProven):
            carry_out(plan)

    assert set(squatter.paths) == {b"/v1/proof"}
    assert TOKEN.encode() not in squatter.received
    assert b"41.5" not in squatter.received


def test_rows_go_to_no_program_that_has_taken_the_endpoints_port_and_no_token_either(server: Served) -> None:
    tensor = TensorSpec(name="x", dtype="float32", shape=(-1, 1))
    with squatting(answer=answer_of(b"{}")) as squatter:
        url = f"http://127.0.0.1:{squatter.port}"
        view = EndpointView(name="churn", url=url, token=TOKEN, replicas=1, versions=(), inputs=(tensor,), outputs=(tensor,))
        endpoint = Endpoint(server.transport, view)
        with pytest.raises(errors.BackendNotProven):
            endpoint.predict(np.full((3, 1), 41.5, "float32"))
        assert next(endpoint.watch(every_s=0.0)) is None  # monitoring

    assert set(squatter.paths) == {b"/v1/proof"}
    assert TOKEN.encode() not in squatter.received


def test_an_endpoint_that_had_to_move_is_asked_where_it_is_now_with_its_new_token(server: Served) -> None:
    """The inference process takes another port and a new token where its port was taken; the first word goes to the squatter."""
    head = b'{"outputs":[{"name":"x","datatype":"FP32","shape":[1,1],"parameters":{"binary_data_size":4}}]}'

    class Moved(Proving):
        token = "new token"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            assert self.headers["Authorization"] == "Bearer new token"
            self.send_response(200)
            self.send_header("content-length", str(len(head) + 4))
            self.send_header("Inference-Header-Content-Length", str(len(head)))
            self.end_headers()
            self.wfile.write(head + np.float32(2.0).tobytes())

    class Knows(Transport):
        def get(self, path: str, *_: Any, **__: Any) -> Any:
            return replace(view, url=f"http://127.0.0.1:{moved.server_port}", token="new token")

    tensor = TensorSpec(name="x", dtype="float32", shape=(-1, 1))
    with squatting(answer=answer_of(b"{}")) as squatter, ThreadingHTTPServer(("127.0.0.1", 0), Moved) as moved:
        thread = threading.Thread(target=moved.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{squatter.port}"
        view = EndpointView(name="churn", url=url, token=TOKEN, replicas=1, versions=(), inputs=(tensor,), outputs=(tensor,))

        assert Endpoint(Knows(server.url, token=server.token), view).predict([[41.5]]).tolist() == [[2.0]]

        moved.shutdown()
        thread.join()
    assert set(squatter.paths) == {b"/v1/proof"}
    assert TOKEN.encode() not in squatter.received


# --------------------------------------------------------------------------- another account takes the port

SQUATTER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    connection.settimeout(5)
    try:
        while data := connection.recv(65536):
            sys.stdout.write(data.decode("latin-1")); sys.stdout.flush()
            connection.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\n[]")
    except OSError:
        pass
    connection.close()
"""


def as_another_account() -> list[str]:
    """Prefix of a command line that runs it as another account, where this one may do that."""
    if hasattr(os, "geteuid") and os.geteuid() == 0 and (setpriv := shutil.which("setpriv")):
        return [setpriv, "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    return []


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_an_account_that_takes_the_local_servers_port_learns_nothing(own_home: Path, tmp_path: Path, end: str) -> None:
    prefix = as_another_account()
    python = "/usr/bin/python3" if prefix else sys.executable  # that account may not be able to read ours
    if prefix and not os.access(python, os.X_OK):
        pytest.skip("there is no Python that another account can run")
    with aiaas_magics.connect() as backend:
        port, token = (
            int(backend.url.rpartition(":")[2]),
            (own_home / local_server.settings.local_state().name / "token").read_text().strip(),
        )
        served_by = local_server._note(local_server.settings.local_state())
        assert served_by is not None
        if end == "stop":
            local_server.stop_local()
        else:
            os.kill(served_by.pid, signal.SIGKILL)
            until(lambda: local_server._process(served_by) is None, "the server did not end")
        squatter = subprocess.Popen([*prefix, python, "-c", SQUATTER, str(port)], stdout=subprocess.PIPE, text=True, cwd="/")
        assert squatter.stdout is not None
        try:
            assert squatter.stdout.readline() == "listening\n"

            assert backend.jobs() == []  # of a new server

            assert backend.url.rpartition(":")[2] != str(port)
            fresh = local_server.find_local()
            assert fresh is not None
            assert fresh[1] != token, "programs that ask for no proof may have sent the old one to the other account"
        finally:
            squatter.kill()
            heard, _ = squatter.communicate(timeout=10)

    assert token not in heard
    assert "Bearer" not in heard
    lines = [line for line in heard.splitlines() if line.endswith("HTTP/1.1")]
    assert {line.split("?")[0] for line in lines} <= {"GET /v1/proof", "GET /v1/health"}


def test_a_port_that_is_free_again_is_taken_again_with_the_same_token(own_home: Path) -> None:
    before = local_server.ensure_local()
    local_server.stop_local()

    assert local_server.ensure_local() == before
