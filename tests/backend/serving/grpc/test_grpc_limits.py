"""gRPC's limits: a message that does not come, that grows when it is unpacked, or that nobody waits for any more; and labels."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from aiaas_magics.backend.net.guard import Guard
from aiaas_magics.backend.serving.grpc import grpc_server
from aiaas_magics.backend.serving.grpc.grpc_server import GrpcServer, Port
from aiaas_magics.backend.serving.grpc.tfserving_schema import serving
from aiaas_magics.backend.serving.http.request_handler import RequestHandler
from aiaas_magics.backend.serving.models.registry import Registry
from aiaas_magics.core.routing import Routing
from tests.backend.serving.grpc.test_grpc import TFS, V2, Client, Code, infer_request, predict_request, proto
from tests.backend.serving.support.serving_models import matrix, plus
from tests.backend.serving.support.serving_rig import Rig

MEGABYTE = 1024 * 1024
METADATA = (("authorization", "Bearer right"),)


async def test_a_message_that_does_not_come_ends_its_call(monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int) -> None:
    monkeypatch.setattr(grpc_server, "MESSAGE_S", 0.1)
    served = GrpcServer(RequestHandler(Registry()), Guard(b"right"), Port(host="127.0.0.1", number=unused_tcp_port, message_bytes=MEGABYTE))
    await served.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{unused_tcp_port}") as channel:
        call = channel.stream_unary(V2 + "ModelInfer")(metadata=METADATA, timeout=30)

        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call

    await served.stop()
    assert (ended.value.code(), ended.value.details()) == (
        Code.DEADLINE_EXCEEDED,
        "The message did not come within 0.1 s. Send fewer rows at once.",
    )


@pytest.fixture(scope="module")
def client(shared: Rig) -> Iterator[Client]:
    client = Client(shared)
    yield client
    client.channel.close()


def test_a_message_that_is_a_bomb_is_refused_and_costs_no_more_memory_than_a_message_may_have(shared: Rig, client: Client) -> None:
    process = psutil.Process(shared.host.pid)
    before = process.memory_info().rss
    bomb = b"\x00" * (400 * MEGABYTE)
    call = client.channel.unary_unary(V2 + "ModelInfer")

    with pytest.raises(grpc.RpcError) as refused:
        call(bomb, metadata=client.metadata, timeout=60, compression=grpc.Compression.Gzip)

    assert refused.value.code() is Code.RESOURCE_EXHAUSTED
    assert process.memory_info().rss - before < 256 * MEGABYTE
    assert client.infer(infer_request("plus", x=np.zeros((1, 1), np.float32))).raw_output_contents


def test_a_call_whose_deadline_is_over_before_its_turn_is_not_computed(rig: Rig, tmp_path: Path) -> None:
    rig.load(matrix(tmp_path, "slow", size=512, steps=200))
    client = Client(rig)
    slow, quick = (infer_request("slow", x=np.ones((rows, 512), np.float32)) for rows in (256, 1))
    answers: list[Any] = []

    callers = [threading.Thread(target=lambda: answers.append(client.infer(slow))) for _ in range(3)]
    for caller in callers:
        caller.start()
    computed = 0
    while (code := code_of(client, quick)) is Code.OK:  # before the others have come
        computed += 1
    for caller in callers:
        caller.join(60)
    client.infer(quick)  # its turn comes after that of the one that nobody waited for

    assert code is Code.DEADLINE_EXCEEDED
    assert len(answers) == 3
    assert rows_of(rig) == 3 * 256 + computed + 1
    client.channel.close()


def code_of(client: Client, message: Any) -> Code:
    """How a call ends that may take 0.2 s."""
    call = client.channel.unary_unary(V2 + "ModelInfer", request_serializer=lambda made: made.SerializeToString())
    try:
        call(message, metadata=client.metadata, timeout=0.2)
    except grpc.RpcError as error:
        return error.code()
    return Code.OK


def rows_of(rig: Rig) -> int:
    (told,) = rig.call("GET", "/v2/models/slow/stats").document["model_stats"]
    return int(told["inference_count"])


def test_a_label_asks_for_its_version_in_every_method(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "live", 1.0), 1)
    rig.deploy(plus(tmp_path, "live", 2.0), 2, Routing(live=2, previous=1, labels={"stable": 1}))
    client = Client(rig)
    asked = predict_request("live", x=proto("DT_FLOAT", (1, 1), float_val=[0.0]))
    asked.model_spec.version_label = "stable"

    answer = client.predict(asked)
    metadata = serving.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata.model_spec.CopyFrom(asked.model_spec)
    described = client(TFS + "GetModelMetadata", metadata, serving.GetModelMetadataResponse)
    status = serving.GetModelStatusRequest()
    status.model_spec.CopyFrom(asked.model_spec)
    told = client("/tensorflow.serving.ModelService/GetModelStatus", status, serving.GetModelStatusResponse)

    assert (list(answer.outputs["y"].float_val), answer.model_spec.version.value) == ([1.0], 1)
    assert described.model_spec.version.value == 1
    assert [state.version for state in told.model_version_status] == [1]
    client.channel.close()
