"""Web pages of other origins: which may ask a server, and that nobody else is told anything."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from aiaas_magics.backend.net.cors import EVERY, Cors, parse_origin
from aiaas_magics.backend.net.guard import FOREIGN_PAGE, Allow, Facts, Guard, Refuse
from aiaas_magics.backend.serving.http.inference_app import App
from aiaas_magics.backend.serving.http.request_handler import RequestHandler
from aiaas_magics.backend.serving.models.registry import Registry
from aiaas_magics.core.errors import InvalidSpec
from tests.backend.serving.support import serving_models
from tests.backend.serving.support.serving_rig import Answer, Rig

PAGE = "https://app.example"
ROW = b'{"instances": [[1.0]]}'
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


# --------------------------------------------------------------------------- the list


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://app.example", "https://app.example"),
        ("HTTPS://App.Example:443", "https://app.example"),
        ("http://localhost:8888", "http://localhost:8888"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_an_origin_is_kept_as_browsers_write_it(text: str, origin: str) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize(
    "text",
    ["app.example", "https://app.example/", "https://app.example/x", "ftp://app.example", "null", "", "https://*.example", "https://a b"],
)
def test_what_is_no_origin_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidSpec, match=r"is no origin\. Give scheme, host and port .* like https://app\.example"):
        Cors.parse([text])


def test_every_page_may_ask_only_where_that_was_said_in_words() -> None:
    with pytest.raises(InvalidSpec, match=f"write --cors {EVERY} if you mean all"):
        Cors.parse(["*"])

    assert Cors.parse([EVERY]) == Cors(every=True)
    assert Cors.parse([]) is None


# --------------------------------------------------------------------------- the guard

GUARD = Guard(b"right", cors=Cors.parse([PAGE]))
ASKED = {"hosts": (b"localhost",), "authorizations": (b"Bearer right",)}


@pytest.mark.parametrize(
    "facts",
    [
        Facts(**ASKED, origins=(PAGE.encode(),)),
        Facts(**ASKED, origins=(PAGE.encode(),), fetch_sites=(b"cross-site",)),
        Facts(**ASKED, origins=(b"http://localhost",), fetch_sites=(b"same-origin",)),
        Facts(**ASKED),
    ],
)
def test_a_listed_page_with_the_token_is_let_in(facts: Facts) -> None:
    assert isinstance(GUARD.decide(facts), Allow)


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        (Facts(**ASKED, origins=(b"https://evil.example",)), 403),
        (Facts(**ASKED, origins=(b"http://app.example",)), 403),
        (Facts(**ASKED, origins=(b"https://app.example:8443",)), 403),
        (Facts(**ASKED, origins=(b"https://app.example.evil.example",)), 403),
        (Facts(**ASKED, origins=(b"null",)), 403),
        (Facts(**ASKED, origins=(PAGE.encode(), b"https://evil.example")), 403),
        (Facts(**ASKED, fetch_sites=(b"cross-site",)), 403),
        (Facts(hosts=(b"localhost",), origins=(PAGE.encode(),)), 401),
        (Facts(hosts=(b"evil.example",), authorizations=(b"Bearer right",), origins=(PAGE.encode(),)), 421),
    ],
)
def test_no_other_page_and_nobody_without_the_token(facts: Facts, status: int) -> None:
    decision = GUARD.decide(facts)

    assert isinstance(decision, Refuse)
    assert decision.status == status


def test_where_every_page_may_ask_the_token_is_needed_all_the_same() -> None:
    guard = Guard(b"right", cors=Cors.parse([EVERY]))

    assert isinstance(guard.decide(Facts(**ASKED, origins=(b"https://any.example",))), Allow)
    assert guard.decide(Facts(hosts=(b"localhost",), origins=(b"https://any.example",))).status == 401  # type: ignore[union-attr]


async def test_without_a_list_no_answer_has_a_header_of_this_kind() -> None:
    for origin in (PAGE.encode(), b"http://localhost"):
        for method in (b"OPTIONS", b"GET"):
            names = {name for name, _ in await headers_of(Guard(b"right"), method, origin)}
            assert [name for name in names if name.startswith(b"access-control") or name == b"vary"] == []


async def headers_of(guard: Guard, method: bytes, origin: bytes) -> list[tuple[bytes, bytes]]:
    """Of an answer below HTTP."""
    sent: list[Any] = []
    asked = [(b"host", b"localhost"), (b"origin", origin), (b"authorization", b"Bearer right"), (b"access-control-request-method", b"POST")]
    scope = {"type": "http", "method": method.decode(), "raw_path": b"/v2", "headers": asked, "query_string": b"", "scheme": "http"}

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    await App(RequestHandler(Registry()), guard)(scope, receive, send)
    return list(sent[0]["headers"])


# --------------------------------------------------------------------------- over HTTP


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A process that takes requests of one page, and of pages of this machine at one port."""
    folder = tmp_path_factory.mktemp("cors")
    page = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    thread = threading.Thread(target=page.serve_forever, name="page")
    thread.start()
    here = f"http://127.0.0.1:{page.server_port}"
    try:
        with Rig(folder / "state", cors=(PAGE, here)) as rig:
            rig.load(serving_models.plus(folder, "plus", 1.0))
            rig.page, rig.pages = here, folder  # type: ignore[attr-defined]
            yield rig
    finally:
        page.shutdown()
        thread.join(10)
        page.server_close()


