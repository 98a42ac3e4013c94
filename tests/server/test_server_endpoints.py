"""Endpoints on the server: versions, records, coming back. What serving itself does is tested with serving."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aiaas_magics import errors
from aiaas_magics.spec import DeploySpec, EndpointView, TensorSpec
from tests.server.served import Served, served

TENSOR = TensorSpec(name="x", dtype="float32", shape=(-1, 3))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path / "state") as server:
        yield server


def deployment(server: Served, *, name: str = "churn", artefact: bytes = b"an artefact") -> DeploySpec:
    return DeploySpec(
        name=name,
        artefact=server.put(artefact),
        format="onnx",
        samples=server.put(b"samples"),
        inputs=(TENSOR,),
        outputs=(TENSOR,),
        model="net",
    )


def deploy(server: Served, **options: object) -> EndpointView:
    return server.transport.post("/v1/endpoints", deployment(server, **options), EndpointView)  # type: ignore[arg-type]


def test_each_deployment_is_the_next_version(server: Served) -> None:
    assert [version.version for version in deploy(server).versions] == [1]

    view = deploy(server, artefact=b"another")

    assert [version.version for version in view.versions] == [2]
    assert (view.name, view.token, view.inputs, view.model) == ("churn", "stub-token", (TENSOR,), "net")
    assert server.transport.get("/v1/endpoints", list[EndpointView]) == [view]
    assert server.transport.get("/v1/endpoints/churn", EndpointView) == view


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


def test_an_endpoint_keeps_the_server(tmp_path: Path) -> None:
    import subprocess

    with served(tmp_path / "other", "--idle-minutes", "0.01") as server:
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
