"""Which version answers whom: the rules alone, and a real process whose picture is changed under it."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import signal
import struct
import threading
import time
from bisect import bisect
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas_magics.backend.serving.grpc.open_inference_schema import inference
from aiaas_magics.backend.serving.protocols import Request
from aiaas_magics.core.errors import InvalidSpec, ProofFailed
from aiaas_magics.core.routing import Change, Rollout, Routing, Scaling, changed, deployed, description, place_of, without
from tests.backend.serving.support.serving_models import matrix, plus
from tests.backend.serving.support.serving_rig import Rig

ONE = {"instances": [[0.0]]}


@given(st.lists(st.sampled_from(["deploy", "canary", "promote", "rollback", "label", "unlabel"]), max_size=20))
def test_whatever_is_done_the_live_version_is_loaded_and_nothing_is_two_things(steps: list[str]) -> None:
    routing, newest = deployed(None, 1, Rollout()), 1
    for step in steps:
        try:
            if step in ("deploy", "canary"):
                newest += 1
                routing = deployed(routing, newest, Rollout(canary=0.1 if step == "canary" else 0.0))
            elif step == "label":
                routing = changed("m", routing, Change(action="label", label="stable", version=routing.live))
            elif step == "unlabel":
                routing = changed("m", routing, Change(action="label", label="stable"))
            else:
                routing = changed("m", routing, Change(action=step))  # type: ignore[arg-type]
        except InvalidSpec:
            continue
        roles = [number for number in (routing.live, routing.previous, routing.canary) if number]
        assert routing.live in routing.loaded
        assert len(set(roles)) == len(roles)
        assert (routing.share > 0) == (routing.canary > 0)


def test_one_version_is_kept_where_no_rollback_is_wanted() -> None:
    assert deployed(Routing(live=1), 2, Rollout(keep=1)) == Routing(live=2)
    assert deployed(Routing(live=1), 2, Rollout()) == Routing(live=2, previous=1)


def test_what_is_lost_is_left_out_and_without_the_live_version_there_is_nothing() -> None:
    whole = Routing(live=3, previous=2, canary=4, share=0.1, labels={"stable": 2, "next": 4})

    assert without(whole, frozenset({2})) == Routing(live=3, canary=4, share=0.1, labels={"next": 4})
    assert without(whole, frozenset({4})) == Routing(live=3, previous=2, labels={"stable": 2})
    assert without(whole, frozenset({3})) is None
    assert description(whole, 4) == "canary 10%, next"


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=50), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_takes_callers_to_the_canary_and_none_away(keys: list[bytes], one: float, other: float) -> None:
    low, high = sorted((one, other))

    assert {key for key in keys if place_of(key) < low} <= {key for key in keys if place_of(key) < high}
    assert all(0 <= place_of(key) < 1 for key in keys)


def test_shares_are_those_that_were_asked_for() -> None:
    places = [place_of(f"caller-{n}".encode()) for n in range(10_000)]

    for share in (0.01, 0.1, 0.5):
        assert abs(sum(place < share for place in places) / len(places) - share) < 0.03


def test_requests_of_nobody_in_particular_are_spread() -> None:
    nobody = Request(method="POST", path="/v1/models/live:predict")

    assert len({nobody.sticky_key() for _ in range(20)}) == 20


# --------------------------------------------------------------------------- a real process


def answer_of(rig: Rig, path: str = "/v1/models/live:predict", **headers: str) -> float:
    got = rig.call("POST", path, b'{"instances": [[0.0]]}', headers={name.replace("_", "-"): value for name, value in headers.items()})
    assert got.status == 200, got.body
    return float(got.document["predictions"][0][0])


def load(rig: Rig, folder: Path, version: int, routing: Routing) -> None:
    made = plus(folder, "live", float(version))
    rig.deploy(made, version, routing)


def test_a_canary_gets_its_share_by_the_callers_key_and_versions_and_labels_answer_beside_it(rig: Rig, tmp_path: Path) -> None:
    load(rig, tmp_path, 1, Routing(live=1))
    load(rig, tmp_path, 2, Routing(live=1, canary=2, share=0.3, labels={"stable": 1, "next": 2}))

    found = {f"k{n}": answer_of(rig, aiaas_sticky_key=f"k{n}") for n in range(60)}
    assert found == {key: 2.0 if place_of(key.encode()) < 0.3 else 1.0 for key in found}
    assert collections.Counter(found.values())[2.0] > 5
    assert [answer_of(rig, f"/v1/models/live/versions/{n}:predict") for n in (1, 2)] == [1.0, 2.0]
    assert [answer_of(rig, f"/v1/models/live/labels/{label}:predict") for label in ("stable", "next")] == [1.0, 2.0]
    assert rig.call("POST", "/v1/models/live/labels/none:predict", b"{}").status == 400
    assert rig.call("GET", "/v1/models/live/labels/next").document["model_version_status"][0]["version"] == "2"
    assert rig.call("GET", "/v1/models/live/labels/next/metadata").document["model_spec"]["version"] == "2"

    rig.run(rig.host.route("live", Routing(live=2, previous=1)))
    assert {answer_of(rig, aiaas_sticky_key=key) for key in found} == {2.0}
    rig.run(rig.host.route("live", Routing(live=1)))
    assert answer_of(rig) == 1.0
    assert rig.call("POST", "/v1/models/live/versions/2:predict", b'{"instances": [[0.0]]}').status == 404, "it was drained"


def test_a_canary_splits_grpc_callers_by_their_key_or_else_by_their_connection(rig: Rig, tmp_path: Path) -> None:
    load(rig, tmp_path, 1, Routing(live=1))
    load(rig, tmp_path, 2, Routing(live=1, canary=2, share=0.5))

    found = {f"k{n}": by_grpc(rig, ("aiaas-sticky-key", f"k{n}")) for n in range(20)}
    unnamed = [by_grpc(rig) for _ in range(20)]

    assert found == {key: {2.0 if place_of(key.encode()) < 0.5 else 1.0} for key in found}
    assert {1.0} in unnamed
    assert {2.0} in unnamed
    assert all(len(seen) == 1 for seen in unnamed), "a connection stays on its side"


def by_grpc(rig: Rig, *metadata: tuple[str, str]) -> set[float]:
    """What three calls on a connection of their own are answered."""
    message = inference.ModelInferRequest(model_name="live", raw_input_contents=[bytes(4)])
    message.inputs.add(name="x", datatype="FP32", shape=(1, 1))
    with grpc.insecure_channel(rig.host.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=inference.ModelInferRequest.SerializeToString,
            response_deserializer=inference.ModelInferResponse.FromString,
        )
        sent = (("authorization", f"Bearer {rig.host.token}"), *metadata)
        answers = [infer(message, metadata=sent, timeout=30).raw_output_contents[0] for _ in range(3)]
    return {struct.unpack("<f", answer)[0] for answer in answers}


def test_a_label_moves_only_to_a_version_that_is_ready(rig: Rig, tmp_path: Path) -> None:
    load(rig, tmp_path, 1, Routing(live=1, labels={"stable": 1}))

    with pytest.raises(InvalidSpec, match="no version 2 that is ready"):
        rig.run(rig.host.route("live", Routing(live=1, labels={"stable": 2})))

    assert answer_of(rig, "/v1/models/live/labels/stable:predict") == 1.0


def test_a_version_that_waits_for_its_routing_is_not_dropped_by_another_and_answers_nobody_before(rig: Rig, tmp_path: Path) -> None:
    load(rig, tmp_path, 1, Routing(live=1))
    made = plus(tmp_path, "live", 2.0)
    rig.run(rig.host.load(made.hashed, 2, made.artefact, made.samples))

    rig.run(rig.host.route("live", Routing(live=1, labels={"stable": 1}), keeps=2))
    before = answer_of(rig)
    rig.run(rig.host.route("live", Routing(live=2, previous=1, labels={"stable": 1})))

    assert (before, answer_of(rig)) == (1.0, 2.0)


def test_the_whole_picture_comes_back_after_the_process_was_killed(rig: Rig, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        (tmp_path / str(version)).mkdir()
        routing = {1: Routing(live=1), 2: Routing(live=2, previous=1), 3: Routing(live=1, previous=2, canary=3, share=0.5, labels={"x": 2})}
        load(rig, tmp_path / str(version), version, routing[version])
    before = {f"k{n}": answer_of(rig, aiaas_sticky_key=f"k{n}") for n in range(20)}
    assert set(before.values()) == {1.0, 3.0}

    os.kill(rig.host.pid, signal.SIGKILL)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if rig.call("GET", "/v1/models/live/labels/x").status == 200:
                break
        except OSError:
            time.sleep(0.05)

    assert {key: answer_of(rig, aiaas_sticky_key=key) for key in before} == before
    assert answer_of(rig, "/v1/models/live/versions/2:predict") == 2.0


def test_while_an_endpoint_is_brought_back_nobody_is_told_that_there_is_none(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    rig.load(matrix(tmp_path, "heavy", size=1024, steps=100))  # is brought back before the other, which takes a moment
    load(rig, tmp_path / "1", 1, Routing(live=1))
    killed, told = rig.host.pid, set[tuple[int, str]]()
    tensor = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [0.0]}]}).encode()

    os.kill(killed, signal.SIGKILL)
    until = time.monotonic() + 60
    while time.monotonic() < until and not any(status == 200 for status, _ in told):
        try:
            answers = rig.call("GET", "/v2/health/ready"), rig.call("POST", "/v2/models/live/infer", tensor), rig.predict("live", ONE)
        except OSError:
            continue
        told |= {(answer.status, answer.headers.get("retry-after", "")) for answer in answers[1:]}
        assert answers[0].status == 503 or answers[2].status == 200, "it is not ready before it answers"

    assert told <= {(503, "1"), (200, "")}
    assert (200, "") in told
    assert rig.predict("nobody", ONE).status == 404


def test_an_endpoint_that_cannot_be_brought_back_is_none_from_then_on(rig: Rig, tmp_path: Path) -> None:
    load(rig, tmp_path, 1, Routing(live=1))
    for artefact in tmp_path.glob("*.onnx"):
        artefact.unlink()

    os.kill(rig.host.pid, signal.SIGKILL)
    until = time.monotonic() + 60
    status = 503
    while time.monotonic() < until and status != 404:
        with contextlib.suppress(OSError):
            status = rig.predict("live", ONE).status

    assert status == 404
    assert rig.call("GET", "/v2/health/ready").status == 200


def test_while_versions_are_brought_back_no_other_than_the_live_one_answers(rig: Rig, tmp_path: Path) -> None:
    for version in (1, 2):
        (tmp_path / str(version)).mkdir()
        load(rig, tmp_path / str(version), version, deployed(Routing(live=1) if version > 1 else None, version, Rollout()))
    killed = rig.host.pid

    os.kill(killed, signal.SIGKILL)
    seen = set[float]()
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            got = rig.predict("live", ONE)
        except OSError:
            continue
        if got.status == 200:
            seen.add(got.document["predictions"][0][0])
            views = rig.run(rig.host.status()).get("live", []) if rig.host.pid != killed else []
            if [view.state for view in views] == ["AVAILABLE", "AVAILABLE"]:
                break

    assert seen == {2.0}


def test_executors_are_added_and_taken_away_while_it_answers(rig: Rig, tmp_path: Path) -> None:
    load(rig, tmp_path, 1, Routing(live=1))
    stop, wrong = threading.Event(), list[object]()

    def ask() -> None:
        while not stop.is_set():
            if (got := rig.predict("live", ONE)).status != 200 or got.document != {"predictions": [[1.0]]}:
                wrong.append(got)

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    for replicas in (3, 1, 2, 1):
        rig.run(rig.host.scale("live", Scaling(replicas=replicas)))
        assert rig.run(rig.host.status())["live"][0].replicas == replicas
    stop.set()
    for caller in callers:
        caller.join(30)

    assert wrong == []


def test_nothing_fails_under_load_through_swaps_a_failing_load_a_scaling_a_canary_and_a_rollback(rig: Rig, tmp_path: Path) -> None:
    load(rig, tmp_path, 1, Routing(live=1))
    stop, asked = threading.Event(), list[tuple[float, float, float]]()
    failed: list[object] = []

    def ask() -> None:
        connection = http.client.HTTPConnection(*rig.address, timeout=30)
        headers = {"Authorization": f"Bearer {rig.host.token}"}
        while not stop.is_set():
            sent_s = time.monotonic()
            connection.request("POST", "/v1/models/live:predict", json.dumps(ONE), headers)
            response = connection.getresponse()
            got = response.read()
            if response.status == 200:
                asked.append((sent_s, time.monotonic(), json.loads(got)["predictions"][0][0]))
            else:
                failed.append(got)
        connection.close()

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    since: list[tuple[float, set[float]]] = []  # from when on which versions may answer
    routing = Routing(live=1)
    try:
        for version in range(2, 22):
            routing = deployed(routing, version, Rollout())
            load(rig, tmp_path, version, routing)
            since.append((time.monotonic(), {float(version)}))
            if version == 10:
                rig.run(rig.host.scale("live", Scaling(replicas=2)))
        broken = plus(tmp_path, "live", 1.0, expects=9.0)
        with pytest.raises(ProofFailed):
            rig.deploy(broken, 22, deployed(routing, 22, Rollout()))
        routing = deployed(routing, 23, Rollout(canary=0.5))
        load(rig, tmp_path, 23, routing)
        since.append((time.monotonic(), {21.0, 23.0}))
        for action, alone in (("promote", 23.0), ("rollback", 21.0)):
            routing = changed("live", routing, Change(action=action))  # type: ignore[arg-type]
            rig.run(rig.host.route("live", routing))
            since.append((time.monotonic(), {alone}))
            time.sleep(0.05)
    finally:
        stop.set()
        for caller in callers:
            caller.join(30)

    assert failed == []
    assert len(asked) > 100
    overs = [over_s for over_s, _ in since]
    for sent_s, answered_s, number in asked:
        if sent_s > overs[0]:
            # Changes that were over before it was sent hold; any that began before it was answered may have been in time for it.
            first, last = bisect(overs, sent_s) - 1, bisect(overs, answered_s)
            assert number in set().union(*(versions for _, versions in since[first : last + 1]))
