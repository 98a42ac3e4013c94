"""Open Inference Protocol v2 over gRPC.

Owns its methods, and tensors in its messages. What is told about the server and its models
belongs to `inference_documents`, the layout of raw tensors to
`inference_codec`; REST and gRPC share both.

Tensors are answered raw: Triton's clients read no typed contents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import orjson

from aiaas_magics.backend.serving.grpc.methods import GrpcCall, Infer, Look, MessageRoute, Method, Refused, StreamMethod, find
from aiaas_magics.backend.serving.grpc.open_inference_schema import SERVICE, inference
from aiaas_magics.backend.serving.models.registry import NotServed, Version
from aiaas_magics.backend.serving.protocols import BadValue, Response, rows_of
from aiaas_magics.backend.serving.protocols.open_inference import inference_codec as tensors
from aiaas_magics.backend.serving.protocols.open_inference import inference_documents as documents
from aiaas_magics.backend.serving.protocols.open_inference import open_inference_rest
from aiaas_magics.backend.serving.protocols.operations import LARGEST_VERSION
from aiaas_magics.backend.serving.protocols.tfserving import tfserving_json
from aiaas_magics.core.spec import TensorSpec

# Which field of `contents` holds the values of a datatype; the others travel raw only.
CONTENTS: Final[Mapping[str, str]] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# Said by Triton's streaming client; each answer here is final, and says so.
WANTS_FINAL: Final = "triton_enable_empty_final_response"
FINAL: Final = "triton_final_response"


def number_of(version: str) -> int | None:
    """The version that a request names; none is the one that answers."""
    if not version:
        return None
    if not (version.isascii() and version.isdigit()) or len(version) > 19 or int(version) > LARGEST_VERSION:
        raise BadValue(f"Versions are whole numbers, got {version[:40]!r}. Leave the version out for the one that answers.")
    return int(version)


def version_of(call: GrpcCall, name: str, version: str) -> Version:
    return find(call, open_inference_rest, open_inference_rest.PATHS.route("metadata", name=name, version=number_of(version)))


# --------------------------------------------------------------------------- infer


def route(message: Any) -> MessageRoute:
    return MessageRoute(message=message, name=message.model_name, version=number_of(message.model_version))


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcInferCall:
    """A decoded inference message. `rows` is None where the inputs differ in their first dimension."""

    message: Any
    version: Version
    tensors: Mapping[str, np.ndarray]
    rows: int | None
    output_names: list[str]
    timeout_s: float

    @property
    def id(self) -> str | None:
        return self.message.id or None

    def response(self, outputs: Mapping[str, np.ndarray]) -> Response:
        answer = inference.ModelInferResponse(model_name=self.version.spec.name, model_version=str(self.version.number), id=self.message.id)
        for name in self.output_names:
            array = np.asarray(outputs[name])
            answer.outputs.add(name=name, datatype=tensors.datatype_of(array), shape=array.shape)
            answer.raw_output_contents.append(bytes(tensors.to_bytes(array)))
        if WANTS_FINAL in self.message.parameters:
            answer.parameters[FINAL].bool_param = True
        return Response(200, answer.SerializeToString())


def read(route: MessageRoute, version: Version) -> GrpcInferCall:
    message = route.message
    check_parameters(message)
    inputs = read_inputs(message, version)
    output_names = wanted_outputs(message, version.spec.outputs)
    timeout_s = min(route.timeout_s, timeout_of(message))
    return GrpcInferCall(
        message=message,
        version=version,
        tensors=inputs,
        rows=rows_of(inputs, version.spec.inputs),
        output_names=output_names,
        timeout_s=timeout_s,
    )


def timeout_of(message: Any) -> float:
    if "timeout" not in message.parameters:
        return math.inf
    parameter = message.parameters["timeout"]
    value = getattr(parameter, parameter.WhichOneof("parameter_choice") or "int64_param")
    return open_inference_rest.timeout_of(tensors.InferRequest(inputs=(), parameters={"timeout": value}))


def framed(answer: bytes) -> Any:
    return inference.ModelStreamInferResponse(infer_response=inference.ModelInferResponse.FromString(answer))


def fault(text: str) -> Any:
    return inference.ModelStreamInferResponse(error_message=text)


def check_parameters(message: Any) -> None:
    for key in message.parameters:
        if key.startswith("triton_") and key != WANTS_FINAL:
            raise BadValue(f"Parameter {key[:100]!r} begins with 'triton_', which is reserved")
    for tensor in (*message.inputs, *message.outputs):
        if "shared_memory_region" in tensor.parameters:
            raise BadValue("Shared memory is not offered here. Send tensors in the message.")
        if "classification" in tensor.parameters:
            raise BadValue("Parameter 'classification' is not offered here. Ask for the scores, or use TensorFlow Serving's Classify.")


def read_inputs(message: Any, version: Version) -> dict[str, np.ndarray]:
    """Each input by its name, from raw contents or typed ones: all of them raw, in the order of the inputs, or none."""
    specs = {spec.name: spec for spec in version.spec.inputs}
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise BadValue(f"The request holds {len(message.inputs)} inputs and {len(raw)} raw contents; there is one for each, or none")
    inputs: dict[str, np.ndarray] = {}
    for index, described in enumerate(message.inputs):
        spec = specs.get(described.name)
        if spec is None:
            raise BadValue(f"Unexpected input {described.name[:100]!r}; the model has the inputs {tfserving_json.listed(specs)}")
        if spec.name in inputs:
            raise BadValue(f"Input {described.name} comes twice")
        shape = tuple(described.shape)
        if min(shape, default=0) < 0:
            raise BadValue(f"Input {described.name} says the shape {tfserving_json.dims(shape[:32])}; a request's sizes are known")
        tensor = tensors.Input(name=described.name, datatype=described.datatype, shape=shape, parameters=parameters_of(described))
        tensors.check_interface(tensor, spec)
        if not raw:
            array = from_contents(described, shape, spec)
        elif described.HasField("contents"):
            raise BadValue(f"Input {described.name} has contents beside the raw ones of the request. Send one of them.")
        else:
            array = tensors.from_bytes(raw[index], described.datatype, shape, described.name)
        inputs[spec.name] = tensors.decoded(array, tensor)
    if len(inputs) != len(specs):
        raise BadValue(f"The model has the inputs {tfserving_json.listed(specs)}; the request holds {tfserving_json.listed(inputs)}")
    return inputs


def parameters_of(tensor: Any) -> tensors.InputParameters | None:
    content_type = tensor.parameters["content_type"].string_param if "content_type" in tensor.parameters else ""
    return tensors.InputParameters(content_type=content_type) if content_type else None


def from_contents(tensor: Any, shape: tuple[int, ...], spec: TensorSpec) -> np.ndarray:
    """The tensor whose values stand one by one in the field for its datatype."""
    field = CONTENTS.get(tensor.datatype)
    if field is None:
        raise BadValue(f"{tensor.datatype} has no typed contents. Send input {spec.name} in raw_input_contents.")
    if any(other.name != field for other, _ in tensor.contents.ListFields()):
        raise BadValue(f"The contents of input {spec.name}, of datatype {tensor.datatype}, belong in {field} alone")
    values = list(getattr(tensor.contents, field))
    if len(values) != math.prod(shape):
        raise BadValue(f"Input {spec.name} says the shape {tfserving_json.dims(shape)}; its contents hold {len(values)} values")
    if tensor.datatype != "BYTES":
        return tfserving_json.numbers(values, spec).reshape(shape)
    strings = np.empty(len(values), dtype=object)
    strings[:] = values
    return strings.reshape(shape)


def wanted_outputs(message: Any, specs: tuple[TensorSpec, ...]) -> list[str]:
    names = [spec.name for spec in specs]
    output_names = [output.name for output in message.outputs]
    if unknown := next((name for name in output_names if name not in names), None):
        raise BadValue(f"Unexpected output {unknown[:100]!r}; the model has the outputs {tfserving_json.listed(names)}")
    if len(set(output_names)) != len(output_names):
        raise BadValue("An output is asked for twice")
    return output_names or names


# --------------------------------------------------------------------------- everything else


def server_live(_call: GrpcCall) -> Any:
    return inference.ServerLiveResponse(live=True)


def server_ready(call: GrpcCall) -> Any:
    return inference.ServerReadyResponse(ready=documents.is_ready(call.registry))


def model_ready(call: GrpcCall) -> Any:
    try:
        ready = documents.answers(call.registry, call.message.name, number_of(call.message.version))
    except NotServed:
        ready = False
    return inference.ModelReadyResponse(ready=ready)


def server_metadata(_call: GrpcCall) -> Any:
    return inference.ServerMetadataResponse(**documents.server())


def model_metadata(call: GrpcCall) -> Any:
    version = version_of(call, call.message.name, call.message.version)
    return inference.ModelMetadataResponse(**documents.metadata(call.registry, version))


def model_config(call: GrpcCall) -> Any:
    version = version_of(call, call.message.name, call.message.version)
    return inference.ModelConfigResponse(config=documents.config(version))


def repository_index(call: GrpcCall) -> Any:
    return inference.RepositoryIndexResponse(models=documents.index(call.registry, documents.IndexRequest(ready=call.message.ready)))


def repository_load(call: GrpcCall) -> Any:
    return inference.RepositoryModelLoadResponse(model_name=_control(call, "load"), isLoaded=True)


def repository_unload(call: GrpcCall) -> Any:
    return inference.RepositoryModelUnloadResponse(model_name=_control(call, "unload"), isUnloaded=True)


def _control(call: GrpcCall, action: str) -> str:
    """Carry out what REST does; gives the model's name."""
    message = call.message
    name: str = message.model_name or message.repository_name  # the latter is KServe's number for the model's
    document = orjson.dumps({"parameters": dict.fromkeys(message.parameters, True)})
    request = msgspec.structs.replace(call.request, body=document)
    response = open_inference_rest.look(call.registry, open_inference_rest.PATHS.route(action, name=name), request)
    if response.status != 200:
        raise Refused(response)
    return name


