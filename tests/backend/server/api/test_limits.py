"""What a stranger may do to a connection, with the API server and with the inference process alike: real sockets, low limits."""

from __future__ import annotations

import contextlib
import http.client
import resource
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from aiaas_magics.backend.net import limited_http
from aiaas_magics.backend.net.limited_http import Connections, most_connections, raise_descriptors
from aiaas_magics.backend.serving.process.state_directory import Files
from tests.backend.server.served import until

DESCRIPTORS = 128
IDLE = 300
MODULES = {"api": "aiaas_magics.testing.scripted_server", "inference": "aiaas_magics.backend.serving"}
PLAIN = ssl.create_default_context()
PLAIN.check_hostname, PLAIN.verify_mode = False, ssl.CERT_NONE  # what is tested is who comes in


@dataclass(frozen=True)
class Server:
    """A server process with few descriptors."""

    kind: str
    process: subprocess.Popen[bytes]
    log: Path
    address: tuple[str, int]
    token: str

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)

    def get(self, path: str = "") -> int:
        connection = http.client.HTTPConnection(*self.address, timeout=20)
        try:
            connection.request("GET", path or self.path, headers={"Authorization": f"Bearer {self.token}"})
            return connection.getresponse().status
        finally:
            connection.close()

    @property
    def path(self) -> str:
        return "/v1/about" if self.kind == "api" else "/v2"


@pytest.fixture(scope="module", params=sorted(MODULES))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp(request.param)
    state, log = folder / "state", folder / "log.txt"
    with started(MODULES[request.param], state, log) as process:
        yield Server(request.param, process, log, *until(lambda: found(request.param, state), f"{request.param} did not come up"))


