"""Tokens for some endpoints only: every operation and gRPC method of a real process, by every kind of token."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from aiaas_magics.backend.folders.small_files import write_private
from aiaas_magics.backend.net.grants import Grant, GrantBook, endpoint_token, grant_of
from aiaas_magics.backend.serving.grpc import grpc_server
from aiaas_magics.backend.serving.grpc.open_inference_schema import inference
from aiaas_magics.backend.serving.grpc.tfserving_schema import serving
from aiaas_magics.backend.serving.http.rest_protocols import ROUTES
from aiaas_magics.client.transport import Transport
from aiaas_magics.core import wire
from aiaas_magics.core.errors import BackendNotProven
from aiaas_magics.testing import FakeClock
from tests.backend.serving.support import serving_models
from tests.backend.serving.support.serving_rig import Rig
from tests.support.waiting import until

KEY = b"k" * 32
V2 = "/inference.GRPCInferenceService/"
TFS = "/tensorflow.serving.PredictionService/"
Code = grpc.StatusCode


def token_for(endpoint: str, user: str = "ada") -> str:
    return endpoint_token("the process' own token", endpoint=endpoint, owner="ada", user=user)


def grant(endpoint: str, user: str = "ada", **limits: Any) -> Grant:
    made = grant_of(token_for(endpoint, user), KEY, names=(endpoint,))
    return Grant(**{name: getattr(made, name) for name in made.__struct_fields__} | limits)


def give(rig: Rig, *grants: Grant) -> None:
    write_private(rig.state / "token_key", KEY)
    write_private(rig.state / "serving" / "grants.json", wire.encode(list(grants)))


def predict(rig: Rig, name: str, token: str) -> int:
    return rig.call("POST", f"/v1/models/{name}:predict", b'{"instances": [[1.0]]}', token=token).status


# --------------------------------------------------------------------------- the book


def test_a_token_opens_what_it_is_for_until_it_expires_or_is_revoked() -> None:
    clock = FakeClock()
    book = GrantBook(now_s=clock.now_s, clock=clock.monotonic_s)
    token = token_for("mine").encode()
    assert book.recognize(token) is None
    book.replace([grant("mine", expires_s=clock.now_s() + 60)], key=KEY)

    live = book.recognize(token)

    assert live is not None
    assert live.permits("mine")
    assert not live.permits("theirs")
    for wrong in (b"", b"x", token[:-1], token + b"x", token[:-1] + b"_", token_for("theirs").encode(), "aiaas.é".encode()):
        assert book.recognize(wrong) is None
    book.replace([grant("mine", expires_s=live.grant.expires_s), grant("theirs")], key=KEY)
    assert book.recognize(token) is live, "a grant that stays as it was keeps its rate"
    clock.pass_s(61)
    assert book.recognize(token) is None
    assert not live.is_valid
    book.replace([grant("mine")], key=KEY)
    again = book.recognize(token)
    book.replace([], key=KEY)
    assert again is not None
    assert not again.is_valid, "a connection that holds on to it sees that it was revoked"


def test_a_rate_lets_so_many_requests_pass_and_fills_again() -> None:
    clock = FakeClock()
    book = GrantBook(now_s=clock.now_s, clock=clock.monotonic_s)
    book.replace([grant("mine", requests_per_s=5.0)], key=KEY)
    live = book.recognize(token_for("mine").encode())
    assert live is not None

    assert [live.take() for _ in range(7)] == [True] * 5 + [False] * 2
    clock.pass_s(0.4)
    assert [live.take() for _ in range(3)] == [True, True, False]
    clock.pass_s(1000)
    assert sum(live.take() for _ in range(100)) == 5


# --------------------------------------------------------------------------- the process

# What a token for "mine" reads: of every operation, when it is about "mine", and when it is about "theirs", or about something that
# there is not. Operations that name no endpoint take the server's own token (403), but for these.
OPEN = {"/v2", "/v2/", "/v2/health/live", "/v2/health/ready"}
OPERATIONS = [operation for _, operation in ROUTES.operations() if operation.method != "OPTIONS"]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("models")
    with Rig(tmp_path_factory.mktemp("state")) as rig:
        for name in ("mine", "theirs"):
            rig.load(serving_models.plus(folder, name, 1.0))
        give(rig, grant("mine"), grant("theirs", user="ben"))
        until(lambda: predict(rig, "mine", token_for("mine")) == 200, "the grants were not read", wait_s=10)
        yield rig


def ask(rig: Rig, operation: Any, name: str, token: str) -> tuple[int, bytes]:
    path = operation.template.replace("{name}", name).replace("{version}", "1").replace("{label}", "stable")
    body = b'{"instances": [[1.0]]}' if operation.method == "POST" else None
    answer = rig.call(operation.method, path, body, token=token)
    return answer.status, answer.body


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: f"{operation.method} {operation.template}")
def test_every_operation_asks_for_the_token_of_its_endpoint(rig: Rig, operation: Any) -> None:
    own, mine = rig.host.token, token_for("mine")
    as_server, as_mine = ask(rig, operation, "mine", own), ask(rig, operation, "mine", mine)

    if operation.manages:
        assert as_mine[0] == as_server[0] == 403
    elif "{name}" in operation.template:
        assert as_mine[0] == as_server[0]
        theirs, nothing = ask(rig, operation, "theirs", mine), ask(rig, operation, "nothing", mine)
        assert theirs[0] == 404
        assert (theirs[0], theirs[1].replace(b"theirs", b"nothing")) == nothing
        assert ask(rig, operation, "theirs", token_for("theirs", "ben"))[0] == ask(rig, operation, "theirs", own)[0]
    else:
        assert as_mine[0] == (200 if operation.template in OPEN else 403)
        assert operation.template in OPEN or b"for some endpoints only" in as_mine[1]
    for wrong in (token_for("mine", "ben"), token_for("nothing"), mine[:-1] + ("A" if mine[-1] != "A" else "B")):
        assert ask(rig, operation, "mine", wrong)[0] == 401


ABOUT: dict[str, Any] = {
    "ModelInfer": lambda name: inference.ModelInferRequest(model_name=name),
    "ModelReady": lambda name: inference.ModelReadyRequest(name=name),
    "ModelMetadata": lambda name: inference.ModelMetadataRequest(name=name),
    "ModelConfig": lambda name: inference.ModelConfigRequest(name=name),
    "ModelStatistics": lambda name: inference.ModelStatisticsRequest(name=name),
    "Predict": lambda name: serving.PredictRequest(model_spec={"name": name}),
    "Classify": lambda name: serving.ClassificationRequest(model_spec={"name": name}),
    "Regress": lambda name: serving.RegressionRequest(model_spec={"name": name}),
    "GetModelMetadata": lambda name: serving.GetModelMetadataRequest(model_spec={"name": name}, metadata_field=["signature_def"]),
    "GetModelStatus": lambda name: serving.GetModelStatusRequest(model_spec={"name": name}),
}
OPEN_METHODS = {"ServerLive", "ServerReady", "ServerMetadata", "Check"}
OTHERS = {"RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"}
STREAMS = {"ModelStreamInfer", "Watch"}


def test_every_grpc_method_asks_for_the_token_of_its_endpoint(rig: Rig) -> None:
    channel = grpc.insecure_channel(rig.host.grpc)
    assert {method.rpartition("/")[2] for method in grpc_server.METHODS} == {*ABOUT, *OPEN_METHODS, *OTHERS, *STREAMS}

    def code_of(method: str, message: bytes, token: str) -> tuple[Code, str]:
        try:
            channel.unary_unary(method)(message, metadata=(("authorization", f"Bearer {token}"),), timeout=30)
        except grpc.RpcError as refused:
            return refused.code(), refused.details()
        return Code.OK, ""

    for method in grpc_server.METHODS:
        name, mine = method.rpartition("/")[2], token_for("mine")
        if name in ABOUT:
            own = ABOUT[name]("mine").SerializeToString()
            theirs, nothing = (code_of(method, ABOUT[name](which).SerializeToString(), mine) for which in ("theirs", "nothing"))
            assert code_of(method, own, mine)[0] is code_of(method, own, rig.host.token)[0], method
            assert theirs[0] is nothing[0] is Code.NOT_FOUND, method
            assert theirs[1].replace("theirs", "nothing") == nothing[1]
        elif name in OPEN_METHODS:
            assert code_of(method, b"", mine)[0] is Code.OK, method
        elif name in OTHERS:
            assert code_of(method, b"", mine)[0] is Code.PERMISSION_DENIED, method
        assert code_of(method, b"", token_for("mine", "ben"))[0] is Code.UNAUTHENTICATED, method
    stream = channel.stream_stream(V2 + "ModelStreamInfer", response_deserializer=inference.ModelStreamInferResponse.FromString)
    bodies = iter([ABOUT["ModelInfer"]("theirs").SerializeToString()])
    (answer,) = stream(bodies, metadata=(("authorization", f"Bearer {token_for('mine')}"),), timeout=30)
    assert "unknown model: 'theirs'" in answer.error_message
    channel.close()


def test_a_client_has_the_process_prove_that_it_knows_the_token_of_an_endpoint(rig: Rig) -> None:
    with Transport(rig.host.url, token=token_for("mine")) as known:
        assert known.get("/v2", dict)["name"]
    with Transport(rig.host.url, token=token_for("nothing")) as unknown, pytest.raises(BackendNotProven):
        unknown.get("/v2", dict)


@pytest.mark.process
@pytest.mark.parametrize("way", ["fast", "slow"])
def test_a_revoked_token_and_one_over_its_rate_are_refused_on_an_open_connection(tmp_path: Path, way: str) -> None:
    """On the same connection, by the same bytes: the fast path knows heads by their bytes."""
    name = "plus"
    body = json.dumps({"instances": [[1.0]]})
    headers = {"Authorization": f"Bearer {token_for(name)}"} | ({"Transfer-Encoding": "chunked"} if way == "slow" else {})
    with Rig(tmp_path / "state") as rig:
        rig.load(serving_models.plus(tmp_path, name, 1.0))
        give(rig, grant(name))
        until(lambda: predict(rig, name, token_for(name)) == 200, "the grants were not read", wait_s=10)
        connection = http.client.HTTPConnection(*rig.address, timeout=30)

        def status() -> int:
            sent = iter([body.encode()]) if way == "slow" else body  # chunked bodies do not take the fast path
            connection.request("POST", f"/v1/models/{name}:predict", sent, headers, encode_chunked=way == "slow")
            answer = connection.getresponse()
            answer.read()
            return answer.status

        assert [status() for _ in range(5)] == [200] * 5
        give(rig, grant(name, requests_per_s=3.0))
        until(lambda: status() == 429, "no rate was kept", wait_s=10)
        give(rig, grant(name))
        until(lambda: [status() for _ in range(20)] == [200] * 20, "the rate stayed", wait_s=10)
        give(rig)
        until(lambda: status() == 401, "the token was not revoked", wait_s=1.5)
        assert rig.call("POST", f"/v1/models/{name}:predict", body.encode()).status == 200, "the server's own token goes on"
        connection.close()
