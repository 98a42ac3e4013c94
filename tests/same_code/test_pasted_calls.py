"""`curl()` and `snippet()` reach an endpoint of this machine beside a proxy that cannot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from aiaas_magics.core import snippets
from aiaas_magics.core.spec import TensorSpec

pytestmark = pytest.mark.process

INPUTS = (TensorSpec(name="x", dtype="float32", shape=(-1, 3)),)


class Answers(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"predictions": [[0.5]]}')

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def run(command: list[str]) -> str:
    nobody = "http://127.0.0.1:9"  # the discard port: nothing listens
    environment = {**os.environ, "HTTP_PROXY": nobody, "http_proxy": nobody, "all_proxy": nobody, "AIAAS_ENDPOINT_TOKEN": "t"}
    environment.pop("no_proxy", None)
    environment.pop("NO_PROXY", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_snippet_goes_past_the_proxy(url: str) -> None:
    assert run([sys.executable, "-c", snippets.python(url, "m", INPUTS)]).strip() == "[[0.5]]"


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_curl_command_goes_past_the_proxy(url: str) -> None:
    assert "0.5" in run(["sh", "-c", snippets.curl(url, "m", INPUTS)])


ROWS = {
    "numbers": np.array([[0.1, 2.0, 3.5]], "float32"),
    "texts": np.array([["a good * film"]], object),
    "bytes": np.array([[b"\xff\x00"]], object),
    "flags": np.array([[True, False]]),
}


@pytest.mark.parametrize(("kind", "told"), [("numbers", "[0.1, 2.0, 3.5]"), ("texts", '["a good * film"]'), ("bytes", '[{"b64": "/wA="}]')])
def test_calls_are_made_of_a_row_of_the_sample(kind: str, told: str) -> None:
    example = snippets.example_of({"x": ROWS[kind]})

    assert example == told
    assert told in snippets.curl("http://h", "m", INPUTS, example)
    (body,) = [line for line in snippets.python("http://h", "m", INPUTS, example).splitlines() if line.startswith("body")]
    assert json.loads(eval(body.removeprefix("body = "), {"json": json})) == {"instances": [json.loads(told)]}


def test_calls_of_several_inputs_name_them() -> None:
    inputs = [TensorSpec(name=name, dtype=dtype, shape=(-1, 2)) for name, dtype in (("texts", "string"), ("flags", "bool"))]
    example = snippets.example_of({"texts": ROWS["bytes"], "flags": ROWS["flags"]})

    triton = snippets.triton("http://h", "m", inputs, inputs, example)
    assert "np.array([[b'\\xff\\x00']], object), 'flags': np.array([[True, False]], 'bool')" in triton


def test_a_long_row_is_no_example() -> None:
    assert snippets.example_of({"x": np.zeros((1, 64, 64, 3), "float32")}) == ""
    assert snippets.example_of({"x": np.array([[np.nan]], "float32")}) == ""
