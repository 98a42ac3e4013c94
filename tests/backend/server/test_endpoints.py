"""Endpoints on the server: versions, records, coming back. What serving itself does is tested with serving."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aiaas_magics.core import errors
from aiaas_magics.core.recording import RecordingCounts, RecordingPolicy
from aiaas_magics.core.routing import Change, Rollout, Routing, Scaling
from aiaas_magics.core.spec import DeploySpec, EndpointView, RecordingChange, TensorSpec
from tests.backend.server.served import Served, served, until

TENSOR = TensorSpec(name="x", dtype="float32", shape=(-1, 3))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path / "state", "--pool", "stub") as server:
        yield server


def deployment(server: Served, *, name: str = "churn", artefact: bytes = b"an artefact", canary: float = 0.0) -> DeploySpec:
    return DeploySpec(
        name=name,
        artefact=server.put(artefact),
        format="onnx",
        samples=server.put(b"samples"),
        inputs=(TENSOR,),
        outputs=(TENSOR,),
        rollout=Rollout(canary=canary),
        model="net",
    )


def change(server: Served, **wanted: object) -> Routing | None:
    return server.transport.post("/v1/endpoints/churn/routing", Change(**wanted), EndpointView).routing  # type: ignore[arg-type]


def deploy(server: Served, **options: object) -> EndpointView:
    return server.transport.post("/v1/endpoints", deployment(server, **options), EndpointView)  # type: ignore[arg-type]


def test_each_deployment_is_the_next_version(server: Served) -> None:
    assert [version.version for version in deploy(server).versions] == [1]

    view = deploy(server, artefact=b"another")

    assert [version.version for version in view.versions] == [2, 1], "the one before stays for a rollback"
    assert view.routing == Routing(live=2, previous=1)
    assert (view.name, view.token, view.inputs, view.model) == ("churn", "stub-token", (TENSOR,), "net")
    assert server.transport.get("/v1/endpoints", list[EndpointView]) == [view]
    assert server.transport.get("/v1/endpoints/churn", EndpointView) == view


@pytest.mark.process
def test_a_recording_belongs_to_the_endpoint_and_outlives_versions_and_the_server(tmp_path: Path) -> None:
    policy = RecordingPolicy(share=0.01, most_bytes=5_000_000)
    path = "/v1/endpoints/churn/recording"
    with served(tmp_path / "state", "--pool", "stub") as server:
        assert not deploy(server).recording.is_on

        view = server.transport.post(path, RecordingChange(policy=policy), EndpointView)

        assert view.recording == policy
        assert deploy(server, artefact=b"another").recording == policy, "a deployment that does not say is recorded as the one before"
        assert server.transport.get(path, RecordingCounts).policy == policy
        assert server.transport.read("/v1/endpoints/churn/recorded") == b""
        with pytest.raises(errors.UnknownName):
            server.transport.get("/v1/endpoints/other/recording", RecordingCounts)
    with served(tmp_path / "state", "--pool", "stub") as server:
        assert server.transport.get("/v1/endpoints/churn", EndpointView).recording == policy


def test_a_deployment_that_fails_its_proof_changes_nothing(server: Served) -> None:
    before = deploy(server)

    with pytest.raises(errors.ProofFailed, match="churn was not deployed"):
        deploy(server, artefact=b"wrong")

    assert server.transport.get("/v1/endpoints/churn", EndpointView) == before


def test_an_endpoint_that_was_stopped_is_gone_and_its_numbers_go_on(server: Served) -> None:
    deploy(server)

    server.transport.delete("/v1/endpoints/churn")

    with pytest.raises(errors.UnknownName, match="no endpoint 'churn'"):
        server.transport.delete("/v1/endpoints/churn")
    assert server.transport.get("/v1/endpoints", list[EndpointView]) == []
    assert deploy(server).versions[0].version == 2


def test_endpoints_come_back_with_the_server(server: Served) -> None:
    deploy(server, name="gone")
    deploy(server)
    view = deploy(server)
    server.transport.delete("/v1/endpoints/gone")
    server.kill()

    server.start()

    (again,) = server.transport.get("/v1/endpoints", list[EndpointView])
    assert (again.name, again.versions[0].version) == ("churn", view.versions[0].version)


def test_a_canary_is_promoted_or_taken_back_and_the_picture_survives_the_server(server: Served) -> None:
    deploy(server)
    assert deploy(server, canary=0.1).routing == Routing(live=1, canary=2, share=0.1)
    assert change(server, action="canary", share=0.5) == Routing(live=1, canary=2, share=0.5)
    assert change(server, action="label", label="stable", version=1) == Routing(live=1, canary=2, share=0.5, labels={"stable": 1})
    server.kill()
    server.start()
    (view,) = server.transport.get("/v1/endpoints", list[EndpointView])
    assert view.routing == Routing(live=1, canary=2, share=0.5, labels={"stable": 1})
    assert [version.version for version in view.versions] == [2, 1]

    assert change(server, action="promote") == Routing(live=2, previous=1, labels={"stable": 1})
    assert change(server, action="rollback") == Routing(live=1, previous=2, labels={"stable": 1})
    assert deploy(server).routing == Routing(live=3, previous=1, labels={"stable": 1})
    assert [version.version for version in server.transport.get("/v1/endpoints/churn", EndpointView).versions] == [3, 1]


def test_a_rollback_does_not_wait_for_a_model_that_is_loading_and_is_not_lost_by_it(server: Served, tmp_path: Path) -> None:
    deploy(server)
    assert deploy(server).routing == Routing(live=2, previous=1)
    go = tmp_path / "go"
    with ThreadPoolExecutor() as pool:
        loading = pool.submit(deploy, server, artefact=b"slow %s" % bytes(go))
        until(go.with_suffix(".begun").exists, "the load has not begun")

        back = change(server, action="rollback")
        labelled = change(server, action="label", label="stable", version=1)
        waited = loading.done()
        go.touch()

        assert back == Routing(live=1, previous=2)
        assert labelled == Routing(live=1, previous=2, labels={"stable": 1})
        assert not waited
        assert loading.result().routing == Routing(live=3, previous=1, labels={"stable": 1})
    server.kill()
    server.start()
    (view,) = server.transport.get("/v1/endpoints", list[EndpointView])
    assert view.routing == Routing(live=3, previous=1, labels={"stable": 1})


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({"action": "promote"}, "no canary to promote"),
        ({"action": "rollback"}, "no version before 1"),
        ({"action": "canary", "share": 0.2}, "no canary whose share"),
        ({"action": "label", "label": "stable", "version": 7}, "no version 7 that is ready"),
        ({"action": "label", "label": "a/b", "version": 1}, "is no label"),
        ({"action": "label", "label": "", "version": 1}, "is no label"),
    ],
)
def test_what_cannot_be_routed_is_refused_and_nothing_changes(server: Served, wanted: dict[str, object], why: str) -> None:
    before = deploy(server)

    with pytest.raises(errors.InvalidSpec, match=why):
        change(server, **wanted)

    assert server.transport.get("/v1/endpoints/churn", EndpointView) == before


def test_a_number_of_executors_is_kept(server: Served) -> None:
    deploy(server)
    assert server.transport.post("/v1/endpoints/churn/replicas", Scaling(replicas=3), EndpointView).replicas == 3
    server.kill()
    server.start()
    (view,) = server.transport.get("/v1/endpoints", list[EndpointView])
    assert view.replicas == 3
    with pytest.raises(errors.InvalidSpec, match="between 1 and 64"):
        server.transport.post("/v1/endpoints/churn/replicas", {"replicas": 0}, EndpointView)


@pytest.mark.process
def test_an_endpoint_keeps_the_server(tmp_path: Path) -> None:
    import subprocess

    with served(tmp_path / "other", "--idle-minutes", "0.01", "--pool", "stub") as server:
        deploy(server)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(2)

        server.transport.delete("/v1/endpoints/churn")

        assert server.process.wait(20) == 0


def test_an_unknown_endpoint_is_answered_with_the_nearest(server: Served) -> None:
    deploy(server)

    with pytest.raises(errors.UnknownName, match="Did you mean 'churn'"):
        server.transport.get("/v1/endpoints/chrun", EndpointView)


def test_an_odd_name_is_refused_with_the_rule(server: Served) -> None:
    blob = server.put(b"x")
    body = {"artefact": blob, "format": "onnx", "samples": blob, "inputs": [], "outputs": []}
    for name in ("..", "a/b", "", "A", "-rf", "é", "x" * 64, "<img>", "a\nb", "{{7*7}}"):
        with pytest.raises(errors.InvalidName, match="cannot name an endpoint"):
            server.transport.post("/v1/endpoints", {**body, "name": name}, EndpointView)


def test_a_deployment_whose_blobs_were_not_sent_is_refused(server: Served) -> None:
    blob = server.put(b"x")
    body = {"name": "churn", "artefact": "0" * 64, "format": "onnx", "samples": blob, "inputs": [], "outputs": []}

    with pytest.raises(errors.UnknownName, match="no blob"):
        server.transport.post("/v1/endpoints", body, EndpointView)
