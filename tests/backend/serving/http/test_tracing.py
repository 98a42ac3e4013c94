"""OpenTelemetry traces of a real process at a real receiver of OTLP/HTTP on loopback, asked by curl and a gRPC client."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from aiaas_magics.backend.serving.grpc.tensor_proto import to_proto
from aiaas_magics.backend.serving.http import tracing
from tests.backend.serving.grpc.test_grpc import Client, infer_request, predict_request
from tests.backend.serving.support.serving_models import plus
from tests.backend.serving.support.serving_rig import Rig

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
VALUE = 1234.0625  # exact in float32, and nowhere else in a span
PREDICT = "/v1/models/one:predict"


@dataclass(frozen=True)
class Span:
    name: str
    kind: int
    trace: str
    parent: str
    status: int
    said: dict[str, Any]
    resource: dict[str, Any]
    took_ns: int


@dataclass
class Receiver:
    """What would be an OpenTelemetry collector: takes spans, and hands them on in the order they came."""

    port: int = 0
    spans: queue.Queue[Span] = field(default_factory=queue.Queue)
    raw: list[bytes] = field(default_factory=list)

    def take(self, raw: bytes) -> None:
        self.raw.append(raw)
        for group in ExportTraceServiceRequest.FromString(raw).resource_spans:
            resource = values(group.resource.attributes)
            for scope in group.scope_spans:
                for span in scope.spans:
                    took_ns = span.end_time_unix_nano - span.start_time_unix_nano
                    ids = span.trace_id.hex(), span.parent_span_id.hex()
                    self.spans.put(Span(span.name, span.kind, *ids, span.status.code, values(span.attributes), resource, took_ns))

    def next(self) -> Span:
        return self.spans.get(timeout=30)


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    received = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            received.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        received.port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield received
        server.shutdown()
        thread.join()


@pytest.fixture
def traced(receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Rig]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=school")
    with Rig(tmp_path / "state") as rig:
        rig.load(plus(tmp_path, "one", 1.0), 7)
        yield rig


def curl(rig: Rig, path: str, body: str, *headers: str) -> str:
    host, port = rig.address
    sent = [part for header in (f"Authorization: Bearer {rig.host.token}", *headers) for part in ("-H", header)]
    command = ["curl", "-s", "-X", "POST", *sent, "--data-binary", body, f"http://{host}:{port}{path}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


ROWS = json.dumps({"instances": [[VALUE], [3.0]]})
TENSOR = json.dumps({"inputs": [{"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [VALUE, 3]}]})
ARRAY = np.array([[VALUE], [3.0]], np.float32)


@pytest.mark.parametrize(
    ("path", "body", "more", "template", "protocol"),
    [
        (PREDICT, ROWS, (), "/v1/models/{name}:predict", "tensorflow-serving"),
        ("/v1/models/one/versions/7:predict", ROWS, (), "/v1/models/{name}/versions/{version}:predict", "tensorflow-serving"),
        (PREDICT, ROWS, ("Transfer-Encoding: chunked",), "/v1/models/{name}:predict", "tensorflow-serving"),
        ("/v2/models/one/infer", TENSOR, (), "/v2/models/{name}/infer", "open-inference"),
    ],
    ids=["short way", "of one version", "by the app", "open inference"],
)
def test_a_prediction_by_curl_is_one_span_below_its_callers(
    traced: Rig, receiver: Receiver, path: str, body: str, more: tuple[str, ...], template: str, protocol: str
) -> None:
    answer = curl(traced, path, body, f"traceparent: {SAMPLED}", *more)
    span = receiver.next()

    assert str(VALUE + 1) in answer
    assert (span.name, span.kind, span.trace, span.parent, span.status) == (f"POST {template}", 2, TRACE, PARENT, 0)
    assert (span.said["http.request.method"], span.said["http.route"], span.said["http.response.status_code"]) == ("POST", template, 200)
    assert (span.said["url.path"], span.said["url.scheme"]) == (path, "http")
    assert (span.said["aiaas.endpoint"], span.said["aiaas.version"], span.said["aiaas.rows"]) == ("one", 7, 2)
    assert span.said["aiaas.protocol"] == protocol
    assert 0 <= (span.said["aiaas.queue_s"] + span.said["aiaas.compute_s"]) * 1e9 <= span.took_ns
    assert (span.resource["service.name"], span.resource["deployment.environment.name"]) == ("aiaas", "school")


def test_a_call_over_grpc_is_one_span_below_its_callers(traced: Rig, receiver: Receiver) -> None:
    client = Client(traced)
    metadata = (*client.metadata, ("traceparent", SAMPLED))
    infer = "/inference.GRPCInferenceService/ModelInfer"
    predict = "/tensorflow.serving.PredictionService/Predict"

    client(infer, infer_request("one", x=ARRAY), bytes_of_any, metadata=metadata)
    inferred = receiver.next()
    client(predict, predict_request("one", x=to_proto(ARRAY)), bytes_of_any, metadata=metadata)
    predicted = receiver.next()
    code, _ = client.refusal(infer, infer_request("one", x=ARRAY[:, :0]), metadata=metadata)
    refused = receiver.next()
    client.channel.close()

    assert (inferred.name, inferred.kind, inferred.trace, inferred.parent) == (infer[1:], 2, TRACE, PARENT)
    assert (inferred.said["rpc.system.name"], inferred.said["rpc.method"], inferred.said["rpc.response.status_code"]) == (
        "grpc",
        infer[1:],
        "OK",
    )
    assert (inferred.said["aiaas.endpoint"], inferred.said["aiaas.version"], inferred.said["aiaas.rows"]) == ("one", 7, 2)
    assert inferred.said["aiaas.compute_s"] > 0
    assert (inferred.said["aiaas.protocol"], predicted.said["aiaas.protocol"]) == ("open-inference", "tensorflow-serving")
    assert predicted.name == predict[1:]
    assert (code, refused.said["rpc.response.status_code"], refused.status) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", 0)


class bytes_of_any:
    """Any message's class, for who does not look into the answer."""

    @staticmethod
    def FromString(raw: bytes) -> bytes:
        return raw


