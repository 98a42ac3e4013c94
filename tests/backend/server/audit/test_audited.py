"""Every request that changes something and every refused one has its entry, on a real server."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from aiaas_magics import cli
from aiaas_magics.backend.server.api.api_app import routes
from aiaas_magics.backend.server.audit.audit_log import files_of
from tests.backend.server.served import Served, served

pytestmark = pytest.mark.process
FILLED = {
    "user": "ada",
    "token": "0" * 12,
    "sha": "0" * 64,
    "job": "999",
    "name": "nothing",
    "path": "a.txt",
    "number": "1",
    "index": "1",
    "attempt": "1",
    "version": "1",
}
CHANGING = sorted(
    (method, re.sub(r":\w+}", "}", route.path).format(**FILLED), route.name)
    for route in routes()
    for method in (route.methods or ())
    if method not in {"GET", "HEAD"} and route.name not in {"missing_blobs", "stop"}
)
CANARY = "canary-that-is-data"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("audit") / "state", "--pool", "stub") as server:
        yield server


def entries(server: Served, *options: str) -> list[dict[str, Any]]:
    shown = CliRunner().invoke(cli.main, ["audit", "--json", "--tail", "10000", "--state", str(server.folder), *options])
    assert shown.exit_code == 0, shown.output
    return [json.loads(line) for line in shown.stdout.splitlines()]


def verify(folder: Path, *options: str) -> tuple[int, str]:
    shown = CliRunner().invoke(cli.main, ["audit", "verify", "--state", str(folder), *options])
    return shown.exit_code, shown.stdout


@pytest.mark.parametrize(("method", "path", "action"), CHANGING, ids=lambda part: part)
def test_every_route_that_changes_something_is_recorded(server: Served, method: str, path: str, action: str) -> None:
    request = secrets.token_hex(8)

    status, _, headers = server.raw(method, path, json.dumps({"x": CANARY}).encode(), {"X-Request-Id": request})

    assert headers["x-request-id"] == request
    [entry] = [entry for entry in entries(server) if entry["request"] == request]
    assert entry["action"] == action
    assert entry["status"] == status
    assert entry["who"] == "server token"
    assert entry["outcome"] == ("done" if status < 400 else "refused" if status < 500 else "failed")


def test_a_new_job_and_its_end_are_recorded_with_its_number(server: Served) -> None:
    job = server.submit({"do": "sleep", "s": 60})
    server.raw("POST", f"/v1/jobs/{job}/cancel")

    mine = [(entry["action"], entry["outcome"]) for entry in entries(server) if entry["on"].get("job") == job]
    assert mine == [("submit_job", "done"), ("cancel_job", "done")]


def test_a_stranger_is_recorded_without_what_they_sent(server: Served) -> None:
    wrong = "aiaas_" + "w" * 43

    status, _, headers = server.raw("DELETE", f"/v1/endpoints/{wrong}?x=1", token=wrong)

    assert status == 401
    refused = [entry for entry in entries(server) if entry["request"] == headers["x-request-id"]]
    assert [(entry["who"], entry["outcome"], entry["on"]) for entry in refused] == [
        ("stranger", "refused", {"path": "/v1/endpoints/aiaas_..."})
    ]
    assert refused[0]["address"] == "127.0.0.1"


def test_reading_leaves_no_entry_unless_it_was_refused(server: Served) -> None:
    before = len(entries(server))
    for path in ("/v1/jobs", "/v1/about", "/v1/storage"):
        assert server.raw("GET", path)[0] == 200
    assert len(entries(server)) == before

    assert server.raw("GET", "/v1/jobs/4711")[0] == 404
    assert [(entry["action"], entry["on"]) for entry in entries(server)[before:]] == [("get_job", {"job": "4711"})]


def test_neither_tokens_nor_data_are_in_the_log(server: Served) -> None:
    server.put(f"{CANARY} {secrets.token_hex(8)}".encode())

    text = b"".join(path.read_bytes() for path in files_of(server.folder / "audit"))
    assert server.token.encode() not in text
    assert CANARY.encode() not in text
    assert b"aiaas_w" not in text


@pytest.mark.parametrize("chosen", ["two words", "a" * 65, "caf\u00e9", "x;y", ""])
def test_an_id_that_is_no_plain_word_is_replaced(server: Served, chosen: str) -> None:
    _, _, headers = server.raw("GET", "/v1/about", headers={"X-Request-Id": chosen})

    assert re.fullmatch(r"[0-9a-f]{16}", headers["x-request-id"])


def test_the_log_of_a_running_server_verifies_and_names_what_was_done_to_it(tmp_path: Path) -> None:
    with served(tmp_path / "state", "--pool", "stub") as server:
        for _ in range(5):
            server.put(secrets.token_bytes(8))
        code, line = verify(server.folder)
        assert code == 0, line
        anchor = line.split("Head: ")[1].strip()
    # The server has ended, which has an entry too.
    assert verify(server.folder, "--anchor", anchor)[0] == 0
    assert [entry["action"] for entry in entries(server)] == ["server_started", *["put_blob"] * 5, "server_ended"]
    [file] = files_of(server.folder / "audit")
    lines = file.read_bytes().splitlines(keepends=True)

    def after(changed: list[bytes], *options: str) -> tuple[int, str]:
        file.write_bytes(b"".join(changed))
        return verify(server.folder, *options)

    altered = after([*lines[:2], lines[2].replace(b'"done"', b'"gone"'), *lines[3:]])
    removed = after([*lines[:2], *lines[3:]])
    swapped = after([lines[0], lines[2], lines[1], *lines[3:]])
    cut = after(lines[:3])
    cut_with_anchor = after(lines[:3], "--anchor", anchor)

    assert altered[0] == 1
    assert "line 3) is where the chain breaks: it was altered" in altered[1]
    assert removed[0] == 1
    assert "Entry 4 (audit-000000000001.jsonl, line 3)" in removed[1]
    assert swapped[0] == 1
    assert "Entry 3 (audit-000000000001.jsonl, line 2)" in swapped[1]
    assert cut[0] == 0
    assert cut_with_anchor[0] == 1
    assert "its end was removed" in cut_with_anchor[1]


def test_the_table_shows_who_did_what(server: Served) -> None:
    server.raw("POST", "/v1/storage/free")

    shown = CliRunner().invoke(cli.main, ["audit", "--tail", "1", "--state", str(server.folder)], env={"COLUMNS": "200"})

    assert "free_storage" in shown.output
    assert "server token" in shown.output
    assert "done 200" in shown.output


def test_without_a_log_the_next_move_is_named(tmp_path: Path) -> None:
    shown = CliRunner().invoke(cli.main, ["audit", "--state", str(tmp_path)])

    assert shown.exit_code == 2
    assert "aiaas serve" in shown.stderr
