"""Recording on a real process: every protocol's requests, a kill in the middle, and what is said about it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import grpc
import numpy as np
import pytest
from msgspec.structs import replace as replace_fields

from aiaas_magics.backend.folders.record_folder import newest_frames
from aiaas_magics.backend.serving.grpc.open_inference_schema import inference
from aiaas_magics.backend.serving.process.state_directory import Files
from aiaas_magics.backend.serving.process.supervisor import PROGRAM
from aiaas_magics.core.drift.drift_features import features_of
from aiaas_magics.core.drift.drift_report import reference_of
from aiaas_magics.core.drift.drift_values import DriftVerdict
from aiaas_magics.core.recorded_arrays import array_of
from aiaas_magics.core.recording import MB, RecordedRequest, RecordingPolicy, requests_in
from aiaas_magics.core.spec import RecordingChange
from tests.backend.serving.support.serving_models import Made, plus
from tests.backend.serving.support.serving_rig import Rig

pytestmark = pytest.mark.process

T = TypeVar("T")
EVERY = RecordingPolicy(share=1.0)


def recording(made: Made, policy: RecordingPolicy = EVERY) -> Made:
    return replace(made, spec=replace_fields(made.spec, recording=policy))


def until(look: Callable[[], T], *, seconds: float = 30.0) -> T:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        try:
            if found := look():
                return found
        except OSError:
            pass
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def files_of(rig: Rig, name: str = "one") -> Path:
    return Files(rig.state).recorded / name


def requests_of(rig: Rig, name: str = "one") -> list[RecordedRequest]:
    """What is in the files, after what waited was put there."""
    rig.run(rig.host.recorded_counts(name))
    return [request for part in newest_frames(files_of(rig, name), most_bytes=10**9) for request, _ in requests_in(part)]


def values(request: RecordedRequest) -> tuple[list[float], list[float]]:
    return array_of(request.inputs[0]).ravel().tolist(), array_of(request.outputs[0]).ravel().tolist()


def binary(*numbers: float, id: str = "") -> tuple[bytes, dict[str, str]]:
    x = np.array(numbers, "float32")
    inputs = [{"name": "x", "shape": [len(x), 1], "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}]
    head = json.dumps({**({"id": id} if id else {}), "inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return head + x.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


@pytest.mark.parametrize(
    "program",
    [PROGRAM, pytest.param((*PROGRAM, "--no-fast-path"), marks=pytest.mark.nightly)],
    ids=["fast path", "ASGI"],
)
def test_requests_of_every_protocol_are_recorded_with_their_answers(tmp_path: Path, program: tuple[str, ...]) -> None:
    with Rig(tmp_path / "state", program=program) as rig:
        rig.load(recording(plus(tmp_path, "one", 1.0)))

        assert rig.predict("one", {"instances": [[1.0], [2.0]]}).document == {"predictions": [[2.0], [3.0]]}
        for id in ("", "", "mine"):  # the second is of a document that is known
            body, headers = binary(3.0, id=id)
            assert rig.call("POST", "/v2/models/one/infer", body, headers=headers).status == 200
        message = inference.ModelInferRequest(model_name="one", id="42", raw_input_contents=[np.float32(4.0).tobytes()])
        message.inputs.add(name="x", datatype="FP32", shape=[1, 1])
        with grpc.insecure_channel(rig.host.grpc) as channel:
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=inference.ModelInferResponse.FromString,
            )
            call(message, metadata=(("authorization", f"Bearer {rig.host.token}"),), timeout=30)
        rig.predict("one", {"instances": [["no number"]]})  # a refusal has no answer

        requests = requests_of(rig)
        files = b"".join(path.read_bytes() for path in files_of(rig).iterdir())

    assert sorted(values(request) for request in requests) == [
        ([1.0, 2.0], [2.0, 3.0]),
        ([3.0], [4.0]),
        ([3.0], [4.0]),
        ([3.0], [4.0]),
        ([4.0], [5.0]),
    ]
    assert {"mine", "42"} <= {request.id for request in requests}
    assert len({request.id for request in requests}) == 5
    assert {request.version for request in requests} == {1}
    assert rig.state.joinpath("serving", "token").read_bytes().strip() not in files


def test_a_kill_in_the_middle_loses_at_most_what_was_not_written_and_damages_nothing(rig: Rig, tmp_path: Path) -> None:
    rig.load(recording(plus(tmp_path, "one", 1.0)))
    for number in range(20):
        rig.predict("one", {"instances": [[float(number)]]})
    rig.run(rig.host.recorded_counts("one"))  # these are written

    connection = http.client.HTTPConnection(*rig.address, timeout=10)
    headers = {"Authorization": f"Bearer {rig.host.token}"}
    for number in range(20, 400):
        connection.request("POST", "/v1/models/one:predict", json.dumps({"instances": [[float(number)]]}), headers)
        connection.getresponse().read()
    connection.close()
    pid = rig.host.pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: rig.host.pid != pid and rig.predict("one", {"instances": [[1000.0]]}).status == 200)

    inputs = [values(request)[0][0] for request in requests_of(rig)]
    before, after = inputs[:-1], inputs[-1]
    assert after == 1000.0, "recording goes on after the restart"
    assert before == [float(number) for number in range(len(before))], "in order, without a gap and nothing twice"
    assert len(before) >= 20


def test_a_flood_keeps_the_bounds_of_the_files(rig: Rig, tmp_path: Path) -> None:
    rig.load(recording(plus(tmp_path, "one", 1.0), RecordingPolicy(share=1.0, most_bytes=MB)))
    body, headers = binary(*range(20_000))  # rows are chosen of each: 256 of them are 2 kB

    def folder_bytes() -> int:
        return sum(path.stat().st_size for path in files_of(rig).iterdir()) if files_of(rig).exists() else 0

    sizes = []
    for _ in range(600):
        assert rig.call("POST", "/v2/models/one/infer", body, headers=headers).status == 200
        sizes.append(folder_bytes())
    counts = rig.run(rig.host.recorded_counts("one"))

    assert max(sizes) <= MB
    assert counts.bytes == folder_bytes() <= MB
    assert counts.requests == len(requests_of(rig))
    assert counts.rows == 256 * counts.requests


def test_off_writes_nothing_and_it_can_be_switched_on_and_off(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "one", 1.0))
    rig.predict("one", {"instances": [[1.0]]})
    assert not Files(rig.state).recorded.exists()

    rig.run(rig.host.record("one", RecordingChange(policy=EVERY)))
    rig.predict("one", {"instances": [[2.0]]})
    rig.run(rig.host.record("one", RecordingChange(policy=RecordingPolicy())))
    rig.predict("one", {"instances": [[3.0]]})

    assert [values(request)[0] for request in requests_of(rig)] == [[2.0]]
    rig.run(rig.host.forget_recorded("one"))
    assert not files_of(rig).exists()


def test_what_was_recorded_goes_with_the_endpoint(rig: Rig, tmp_path: Path) -> None:
    rig.load(recording(plus(tmp_path, "one", 1.0)))
    rig.load(recording(plus(tmp_path, "two", 2.0)))
    for name in ("one", "two"):
        rig.predict(name, {"instances": [[1.0]]})
        assert len(requests_of(rig, name)) == 1

    rig.run(rig.host.retire("one"))

    assert [path.name for path in Files(rig.state).recorded.iterdir()] == ["two"]


def test_it_is_said_on_the_page_and_in_the_metrics_while_it_is_on_and_only_then(rig: Rig, tmp_path: Path) -> None:
    made = plus(tmp_path, "one", 1.0)
    rig.load(made)

    def page() -> str:
        return rig.call("GET", "/endpoints/one", headers={"Accept": "text/html"}).body.decode()

    def metrics() -> str:
        return rig.call("GET", "/metrics").body.decode()

    assert "recorded" not in page()
    assert "recorded" not in metrics()
    rig.run(rig.host.record("one", RecordingChange(policy=RecordingPolicy(share=1.0, most_age_s=3600))))
    rig.predict("one", {"instances": [[1.0]]})
    rig.run(rig.host.recorded_counts("one"))

    assert "Requests are recorded" in page()
    assert "100% of requests, at most 64 MB and 1 hour" in page()
    assert rig.call("GET", "/endpoints/one").document["recording"]["requests"] == 1
    assert 'aiaas_endpoint_recorded_requests{endpoint="one"} 1' in metrics()


def test_drift_is_found_in_the_recorded_rows_and_is_a_metric(rig: Rig, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    then = draw.normal(size=(4000, 1)).astype("float32")
    features = [*features_of("input", {"x": then}), *features_of("output", {"y": then + 1})]
    made = plus(tmp_path, "one", 1.0)
    made = replace(made, spec=replace_fields(made.spec, reference=reference_of(features, rows=4000, origin="a test"), recording=EVERY))
    rig.load(made)

    for _ in range(4):
        rig.predict("one", {"instances": draw.normal(size=(200, 1)).tolist()})
    stable = rig.run(rig.host.drift("one"))
    for _ in range(8):
        rig.predict("one", {"instances": draw.normal(2, 1, size=(200, 1)).tolist()})
    shifted = rig.run(rig.host.drift("one"))
    metrics = rig.call("GET", "/metrics").body.decode()

    assert stable.verdict is DriftVerdict.STABLE
    assert (stable.rows_then, stable.rows_now) == (4000, 800)
    assert {feature.name: feature.verdict for feature in shifted.features} == {"x": DriftVerdict.LARGE, "y": DriftVerdict.LARGE}
    psi = {feature.name: feature.psi for feature in shifted.features}
    assert f'aiaas_endpoint_drift_psi{{endpoint="one",version="1",feature="x",side="input"}} {psi["x"]:.10g}' in metrics
