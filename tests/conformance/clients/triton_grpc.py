"""tritonclient over gRPC, its streams among the calls; then its aio twin. Its messages beside the server's."""

from __future__ import annotations

import asyncio
import queue

import tritonclient.grpc as blocking
import tritonclient.grpc.aio as aio
from telling import Telling
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import np_to_triton_dtype


def inputs_of(arrays):
    made = []
    for name, array in arrays.items():
        made.append(blocking.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array)
    return made


def outputs_of(result):
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


with Telling() as tell:
    headers, managing = {"authorization": tell.bearer}, {"authorization": tell.managing}
    answers = queue.Queue()
    tell.compare(service_pb2, model_config_pb2)
    client = blocking.InferenceServerClient(tell.grpc)
    index = client.get_model_repository_index(headers=headers)
    tell.saw(
        live=client.is_server_live(headers=headers),
        ready=client.is_server_ready(headers=headers),
        model_ready=client.is_model_ready("article", headers=headers),
        version_ready=client.is_model_ready("article", "1", headers=headers),
        nobody_ready=client.is_model_ready("nobody", headers=headers),
        server=client.get_server_metadata(headers=headers).name,
        inputs=client.get_model_metadata("sums", headers=headers, as_json=True)["inputs"],
        backend=client.get_model_config("sums", headers=headers).config.backend,
        index=sorted(model.name for model in index.models),
    )
    for model, arrays in tell.inputs.items():
        tell.answered("infer", model, outputs_of(client.infer(model, inputs_of(arrays), headers=headers)))
        wanted = [blocking.InferRequestedOutput(name) for name in tell.outputs[model]]
        for algorithm in ("gzip", "deflate"):
            result = client.infer(model, inputs_of(arrays), "1", wanted, headers=headers, compression_algorithm=algorithm)
            tell.answered(algorithm, model, outputs_of(result))
        for _ in range(3):
            client.async_infer(model, inputs_of(arrays), lambda result, error: answers.put((result, error)), headers=headers)
        for _ in range(3):
            result, error = answers.get(timeout=30)
            assert error is None, error
            tell.answered("async", model, outputs_of(result))
    result = client.infer("article", inputs_of(tell.inputs["article"]), request_id="42", timeout=10_000_000, headers=headers)
    tell.saw(id=result.get_response().id)

    client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
    for model, arrays in tell.inputs.items():
        client.async_stream_infer(model, inputs_of(arrays), request_id=model, enable_empty_final_response=True)
    client.async_stream_infer("nobody", inputs_of(tell.inputs["article"]))
    for _ in tell.inputs:
        result, error = answers.get(timeout=30)
        assert error is None, error
        tell.answered("stream", result.get_response().id, outputs_of(result))
        tell.saw(final=result.get_response().parameters["triton_final_response"].bool_param)
    tell.saw(stream_fault=str(answers.get(timeout=30)[1]))
    client.stop_stream()

    statistics = client.get_inference_statistics("sums", headers=headers).model_stats[0]
    tell.saw(counted=statistics.inference_stats.success.count >= 7)
    client.unload_model("sums", headers=managing)
    tell.saw(unloaded=client.is_model_ready("sums", headers=headers))
    tell.refused("infer_unloaded", lambda: client.infer("sums", inputs_of(tell.inputs["sums"]), headers=headers))
    client.load_model("sums", headers=managing)
    tell.saw(loaded=client.is_model_ready("sums", headers=headers))
    tell.refused("no_model", lambda: client.infer("nobody", inputs_of(tell.inputs["article"]), headers=headers))
    tell.refused("wrong_input", lambda: client.infer("article", inputs_of(tell.inputs["sums"]), headers=headers))
    tell.refused("no_token", lambda: client.infer("article", inputs_of(tell.inputs["article"])))
    client.close()

    async def again():
        async with aio.InferenceServerClient(tell.grpc) as client:
            tell.saw(
                aio_live=await client.is_server_live(headers=headers),
                aio_ready=await client.is_server_ready(headers=headers),
                aio_model_ready=await client.is_model_ready("article", headers=headers),
                aio_server=(await client.get_server_metadata(headers=headers)).name,
                aio_inputs=(await client.get_model_metadata("sums", headers=headers, as_json=True))["inputs"],
                aio_backend=(await client.get_model_config("sums", headers=headers)).config.backend,
                aio_index=len((await client.get_model_repository_index(headers=headers)).models),
            )
            await client.unload_model("sums", headers=managing)
            await client.load_model("sums", headers=managing)
            for model, arrays in tell.inputs.items():
                results = await asyncio.gather(*(client.infer(model, inputs_of(arrays), headers=headers) for _ in range(3)))
                for result in results:
                    tell.answered("aio", model, outputs_of(result))

            async def requests():
                for model, arrays in tell.inputs.items():
                    yield {"model_name": model, "inputs": inputs_of(arrays), "request_id": model}

            async for result, error in client.stream_infer(requests(), headers=headers):
                assert error is None, error
                tell.answered("aio stream", result.get_response().id, outputs_of(result))
            statistics = (await client.get_inference_statistics("text", headers=headers)).model_stats[0]
            tell.saw(aio_counted=statistics.inference_stats.success.count >= 10)

    asyncio.run(again())
