"""Control characters of others reach no terminal, whatever way the text came."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas_magics.client.backend import Backend
from aiaas_magics.client.transport import Transport
from aiaas_magics.core import errors, settings
from aiaas_magics.core.plain_text import Formatter, visible, visible_json
from aiaas_magics.core.spec import JobView, checked_job_name
from tests.backend.server.served import served
from tests.client.test_transport import answering

ATTACK = "\x1b]0;OWNED\x07\x1b[31m\x1b[2J\x9b31m\x00\r\x7f\u202eexe\u2028"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@given(st.text())
def test_visible_text_has_no_control_character_and_other_text_is_left_as_it_is(text: str) -> None:
    assert not CONTROLS.search(visible(text))
    assert visible(visible(text)) == visible(text)
    if not CONTROLS.search(text):
        assert visible(text) == text


TEXTS = st.text().filter(lambda text: "\r" not in text)  # see below


@given(st.recursive(TEXTS | st.integers() | st.none(), lambda inner: st.lists(inner) | st.lists(st.tuples(TEXTS, inner)).map(dict)))
def test_json_says_the_same_with_its_control_characters_visible(value: object) -> None:
    def expected(part: object) -> object:
        if isinstance(part, str):
            return visible(part)
        if isinstance(part, list):
            return [expected(item) for item in part]
        if isinstance(part, dict):
            return {expected(name): expected(item) for name, item in part.items()}
        return part

    for data in (msgspec.json.encode(value), json.dumps(value, ensure_ascii=True).encode()):
        assert msgspec.json.decode(visible_json(data)) == expected(value)


PLAIN = ["plain", "größe (cm) 価格 €", "a\\b", "\\u001b", "\\\\u001b", 'q"\\', "tab\tand\nline", "🙂\u200d↔\ufe0f", "ش\u200fع"]


@pytest.mark.parametrize("text", PLAIN, ids=ascii)
def test_what_is_no_control_character_comes_as_it_is(text: str) -> None:
    for data in (msgspec.json.encode(text), json.dumps(text).encode()):
        assert msgspec.json.decode(visible_json(data)) == text


def test_a_progress_bars_line_ends_are_no_news() -> None:
    assert msgspec.json.decode(visible_json(msgspec.json.encode(["a\r\nb\r", "1/2\r2/2"]))) == ["a\nb", "1/2\\x0d2/2"]


@pytest.mark.process
def test_a_job_whose_name_holds_control_characters_is_not_handed_in(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server, pytest.raises(errors.InvalidSpec, match=r"control character\. Give another --name"):
        server.submit(name=ATTACK)

    for name in ("\n", "a\tb", "a\x1b", "a\x9b", "a\u202eb"):
        with pytest.raises(errors.InvalidSpec) as caught:
            checked_job_name(name)
        assert str(caught.value).isprintable()
    assert checked_job_name("größe (cm) 価格 ش\u200fع") == "größe (cm) 価格 ش\u200fع"


def job_view(name: str, **more: object) -> dict[str, object]:
    shape = {"rows": 1, "global_batch": 1, "steps_per_epoch": 1, "initial_epoch": 0, "epochs": 1, "parameters": 1, "model": name}
    versions = {"python": "3", "keras": "3", "tensorflow": "2", "aiaas_magics": "0"}
    spec = {"name": name, "payload": "0" * 64, "arrays": [], "shape": shape, "versions": versions, "seed": 1}
    return {"id": "7", "spec": spec, "state": "failed", "reason": name, "created_s": 0.0, **more}


def test_a_backends_texts_come_visible(capsys: pytest.CaptureFixture[str]) -> None:
    body = json.dumps([job_view(ATTACK)]).encode()
    with answering(f"HTTP/1.1 200 OK\ncontent-length: {len(body)}", body) as transport:
        (view,) = transport.get("/v1/jobs", list[JobView])

    assert view.spec.name == view.reason == visible(ATTACK)
    assert "\\x1b]0;OWNED\\x07" in view.spec.name


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"error": ATTACK}).encode(),
        json.dumps({"error": ATTACK, "type": "BackendRefused", "args": [400, ATTACK]}).encode(),
        json.dumps({"error": ATTACK, "type": "UnknownName", "args": [ATTACK, ATTACK, [ATTACK]]}).encode(),
        ATTACK.encode(),
    ],
)
def test_a_backends_refusals_come_visible(body: bytes) -> None:
    with answering(f"HTTP/1.1 400 No\ncontent-length: {len(body)}", body) as transport, pytest.raises(errors.AiaasError) as caught:
        transport.get("/v1/jobs", list[JobView])

    assert not CONTROLS.search(str(caught.value))
    assert "OWNED" in str(caught.value)


@pytest.mark.parametrize(
    ("type", "arguments"),
    [
        ("BackendTooSlow", ["x", "y"]),
        ("ChangedTooMuch", ["a", "b", "c", "d", "e"]),
        ("ProofFailed", ["a", "b", "c", "d"]),
        ("UnknownName", ["job", "7", [{"x": 1}, None]]),
        ("UnknownName", [1, 2, 3]),
        ("RemoteTrainingError", ["no report"]),
        ("InvalidName", [None, None]),
        ("BackendRefused", []),
        ("OutOfMemory", [[], {}, 1, 2, 3]),
        ("os", ["x"]),
        ("annotations", []),
        ("AiaasError", [{}]),
    ],
)
def test_an_error_of_other_arguments_is_a_refusal_with_its_sentence(type: str, arguments: list[object]) -> None:
    body = json.dumps({"error": "The sentence. Use it.", "type": type, "args": arguments}).encode()
    with answering(f"HTTP/1.1 400 No\ncontent-length: {len(body)}", body) as transport, pytest.raises(errors.AiaasError) as caught:
        transport.get("/v1/jobs", list[JobView])

    assert str(caught.value)


@pytest.mark.process
def test_the_command_line_shows_no_control_character_and_no_markup(tmp_path: Path) -> None:
    """A whole `aiaas status` against a server whose records hold such a name, from before names were checked."""
    import sqlite3

    with served(tmp_path / "state") as server:
        job = server.submit(name="REPLACED")
        server.end(job)
        server.stop()
        records = sqlite3.connect(tmp_path / "state" / "records.sqlite")
        with records:
            old = records.execute("select spec from jobs").fetchone()[0]
            assert b"REPLACED" in old
            records.execute("update jobs set spec = ?", (old.replace(b"REPLACED", rb"\u001b]0;OWNED\u0007[link=http://x]y[/link]"),))
        records.close()
        server.start()
        command = [sys.executable, "-m", "aiaas_magics", "status", "--state", str(tmp_path / "state")]
        shown = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode()

    assert not CONTROLS.search(shown)
    assert "[link=" in shown.replace("\n", "")


def test_a_message_in_a_log_is_one_line() -> None:
    record = logging.LogRecord("x", logging.INFO, "f", 1, "GET %s failed", ("/a\n2026 INFO root: all is well\x1b[2J",), None)

    assert Formatter("%(name)s: %(message)s").format(record) == "x: GET /a\\n2026 INFO root: all is well\\x1b[2J failed"


def test_a_repr_shows_no_control_character(tmp_path: Path) -> None:
    versions = msgspec.to_builtins(settings.versions())
    about = {"backend": ATTACK, "protocol": 1, "versions": versions, "devices": [], "hardware": ATTACK, "memory_bytes": 1, "started_s": 0.0}
    body = json.dumps(about).encode()
    with answering(f"HTTP/1.1 200 OK\ncontent-length: {len(body)}", body) as transport:
        assert not CONTROLS.search(repr(Backend(Transport(transport.url, token="t"))))