def test_a_request_that_is_refused_is_a_span_with_its_status(traced: Rig, receiver: Receiver) -> None:
    curl(traced, "/v1/models/nobody:predict", ROWS)
    unknown = receiver.next()
    curl(traced, PREDICT, json.dumps({"instances": [["a"]]}))
    wrong = receiver.next()

    assert (unknown.said["http.response.status_code"], unknown.said["aiaas.endpoint"], unknown.status) == (404, "nobody", 0)
    assert (wrong.said["http.response.status_code"], wrong.said["aiaas.version"], wrong.status) == (400, 7, 0), (
        "the caller's fault is none of ours"
    )
    assert "aiaas.rows" not in wrong.said
    assert unknown.parent == ""


def test_a_fault_of_the_servers_is_an_error(traced: Rig, receiver: Receiver, tmp_path: Path) -> None:
    late = json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}], "parameters": {"timeout": 1}})

    answer = curl(traced, "/v2/models/one/infer", late)
    span = receiver.next()

    assert "timeout was over" in answer
    assert (span.said["http.response.status_code"], span.said["error.type"], span.status) == (503, "503", 2)
    assert "aiaas.compute_s" not in span.said


def test_a_caller_that_is_not_sampled_leaves_no_span_and_one_that_says_nonsense_has_no_parent(traced: Rig, receiver: Receiver) -> None:
    curl(traced, PREDICT, ROWS, f"traceparent: 00-{TRACE}-{PARENT}-00")
    curl(traced, PREDICT, ROWS, "traceparent: 00-nonsense-01")

    span = receiver.next()

    assert (span.parent, span.trace != TRACE) == ("", True)
    assert receiver.spans.empty()


def test_no_span_holds_a_value_a_token_or_a_query(traced: Rig, receiver: Receiver) -> None:
    curl(traced, PREDICT + "?of=somebody", ROWS, "x-secret: somebodys")
    receiver.next()

    sent = b"".join(receiver.raw)

    assert b"/v1/models/one:predict" in sent, "the test looks at the right bytes"
    assert [word for word in (str(VALUE), traced.host.token, "somebody", "Bearer") if word.encode() in sent] == []
    assert np.float32(VALUE).tobytes() not in sent


def test_sigterm_sends_what_was_not_sent(receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{receiver.port}/v1/traces")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    with Rig(tmp_path / "state") as rig:
        rig.load(plus(tmp_path, "one", 1.0))
        curl(rig, PREDICT, ROWS)
        assert receiver.spans.empty()
        code = ended(rig)

    assert code == 0
    assert receiver.next().name == "POST /v1/models/{name}:predict"


@pytest.mark.process
def test_a_receiver_that_never_answers_keeps_no_process_from_ending(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
        with Rig(tmp_path / "state") as rig:
            rig.load(plus(tmp_path, "one", 1.0))
            assert "predictions" in curl(rig, PREDICT, ROWS)
            code = ended(rig)
            said = (rig.state / "serving" / "log.txt").read_text()

    assert code == 0
    assert "Check that OpenTelemetry's receiver answers" in said
    assert "Traceback" not in said


def ended(rig: Rig) -> int:
    pid = rig.host.pid
    rig.run(rig.host.close())
    os.kill(pid, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.process
@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_a_receiver_nothing_of_it_is_there(environment: dict[str, str]) -> None:
    probe = (
        "import sys\n"
        "from aiaas_magics.backend.serving.http import tracing\n"
        "from aiaas_magics.backend.serving.process import inference_process\n"
        "with tracing.from_environment(scheme='http') as made:\n"
        "    print(made, [name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}

    said = subprocess.run([sys.executable, "-c", probe], env=plain | environment, check=True, capture_output=True, text=True, timeout=60)

    assert said.stdout.strip() == "None []"


def test_a_receiver_without_the_library_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)

    with caplog.at_level(logging.WARNING), tracing.from_environment(scheme="http") as made:
        pass

    assert made is None
    assert caplog.messages == [
        "OTEL_EXPORTER_OTLP_ENDPOINT is set, but no traces are sent: OpenTelemetry is not here. pip install 'aiaas_magics[otel]'"
    ]


def test_variables_that_opentelemetry_refuses_cost_the_traces_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")

    with caplog.at_level(logging.WARNING), tracing.from_environment(scheme="http") as made:
        pass

    assert made is None
    assert [line for line in caplog.messages if "Check those that begin with OTEL_" in line]
