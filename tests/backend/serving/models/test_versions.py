"""Versions: a swap under load, a load that fails, a proof that fails, and the end of an endpoint."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.numpy import save_file

from aiaas_magics.core.errors import InvalidSpec, ProofFailed, UnknownName
from tests.backend.serving.support import serving_models
from tests.backend.serving.support.serving_models import Made, plus
from tests.backend.serving.support.serving_rig import Rig


@dataclass
class Asked:
    """What constant callers saw: when each request was sent, and which version's number came back."""

    rig: Rig
    answers: list[tuple[float, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def ask_until_stopped(self, x: float) -> None:
        connection = http.client.HTTPConnection(*self.rig.address, timeout=30)
        body = json.dumps({"instances": [[x]]})
        headers = {"Authorization": f"Bearer {self.rig.host.token}"}
        while not self.stop.is_set():
            sent_s = time.monotonic()
            connection.request("POST", "/v1/models/live:predict", body, headers)
            response = connection.getresponse()
            document = json.loads(response.read())
            if response.status == 200:
                self.answers.append((sent_s, round(document["predictions"][0][0] - x)))
            else:
                self.failures.append(f"{response.status} {document}")
        connection.close()


def test_five_swaps_under_load_drop_nothing_and_none_answers_with_an_old_version(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "live", 1000.0, replicas=2), 1)
    asked = Asked(rig)
    callers = [threading.Thread(target=asked.ask_until_stopped, args=(float(n),)) for n in range(4)]
    for caller in callers:
        caller.start()
    returned: list[float] = []

    try:
        for version in range(2, 7):
            already = len(asked.answers)
            while len(asked.answers) < already + 50:
                time.sleep(0.005)
            rig.load(plus(tmp_path, "live", 1000.0 * version, replicas=2), version)
            returned.append(time.monotonic())
        already = len(asked.answers)
        while len(asked.answers) < already + 50:
            time.sleep(0.005)
    finally:
        asked.stop.set()
        for caller in callers:
            caller.join(30)

    assert asked.failures == []
    assert {number for _, number in asked.answers} == {1000 * version for version in range(1, 7)}
    for version, returned_s in enumerate(returned, start=2):
        assert [number for sent_s, number in asked.answers if sent_s > returned_s and number < 1000 * version] == []


def test_a_proof_that_fails_leaves_the_live_version_alone(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "live", 1.0), 1)

    with pytest.raises(ProofFailed, match=r"differs from Keras by 0\.5") as caught:
        rig.load(plus(tmp_path, "live", 2.0, expects=2.5), 2)

    assert caught.value.largest == pytest.approx(0.5)
    assert caught.value.engine == "onnx"
    assert rig.predict("live", {"instances": [[1.0]]}).document == {"predictions": [[2.0]]}
    states = {view.version: view.state for view in rig.run(rig.host.status())["live"]}
    assert states == {1: "AVAILABLE", 2: "END"}
    assert rig.predict("live", {"instances": [[1.0]]}, version=2).status == 404