def preflight(rig: Rig, origin: str, path: str = "/v1/models/plus:predict", **more: str) -> Answer:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    return rig.call("OPTIONS", path, headers={**headers, "Sec-Fetch-Site": "cross-site", **more}, token=None)


@pytest.mark.parametrize("path", ["/v1/models/plus:predict", "/v2/models/plus/infer", "/openapi.json"])
def test_a_listed_pages_preflight_is_answered_without_a_token(opened: Rig, path: str) -> None:
    answer = preflight(opened, PAGE, path)

    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert {"authorization", "content-type"} <= {*answer.headers["access-control-allow-headers"].split(", ")}
    assert answer.headers["vary"] == "origin"
    assert "access-control-allow-credentials" not in answer.headers


def test_a_page_of_the_internet_may_ask_this_machine_if_it_is_listed(opened: Rig) -> None:
    asked = {"Access-Control-Request-Private-Network": "true"}

    assert preflight(opened, PAGE, **asked).headers["access-control-allow-private-network"] == "true"
    assert "access-control-allow-private-network" not in preflight(opened, "https://evil.example", **asked).headers


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://app.example"])
def test_another_pages_preflight_is_refused_and_told_nothing(opened: Rig, origin: str) -> None:
    answer = preflight(opened, origin)

    assert answer.status == 403
    assert [name for name in answer.headers if name.startswith("access-control")] == []
    assert answer.headers["vary"] == "origin"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/plus:predict", ROW),
        ("/v2/models/plus/infer", b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[1.0]}]}'),
        ("/v1/models/plus", None),
    ],
)
def test_a_listed_page_reads_its_answer(opened: Rig, path: str, body: bytes | None) -> None:
    sent = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}
    for _ in range(2):  # the second time its head is known
        answer = opened.call("GET" if body is None else "POST", path, body, headers=sent)

        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "inference-header-content-length" in answer.headers["access-control-expose-headers"]
        assert answer.headers["vary"] == "origin"


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_listed_page_reads_why_it_was_refused(opened: Rig, token: str | None) -> None:
    answer = opened.call("POST", "/v1/models/plus:predict", ROW, headers={"Origin": PAGE}, token=token)

    assert answer.status == 401
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["www-authenticate"]


def test_another_page_is_refused_also_with_the_token(opened: Rig) -> None:
    answer = opened.call("POST", "/v1/models/plus:predict", ROW, headers={"Origin": "https://evil.example"})

    assert (answer.status, answer.error) == (403, FOREIGN_PAGE.text)
    assert "access-control-allow-origin" not in answer.headers


def test_a_listed_page_loads_no_model_with_the_token_for_predictions(opened: Rig) -> None:
    answer = opened.call("POST", "/v2/repository/models/plus/unload", b"{}", headers={"Origin": PAGE})

    assert answer.status == 403
    assert opened.predict("plus", {"instances": [[1.0]]}).status == 200


def test_programs_are_answered_as_ever(opened: Rig) -> None:
    answer = opened.predict("plus", {"instances": [[1.0]]})

    assert (answer.status, answer.document) == (200, {"predictions": [[2.0]]})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.nightly  # two processes, one after the other
def test_a_process_with_another_list_is_replaced_and_knows_the_new_one(tmp_path: Path) -> None:
    first = Rig(tmp_path / "state").__enter__()
    pid = first.host.pid
    first.leave()

    with Rig(tmp_path / "state", cors=(PAGE,)) as second:
        assert second.host.pid != pid
        assert preflight(second, PAGE, "/v2").status == 200


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed here")
def test_a_page_in_a_browser_gets_a_prediction_and_a_page_that_is_not_listed_does_not(opened: Rig) -> None:
    from playwright.sync_api import sync_playwright

    script = """async ([url, token]) => {
        try {
            const headers = {"Authorization": `Bearer ${token}`, "Content-Type": "application/json"};
            const answer = await fetch(`${url}/v1/models/plus:predict`, {method: "POST", headers, body: '{"instances": [[1.0]]}'});
            return await answer.json();
        } catch (error) { return String(error); }
    }"""
    (opened.pages / "page.html").write_text("<title>page</title>")  # type: ignore[attr-defined]
    listed: str = opened.page  # type: ignore[attr-defined]

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        told = []
        for origin in (listed, listed.replace("127.0.0.1", "localhost")):
            page = chromium.new_page()
            page.goto(f"{origin}/page.html")
            told.append(page.evaluate(script, [opened.host.url, opened.host.token]))
        chromium.close()

    assert told[0] == {"predictions": [[2.0]]}
    assert "Failed to fetch" in told[1]
