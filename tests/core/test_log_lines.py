"""Lines of the log: as text and as JSON, each with the id of its request."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from aiaas_magics.core import log_lines
from tests.support import waiting


def lines_of(form: str) -> list[str]:
    stream, root = io.StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    token = log_lines.REQUEST_ID.set("r1")
    try:
        log_lines.log_lines_to(stream, form)
        logging.getLogger("aiaas_magics.test").info("a name with \x1b[2J and\na second line")
        log_lines.REQUEST_ID.reset(token)
        try:
            raise KeyError("what")
        except KeyError:
            logging.getLogger("aiaas_magics.test").exception("failed")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    return stream.getvalue().splitlines()


def test_json_lines_hold_time_level_logger_message_request_and_error() -> None:
    first, second = (json.loads(line) for line in lines_of("json"))

    assert first["message"] == "a name with \\x1b[2J and\na second line"
    assert (first["level"], first["logger"], first["request"]) == ("INFO", "aiaas_magics.test", "r1")
    assert first["time"].endswith("Z")
    assert "request" not in second
    assert "KeyError: 'what'" in second["error"]


def test_text_lines_end_with_the_request() -> None:
    first, second, *_ = lines_of("text")

    assert first.endswith("a name with \\x1b[2J and\\na second line (request r1)")
    assert second.endswith("failed")


@pytest.mark.process
def test_a_server_writes_json_lines_with_the_id_that_the_client_chose(tmp_path: Path) -> None:
    log, environment = tmp_path / "log", {**os.environ, "AIAAS_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "aiaas_magics", "serve", "--state", str(tmp_path / "state"), "--log-format", "json"]
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, text=True, env=environment)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        request = urllib.request.Request(f"{url}/v1/jobs", headers={"X-Request-Id": "mine-1", "Authorization": "Bearer wrong"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        refused.value.close()
        assert refused.value.headers["x-request-id"] == "mine-1"

        def refusals() -> list[dict[str, str]]:
            lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
            return [line for line in lines if line.get("request") == "mine-1"]

        [line] = waiting.until(refusals, "the refusal is not in the log", wait_s=10)
        assert "refused GET '/v1/jobs'" in line["message"]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
        server.stdout.close()