def test_a_first_load_that_fails_leaves_no_endpoint(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(ProofFailed):
        rig.load(plus(tmp_path, "live", 2.0, expects=3.0), 1)

    assert rig.run(rig.host.status()) == {}
    assert rig.call("GET", "/v1/models/live").status == 404
    assert rig.load(plus(tmp_path, "live", 2.0), 1).state == "AVAILABLE"


@pytest.mark.parametrize("difference", [np.nan, np.inf])
def test_a_sample_that_is_not_finite_must_be_so_in_the_engine_too(rig: Rig, tmp_path: Path, difference: float) -> None:
    with pytest.raises(ProofFailed, match="differs from Keras"):
        rig.load(plus(tmp_path, "live", 2.0, expects=difference), 1)


def damaged(made: Made, data: bytes) -> Made:
    made.artefact.write_bytes(data)
    return made


@pytest.mark.parametrize("data", [b"", b"not onnx", b"\x08\x09" * 50, bytes(range(256))])
def test_an_artefact_that_is_no_model_is_refused_with_a_sentence(rig: Rig, tmp_path: Path, data: bytes) -> None:
    rig.load(plus(tmp_path, "live", 1.0), 1)

    with pytest.raises(InvalidSpec, match=r"was not loaded: .* Run the cell again"):
        rig.load(damaged(plus(tmp_path, "live", 2.0), data), 2)

    assert rig.predict("live", {"instances": [[1.0]]}).document == {"predictions": [[2.0]]}


def test_samples_that_do_not_fit_the_interface_are_refused(rig: Rig, tmp_path: Path) -> None:
    made = plus(tmp_path, "live", 1.0)
    save_file({"input/z": np.ones((3, 1), "float32"), "output/y": np.ones((3, 1), "float32")}, made.samples)

    with pytest.raises(InvalidSpec, match="hold no input 'x'"):
        rig.load(made)


def test_an_interface_with_other_tensors_than_the_artefact_is_refused(rig: Rig, tmp_path: Path) -> None:
    made = plus(tmp_path, "live", 1.0)
    two = serving_models.spec_of("live", [*made.spec.inputs, serving_models.tensor("w", "float32", -1, 1)], list(made.spec.outputs))
    save_file({key: np.ones((3, 1), "float32") for key in ("input/x", "input/w", "output/y")}, made.samples)

    with pytest.raises(InvalidSpec, match="its inputs are"):
        rig.load(Made(two, made.artefact, made.samples))


def test_an_artefact_that_is_not_there_is_refused_by_name(rig: Rig, tmp_path: Path) -> None:
    made = plus(tmp_path, "live", 1.0)
    made.artefact.unlink()

    with pytest.raises(InvalidSpec, match="is not on this host"):
        rig.load(made)


def test_a_number_that_was_used_is_refused(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "live", 1.0), 4)

    for number in (4, 3, 0, -1):
        with pytest.raises(InvalidSpec, match="Use a higher number"):
            rig.load(plus(tmp_path, "live", 2.0), number)


def test_a_retired_endpoint_is_gone_and_its_name_is_free(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "live", 1.0), 1)

    rig.run(rig.host.retire("live"))

    assert rig.predict("live", {"instances": [[1.0]]}).status == 404
    assert rig.run(rig.host.status()) == {}
    with pytest.raises(UnknownName, match="There is no endpoint 'live'"):
        rig.run(rig.host.retire("live"))
    assert rig.load(plus(tmp_path, "live", 1.0), 1).version == 1


def test_the_old_version_is_named_as_ended_and_answers_no_more(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "live", 1.0), 1)
    rig.load(plus(tmp_path, "live", 2.0), 2)

    status = rig.call("GET", "/v1/models/live").document

    assert [(v["version"], v["state"]) for v in status["model_version_status"]] == [("2", "AVAILABLE"), ("1", "END")]
    assert rig.predict("live", {"instances": [[1.0]]}, version=1).status == 404


def test_replicas_are_executors_with_a_thread_each(rig: Rig, tmp_path: Path) -> None:
    import psutil

    before = psutil.Process(rig.host.pid).num_threads()

    rig.load(plus(tmp_path, "live", 1.0, replicas=3))

    assert psutil.Process(rig.host.pid).num_threads() >= before + 3
    assert rig.predict("live", {"instances": [[1.0]]}).status == 200


def test_a_request_is_held_back_for_company_for_as_long_as_its_deployment_says(rig: Rig, tmp_path: Path) -> None:
    """`--max-delay-us`, from the deployment to the batch."""
    made = plus(tmp_path, "patient", 1.0)
    rig.load(Made(replace(made.spec, max_delay_us=1_000_000), made.artefact, made.samples))
    answers: list[Any] = []
    callers = [threading.Thread(target=lambda: answers.append(rig.predict("patient", {"instances": [[1.0]]}).document)) for _ in range(2)]

    callers[0].start()
    assert rig.call("GET", "/v2/health/live").status == 200  # a turn of the loop in which the first would have run by itself
    callers[1].start()
    for caller in callers:
        caller.join(30)

    assert answers == [{"predictions": [[2.0]]}] * 2
    (told,) = rig.call("GET", "/v2/models/patient/stats").document["model_stats"]
    assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in told["batch_stats"]] == [(2, 1)]
