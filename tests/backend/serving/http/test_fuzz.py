"""Fuzzing of the real process: requests that its own OpenAPI document allows or forbids, and bytes that hardly are a request.

Whatever comes, over HTTP or gRPC: no fault of the server's own, nothing of its inside in an answer, and the next
caller is answered by the same process. Everything is drawn from fixed seeds, so that a rerun sees the same.
"""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from aiaas_magics.backend.serving.grpc import grpc_server
from aiaas_magics.backend.serving.grpc.open_inference_schema import inference
from aiaas_magics.backend.serving.grpc.tfserving_schema import serving
from tests.backend.serving.support.byte_edits import EDITS, Edit, edited
from tests.backend.serving.support.serving_rig import Rig

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
NAMES: dict[str, list[Any]] = {"name": ["plus", "sums", "echo-string", "echo-int8", "nobody"], "version": [0, 1, 3]}
SHAPE = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 2}
DATA = {"type": "array", "items": {"type": ["number", "string", "boolean"]}, "maxItems": 4}
SETTINGS = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
INSIDE = re.compile(rb'Traceback|File "|site-packages|\.py\b|\.(?:cc|cpp|h):\d|<class ')


class Fuzzed:
    """A process under fuzz, with what must hold after each request."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.pid = rig, rig.host.pid
        self.secrets = [rig.host.token.encode(), str(rig.state).encode()]
        self.seen: Counter[object] = Counter()

    def check(self, outcome: object, answer: bytes) -> None:
        """The answer tells nothing of the inside, and the next caller gets his."""
        assert not INSIDE.search(answer), answer
        assert not [secret for secret in self.secrets if secret in answer], answer
        assert self.rig.predict("plus", {"instances": [[1.0]]}).document == {"predictions": [[2.0]]}
        self.seen[outcome] += 1


@pytest.fixture
def fuzzed(shared: Rig) -> Iterator[Fuzzed]:
    fuzzed = Fuzzed(shared)
    yield fuzzed
    assert shared.host.pid == fuzzed.pid
    assert sum(fuzzed.seen.values()) > 100


# --------------------------------------------------------------------------- by the OpenAPI document


def operations(rig: Rig) -> list[Any]:
    """What the document has, with names that are there: a request for nobody is refused before anything reads it."""
    document = rig.call("GET", "/openapi.json").document
    others = re.compile(r"/models/(?!\{|plus\b|sums\b|echo-string\b)")
    # Unloading is asked for elsewhere: after it nothing here would be answered any more.
    document["paths"] = {path: item for path, item in document["paths"].items() if not others.search(path) and "unload" not in path}
    for operation in (operation for item in document["paths"].values() for operation in item.values()):
        operation["parameters"] = [
            {**given, "schema": {"enum": NAMES[given["name"]]}} for given in operation.get("parameters", ()) if given["name"] in NAMES
        ]
        operation.get("requestBody", {"content": {}})["content"].pop("application/octet-stream", None)
    schemas = document["components"]["schemas"]
    schemas["InferJson"]["properties"] |= {"name": {"enum": ["x", "a", "b"]}, "shape": SHAPE, "data": DATA}
    schemas["Infer"]["properties"]["inputs"]["items"]["anyOf"].pop()  # binary tensors, whose bytes are not in the document
    return [found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()]


@pytest.mark.parametrize("examples", [4, pytest.param(20, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_that_the_document_describes_breaks_the_server(fuzzed: Fuzzed, mode: GenerationMode, examples: int) -> None:
    host = fuzzed.rig.host

    def ask(case: Any) -> None:
        token = fuzzed.rig.api_token if "/repository/models/" in case.path else host.token
        answer = case.call(base_url=host.url, headers={"Authorization": f"Bearer {token}"})
        case.validate_response(answer, checks=CHECKS)
        fuzzed.check(answer.status_code, answer.content)

    for operation in operations(fuzzed.rig):
        tries = examples if operation.body else 2  # what has no body has little to say
        settings(SETTINGS, max_examples=tries)(given(operation.as_strategy(generation_mode=mode))(ask))()

    assert {200, 400, 404} <= fuzzed.seen.keys()


# --------------------------------------------------------------------------- by bytes


def requests_of(rig: Rig) -> list[bytes]:
    """A good request of each kind: rows, tensors as JSON and as bytes, several inputs, texts, chunks, and a question."""
    tensor = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"parameters":{"binary_data_size":4}}]}'

    def post(path: bytes, body: bytes, *lines: bytes) -> bytes:
        lines = lines or (b"Content-Length: %d" % len(body),)
        return b"\r\n".join([b"POST %b HTTP/1.1" % path, *common, *lines, b"", body])

    common = (b"Host: 127.0.0.1", b"Authorization: Bearer " + rig.host.token.encode())
    rows = b'{"instances": [[1.0]]}'
    length = b"Inference-Header-Content-Length: %d" % len(tensor)
    return [
        post(b"/v1/models/plus:predict", rows),
        post(b"/v1/models/sums:predict", b'{"inputs": {"a": [[1.0, 2.0]], "b": [[3, 4]]}}'),
        post(b"/v1/models/echo-string:predict", b'{"instances": [["a", {"b64": "YQ=="}]]}'),
        post(b"/v2/models/plus/infer", b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[1.0]}]}'),
        post(b"/v2/models/plus/infer", tensor + bytes(4), length, b"Content-Length: %d" % (len(tensor) + 4)),
        post(b"/v1/models/plus:predict", b"%x\r\n%b\r\n0\r\n\r\n" % (len(rows), rows), b"Transfer-Encoding: chunked"),
        b"\r\n".join([b"GET /v2/models/plus/config HTTP/1.1", *common, b"", b""]),
    ]


def exchanged(rig: Rig, data: bytes) -> bytes:
    """All that comes back for these bytes, on a connection that says nothing after them."""
    got = b""
    with socket.create_connection(rig.address, timeout=20) as plain:
        try:
            plain.sendall(data)
            plain.shutdown(socket.SHUT_WR)
            while chunk := plain.recv(65536):
                got += chunk
        except ConnectionError:  # closed on us in the middle of what it has refused
            pass
    return got


@pytest.mark.parametrize("examples", [300, pytest.param(1500, marks=pytest.mark.nightly)])
def test_bytes_that_are_almost_a_request_break_nothing(fuzzed: Fuzzed, examples: int) -> None:
    good = requests_of(fuzzed.rig)

    @settings(SETTINGS, max_examples=examples)
    @given(st.lists(st.sampled_from(range(len(good))), min_size=1, max_size=3), EDITS, st.binary(max_size=20))
    def ask(kinds: list[int], edits: list[Edit], after: bytes) -> None:
        answer = exchanged(fuzzed.rig, edited(b"".join(good[kind] for kind in kinds), edits) + after)

        statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
        assert all(status < 500 or status == 501 for status in statuses), answer
        fuzzed.check(tuple(statuses[:1]), answer)

    ask()

    assert {(200,), (400,), (401,)} <= fuzzed.seen.keys()  # a path that nobody knows is not met in every run


# --------------------------------------------------------------------------- by messages

WORDS = st.sampled_from(["", "plus", "sums", "echo-string", "nobody", "x", "a", "b", "y", "FP32", "INT32", "BYTES", "id", "\u20ac"])
NUMBERS = st.sampled_from([0, 1, 2, 3, 255, 2**31 - 1])
SIGNED = NUMBERS | st.sampled_from([-1, -(2**31)])
# By protobuf's kind of Python value; of an enum the numbers are those of the others too.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int32": SIGNED,
    "int64": SIGNED | st.sampled_from([2**63 - 1, -(2**63)]),
    "uint32": NUMBERS,
    "uint64": NUMBERS | st.just(2**64 - 1),
    "double": st.floats(),
    "float": st.floats(width=32),
    "bool": st.booleans(),
    "enum": st.integers(0, 25),
    "string": WORDS,
    "bytes": st.binary(max_size=16),
}
KINDS = {1: "int32", 2: "int64", 3: "uint32", 4: "uint64", 5: "double", 6: "float", 7: "bool", 8: "enum", 9: "string"}
# Left out: who watches waits for ever, and a model that is withdrawn answers nobody any more.
METHODS = [name for name in sorted(grpc_server.METHODS) if not name.endswith(("/Watch", "/RepositoryModelUnload"))]


def fill(message: Any, data: st.DataObject, depth: int = 0) -> None:
    """Give some fields of a message some value, and so on inside."""
    fields = [field for field in message.DESCRIPTOR.fields if data.draw(st.booleans())]
    for field in fields:
        times = data.draw(st.integers(0, 2)) if field.is_repeated else 1
        if field.message_type is None:
            kind = "bytes" if field.type == field.TYPE_BYTES else KINDS[field.cpp_type]
            values = [data.draw(VALUES[kind]) for _ in range(times)]
            if field.is_repeated:
                getattr(message, field.name).extend(values)
            else:
                setattr(message, field.name, values[0])
        elif depth < 4:
            for _ in range(times):
                fill(inner(message, field, data), data, depth + 1)


def inner(message: Any, field: Any, data: st.DataObject) -> Any:
    """The message in a field: a new one of a list, that of a key, or the only one."""
    holder = getattr(message, field.name)
    if not field.is_repeated:
        return holder
    if not field.message_type.GetOptions().map_entry:
        return holder.add()
    key = field.message_type.fields_by_name["key"]
    return holder[data.draw(VALUES[KINDS[key.cpp_type]])]


def good_messages() -> dict[str, bytes]:
    infer = inference.ModelInferRequest(model_name="sums", raw_input_contents=[bytes(8), bytes(8)])
    for name, datatype in (("a", "FP32"), ("b", "INT32")):
        infer.inputs.add(name=name, datatype=datatype, shape=(1, 2))
    predict = serving.PredictRequest()
    predict.model_spec.name = "plus"
    predict.inputs["x"].dtype = 1
    for size in (1, 1):
        predict.inputs["x"].tensor_shape.dim.add(size=size)
    predict.inputs["x"].tensor_content = np.float32(1).tobytes()
    return {
        "/inference.GRPCInferenceService/ModelInfer": infer.SerializeToString(),
        "/inference.GRPCInferenceService/ModelStreamInfer": infer.SerializeToString(),
        "/tensorflow.serving.PredictionService/Predict": predict.SerializeToString(),
    }


@st.composite
def messages(draw: st.DrawFn) -> tuple[str, bytes]:
    """A method and what it is sent: any message of its kind, or a good one; as it is, or with some bytes changed."""
    good = good_messages()
    method = draw(st.sampled_from(METHODS) | st.sampled_from(sorted(good)))
    sent = good.get(method, b"")
    if method not in good or draw(st.booleans()):
        message = grpc_server.METHODS[method].takes()
        fill(message, draw(st.data()))
        sent = message.SerializeToString()
    return method, edited(sent, draw(EDITS)) if draw(st.booleans()) else sent


@pytest.mark.parametrize("examples", [250, pytest.param(1000, marks=pytest.mark.nightly)])
def test_no_message_over_grpc_breaks_the_server(fuzzed: Fuzzed, examples: int) -> None:
    def sent(method: str) -> tuple[tuple[str, str], ...]:
        token = fuzzed.rig.api_token if method.endswith("/RepositoryModelLoad") else fuzzed.rig.host.token
        return (("authorization", f"Bearer {token}"),)

    with grpc.insecure_channel(fuzzed.rig.host.grpc) as channel:

        @settings(SETTINGS, max_examples=examples)
        @given(messages())
        def ask(given: tuple[str, bytes]) -> None:
            method, message = given
            try:
                answer, code = channel.unary_unary(method)(message, metadata=sent(method), timeout=30), grpc.StatusCode.OK
            except grpc.RpcError as error:
                answer, code = error.details().encode(), error.code()
            assert code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED), (code, answer)
            fuzzed.check(code, answer)

        ask()

    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND} <= fuzzed.seen.keys()