def model_statistics(call: GrpcCall) -> Any:
    """Of one model, all its versions or one; of none, of every model."""
    message, registry = call.message, call.registry
    names = [version_of(call, message.name, message.version).spec.name] if message.name else registry.names()
    number = number_of(message.version)
    versions = [version for name in names for version in registry.versions(name) if not number or version.number == number]
    return inference.ModelStatisticsResponse(**documents.statistics(versions))


def _name(message: Any) -> str:
    return str(message.name)


INFER: Final = Infer(takes=inference.ModelInferRequest, rest=open_inference_rest, route=route, call=read)
_METHODS: Final[Mapping[str, Method]] = {
    "ModelInfer": INFER,
    "ModelStreamInfer": StreamMethod(INFER, framed, fault),
    "ServerLive": Look(inference.ServerLiveRequest, server_live, any_token=True),
    "ServerReady": Look(inference.ServerReadyRequest, server_ready, any_token=True),
    "ServerMetadata": Look(inference.ServerMetadataRequest, server_metadata, any_token=True),
    "ModelReady": Look(inference.ModelReadyRequest, model_ready, names=_name),
    "ModelMetadata": Look(inference.ModelMetadataRequest, model_metadata, names=_name),
    "ModelConfig": Look(inference.ModelConfigRequest, model_config, names=_name),
    "ModelStatistics": Look(inference.ModelStatisticsRequest, model_statistics, names=_name),
    "RepositoryIndex": Look(inference.RepositoryIndexRequest, repository_index),
    "RepositoryModelLoad": Look(inference.RepositoryModelLoadRequest, repository_load, manages=True),
    "RepositoryModelUnload": Look(inference.RepositoryModelUnloadRequest, repository_unload, manages=True),
}
METHODS: Final[Mapping[str, Method]] = {f"/{SERVICE}/{name}": method for name, method in _METHODS.items()}
