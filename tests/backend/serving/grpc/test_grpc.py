"""gRPC on a real process: both protocols' tensors and answers, who may call, and how each fault ends a call."""

from __future__ import annotations

import base64
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest

from aiaas_magics.backend.serving.grpc import grpc_server
from aiaas_magics.backend.serving.grpc.open_inference_schema import inference
from aiaas_magics.backend.serving.grpc.tensor_proto import from_proto, to_proto
from aiaas_magics.backend.serving.grpc.tfserving_schema import health, serving, tensorflow
from aiaas_magics.backend.serving.protocols import BadValue
from aiaas_magics.core.spec import TensorSpec
from tests.backend.serving.support import serving_models
from tests.backend.serving.support.serving_rig import Rig

V2 = "/inference.GRPCInferenceService/"
TFS = "/tensorflow.serving.PredictionService/"
Code = grpc.StatusCode


class Client:
    """Calls by a method's path, with the right token unless told otherwise."""

    def __init__(self, rig: Rig) -> None:
        self.token = rig.host.token
        self.managing = (("authorization", f"Bearer {rig.api_token}"),)
        self.channel = grpc.insecure_channel(rig.host.grpc)

    def __call__(self, method: str, message: Any, answer: Any, *, metadata: tuple[tuple[str, str], ...] | None = None) -> Any:
        call = self.channel.unary_unary(method, request_serializer=_bytes, response_deserializer=answer.FromString)
        return call(message, metadata=self.metadata if metadata is None else metadata, timeout=30)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),)

    def infer(self, message: Any) -> Any:
        return self(V2 + "ModelInfer", message, inference.ModelInferResponse)

    def predict(self, message: Any) -> Any:
        return self(TFS + "Predict", message, serving.PredictResponse)

    def refusal(self, method: str, message: Any, **more: Any) -> tuple[Code, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self(method, message, inference.ServerLiveResponse, **more)
        return caught.value.code(), caught.value.details()


def _bytes(message: Any) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


@pytest.fixture(scope="module")
def client(shared: Rig) -> Iterator[Client]:
    client = Client(shared)
    yield client
    client.channel.close()


def infer_request(model: str, raw: bool = True, version: str = "", **arrays: np.ndarray) -> Any:
    message = inference.ModelInferRequest(model_name=model, model_version=version, id="42")
    for name, array in arrays.items():
        message.inputs.add(name=name, datatype={"float32": "FP32", "int32": "INT32", "int64": "INT64"}[array.dtype.name], shape=array.shape)
        if raw:
            message.raw_input_contents.append(array.tobytes())
    return message


def predict_request(model: str, **tensors: Any) -> Any:
    message = serving.PredictRequest()
    message.model_spec.name = model
    for name, tensor in tensors.items():
        message.inputs[name].CopyFrom(tensor)
    return message


def proto(dtype: str, shape: tuple[int, ...], **fields: Any) -> Any:
    message = tensorflow.TensorProto(dtype=dtype, **fields)
    for size in shape:
        message.tensor_shape.dim.add(size=size)
    return message


# --------------------------------------------------------------------------- Open Inference


VALUES: dict[str, tuple[str, str, Any]] = {
    "float32": ("FP32", "fp32_contents", [0.1, -2.5, 3.0, float("inf")]),
    "float64": ("FP64", "fp64_contents", [0.1, -2.5, 3.0, 1e300]),
    "int8": ("INT8", "int_contents", [-128, 0, 1, 127]),
    "int16": ("INT16", "int_contents", [-32768, 0, 1, 32767]),
    "int32": ("INT32", "int_contents", [-(2**31), 0, 1, 2**31 - 1]),
    "int64": ("INT64", "int64_contents", [-(2**63), 0, 1, 2**63 - 1]),
    "uint8": ("UINT8", "uint_contents", [0, 1, 2, 255]),
    "uint16": ("UINT16", "uint_contents", [0, 1, 2, 65535]),
    "uint32": ("UINT32", "uint_contents", [0, 1, 2, 2**32 - 1]),
    "uint64": ("UINT64", "uint64_contents", [0, 1, 2, 2**64 - 1]),
    "bool": ("BOOL", "bool_contents", [True, False, False, True]),
    "string": ("BYTES", "bytes_contents", [b"", b"a", b"a longer one", "ä".encode()]),
    "float16": ("FP16", "", [0.5, -2.0, 1.0, 65504.0]),
}


@pytest.mark.parametrize("data", ["ä".encode(), b""])
def test_base64_is_decoded_where_an_input_says_so(client: Client, data: bytes) -> None:
    text = base64.b64encode(data)
    asked = inference.ModelInferRequest(model_name="echo-string")
    asked.inputs.add(name="x", datatype="BYTES", shape=[1, 2], contents={"bytes_contents": [text, text]})
    asked.inputs[0].parameters["content_type"].string_param = "base64"

    answer = client.infer(asked)

    assert answer.raw_output_contents[0] == 2 * (struct.pack("<I", len(data)) + data)


@pytest.mark.parametrize("dtype", serving_models.ONNX_TYPES)
def test_values_of_every_type_come_back_raw_whether_they_came_raw_or_one_by_one(client: Client, dtype: str) -> None:
    datatype, field, values = VALUES[dtype]
    raw = b"".join(struct.pack("<I", len(value)) + value for value in values) if dtype == "string" else np.array(values, dtype).tobytes()
    as_raw = inference.ModelInferRequest(model_name=f"echo-{dtype}", raw_input_contents=[raw])
    as_raw.inputs.add(name="x", datatype=datatype, shape=[2, 2])
    typed = inference.ModelInferRequest(model_name=f"echo-{dtype}")
    typed.inputs.add(name="x", datatype=datatype, shape=[2, 2], contents={field: values} if field else None)

    assert client.infer(as_raw).raw_output_contents == [raw]
    if field:
        answer = client.infer(typed)
        assert (answer.raw_output_contents, answer.outputs[0].datatype, answer.outputs[0].shape) == ([raw], datatype, [2, 2])
    else:
        assert client.refusal(V2 + "ModelInfer", typed)[0] is Code.INVALID_ARGUMENT


def test_several_inputs_and_a_choice_of_outputs(client: Client) -> None:
    a, b = np.array([[1.5, 2.5]], "float32"), np.array([[4, 1]], "int32")
    message = infer_request("sums", a=a, b=b)
    message.outputs.add(name="most")

    all_of_them, one = client.infer(infer_request("sums", b=b, a=a)), client.infer(message)

    assert [output.name for output in all_of_them.outputs] == ["total", "most"]
    assert (all_of_them.id, all_of_them.model_version) == ("42", "1")
    assert np.frombuffer(all_of_them.raw_output_contents[0], "<f4").tolist() == [5.5, 3.5]
    assert [output.name for output in one.outputs] == ["most"]
    assert np.frombuffer(one.raw_output_contents[0], "<f4").tolist() == [4.0, 2.5]


def test_inputs_of_different_numbers_of_rows_are_refused(client: Client) -> None:
    a, b = np.ones((1, 2), "float32"), np.ones((3, 2), "int32")
    text = "Input 'a' has 1 row and input 'b' has 3 rows. Give all inputs the same number of rows"
    by_proto = predict_request("sums", a=proto(1, (1, 2), tensor_content=a.tobytes()), b=proto(3, (3, 2), tensor_content=b.tobytes()))

    assert client.refusal(V2 + "ModelInfer", infer_request("sums", a=a, b=b)) == (Code.INVALID_ARGUMENT, text)
    assert client.refusal(TFS + "Predict", by_proto) == (Code.INVALID_ARGUMENT, text)


def _with(change: Callable[[Any], Any]) -> Any:
    message = infer_request("sums", a=np.ones((1, 2), "float32"), b=np.ones((1, 2), "int32"))
    change(message)
    return message


def _shared_memory(message: Any) -> None:
    message.inputs[0].parameters["shared_memory_region"].string_param = "region"


BAD_INFER: dict[str, tuple[Callable[[Any], Any], Code, str]] = {
    "no such model": (lambda m: setattr(m, "model_name", "nobody"), Code.NOT_FOUND, "nobody"),
    "no such version": (lambda m: setattr(m, "model_version", "7"), Code.NOT_FOUND, "version 7"),
    "a version that is no number": (lambda m: setattr(m, "model_version", "one"), Code.INVALID_ARGUMENT, "whole numbers"),
    "an unknown input": (lambda m: setattr(m.inputs[0], "name", "c"), Code.INVALID_ARGUMENT, "Unexpected input 'c'"),
    "an input twice": (lambda m: m.inputs[1].CopyFrom(m.inputs[0]), Code.INVALID_ARGUMENT, "comes twice"),
    "an input missing": (lambda m: (m.inputs.pop(), m.raw_input_contents.pop()), Code.INVALID_ARGUMENT, "the request holds a"),
    "one raw content for two": (lambda m: m.raw_input_contents.pop(), Code.INVALID_ARGUMENT, "one for each, or none"),
    "raw and typed": (lambda m: m.inputs[0].contents.fp32_contents.append(1), Code.INVALID_ARGUMENT, "beside the raw"),
    "bytes missing": (lambda m: m.raw_input_contents.__setitem__(0, b"abc"), Code.INVALID_ARGUMENT, "has 8 bytes"),
    "another type": (lambda m: setattr(m.inputs[0], "datatype", "FP64"), Code.INVALID_ARGUMENT, "expects FP32"),
    "another width": (lambda m: m.inputs[0].shape.__setitem__(1, 3), Code.INVALID_ARGUMENT, "has the shape"),
    "sizes below zero": (lambda m: m.inputs[0].shape.__setitem__(0, -1), Code.INVALID_ARGUMENT, "sizes are known"),
    "no rows": (lambda m: m.inputs[0].shape.__setitem__(0, 0), Code.INVALID_ARGUMENT, "is empty"),
    "an unknown output": (lambda m: m.outputs.add(name="z"), Code.INVALID_ARGUMENT, "Unexpected output 'z'"),
    "an output twice": (lambda m: (m.outputs.add(name="most"), m.outputs.add(name="most")), Code.INVALID_ARGUMENT, "twice"),
    "shared memory": (_shared_memory, Code.INVALID_ARGUMENT, "not offered"),
}


@pytest.mark.parametrize("case", BAD_INFER)
def test_a_request_that_does_not_fit_is_refused_with_its_reason(client: Client, case: str) -> None:
    change, code, words = BAD_INFER[case]

    found, details = client.refusal(V2 + "ModelInfer", _with(change))

    assert (found, words in details) == (code, True), details


def test_typed_contents_must_fit_their_type_and_number(client: Client) -> None:
    for field, values, words in (
        ("int_contents", [300] * 4, "is not of expected type"),
        ("int_contents", [1] * 3, "hold 3 values"),
        ("fp32_contents", [1.0] * 4, "belong in int_contents alone"),
    ):
        message = inference.ModelInferRequest(model_name="echo-int8")
        message.inputs.add(name="x", datatype="INT8", shape=[2, 2], contents={field: values})

        code, details = client.refusal(V2 + "ModelInfer", message)

        assert code is Code.INVALID_ARGUMENT
        assert words in details


def test_what_the_engine_refuses_and_what_is_no_message_are_the_callers_faults(client: Client) -> None:
    refused = client.refusal(V2 + "ModelInfer", infer_request("lookup", x=np.array([9], "int64")))
    garbage = client.refusal(V2 + "ModelInfer", b"\xff\xff\xff")

    assert refused[0] is garbage[0] is Code.INVALID_ARGUMENT
    assert "cannot compute" in refused[1]


def test_a_stream_answers_in_order_and_outlives_a_fault(client: Client) -> None:
    call = client.channel.stream_stream(
        V2 + "ModelStreamInfer", request_serializer=_bytes, response_deserializer=inference.ModelStreamInferResponse.FromString
    )
    requests = [infer_request(name, x=np.array([[n]], "float32")) for n, name in enumerate(["plus", "nobody", "plus"])]

    answers = list(call(iter(requests), metadata=client.metadata, timeout=30))

    assert [answer.error_message[:15] for answer in answers] == ["", "Request for unk", ""]
    assert [np.frombuffer(answers[n].infer_response.raw_output_contents[0], "<f4").tolist() for n in (0, 2)] == [[1.0], [3.0]]


def test_the_server_and_its_models_describe_themselves_as_over_rest(client: Client, shared: Rig) -> None:
    metadata = client(V2 + "ModelMetadata", inference.ModelMetadataRequest(name="sums"), inference.ModelMetadataResponse)
    config = client(V2 + "ModelConfig", inference.ModelConfigRequest(name="sums"), inference.ModelConfigResponse).config
    about = client(V2 + "ServerMetadata", inference.ServerMetadataRequest(), inference.ServerMetadataResponse)
    index = client(V2 + "RepositoryIndex", inference.RepositoryIndexRequest(), inference.RepositoryIndexResponse)

    told = shared.call("GET", "/v2/models/sums").document
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        (t["name"], t["datatype"], t["shape"]) for t in told["inputs"]
    ]
    assert list(about.extensions) == shared.call("GET", "/v2").document["extensions"]
    assert (config.max_batch_size, config.input[1].data_type, list(config.input[0].dims)) == ((64 * 1024 - 64) * 1024 // 16, 8, [2])
    assert ("plus", "3", "READY") in {(model.name, model.version, model.state) for model in index.models}
    assert client(V2 + "ServerLive", inference.ServerLiveRequest(), inference.ServerLiveResponse).live
    assert client(V2 + "ServerReady", inference.ServerReadyRequest(), inference.ServerReadyResponse).ready
    for name, ready in (("plus", True), ("nobody", False)):
        answer = client(V2 + "ModelReady", inference.ModelReadyRequest(name=name), inference.ModelReadyResponse)
        assert answer.ready is ready


def test_a_model_is_withdrawn_and_answers_again(client: Client) -> None:
    def ready() -> bool:
        return bool(client(V2 + "ModelReady", inference.ModelReadyRequest(name="scalar"), inference.ModelReadyResponse).ready)

    unload = inference.RepositoryModelUnloadRequest(model_name="scalar")
    assert client.refusal(V2 + "RepositoryModelUnload", unload)[0] is Code.PERMISSION_DENIED, "with a token for predictions"
    assert ready()
    client(V2 + "RepositoryModelUnload", unload, inference.RepositoryModelUnloadResponse, metadata=client.managing)
    try:
        assert not ready()
        assert client.refusal(V2 + "ModelInfer", infer_request("scalar", x=np.ones(1, "float32")))[0] is Code.UNAVAILABLE
    finally:
        load = inference.RepositoryModelLoadRequest(model_name="scalar")
        client(V2 + "RepositoryModelLoad", load, inference.RepositoryModelLoadResponse, metadata=client.managing)
    assert ready()
    load.parameters["config"].string_param = "{}"
    assert client.refusal(V2 + "RepositoryModelLoad", load, metadata=client.managing)[0] is Code.INVALID_ARGUMENT


def test_statistics_count_what_came_over_either_protocol(client: Client, shared: Rig) -> None:
    def count() -> int:
        asked = inference.ModelStatisticsRequest(name="sums")
        (told,) = client(V2 + "ModelStatistics", asked, inference.ModelStatisticsResponse).model_stats
        return int(told.inference_stats.success.count)

    before = count()
    client.infer(infer_request("sums", a=np.ones((1, 2), "float32"), b=np.ones((1, 2), "int32")))
    shared.predict("sums", {"instances": [{"a": [1.0, 2.0], "b": [1, 2]}]})

    assert count() == before + 2


# --------------------------------------------------------------------------- TensorFlow Serving


def test_predict_takes_raw_content_and_values_and_answers_values(client: Client) -> None:
    rows = np.array([[1], [2]], "float32")
    for tensor in (
        proto("DT_FLOAT", (2, 1), tensor_content=rows.tobytes()),
        proto("DT_FLOAT", (2, 1), float_val=[1, 2]),
    ):
        answer = client.predict(predict_request("plus", x=tensor))

        assert list(answer.outputs["y"].float_val) == [2.0, 3.0]
        assert [dim.size for dim in answer.outputs["y"].tensor_shape.dim] == [2, 1]
        assert (answer.model_spec.version.value, answer.model_spec.signature_name) == (3, "serving_default")
    once = client.predict(predict_request("plus", x=proto("DT_FLOAT", (3, 1), float_val=[7])))
    assert list(once.outputs["y"].float_val) == [8.0] * 3


def test_the_output_filter_and_version_nought(client: Client) -> None:
    request = predict_request("sums", a=proto("DT_FLOAT", (1, 2), float_val=[1]), b=proto("DT_INT32", (1, 2), int_val=[2]))
    request.output_filter.append("most")
    request.model_spec.version.value = 0

    assert dict.fromkeys(client.predict(request).outputs) == {"most": None}


BAD_PREDICT: dict[str, tuple[Callable[[Any], Any], Code, str]] = {
    "no such model": (lambda m: setattr(m.model_spec, "name", "nobody"), Code.NOT_FOUND, "Servable not found"),
    "no such version": (lambda m: setattr(m.model_spec.version, "value", 9), Code.NOT_FOUND, "Specific(sums, 9)"),
    "no such label": (
        lambda m: setattr(m.model_spec, "version_label", "gold"),
        Code.INVALID_ARGUMENT,
        "Unrecognized servable version label",
    ),
    "no model": (lambda m: m.ClearField("model_spec"), Code.INVALID_ARGUMENT, "names no model"),
    "another signature": (lambda m: setattr(m.model_spec, "signature_name", "x"), Code.INVALID_ARGUMENT, "not found in signature def"),
    "an input missing": (lambda m: m.inputs.pop("a"), Code.INVALID_ARGUMENT, "input size does not match signature"),
    "another type": (lambda m: setattr(m.inputs["a"], "dtype", 2), Code.INVALID_ARGUMENT, "DT_DOUBLE"),
    "a type that no number has": (lambda m: setattr(m.inputs["a"], "dtype", 99), Code.INVALID_ARGUMENT, "99"),
    "a shape unknown": (lambda m: setattr(m.inputs["a"].tensor_shape, "unknown_rank", True), Code.INVALID_ARGUMENT, "known shape"),
    "a size below zero": (lambda m: setattr(m.inputs["a"].tensor_shape.dim[0], "size", -1), Code.INVALID_ARGUMENT, "known shape"),
    "too many values": (lambda m: m.inputs["a"].float_val.extend([1] * 4), Code.INVALID_ARGUMENT, "holds 5 values"),
    "no value": (lambda m: m.inputs["a"].ClearField("float_val"), Code.INVALID_ARGUMENT, "holds 0 values"),
    "an output unknown": (lambda m: m.output_filter.append("z"), Code.INVALID_ARGUMENT, "not found in signature: z"),
    "one value for a billion rows": (
        lambda m: setattr(m.inputs["a"].tensor_shape.dim[0], "size", 10**9),
        Code.RESOURCE_EXHAUSTED,
        "larger than what is taken",
    ),
}


@pytest.mark.parametrize("case", BAD_PREDICT)
def test_a_predict_request_that_does_not_fit_is_refused_with_its_reason(client: Client, case: str) -> None:
    change, code, words = BAD_PREDICT[case]
    message = predict_request("sums", a=proto("DT_FLOAT", (1, 2), float_val=[1]), b=proto("DT_INT32", (1, 2), int_val=[2]))
    change(message)

    found, details = client.refusal(TFS + "Predict", message)

    assert (found, words in details) == (code, True), details


@pytest.mark.parametrize("dtype", [*serving_models.ONNX_TYPES, "bfloat16"])
def test_a_tensor_of_every_type_survives_both_ways(dtype: str) -> None:
    spec = TensorSpec(name="x", dtype=dtype, shape=(-1, 2))
    if dtype == "string":
        array = np.array([[b"", b"\xff"], [b"a", b"bc"]], dtype=object)
    else:
        array = np.array([[0, 1], [2, 3]]).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)

    back = from_proto(to_proto(array), spec)

    assert back.dtype == array.dtype
    assert back.tolist() == array.tolist()
    if dtype != "string":
        raw = proto(to_proto(array).dtype, (2, 2), tensor_content=array.tobytes())
        assert from_proto(raw, spec).tolist() == array.tolist()
    with pytest.raises(BadValue):
        from_proto(proto(0, (2, 2)), spec)


