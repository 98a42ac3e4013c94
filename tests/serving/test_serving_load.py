"""The load generator: what it measures on a real server, and what it says when it cannot."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
from serving_models import tensor
from serving_rig import Rig

from aiaas_magics.client.load import Plan, bodies_of, carry_out, run_load
from aiaas_magics.errors import BackendRefused, BackendUnreachable, InvalidSpec
from aiaas_magics.plots import text
from aiaas_magics.spec import EndpointView, TensorSpec


def plan_for(rig: Rig, name: str, bodies: tuple[str, ...], **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "url": rig.host.url,
        "path": f"/v1/models/{name}:predict",
        "token": rig.host.token,
        "bodies": bodies,
        "concurrency": (1, 2, 4),
        "duration_s": 0.4,
        "rows": 1,
    }
    return Plan(**{**values, **changes})


def test_each_concurrency_gives_a_point_with_ordered_percentiles(shared: Rig) -> None:
    points = carry_out(plan_for(shared, "plus", bodies_of([tensor("x", "float32", -1, 1)], rows=3), rows=3)).points

    assert [point.concurrency for point in points] == [1, 2, 4]
    for point in points:
        assert point.errors == {}
        assert point.requests > 10
        assert point.rows == 3 * point.requests
        assert 0 < point.p50_ms <= point.p90_ms <= point.p99_ms <= point.p999_ms <= point.max_ms
        assert point.requests_per_s == pytest.approx(point.requests / point.seconds)
        assert point.rows_per_s == pytest.approx(3 * point.requests_per_s)
        assert point.seconds >= 0.4


class OneEndpoint:
    """What `run_load` needs of an endpoint."""

    def __init__(self, rig: Rig, name: str, inputs: tuple[TensorSpec, ...]) -> None:
        self._view = EndpointView(name=name, url=rig.host.url, token=rig.host.token, replicas=1, versions=(), inputs=inputs, outputs=())

    def view(self) -> EndpointView:
        return self._view


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("sums", (tensor("a", "float32", -1, 2), tensor("b", "int32", -1, 2))),
        ("lookup", (tensor("x", "int64", -1),)),
        ("echo-string", (tensor("x", "string", -1, 2),)),
        ("echo-bool", (tensor("x", "bool", -1, 2),)),
    ],
)
def test_rows_are_made_up_for_any_interface(shared: Rig, name: str, inputs: tuple[TensorSpec, ...]) -> None:
    report = run_load(OneEndpoint(shared, name, inputs), concurrency=(2,), duration_s=0.2, rows=2)  # type: ignore[arg-type]

    assert (report.endpoint, report.rows) == (name, 2)
    assert report.points[0].errors == {}
    assert report.points[0].requests > 0
    assert "cores" in report.hardware


def test_given_rows_are_sent_in_turn() -> None:
    bodies = bodies_of([tensor("x", "float32", -1, 2)], rows=2, x=np.arange(12).reshape(6, 2))

    assert [json.loads(body)["instances"] for body in bodies] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]


def test_a_wrong_token_is_said_at_once_in_the_servers_words(shared: Rig) -> None:
    with pytest.raises(BackendRefused, match="A token is needed") as caught:
        carry_out(plan_for(shared, "plus", ('{"instances": [[1.0]]}',), token="wrong", duration_s=3000.0))

    assert caught.value.status == 401


def test_rows_that_the_model_rejects_are_said_at_once(shared: Rig) -> None:
    with pytest.raises(BackendRefused, match="has the shape"):
        carry_out(plan_for(shared, "plus", ('{"instances": [[1.0, 2.0]]}',), duration_s=3000.0))


def test_nobody_there_is_said_at_once(shared: Rig) -> None:
    with pytest.raises(BackendUnreachable):
        carry_out(plan_for(shared, "plus", ("{}",), url="http://127.0.0.1:1", duration_s=3000.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"concurrency": ()},
        {"concurrency": (0,)},
        {"concurrency": (99999,)},
        {"duration_s": 0.0},
        {"duration_s": 1e9},
        {"rows": 0},
        {"bodies": ()},
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_a_next_move(shared: Rig, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match="to start with"):
        plan_for(shared, "plus", **{"bodies": ("{}",), **changes})


class Flaky(BaseHTTPRequestHandler):
    """Answers 200, 503, and hangs up, in turn."""

    protocol_version = "HTTP/1.1"
    turn: ClassVar[int] = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Flaky.turn += 1
        if Flaky.turn > 1 and Flaky.turn % 3 == 0:
            self.close_connection = True
            return
        self.send_response(503 if Flaky.turn > 1 and Flaky.turn % 3 == 1 else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Nothing on the test's output."""


@pytest.fixture
def flaky() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


def test_errors_are_counted_by_kind_and_apart_from_answers(shared: Rig, flaky: str) -> None:
    (point,) = carry_out(plan_for(shared, "plus", ("{}",), url=flaky, concurrency=(1,))).points

    assert point.requests > 0
    assert set(point.errors) == {"http 503", "connection"}
    assert point.rows == point.requests


def test_the_generators_process_imports_neither_an_http_library_nor_numpy() -> None:
    probe = "import sys, aiaas_magics.client.load; print(*sys.modules)"

    loaded = set(subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True).stdout.split())

    assert not loaded & {"httpx", "numpy", "tensorflow", "keras", "IPython", "matplotlib"}


def test_the_token_is_on_no_command_line_while_the_load_runs(shared: Rig) -> None:
    plan = plan_for(shared, "plus", ('{"instances": [[1.0]]}',), concurrency=(1,), duration_s=1.5)
    running = threading.Thread(target=carry_out, args=(plan,))
    running.start()
    lines: set[str] = set()

    while running.is_alive():
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                lines.add(" ".join(child.cmdline()))
        time.sleep(0.05)

    assert any("aiaas_magics.client.load" in line for line in lines), "the generator was seen"
    assert not any(shared.host.token in line for line in lines)


def test_a_report_says_what_the_model_alone_and_the_interface_alone_could_do(shared: Rig) -> None:
    inputs = (tensor("x", "float32", -1, 1),)
    report = run_load(OneEndpoint(shared, "plus", inputs), concurrency=(1, 4), duration_s=0.5)  # type: ignore[arg-type]

    most = max(point.requests_per_s for point in report.points)
    assert report.model_per_s > most, "the engine alone is quicker than with everything around it"
    assert report.interface_per_s > 0
    assert report.response == report.model_per_s / report.interface_per_s
    assert "is what limits" in text.response_line(report)


def test_a_request_that_computes_nothing_is_answered_in_form_and_not_counted(shared: Rig) -> None:
    def counted() -> int:
        return int(shared.call("GET", "/v2/models/plus/stats").document["model_stats"][0]["inference_count"])

    before = counted()
    answer = shared.call("POST", "/v1/models/plus:predict", b'{"instances": [[5.0], [6.0]]}', headers={"aiaas-no-op": "1"})

    assert (answer.status, answer.document) == (200, {"predictions": [[0.0], [0.0]]})
    assert shared.call("POST", "/v1/models/plus:predict", b"{", headers={"aiaas-no-op": "1"}).status == 400
    assert counted() == before
