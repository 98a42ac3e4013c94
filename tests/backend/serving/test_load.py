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

import msgspec
import numpy as np
import psutil
import pytest

from aiaas_magics.client.load_test.load_plan import BodyForm, LoadPlan
from aiaas_magics.client.load_test.load_run import _example_of, carry_out, forms_of, run_load
from aiaas_magics.core.errors import BackendNotProven, BackendRefused, BackendUnreachable, InvalidSpec
from aiaas_magics.core.scaling.load_report import LoadProgress
from aiaas_magics.core.spec import EndpointView, TensorSpec
from aiaas_magics.plots import text_twins
from tests.backend.serving.support.serving_models import tensor
from tests.backend.serving.support.serving_rig import Rig
from tests.support.impostors import Proving

X = [tensor("x", "float32", -1, 1)]


def as_json(name: str, *bodies: str) -> tuple[BodyForm, ...]:
    return (BodyForm(name="json", path=f"/v1/models/{name}:predict", bodies=tuple(body.encode() for body in bodies)),)


def plan_for(rig: Rig, forms: tuple[BodyForm, ...], **changes: Any) -> LoadPlan:
    values: dict[str, Any] = {
        "url": rig.host.url,
        "token": rig.host.token,
        "forms": forms,
        "concurrency": (1, 2, 4),
        "duration_s": 0.4,
        "rows": 1,
    }
    return LoadPlan(**{**values, **changes})


def test_each_concurrency_gives_a_point_with_ordered_percentiles(shared: Rig) -> None:
    points = carry_out(plan_for(shared, forms_of("plus", X, ("json",), rows=3), rows=3)).points

    assert [point.concurrency for point in points] == [1, 2, 4]
    for point in points:
        assert point.errors == {}
        assert point.requests > 10
        assert point.rows == 3 * point.requests
        assert 0 < point.p50_ms <= point.p90_ms <= point.p99_ms <= point.p999_ms <= point.max_ms
        assert point.requests_per_s == pytest.approx(point.requests / point.seconds)
        assert point.rows_per_s == pytest.approx(3 * point.requests_per_s)
        assert point.seconds >= 0.4


def one_endpoint(rig: Rig, name: str, inputs: tuple[TensorSpec, ...]) -> EndpointView:
    return EndpointView(name=name, url=rig.host.url, token=rig.host.token, replicas=1, versions=(), inputs=inputs, outputs=())


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
    report = run_load(one_endpoint(shared, name, inputs), concurrency=(2,), duration_s=0.2, rows=2, rates=())

    assert (report.endpoint, report.rows, report.forms) == (name, 2, ("json", "binary"))
    for point in report.points:
        assert point.errors == {}
        assert point.requests > 0
    assert "cores" in report.hardware


def test_given_rows_are_sent_in_turn() -> None:
    as_text, as_bytes = forms_of("m", [tensor("x", "float32", -1, 2)], ("json", "binary"), rows=2, x=np.arange(12).reshape(6, 2))

    assert [np.frombuffer(body[-16:], "<f4").tolist() for body in as_bytes.bodies] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [json.loads(body)["instances"] for body in as_text.bodies] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]


def test_a_wrong_token_is_said_at_once_and_is_not_sent(shared: Rig) -> None:
    with pytest.raises(BackendNotProven, match="the token belongs to another backend"):
        carry_out(plan_for(shared, as_json("plus", '{"instances": [[1.0]]}'), token="wrong", duration_s=3000.0))


def test_rows_that_the_model_rejects_are_said_at_once(shared: Rig) -> None:
    with pytest.raises(BackendRefused, match="has the shape"):
        carry_out(plan_for(shared, as_json("plus", '{"instances": [[1.0, 2.0]]}'), duration_s=3000.0))