def test_status_and_metadata_are_those_of_rest(client: Client) -> None:
    asked = serving.GetModelStatusRequest(model_spec={"name": "plus"})
    status = client("/tensorflow.serving.ModelService/GetModelStatus", asked, serving.GetModelStatusResponse)
    metadata = client(
        TFS + "GetModelMetadata",
        serving.GetModelMetadataRequest(model_spec={"name": "sums"}, metadata_field=["signature_def"]),
        serving.GetModelMetadataResponse,
    )

    (version,) = status.model_version_status
    assert (version.version, version.state, version.status.error_code) == (3, 30, 0)
    told = metadata.metadata["signature_def"]
    assert told.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    signature = serving.SignatureDefMap.FromString(told.value).signature_def["serving_default"]
    assert (signature.inputs["b"].dtype, [dim.size for dim in signature.inputs["b"].tensor_shape.dim]) == (3, [-1, 2])
    assert metadata.model_spec.version.value == 1
    nobody = serving.GetModelStatusRequest(model_spec={"name": "nobody"})
    assert client.refusal("/tensorflow.serving.ModelService/GetModelStatus", nobody)[0] is Code.NOT_FOUND
    assert client.refusal(TFS + "GetModelMetadata", serving.GetModelMetadataRequest())[0] is Code.INVALID_ARGUMENT


