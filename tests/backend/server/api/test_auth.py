"""Who may come in, on every route there is."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec
import pytest

from aiaas_magics.backend.net.guard import WRONG_TOKEN
from aiaas_magics.backend.server.api.api_app import routes
from aiaas_magics.backend.server.api.auth import Refusals
from aiaas_magics.client.transport import Transport
from aiaas_magics.core import errors
from aiaas_magics.core.spec import About, JobView
from aiaas_magics.testing import FakeClock
from tests.backend.server.served import Served, served

FILLED = {"sha": "0" * 64, "job": "1", "name": "churn", "path": "a.txt", "number": "1", "index": "1", "attempt": "1", "version": "1"}
DOORS = sorted((method, re.sub(r":\w+}", "}", route.path).format(**FILLED)) for route in routes() for method in (route.methods or ()))
WRONG = ["", "wrong", "aiaas_", "x" * 100_000]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("door") / "state", "--pool", "stub") as server:
        yield server


@pytest.fixture(autouse=True)
def still_serves(server: Served) -> Iterator[None]:
    """After each attack a health check and a good request are answered."""
    yield
    assert server.raw("GET", "/v1/health", token="")[0] == 200
    assert server.transport.get("/v1/about", About).devices


def test_there_are_doors_to_try() -> None:
    assert len(DOORS) > 20


@pytest.mark.parametrize(("method", "path"), DOORS, ids=lambda part: part)
def test_no_route_is_open_to_a_stranger(server: Served, method: str, path: str) -> None:
    for token in WRONG:
        status, body, headers = server.raw(method, path, b"{}" if method in {"POST", "PUT"} else None, token=token)

        if (method, path) == ("GET", "/v1/health"):
            assert status == 200
            continue
        assert status in {401} if len(token) < 1000 else {400, 401, 431}, (method, path, token[:10])
        if status == 401:
            assert "Bearer" in headers["www-authenticate"]
            if method != "HEAD":
                assert msgspec.json.decode(body)["type"] == "NotAuthorised"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD"])
@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/v1/nothing", "//v1/about", "/v1/./about", "/v1/health/../about", "/v1/%61bout", "/V1/about"]
)
def test_a_stranger_learns_nothing_about_addresses(server: Served, method: str, path: str) -> None:
    assert server.raw(method, path, token="")[0] == 401


@pytest.mark.parametrize("path", ["//v1/jobs", "/v1/jobs/", "/v1/./jobs", "/V1/jobs", "/v1/jobs;x"])
def test_another_spelling_of_an_address_is_no_address(server: Served, path: str) -> None:
    status, body, _ = server.raw("POST", path, b"{}")

    assert status in {404, 405, 307}
    assert status == 307 or msgspec.json.decode(body)["type"] == "BackendRefused"


def test_the_right_token_is_taken_whatever_the_case_of_its_scheme(server: Served) -> None:
    for value in (f"Bearer {server.token}", f"bearer {server.token}"):
        assert server.raw("GET", "/v1/about", headers={"Authorization": value}, token="")[0] == 200
    for value in (
        server.token,
        f"Basic {server.token}",
        f"Bearer  {server.token}",
        f"Bearer {server.token}x",
        f"Bearer {server.token[:-1]}",
    ):
        assert server.raw("GET", "/v1/about", headers={"Authorization": value}, token="")[0] == 401


def test_a_token_in_an_address_is_refused_even_when_it_is_right(server: Served) -> None:
    status, body, _ = server.raw("GET", f"/v1/about?token={server.token}")

    assert status == 400
    assert b"header" in body
    assert server.token not in server.log


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[::1", ""])
def test_another_hosts_name_is_refused(server: Served, host: str) -> None:
    for token in ("", server.token):
        assert server.raw("GET", "/v1/about", headers={"Host": host}, token=token)[0] in {400, 421}
        assert server.raw("GET", "/v1/health", headers={"Host": host}, token=token)[0] in {400, 421}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "LOCALHOST:1234", "[::1]:80"])
def test_loopbacks_own_names_are_known(server: Served, host: str) -> None:
    assert server.raw("GET", "/v1/about", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_a_web_page_of_another_origin_is_refused(server: Served, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/v1/about"), ("POST", "/v1/stop"), ("OPTIONS", "/v1/jobs"), ("GET", "/v1/health")):
        status, _, answered = server.raw(method, path, headers={**headers, "Content-Type": "text/plain"})
        assert status == 403
        assert "access-control-allow-origin" not in answered


def raw_bytes(server: Served, data: bytes) -> bytes:
    """What the server answers to these very bytes, up to the end of the connection."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


def test_what_is_no_http_gets_no_answer_of_ours(server: Served) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/about\r\n\r\n",
        b"\x00" * 100,
    ):
        answer = raw_bytes(server, data)
        assert b" 200 " not in answer.split(b"\r\n")[0]


def test_a_request_behind_another_ones_body_is_not_carried_out(server: Served) -> None:
    before = len(server.transport.get("/v1/jobs", list[JobView]))
    spec = msgspec.json.encode(server.spec())
    inner = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s" % (
        server.token.encode(),
        len(spec),
        spec,
    )
    smuggled = (
        b"POST /v1/blobs/missing HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer wrong\r\n"
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )

    raw_bytes(server, smuggled + inner)

    assert len(server.transport.get("/v1/jobs", list[JobView])) == before


def test_an_error_says_whose_move_it_is_and_keeps_its_class(server: Served) -> None:
    with Transport(server.url, token="wrong") as stranger, pytest.raises(errors.BackendNotProven, match="AIAAS_TOKEN"):
        stranger.get("/v1/about", About)
    with Transport(server.url, token="") as stranger, pytest.raises(errors.NotAuthorised, match="AIAAS_TOKEN"):
        stranger.get("/v1/about", About)
    with pytest.raises(errors.UnknownName, match="There is no job 'nope'"):
        server.view("nope")
    with pytest.raises(errors.BackendRefused, match="Install the same version"):
        server.transport.get("/v1/nothing", About)


def test_who_was_refused_stands_in_the_log_once_a_minute_without_what_was_sent(server: Served) -> None:
    for _ in range(20):
        server.raw("GET", "/v1/jobs", token="aiaas_a_wrong_token_of_somebody")
        server.raw("GET", "/v1/jobs", token="")

    lines = [line for line in server.log.splitlines() if "refused" in line and ": 401 " in line]
    assert 1 <= len(lines) <= 3  # other tests of this minute were refused too, and a slow machine takes longer
    assert "from 127.0.0.1: 401" in lines[0]
    assert "wrong_token_of_somebody" not in server.log


def test_refusals_are_counted_by_address_and_a_flood_of_addresses_takes_no_memory(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    refusals = Refusals(clock.monotonic_s)

    def note(address: str, path: str = "/v1/jobs") -> None:
        refusals.note({"type": "http", "client": (address, 1), "method": "GET", "path": path}, WRONG_TOKEN)

    for _ in range(5):
        note("10.0.0.1")
    note("10.0.0.2", "/v1/\x1b[31m\nrefused")
    clock.pass_s(61)
    note("10.0.0.1")

    assert [record.message.partition(": ")[0] for record in caplog.records] == [
        "refused GET '/v1/jobs' from 10.0.0.1",
        "refused GET '/v1/\\x1b[31m\\nrefused' from 10.0.0.2",
        "refused GET '/v1/jobs' from 10.0.0.1",
    ]
    assert "(4 more since" in caplog.records[-1].message
    for number in range(3000):
        note(f"10.1.{number // 256}.{number % 256}")
    assert len(refusals._noted) <= 1000