def test_nobody_there_is_said_at_once(shared: Rig) -> None:
    with pytest.raises(BackendUnreachable):
        carry_out(plan_for(shared, as_json("plus", "{}"), url="http://127.0.0.1:1", duration_s=3000.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"concurrency": ()},
        {"concurrency": (0,)},
        {"concurrency": (99999,)},
        {"duration_s": 0.0},
        {"duration_s": 1e9},
        {"rows": 0},
        {"forms": ()},
        {"rates": (0.0,)},
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_a_next_move(shared: Rig, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match="to start with"):
        plan_for(shared, **{"forms": as_json("plus", "{}"), **changes})


class Flaky(Proving):
    """Answers 200, 503, and hangs up, in turn."""

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


class Patient(ThreadingHTTPServer):
    request_queue_size = 128  # connections that wait to be accepted; the default of 5 would drop some of a whole load


@contextlib.contextmanager
def serving(answers: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with Patient(("127.0.0.1", 0), answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


def test_errors_are_counted_by_kind_and_apart_from_answers(shared: Rig) -> None:
    with serving(Flaky) as url:
        (point,) = carry_out(plan_for(shared, as_json("plus", "{}"), url=url, token="t", concurrency=(1,))).points

    assert point.requests > 0
    assert set(point.errors) == {"http 503", "connection"}
    assert point.rows == point.requests


@pytest.mark.process
def test_the_generators_process_imports_neither_an_http_library_nor_numpy() -> None:
    probe = "import sys, aiaas_magics.client.load_test.load_generator; print(*sys.modules)"

    loaded = set(subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True).stdout.split())

    assert not loaded & {"httpx", "numpy", "tensorflow", "keras", "IPython", "matplotlib"}


def test_the_token_is_on_no_command_line_while_the_load_runs(shared: Rig) -> None:
    plan = plan_for(shared, as_json("plus", '{"instances": [[1.0]]}'), concurrency=(1,), duration_s=1.5)
    running = threading.Thread(target=carry_out, args=(plan,))
    running.start()
    lines: set[str] = set()

    while running.is_alive():
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                lines.add(" ".join(child.cmdline()))
        time.sleep(0.05)

    assert any("aiaas_magics.client.load_test.load_generator" in line for line in lines), "the generator was seen"
    assert not any(shared.host.token in line for line in lines)


def test_a_report_says_what_the_model_alone_and_the_interface_alone_could_do(shared: Rig) -> None:
    report = run_load(one_endpoint(shared, "plus", tuple(X)), concurrency=(1, 4), duration_s=0.5, rates=())

    for side in report.sides:
        most = max(point.requests_per_s for point in report.points_of(side.form))
        assert side.model_per_s > most, "the engine alone is quicker than with everything around it"
        assert side.interface_per_s > 0
    assert report.response == report.sides[0].model_per_s / report.sides[0].interface_per_s
    assert "is the bottleneck" in text_twins.response_line(report)
    assert text_twins.form_line(report).startswith("binary reaches ")


def test_rates_are_kept_and_latencies_count_from_when_a_request_was_due(shared: Rig) -> None:
    outcome = carry_out(plan_for(shared, as_json("plus", '{"instances": [[1.0]]}'), concurrency=(1,), rates=(50.0, 400.0), duration_s=1.0))

    assert [point.requests for point in outcome.rates] == [round(point.offered_per_s) for point in outcome.rates]
    for asked, point in zip((50, 400), outcome.rates, strict=True):
        assert asked * 0.6 < point.offered_per_s < asked * 1.4, "arrivals are random, but the same each time"
        assert point.keeps_up
        assert point.errors == {}


class Slow(Flaky):
    """Twenty milliseconds an answer, one at a time: at most fifty a second."""

    turn_of_one = threading.Lock()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.turn_of_one:
            time.sleep(0.02)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.nightly
def test_a_server_that_stays_behind_pays_for_every_request_that_waited(shared: Rig) -> None:
    with serving(Slow) as url:
        plan = plan_for(shared, as_json("plus", "{}"), url=url, token="t", concurrency=(1,), rates=(20.0, 500.0), duration_s=1.0)
        (calm, behind) = carry_out(plan).rates

    assert calm.keeps_up
    assert not behind.keeps_up
    assert behind.errors.keys() == {"not answered in time"}
    assert behind.requests + behind.errors["not answered in time"] == pytest.approx(behind.offered_per_s)
    # Nine of ten requests never left the generator, whose connections were all waiting: their ages are in the percentiles.
    assert behind.p50_ms > 200, "the queue of half a second of arrivals"
    assert 20 <= calm.p50_ms < 200


@pytest.mark.nightly
def test_rates_are_chosen_up_to_where_answers_stay_behind(shared: Rig) -> None:
    with serving(Slow) as url:
        outcome = carry_out(plan_for(shared, as_json("plus", "{}"), url=url, token="t", concurrency=(2,), rates=None, duration_s=0.8))

    assert [point.keeps_up for point in outcome.rates][-1:] == [False]
    assert all(point.keeps_up for point in outcome.rates[:-1])
    assert 2 <= len(outcome.rates) <= 7


def test_progress_names_the_running_measurement_and_carries_what_was_measured(shared: Rig) -> None:
    reports: list[LoadProgress] = []
    forms = forms_of("plus", X, ("json", "binary"), rows=1)

    carry_out(plan_for(shared, forms, concurrency=(1, 2), rates=(100.0,), duration_s=0.1), reports.append)

    assert [report.label for report in reports] == [
        "1 connection, json",
        "2 connections, json",
        "interface alone, json",
        "1 connection, binary",
        "2 connections, binary",
        "interface alone, binary",
        "100/s offered, json",
    ]
    assert reports[0].waiting == tuple(report.label for report in reports[1:])
    assert (reports[-1].waiting, reports[-1].total, reports[-1].number) == ((), 7, 6)
    assert [(point.form, point.concurrency) for point in reports[4].points] == [("json", 1), ("json", 2), ("binary", 1)]


def test_a_request_that_computes_nothing_is_answered_in_form_and_not_counted(shared: Rig) -> None:
    def counted() -> int:
        return int(shared.call("GET", "/v2/models/plus/stats").document["model_stats"][0]["inference_count"])

    before = counted()
    answer = shared.call("POST", "/v1/models/plus:predict", b'{"instances": [[5.0], [6.0]]}', headers={"aiaas-no-op": "1"})

    assert (answer.status, answer.document) == (200, {"predictions": [[0.0], [0.0]]})
    assert shared.call("POST", "/v1/models/plus:predict", b"{", headers={"aiaas-no-op": "1"}).status == 400
    assert counted() == before


def test_rows_of_texts_are_the_example_of_the_sample() -> None:
    inputs = (tensor("x", "string", -1, 1),)
    view = EndpointView(name="m", url="", token="", replicas=1, versions=(), inputs=inputs, outputs=(), example='[{"b64": "/wA="}]')

    (as_text, as_bytes) = forms_of("m", inputs, ("json", "binary"), rows=2, x=_example_of(view))

    assert json.loads(as_text.bodies[0]) == {"instances": [[{"b64": "/wA="}], [{"b64": "/wA="}]]}
    assert as_bytes.bodies[0].endswith(b"\x02\x00\x00\x00\xff\x00" * 2)
    assert _example_of(msgspec.structs.replace(view, inputs=(tensor("x", "float32", -1, 1),), example="[1.0]")) is None