def example(**features: Any) -> Any:
    made = tensorflow.Example()
    for name, values in features.items():
        made.features.feature[name].float_list.value.extend(values)
    return made


def test_examples_are_regressed_and_classified(client: Client) -> None:
    examples = serving.Input(example_list={"examples": [example(x=[0.0]), example(x=[-0.5])]})
    with_context = serving.Input(example_list_with_context={"examples": [tensorflow.Example()], "context": example(x=[-1.0])})
    asked = {"model_spec": {"name": "plus"}}

    regressed = client(TFS + "Regress", serving.RegressionRequest(**asked, input=examples), serving.RegressionResponse)
    classified = client(TFS + "Classify", serving.ClassificationRequest(**asked, input=with_context), serving.ClassificationResponse)
    no_feature = serving.Input(example_list={"examples": [tensorflow.Example()]})

    assert [row.value for row in regressed.result.regressions] == [1.0, 0.5]
    (row,) = classified.result.classifications
    assert [(each.label, each.score) for each in row.classes] == [("0", 1.0), ("1", 0.0)]
    assert client.refusal(TFS + "Regress", serving.RegressionRequest(**asked))[1] == "Input is empty"
    assert "Feature: x" in client.refusal(TFS + "Regress", serving.RegressionRequest(**asked, input=no_feature))[1]


