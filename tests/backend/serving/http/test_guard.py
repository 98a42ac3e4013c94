"""Who may ask: the guard's decision alone, and every route x token x method on raw sockets."""

from __future__ import annotations

import itertools

import pytest

from aiaas_magics.backend.net.guard import Allow, Facts, Guard, Refuse, facts_of, host_name
from tests.backend.serving.support.serving_rig import Rig

GUARD = Guard(b"right", frozenset({"127.0.0.1", "localhost", "[::1]"}))
GOOD = {"hosts": (b"127.0.0.1:8501",), "authorizations": (b"Bearer right",)}


@pytest.mark.parametrize(
    "facts",
    [
        Facts(**GOOD),
        Facts(hosts=(b"localhost",), authorizations=(b"bearer right",)),
        Facts(hosts=(b"[::1]:1",), authorizations=(b"Bearer right",)),
        Facts(**GOOD, origins=(b"http://127.0.0.1:8501",)),
        Facts(**GOOD, fetch_sites=(b"same-origin",)),
        Facts(**GOOD, query=b"pretty=1"),
    ],
)
def test_the_right_token_from_a_program_is_allowed(facts: Facts) -> None:
    assert isinstance(GUARD.decide(facts), Allow)


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        (Facts(hosts=GOOD["hosts"]), 401),
        (Facts(hosts=GOOD["hosts"], authorizations=(b"Bearer wrong",)), 401),
        (Facts(hosts=GOOD["hosts"], authorizations=(b"Bearer righ",)), 401),
        (Facts(hosts=GOOD["hosts"], authorizations=(b"Bearer rightright",)), 401),
        (Facts(hosts=GOOD["hosts"], authorizations=(b"Bearer",)), 401),
        (Facts(hosts=GOOD["hosts"], authorizations=(b"Basic right",)), 401),
        (Facts(hosts=GOOD["hosts"], authorizations=("Bearer rïght".encode(),)), 401),
        (Facts(hosts=GOOD["hosts"], authorizations=(b"Bearer right", b"Bearer right")), 401),
        (Facts(hosts=GOOD["hosts"], authorizations=(b"Bearer " + b"x" * 1_000_000,)), 401),
        (Facts(authorizations=GOOD["authorizations"]), 400),
        (Facts(hosts=(b"127.0.0.1", b"127.0.0.1"), authorizations=GOOD["authorizations"]), 400),
        (Facts(hosts=(b"evil.example:8501",), authorizations=GOOD["authorizations"]), 421),
        (Facts(hosts=(b"127.0.0.1.evil.example",), authorizations=GOOD["authorizations"]), 421),
        (Facts(hosts=(b"127.0.0.1/x?y#z",), authorizations=GOOD["authorizations"]), 421),
        (Facts(**GOOD, origins=(b"https://evil.example",)), 403),
        (Facts(**GOOD, origins=(b"http://127.0.0.1:8501.evil.example",)), 403),
        (Facts(**GOOD, origins=(b"http://127.0.0.1:9999",)), 403),
        (Facts(**GOOD, origins=(b"null",)), 403),
        (Facts(**GOOD, fetch_sites=(b"cross-site",)), 403),
        (Facts(**GOOD, fetch_sites=(b"same-site",)), 403),
        (Facts(**GOOD, query=b"a=1&Token=right"), 400),
        (Facts(hosts=GOOD["hosts"], query=b"access_token=right"), 400),
    ],
)
def test_everything_else_is_refused_with_a_next_move(facts: Facts, status: int) -> None:
    decision = GUARD.decide(facts)

    assert isinstance(decision, Refuse)
    assert decision.status == status
    assert len(decision.text.split(". ")) == 2
    assert "right" not in decision.text
    if status == 401:
        assert ("A token is needed" in decision.text) == (not facts.authorizations), "a wrong one is told from none"


def test_without_a_list_of_names_any_one_host_is_answered() -> None:
    assert isinstance(Guard(b"right", None).decide(Facts(hosts=(b"gpu-box:8443",), authorizations=(b"Bearer right",))), Allow)


def test_a_guard_does_not_show_its_token() -> None:
    assert "right" not in repr(GUARD)


@pytest.mark.parametrize(("host", "name"), [("a", "a"), ("a:1", "a"), ("[::1]", "[::1]"), ("[::1]:1", "[::1]"), ("[::1", ""), ("", "")])
def test_the_name_in_a_host_header_is_what_stands_before_the_port(host: str, name: str) -> None:
    assert host_name(host) == name


def test_facts_keep_every_header_that_came() -> None:
    facts = facts_of([(b"host", b"a"), (b"authorization", b"1"), (b"accept", b"*"), (b"authorization", b"2")], b"q")

    assert facts == Facts(hosts=(b"a",), authorizations=(b"1", b"2"), query=b"q")


