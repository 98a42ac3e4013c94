"""kserve's clients: v1 and v2 over REST, v2 over gRPC. Its messages beside the server's."""

from __future__ import annotations

import asyncio

import grpc
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from telling import Telling

DATATYPES = {"float32": "FP32", "int32": "INT32", "object": "BYTES"}


def request_of(model, arrays, *, binary, parameters=None):
    made = []
    for name, array in arrays.items():
        made.append(InferInput(name, list(array.shape), DATATYPES[array.dtype.name]))
        made[-1].set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=made, request_id="42", parameters=parameters or {})


def outputs_of(response):
    return {output.name: output.as_numpy() for output in response.outputs}


def plain(array):
    return [[value.decode() if isinstance(value, bytes) else value for value in row] for row in array.tolist()]


async def refused(tell, what, awaitable):
    try:
        await awaitable
    except Exception as error:  # noqa: BLE001 - whatever a client raises is what is to be seen
        tell.saw(**{what: f"{type(error).__name__}: {error}"})
    else:
        tell.saw(**{what: "answered"})


async def run(tell):
    headers = {"authorization": tell.bearer}
    base = f"http://{tell.http}"
    v2 = InferenceRESTClient(RESTConfig(protocol="v2"))
    tell.saw(
        live=await v2.is_server_live(base, headers=headers),
        ready=await v2.is_server_ready(base, headers=headers),
        model_ready=await v2.is_model_ready(base, "article", headers=headers),
    )
    for model, arrays in tell.inputs.items():
        for call, binary, parameters in (
            ("json", False, None),
            ("binary", True, None),
            ("binary both", True, {"binary_data_output": True}),
        ):
            request = request_of(model, arrays, binary=binary, parameters=parameters)
            response = await v2.infer(base, request, model_name=model, headers=dict(headers))
            tell.answered(call, model, outputs_of(response))
            tell.saw(id=response.id)
    await refused(tell, "no_model", v2.infer(base, request, model_name="nobody", headers=dict(headers)))
    await refused(tell, "no_token", v2.infer(base, request, model_name="text"))
    await v2.close()

    v1 = InferenceRESTClient(RESTConfig(protocol="v1"))
    tell.saw(
        v1_live=await v1.is_server_live(base, headers=headers),
        v1_model_ready=await v1.is_model_ready(base, "article", headers=headers),
    )
    rows = {"article": plain(tell.inputs["article"]["x"]), "text": plain(tell.inputs["text"]["x"])}
    rows["sums"] = [{"a": a, "b": b} for a, b in zip(*(plain(tell.inputs["sums"][name]) for name in "ab"), strict=True)]
    for model, instances in rows.items():
        answer = await v1.infer(base, {"instances": instances}, model_name=model, headers=dict(headers))
        predictions = answer["predictions"]
        named = isinstance(predictions[0], dict)
        names = tell.outputs[model]
        tell.answered("v1", model, {name: [row[name] for row in predictions] if named else predictions for name in names})
    explained = await v1.explain(base, "article", {"instances": rows["article"]}, headers=dict(headers))
    tell.answered("v1 explain", "article", dict.fromkeys(tell.outputs["article"], explained["predictions"]))
    own = explained["explanations"]
    tell.saw(explanations=[[len(row["attributions"]), row["base"] + sum(row["attributions"]) - row["output"]] for row in own])
    await refused(tell, "v1_nobody_explained", v1.explain(base, "nobody", {"instances": [[0.0]]}, headers=dict(headers)))
    await refused(tell, "v1_nobody_ready", v1.is_model_ready(base, "nobody", headers=headers))
    await v1.close()

    metadata, managing = [("authorization", tell.bearer)], [("authorization", tell.managing)]
    async with InferenceGRPCClient(tell.grpc) as client:
        tell.saw(
            grpc_live=await client.is_server_live(headers=metadata),
            grpc_ready=await client.is_server_ready(headers=metadata),
            grpc_model_ready=await client.is_model_ready("article", headers=metadata),
        )
        for model, arrays in tell.inputs.items():
            for call, binary in (("grpc typed", False), ("grpc raw", True)):
                request = request_of(model, arrays, binary=binary)
                tell.answered(call, model, outputs_of(await client.infer(request, headers=metadata)))
        await refused(tell, "grpc_no_token", client.infer(request))
    # What its client has no method for its stubs call.
    async with grpc.aio.insecure_channel(tell.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        unloaded = await stub.RepositoryModelUnload(messages.RepositoryModelUnloadRequest(model_name="sums"), metadata=managing)
        loaded = await stub.RepositoryModelLoad(messages.RepositoryModelLoadRequest(model_name="sums"), metadata=managing)
        told = await stub.ModelMetadata(messages.ModelMetadataRequest(name="sums"), metadata=metadata)
        server = await stub.ServerMetadata(messages.ServerMetadataRequest(), metadata=metadata)
    tell.saw(
        unloaded=[unloaded.model_name, unloaded.isUnloaded],
        loaded=[loaded.model_name, loaded.isLoaded],
        inputs=[tensor.name for tensor in told.inputs],
        server=server.name,
    )


with Telling() as tell:
    tell.compare(messages)
    asyncio.run(run(tell))