# --------------------------------------------------------------------------- the port


def test_every_method_wants_the_token_and_refuses_a_page(client: Client) -> None:
    right = client.metadata
    for metadata, code in (
        ((), Code.UNAUTHENTICATED),
        ((("authorization", "Bearer wrong"),), Code.UNAUTHENTICATED),
        ((("authorization", f"Basic {client.token}"),), Code.UNAUTHENTICATED),
        ((*right, *right), Code.UNAUTHENTICATED),
        ((*right, ("origin", "https://evil.example")), Code.PERMISSION_DENIED),
        ((*right, ("sec-fetch-site", "cross-site")), Code.PERMISSION_DENIED),
    ):
        for method in (*grpc_server.METHODS, "/no.Such/Method"):
            assert client.refusal(method, b"", metadata=metadata)[0] is code, method
    assert client.refusal("/no.Such/Method", b"")[0] is Code.UNIMPLEMENTED


def test_a_message_beyond_the_limit_is_refused(client: Client) -> None:
    message = inference.ModelInferRequest(model_name="plus", raw_input_contents=[bytes(64 * 1024 * 1024 + 1)])

    assert client.refusal(V2 + "ModelInfer", message)[0] is Code.RESOURCE_EXHAUSTED


def test_probes_hear_of_health(client: Client) -> None:
    service = "/grpc.health.v1.Health/"
    ask = health.HealthCheckRequest
    assert client(service + "Check", ask(), health.HealthCheckResponse).status == 1
    assert client(service + "Check", ask(service="inference.GRPCInferenceService"), health.HealthCheckResponse).status == 1
    assert client.refusal(service + "Check", ask(service="nobody"))[0] is Code.NOT_FOUND

    call = client.channel.unary_stream(
        service + "Watch", request_serializer=_bytes, response_deserializer=health.HealthCheckResponse.FromString
    )
    watching = call(ask(), metadata=client.metadata, timeout=30)
    assert next(watching).status == 1
    watching.cancel()