PATHS = [
    "/",
    "/v1/models/plus",
    "/v1/models/plus:predict",
    "/v1/models/nobody:predict",
    "/v1/models/plus/metadata",
    "/v1/x",
    "/endpoints/plus",
    "/openapi.json",
    "/v2",
    "/v2/health/live",
    "/v2/models/plus/infer",
    "//v1/models/plus",
    "/v1/models/%70lus",
    "*",
]
METHODS = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"]
TOKENS = {
    "none": b"",
    "wrong": b"Authorization: Bearer wrong\r\n",
    "basic": b"Authorization: Basic eDp5\r\n",
    "two": b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n",
}


@pytest.mark.parametrize("token", TOKENS)
def test_no_route_by_no_method_answers_without_the_token(shared: Rig, token: str) -> None:
    """The answer is the same whether the model exists or not."""
    answers = set()
    for path, method in itertools.product(PATHS, METHODS):
        body = b"" if method in ("GET", "HEAD", "DELETE", "OPTIONS") else b'{"instances":[[1.0]]}'
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\nConnection: close\r\n".encode()

        answer = shared.raw(head + TOKENS[token] + b"\r\n" + body)

        assert answer.startswith(b"HTTP/1.1 401 "), (method, path, answer)
        assert b"www-authenticate: Bearer" in answer
        answers.add(answer.partition(b"\r\n\r\n")[2])
    assert answers <= {b"", next(iter(a for a in answers if a))}


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"Host: evil.example\r\n", b"421"),
        (b"Host: 127.0.0.1\r\nHost: localhost\r\n", b"400"),
        (b"", b"400"),
        (b"Host: 127.0.0.1\r\nOrigin: https://evil.example\r\n", b"403"),
        (b"Host: 127.0.0.1\r\nSec-Fetch-Site: cross-site\r\n", b"403"),
    ],
)
def test_a_web_page_cannot_ask_even_with_the_token(shared: Rig, header: bytes, status: bytes) -> None:
    token = f"Authorization: Bearer {shared.host.token}\r\n".encode()

    answer = shared.raw(b"GET /v1/models/plus HTTP/1.1\r\n" + header + token + b"\r\n")

    assert answer.startswith(b"HTTP/1.1 " + status), answer
    assert b"access-control" not in answer.lower()


def test_a_token_in_the_address_is_refused_and_in_no_log(shared: Rig) -> None:
    answer = shared.call("GET", f"/v1/models/plus?token={shared.host.token}")
    shared.call("GET", "/v1/models/plus", token="wrong-token-canary")

    assert answer.status == 400
    log = (shared.state / "serving" / "log.txt").read_text()
    assert shared.host.token not in log
    assert "wrong-token-canary" not in log


def test_the_token_is_on_no_command_line_and_in_no_environment(shared: Rig) -> None:
    import psutil

    process = psutil.Process(shared.host.pid)

    assert shared.host.token not in " ".join(process.cmdline())
    assert shared.host.token not in str(process.environ())


# --------------------------------------------------------------------------- what a token for predictions may not

MANAGED = Guard(b"predicts", frozenset({"localhost"}), manager=lambda: b"manages")


@pytest.mark.parametrize(
    ("token", "manages", "status"),
    [(b"predicts", False, 200), (b"predicts", True, 403), (b"manages", True, 200), (b"manages", False, 401), (b"", True, 401)],
)
def test_a_request_that_changes_what_others_use_takes_the_other_token(token: bytes, manages: bool, status: int) -> None:
    decision = MANAGED.decide(Facts(hosts=(b"localhost",), authorizations=(b"Bearer " + token,)), manages=manages)

    assert (decision.status if isinstance(decision, Refuse) else 200) == status


def test_where_there_is_no_managing_token_an_empty_one_is_none() -> None:
    guard = Guard(b"predicts", frozenset({"localhost"}), manager=lambda: b"")

    assert isinstance(guard.decide(Facts(hosts=(b"localhost",), authorizations=(b"Bearer ",)), manages=True), Refuse)


@pytest.mark.parametrize("path", ["load", "unload", "lo%61d", "LOAD"])
def test_the_token_for_predictions_loads_and_unloads_nothing(shared: Rig, path: str) -> None:
    answer = shared.call("POST", f"/v2/repository/models/plus/{path}", b"{}")

    assert answer.status in (403, 404)
    if path in ("load", "unload"):
        assert answer.error == "This token is for predictions only. Send the API token of this server to load or unload a model."
    assert shared.predict("plus", {"instances": [[1.0]]}).status == 200


def test_the_api_token_is_not_one_for_predictions(shared: Rig) -> None:
    assert shared.call("POST", "/v1/models/plus:predict", b'{"instances": [[1.0]]}', token=shared.api_token).status == 401


@pytest.mark.parametrize("query", ["access_tok%65n=x", "%61ccess_token=x", "TOKE%4e=x", "a=1&api_key%3dx"])
def test_a_token_in_an_address_is_refused_however_it_is_spelt(shared: Rig, query: str) -> None:
    answer = shared.call("GET", f"/v2?{query}")

    assert answer.status == 400
    assert "does not belong into an address" in answer.error