@contextlib.contextmanager
def started(module: str, state: Path, log: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server with few descriptors; it ends well at the end of the `with`."""
    command = [sys.executable, "-m", module, "--state", str(state), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh", *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(30) == 0, log.read_text()


def found(kind: str, state: Path) -> tuple[tuple[str, int], str] | None:
    try:
        if kind == "api":
            return ("127.0.0.1", int((state / "port").read_text())), (state / "token").read_text().strip()
        running = Files(state).running()
        return None if running is None else (("127.0.0.1", int(running.url.rpartition(":")[2])), Files(state).token())
    except (OSError, ValueError):
        return None


@pytest.mark.process
def test_handshakes_that_do_not_begin_keep_no_good_client_out(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    state, log = tmp_path / "state", tmp_path / "log.txt"
    with started(MODULES["inference"], state, log, "--tls-cert", str(cert), "--tls-key", str(key)) as process:
        address, token = until(lambda: found("inference", state), "it did not come up")
        with contextlib.ExitStack() as idle:
            for _ in range(IDLE):
                idle.enter_context(socket.create_connection(address, timeout=20))
            for _ in range(2 * most_connections(DESCRIPTORS)):
                plain = idle.enter_context(socket.create_connection(address, timeout=20))
                idle.enter_context(PLAIN.wrap_socket(plain))
            for _ in range(10):
                connection = http.client.HTTPSConnection(*address, timeout=20, context=PLAIN)
                connection.request("GET", "/v2", headers={"Authorization": f"Bearer {token}"})
                assert connection.getresponse().status == 200
                connection.close()
            assert psutil.Process(process.pid).num_fds() < DESCRIPTORS


@pytest.fixture(autouse=True)
def still_serves(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        server: Server = request.getfixturevalue("server")
        assert server.get() == 200
        assert server.process.poll() is None


def answer(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65536):
            got += chunk
    return got


# --------------------------------------------------------------------------- what is no HTTP/1.1


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"GET /\r\n", b"This is HTTP/0.9"),
        (b"GET /v1/about\n", b"This is HTTP/0.9"),
        (b"\r\nGET /\r\n", b"This is HTTP/0.9"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b"not valid HTTP/1.1"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/1.1"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", b"HTTP/1.1"),
        (b"rubbish that is no request\r\n\r\n", b"not valid HTTP/1.1"),
    ],
)
def test_what_is_no_http_is_closed_at_once_with_a_sentence(server: Server, sent: bytes, text: bytes) -> None:
    began_s = time.monotonic()
    with server.connect() as connection:
        connection.sendall(sent)
        got = answer(connection)

    assert b" 400 " in got.split(b"\r\n")[0], got
    assert text in got
    assert time.monotonic() - began_s < limited_http.HEAD_S, "it was not waited for"


def test_a_request_line_in_pieces_is_a_request_all_the_same(server: Server) -> None:
    with server.connect() as connection:
        for piece in (b"\r\n", b"G", b"ET /v1/hea", b"lth HTT", b"P/1.1\r", b"\nHost: 127.0.0.1\r\nConnection: close\r\n", b"\r\n"):
            connection.sendall(piece)
            time.sleep(0.01)
        got = answer(connection)

    assert got.startswith((b"HTTP/1.1 200", b"HTTP/1.1 401")), got


@pytest.mark.parametrize("what", ["one header", "many headers", "the address"])
def test_a_head_without_end_is_cut(server: Server, what: str) -> None:
    begins = {"one header": b"GET / HTTP/1.1\r\nX: ", "many headers": b"GET / HTTP/1.1\r\n", "the address": b"GET /"}[what]
    goes_on = {"one header": b"a" * 4096, "many headers": b"X: 1\r\n" * 680, "the address": b"a" * 4096}[what]
    sent = 0
    with server.connect() as connection:
        connection.sendall(begins)
        with contextlib.suppress(ConnectionError):
            while sent < 64 * 2**20:
                connection.sendall(goes_on)
                sent += len(goes_on)
        answer(connection)

    assert sent < 16 * 2**20, "it went on reading; what was sent beyond the limit are the system's buffers"


# --------------------------------------------------------------------------- silence


@pytest.mark.nightly
def test_a_connection_that_says_nothing_or_no_whole_head_has_an_end(server: Server) -> None:
    """The only test here that waits for a deadline."""
    began_s = time.monotonic()
    connections = [server.connect() for _ in range(3)]
    connections[1].sendall(b"GET /v1/about HT")
    connections[2].sendall(b"GET /v1/about HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")

    got = [answer(connection) for connection in connections]

    assert time.monotonic() - began_s < 3 * limited_http.HEAD_S
    assert all(f"did not come within {limited_http.HEAD_S:g} s".encode() in one for one in got)
    for connection in connections:
        connection.close()


# --------------------------------------------------------------------------- many connections


def test_a_good_client_comes_in_while_more_idle_connections_stand_than_there_are_descriptors(server: Server) -> None:
    assert IDLE > DESCRIPTORS
    pid = server.process.pid
    with contextlib.ExitStack() as idle:
        for _ in range(IDLE):
            idle.enter_context(server.connect())
        statuses = [server.get() for _ in range(20)]
        for _ in range(IDLE // 3):
            idle.enter_context(server.connect())
        statuses += [server.get() for _ in range(20)]
        descriptors = psutil.Process(pid).num_fds()

    assert statuses == [200] * 40
    assert descriptors < DESCRIPTORS
    assert server.process.poll() is None


@pytest.mark.parametrize("server", ["inference"], indirect=True)
def test_idle_connections_to_the_grpc_port_leave_descriptors_for_http(server: Server) -> None:
    port = int(until(lambda: (server.log.parent / "state" / "serving" / "grpc_port").read_text(), "it has none"))
    until(lambda: is_open(port), "nobody listens there")
    with contextlib.ExitStack() as idle:
        for _ in range(IDLE):
            idle.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        statuses = [server.get() for _ in range(20)]
        descriptors = psutil.Process(server.process.pid).num_fds()

    assert statuses == [200] * 20
    assert descriptors < DESCRIPTORS


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=20):
        return True
    return False


def test_without_descriptors_nothing_is_reset_and_the_log_has_one_line(server: Server) -> None:
    """What waits is accepted when there are some again."""
    pid, limits = server.process.pid, resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        waiting = [server.connect() for _ in range(5)]
        until(lambda: "no connection can be accepted" in server.log.read_text(), "it is not in the log")
        time.sleep(1.2)  # it is tried again meanwhile
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)

    for connection in waiting:
        connection.sendall(b"GET /v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert answer(connection).startswith(b"HTTP/1.1 ")
        connection.close()
    assert server.log.read_text().count("no connection can be accepted") == 1


# --------------------------------------------------------------------------- trailers


def test_a_token_in_a_trailer_is_none(server: Server) -> None:
    with server.connect() as connection:
        head = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n" % server.path.encode()
        connection.sendall(head + b"2\r\n{}\r\n0\r\nAuthorization: Bearer %b\r\n\r\n" % server.token.encode())
        got = answer(connection)

    assert b" 401 " in got.split(b"\r\n")[0], got


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://evil.example{}", 421),
        ("http://127.0.0.1{}", 200),
        ("http://localhost:1{}", 200),
        ("http://evil.example:80{}", 421),
        ("{}", 200),
    ],
)
def test_the_name_in_an_absolute_address_counts_as_that_in_the_host_header(server: Server, target: str, status: int) -> None:
    with server.connect() as connection:
        line = f"GET {target.format(server.path)} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {server.token}"
        connection.sendall(f"{line}\r\nConnection: close\r\n\r\n".encode())
        got = answer(connection)

    assert int(got.split()[1]) == status, got


@pytest.mark.parametrize("target", ["*", "evil.example", "evil.example:80", "http:///x", "http://[::1", "//"])
def test_another_form_of_address_is_refused(server: Server, target: str) -> None:
    with server.connect() as connection:
        connection.sendall(f"OPTIONS {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        got = answer(connection)

    assert got.split()[1] in (b"400", b"401", b"404", b"405"), got


# --------------------------------------------------------------------------- the rule, without a network


class Loop:
    def __init__(self) -> None:
        self.called: list[tuple[int, str]] = []

    def call_soon(self, function: Callable[..., None], *arguments: object) -> None:
        function(*arguments)


class Connection:
    """As much of a `LimitedProtocol` as a list of them sees."""

    def __init__(self, last_s: float, *, idle: bool = True, had_head: bool = True) -> None:
        self.last_s, self.idle, self.had_head = last_s, idle, had_head
        self.closed, self.refused, self.loop = False, 0, Loop()

    def is_idle(self) -> bool:
        return self.idle

    def close_idle(self) -> None:
        self.closed = True

    def _refuse(self, status: int, text: str) -> None:
        self.refused = status


def connections(most: int, *members: Connection) -> Connections:
    made = Connections(most)
    for member in members:
        made.add(member)  # type: ignore[arg-type]
    return made


def test_for_a_new_connection_the_one_that_is_idle_for_longest_is_closed() -> None:
    old, busy, active, newer = Connection(1.0), Connection(2.0, idle=False), Connection(3.0), Connection(4.0)
    full = connections(4, busy, old, active, newer)
    assert full._next_new() is None, "they are in the line then"
    active.last_s = 9.0

    full.add(Connection(10.0))  # type: ignore[arg-type]
    full.add(Connection(11.0))  # type: ignore[arg-type]

    assert (old.closed, newer.closed, busy.closed, active.closed) == (True, True, False, False)
    assert len(full) == 4


def test_one_that_never_asked_goes_before_one_that_did() -> None:
    client, strangers = Connection(1.0), [Connection(2.0 + number, had_head=False) for number in range(9)]
    full = connections(10, client, *strangers)

    for _ in range(8):
        full.add(Connection(20.0, had_head=False))  # type: ignore[arg-type]

    assert [stranger.closed for stranger in strangers] == [*[True] * 8, False]
    assert not client.closed


def test_where_none_is_idle_the_new_one_is_refused() -> None:
    full, new = connections(2, Connection(1.0, idle=False), Connection(2.0, idle=False)), Connection(3.0)

    full.add(new)  # type: ignore[arg-type]

    assert new.refused == 503


def test_where_all_were_active_since_the_one_that_is_idle_for_longest_goes_all_the_same() -> None:
    members = [Connection(float(number)) for number in range(100)]
    full = connections(100, *members)
    for member in members:
        member.last_s += 1000.0

    full.add(Connection(2000.0))  # type: ignore[arg-type]

    assert [member.closed for member in members] == [True, *[False] * 99]


@pytest.mark.parametrize(("descriptors", "most"), [(32, 8), (64, 16), (128, 32), (1024, 480), (2**20, 16 * 1024)])
def test_connections_leave_descriptors_for_what_they_open(descriptors: int, most: int) -> None:
    assert most_connections(descriptors) == most
    assert 2 * most < descriptors


def test_a_server_takes_as_many_descriptors_as_it_may() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))

        assert raise_descriptors() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
