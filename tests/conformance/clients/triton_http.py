"""tritonclient over HTTP, the calls that it has beside shared memory and traces; then its aio twin."""

from __future__ import annotations

import asyncio

import tritonclient.http as blocking
import tritonclient.http.aio as aio
from telling import Telling
from tritonclient.http.auth import BasicAuth
from tritonclient.utils import np_to_triton_dtype


def inputs_of(arrays, *, binary=True):
    made = []
    for name, array in arrays.items():
        made.append(blocking.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array, binary_data=binary)
    return made


def outputs_of(result):
    return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}


with Telling() as tell:

    def headers():  # a new one each time: the client writes into it
        return {"Authorization": tell.bearer}

    def managing():
        return {"Authorization": tell.managing}

    client = blocking.InferenceServerClient(tell.http, concurrency=2)
    tell.saw(
        live=client.is_server_live(headers=headers()),
        ready=client.is_server_ready(headers=headers()),
        model_ready=client.is_model_ready("article", headers=headers()),
        version_ready=client.is_model_ready("article", "1", headers=headers()),
        nobody_ready=client.is_model_ready("nobody", headers=headers()),
        server=client.get_server_metadata(headers=headers())["name"],
        inputs=client.get_model_metadata("sums", headers=headers())["inputs"],
        backend=client.get_model_config("sums", headers=headers())["backend"],
        index=sorted(row["name"] for row in client.get_model_repository_index(headers=headers())),
    )
    for model, arrays in tell.inputs.items():
        tell.answered("binary", model, outputs_of(client.infer(model, inputs_of(arrays), headers=headers())))
        wanted = [blocking.InferRequestedOutput(name, binary_data=False) for name in tell.outputs[model]]
        result = client.infer(model, inputs_of(arrays, binary=False), outputs=wanted, model_version="1", headers=headers())
        tell.answered("json", model, outputs_of(result))
        handles = [client.async_infer(model, inputs_of(arrays), headers=headers()) for _ in range(3)]
        for handle in handles:
            tell.answered("async", model, outputs_of(handle.get_result()))
        for algorithm in ("gzip", "deflate"):
            result = client.infer(
                model,
                inputs_of(arrays),
                request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
                headers=headers(),
            )
            tell.answered(algorithm, model, outputs_of(result))
    result = client.infer("article", inputs_of(tell.inputs["article"]), request_id="42", timeout=10_000_000, headers=headers())
    tell.saw(id=result.get_response()["id"])
    statistics = client.get_inference_statistics("sums", headers=headers())["model_stats"][0]
    tell.saw(counted=statistics["inference_stats"]["success"]["count"] >= 7)
    client.unload_model("sums", headers=managing())
    tell.saw(unloaded=client.is_model_ready("sums", headers=headers()))
    tell.refused("infer_unloaded", lambda: client.infer("sums", inputs_of(tell.inputs["sums"]), headers=headers()))
    client.load_model("sums", headers=managing())
    tell.saw(loaded=client.is_model_ready("sums", headers=headers()))
    tell.refused("no_model", lambda: client.infer("nobody", inputs_of(tell.inputs["article"]), headers=headers()))
    tell.refused("wrong_input", lambda: client.infer("article", inputs_of(tell.inputs["sums"]), headers=headers()))
    tell.refused("no_token", lambda: client.infer("article", inputs_of(tell.inputs["article"])))
    client.register_plugin(BasicAuth("user", tell.token))
    tell.refused("basic", lambda: client.get_server_metadata())
    client.close()

    async def again():
        async with aio.InferenceServerClient(tell.http) as client:
            tell.saw(
                aio_live=await client.is_server_live(headers=headers()),
                aio_ready=await client.is_server_ready(headers=headers()),
                aio_model_ready=await client.is_model_ready("article", headers=headers()),
                aio_server=(await client.get_server_metadata(headers=headers()))["name"],
                aio_inputs=(await client.get_model_metadata("sums", headers=headers()))["inputs"],
                aio_backend=(await client.get_model_config("sums", headers=headers()))["backend"],
                aio_index=len(await client.get_model_repository_index(headers=headers())),
            )
            await client.unload_model("sums", headers=managing())
            await client.load_model("sums", headers=managing())
            for model, arrays in tell.inputs.items():
                results = await asyncio.gather(*(client.infer(model, inputs_of(arrays), headers=headers()) for _ in range(3)))
                for result in results:
                    tell.answered("aio", model, outputs_of(result))
            statistics = (await client.get_inference_statistics("text", headers=headers()))["model_stats"][0]
            tell.saw(aio_counted=statistics["inference_stats"]["success"]["count"] >= 10)

    asyncio.run(again())