@pytest.mark.process
def test_its_messages_live_beside_tensorflows_and_are_the_same_on_the_wire() -> None:
    """In a process of its own: TensorFlow stays out of the test process."""
    program = """
import numpy as np
from aiaas_magics.backend.serving.grpc import grpc_server, tensor_proto, tfserving_schema as ours
import tensorflow as tf
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2

theirs = {m.full_name: m for f in (tensor_pb2, tensor_shape_pb2, example_pb2, feature_pb2, meta_graph_pb2)
          for m in f.DESCRIPTOR.message_types_by_name.values()}
def same(mine, other):
    for field in mine.fields:
        twin = other.fields_by_name[field.name]
        assert (field.number, field.type, field.is_repeated) == (twin.number, twin.type, twin.is_repeated), field.full_name
    for nested in mine.nested_types:
        same(nested, other.nested_types_by_name[nested.name])
checked = [same(cls.DESCRIPTOR, theirs[cls.DESCRIPTOR.full_name]) for cls in vars(ours.tensorflow).values() if hasattr(cls, "DESCRIPTOR")]
assert len(checked) >= 10
for value in ours.tensorflow.DataType.values:
    assert types_pb2.DataType.Value(value.name) == value.number
for dtype in ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool", "float16"):
    array = np.array([[0, 1], [2, 3]]).astype(dtype)
    read = tf.make_ndarray(tensor_pb2.TensorProto.FromString(tensor_proto.to_proto(array).SerializeToString()))
    assert read.dtype == array.dtype and (read == array).all(), dtype
print("alike")
"""

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)

    assert ran.stdout.strip() == "alike", ran.stderr[-2000:]
