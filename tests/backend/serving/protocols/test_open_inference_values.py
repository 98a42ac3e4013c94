"""Open Inference Protocol v2 without a server: tensors there and back, and every body that is refused with its sentence."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aiaas_magics.backend.serving.http.request_handler import RequestHandler
from aiaas_magics.backend.serving.models.registry import Registry, Version
from aiaas_magics.backend.serving.protocols import BadValue, Request, Response
from aiaas_magics.backend.serving.protocols.open_inference import open_inference_rest
from aiaas_magics.backend.serving.protocols.open_inference.inference_codec import DATATYPES
from aiaas_magics.backend.serving.protocols.tfserving import tfserving_rest
from aiaas_magics.core.spec import TensorSpec
from tests.backend.serving.support.serving_models import spec_of, tensor

INFER = open_inference_rest.PATHS.route("infer", name="m")
SUMS = [tensor("a", "float32", -1, 2), tensor("b", "int32", -1, 2)]
ONE = [tensor("x", "float32", -1, 2)]


def version(inputs: list[TensorSpec], outputs: list[TensorSpec] | None = None) -> Version:
    outputs = outputs if outputs is not None else [TensorSpec(name=f"y-{i.name}", dtype=i.dtype, shape=i.shape) for i in inputs]
    return Version(number=3, spec=spec_of("m", inputs, outputs), created_s=0.0)


def read(body: bytes, inputs: list[TensorSpec], *, json_bytes: int | None = None) -> open_inference_rest.InferCall:
    headers = () if json_bytes is None else ((b"inference-header-content-length", str(json_bytes).encode()),)
    return open_inference_rest.read(INFER, Request(method="POST", path="/v2/models/m/infer", headers=headers, body=body), version(inputs))


def document(**more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}], **more}


def tensors_in(response: Response) -> dict[str, np.ndarray]:
    """What a client reads in an answer, written from the protocol's text and sharing no code with the server."""
    told = dict(response.headers).get(b"inference-header-content-length")
    assert (told is None) == (response.content_type == b"application/json")
    size = len(response.body) if told is None else int(told)
    head, rest = json.loads(response.body[:size]), response.body[size:]
    found = {}
    for output in head["outputs"]:
        binary = output.get("parameters", {}).get("binary_data_size")
        assert ("data" in output) == (binary is None)
        values, rest = (output["data"], rest) if binary is None else (rest[:binary], rest[binary:])
        found[output["name"]] = as_numpy(values, output["datatype"], output["shape"])
    assert rest == b""
    return found


def as_numpy(values: Any, datatype: str, shape: list[int]) -> np.ndarray:
    if datatype == "BYTES":
        flat = []
        while isinstance(values, bytes) and values:
            (length,) = struct.unpack("<I", values[:4])
            flat.append(values[4 : 4 + length])
            values = values[4 + length :]
        array = np.empty(int(np.prod(shape)), dtype=object)
        array[:] = flat or [value.encode() for value in values]
        return array.reshape(shape)
    name = next(name for name, known in DATATYPES.items() if known == datatype)
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    return (np.frombuffer(values, dtype) if isinstance(values, bytes) else np.array(values, dtype)).reshape(shape)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.tolist() == other.tolist() if one.dtype == object else one.tobytes() == other.tobytes()


SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    name = draw(st.sampled_from(sorted(DATATYPES)))
    shape = draw(SHAPES)
    if name == "string":
        texts = draw(st.lists(st.text(max_size=6), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        array = np.empty(len(texts), dtype=object)
        array[:] = [text.encode() for text in texts]
        return array.reshape(shape)
    if name == "bfloat16":
        return draw(hnp.arrays(np.uint16, shape)).view(ml_dtypes.bfloat16)
    # One NaN only: in JSON they have one name.
    floats = {"elements": st.floats(width=np.dtype(name).itemsize * 8) | st.just(float("nan"))} if name.startswith("float") else {}
    found = draw(hnp.arrays(np.dtype(name), shape, **floats))
    return np.where(np.isnan(found), found.dtype.type("nan"), found) if floats else found


def dtype_name(array: np.ndarray) -> str:
    return "string" if array.dtype == object else array.dtype.name


def written(arrays: dict[str, np.ndarray], *, binary: set[str], pad: int = 0) -> tuple[bytes, int]:
    """A request as a client writes it, and how much of it is JSON."""
    inputs, raw = [], b""
    for name, array in arrays.items():
        entry: dict[str, Any] = {"name": name, "datatype": DATATYPES[dtype_name(array)], "shape": list(array.shape)}
        if name in binary:
            data = array.tobytes() if array.dtype != object else b"".join(struct.pack("<I", len(v)) + v for v in array.ravel())
            entry["parameters"] = {"binary_data_size": len(data)}
            raw += data
        else:
            entry["data"] = array.tolist() if array.dtype != object else [v.decode() for v in array.ravel()]
        inputs.append(entry)
    head = json.dumps({"inputs": inputs}).encode() + b" " * pad
    return head + raw, len(head)


@given(arrays(), arrays(), st.booleans(), st.integers(0, 7))
def test_any_tensor_in_either_form_comes_back_bit_for_bit(one: np.ndarray, other: np.ndarray, mixed: bool, pad: int) -> None:
    given_arrays = {"one": one, "other": other}
    no_json = {name for name, array in given_arrays.items() if array.dtype.name in ("float16", "bfloat16")}
    binary = no_json | ({"one"} if mixed else set())
    inputs = [tensor(name, dtype_name(array), *array.shape) for name, array in given_arrays.items()]

    body, size = written(given_arrays, binary=binary, pad=pad)
    call = read(body, inputs, json_bytes=size if binary else None)

    assert all(same(call.tensors[name], array) for name, array in given_arrays.items())
    assert all(array.flags.aligned for array in call.tensors.values())
    for form in (True, False) if not no_json else (True,):
        wanted = tuple(open_inference_rest.OutputForm(name, form) for name in given_arrays)
        answer = open_inference_rest.call_of(version(inputs), call.tensors, wanted).response(call.tensors)
        assert all(same(tensors_in(answer)[name], array) for name, array in given_arrays.items())


def asked_of(made: Version, body: bytes, size: int) -> open_inference_rest.InferCall:
    headers = ((b"inference-header-content-length", str(size).encode()),)
    return open_inference_rest.read(INFER, Request(method="POST", path="/v2/models/m/infer", headers=headers, body=body), made)


@given(arrays(), arrays(), st.integers(0, 7), st.booleans())
def test_a_document_that_came_before_is_read_and_answered_as_the_first_time(
    one: np.ndarray, other: np.ndarray, pad: int, binary: bool
) -> None:
    given_arrays = {"one": one, "other": other}
    inputs = [tensor(name, dtype_name(array), *array.shape) for name, array in given_arrays.items()]
    made, first = version(inputs), version(inputs)
    body, size = written(given_arrays, binary={"one", "other"}, pad=pad)
    asked = json.loads(body[:size])
    asked["parameters"] = {"binary_data_output": binary}
    head = json.dumps(asked).encode()
    body = head + body[size:]
    backwards = {f"y-{name}": np.ascontiguousarray(array[::-1]) for name, array in given_arrays.items()}
    outputs = {f"y-{name}": array for name, array in given_arrays.items()}

    calls = [asked_of(made, body, len(head)) for _ in range(3)]

    again = asked_of(first, body, len(head))
    assert all(
        same(call.tensors[name], array) and call.tensors[name].flags.aligned for call in calls for name, array in given_arrays.items()
    )
    assert all((call.rows, call.output_forms, call.timeout_s) == (again.rows, again.output_forms, again.timeout_s) for call in calls)
    for call, given_outputs in zip(calls, (outputs, backwards, outputs), strict=True):
        try:
            expected = again.response(given_outputs)
        except BadValue:  # halves have no form in JSON
            continue
        assert call.response(given_outputs) == expected


def test_behind_a_known_document_stand_just_its_tensors() -> None:
    made = version(ONE)
    array = np.arange(4, dtype=np.float32).reshape(2, 2)
    body, size = written({"x": array}, binary={"x"})
    head = body[:size].replace(b"}]}", b'}], "parameters": {"binary_data_output": true}}')
    assert asked_of(made, head + array.tobytes(), len(head)).document is None

    known = asked_of(made, head + array.tobytes(), len(head)).document

    assert known is not None
    for wrong in (array.tobytes()[:-1], array.tobytes() + b"\0", b""):
        with pytest.raises(BadValue, match=r"the body holds|behind the last input"):
            asked_of(made, head + wrong, len(head))


def test_a_document_is_known_to_one_version_only() -> None:
    made, other = version(ONE), version([tensor("x", "float32", -1, 3)])
    array = np.arange(4, dtype=np.float32).reshape(2, 2)
    body, size = written({"x": array}, binary={"x"})
    head = body[:size].replace(b"}]}", b'}], "parameters": {"binary_data_output": true}}')
    asked_of(made, head + array.tobytes(), len(head))

    with pytest.raises(BadValue, match="has the shape"):
        asked_of(other, head + array.tobytes(), len(head))


def test_an_aligned_binary_tensor_is_the_body_itself() -> None:
    array = np.arange(64, dtype=np.float32).reshape(32, 2)
    body, size = written({"x": array}, binary={"x"})
    body, size = written({"x": array}, binary={"x"}, pad=-size % 16)

    found = read(body, ONE, json_bytes=size).tensors["x"]

    assert np.shares_memory(found, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize("data", [[1.5, 2.5], [[1.5, 2.5]], [1.5, 2]])
def test_data_is_nested_or_flat(data: list[Any]) -> None:
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": data}]}).encode()

    assert read(body, ONE).tensors["x"].shape == (1, 2)


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    # what stands in the one input, status, what the error says
    ({"datatype": "FP64"}, 400, "of datatype FP64; the model expects FP32"),
    ({"datatype": "float32"}, 400, "of datatype float32; the model expects FP32"),
    ({"name": "z"}, 400, "Unexpected input 'z'; the model has the inputs x"),
    ({"shape": [2, 2]}, 400, "says the shape (2, 2); its data has (2)"),
    ({"shape": [1, 3]}, 400, "has the shape (any, 2); the request says (1, 3)"),
    ({"shape": [2]}, 400, "has the shape (any, 2); the request says (2)"),
    ({"shape": [0, 2], "data": []}, 400, "is empty"),
    ({"shape": [2**62, 2]}, 400, "says the shape"),
    ({"shape": [-1, 2]}, 400, "`$.inputs[0].shape[0]`"),
    ({"shape": [1.0, 2]}, 400, "`$.inputs[0].shape[0]`"),
    ({"shape": "12"}, 400, "`$.inputs[0].shape`"),
    ({"data": [1.5]}, 400, "its data has (1)"),
    ({"data": [[1.5, 2.5], [1.5, 2.5]]}, 400, "its data has (2, 2)"),
    ({"data": [[1.5], [2.5]]}, 400, "its data has (2, 1)"),
    ({"data": [[1.5, 2.5], [1.5]], "shape": [2, 2]}, 400, "lists of different lengths"),
    ({"data": [[1.5, 2.5], 1.5], "shape": [2, 2]}, 400, "lists and values side by side"),
    ({"data": [[[1.5, 2.5]]]}, 400, "nested deeper"),
    ({"data": ["1.5", 2.5]}, 400, "Type: String is not of expected type: float"),
    ({"data": [True, 2.5]}, 400, "Type: Boolean is not of expected type: float"),
    ({"data": [None, 2.5]}, 400, "is not of expected type: float"),
    ({"data": [1e39, 2.5]}, 400, "is not of expected type: float"),
    ({"data": 1.5}, 400, "needs its 'data' as a list"),
    ({"data": None}, 400, "needs its 'data' as a list"),
    ({"data": {"x": 1}}, 400, "needs its 'data' as a list"),
    ({"parameters": {"binary_data_size": 8}}, 400, "says 8 bytes of binary data"),
    ({"parameters": {"binary_data_size": -1}}, 400, "binary_data_size"),
    ({"parameters": {"binary_data_size": "8"}}, 400, "binary_data_size"),
    ({"parameters": {"shared_memory_region": "r"}}, 400, "Shared memory is not offered"),
]


@pytest.mark.parametrize(("changed", "status", "text"), REFUSED)
def test_an_input_that_does_not_fit_is_refused_with_its_reason(changed: dict[str, Any], status: int, text: str) -> None:
    asked = document()
    asked["inputs"][0] |= changed

    with pytest.raises(BadValue) as refused:
        read(json.dumps(asked).encode(), ONE)

    assert refused.value.status == status
    assert text in refused.value.text
    assert len(refused.value.text) < 500


@pytest.mark.parametrize(
    ("dtype", "datatype", "data", "text"),
    [
        ("int32", "INT32", "[1.0, 2]", "JSON Value: 1.0 Type: Number is not of expected type: int32"),
        ("int32", "INT32", "[true, 2]", "is not of expected type: int32"),
        ("int32", "INT32", "[2147483648, 2]", "is not of expected type: int32"),
        ("uint8", "UINT8", "[-1, 2]", "is not of expected type: uint8"),
        ("uint64", "UINT64", "[18446744073709551616, 2]", "is not of expected type: uint64"),
        ("bool", "BOOL", "[0, 1]", "is not of expected type: bool"),
        ("string", "BYTES", "[1, 2]", "is not of expected type: string"),
        ("string", "BYTES", '[{"b64": "!"}, "x"]', "Unable to base64 decode"),
        ("int32", "INT32", "[NaN, 2]", "is not of expected type: int32"),
        ("float32", "FP32", "[1e999, 2]", "Number out of range"),
        ("float16", "FP16", "[1.0, 2.0]", "FP16 data in JSON is not supported"),
        ("bfloat16", "BF16", "[1.0, 2.0]", "BF16 data in JSON is not supported"),
    ],
)
def test_a_json_value_of_another_type_is_refused(dtype: str, datatype: str, data: str, text: str) -> None:
    body = f'{{"inputs": [{{"name": "x", "datatype": "{datatype}", "shape": [1, 2], "data": {data}}}]}}'.encode()

    with pytest.raises(BadValue) as refused:
        read(body, [tensor("x", dtype, -1, 2)])

    assert refused.value.status == 400
    assert text in refused.value.text


def test_nan_and_infinity_may_stand_in_json() -> None:
    body = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [NaN, -Infinity]}]}'

    found = read(body, ONE)

    assert np.array_equal(found.tensors["x"], np.array([[np.nan, -np.inf]], np.float32), equal_nan=True)
    assert b'"data":[NaN,-Infinity]' in found.response({"y-x": found.tensors["x"]}).body


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "JSON is empty"),
        (b"  ", "JSON is empty"),
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]", "does not have its form"),
        (b"null", "does not have its form"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs": []}', "The model has the inputs x; the request holds "),
        (b'{"inputs": {}}', "`$.inputs`"),
        (b'{"inputs": [1]}', "`$.inputs[0]`"),
        (b'{"inputs": [{"name": "x"}]}', "missing required field"),
        (b'{"id": 7, "inputs": []}', "`$.id`"),
        (json.dumps(document(outputs=[{"name": "z"}])).encode(), "Unexpected output 'z'; the model has the outputs y-x"),
        (json.dumps(document(outputs=[{"name": "y-x"}, {"name": "y-x"}])).encode(), "asked for twice"),
        (json.dumps(document(outputs=[{"name": "y-x", "parameters": {"binary_data": "yes"}}])).encode(), "binary_data"),
        (json.dumps(document(outputs=[{"name": "y-x", "parameters": {"classification": 1}}])).encode(), "'classification' is not offered"),
        (json.dumps(document(parameters={"triton_x": 1})).encode(), "reserved"),
        (json.dumps(document(parameters={"timeout": -1})).encode(), "'timeout' is a number of microseconds, got -1"),
        (json.dumps(document(parameters={"timeout": 10**400})).encode(), "'timeout' is a number of microseconds"),
        (json.dumps(document(parameters={"timeout": "1s"})).encode(), "'timeout' is a number of microseconds"),
        (json.dumps(document(parameters={"binary_data_output": 1})).encode(), "true or false"),
        (json.dumps({"inputs": document()["inputs"] * 2}).encode(), "comes twice"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]}", ""),
        (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, ""),
        (json.dumps(document()).encode() + b" trailing", "cannot be read"),
        pytest.param(b'{"inputs": [{"name": "\x80"}]}', "cannot be read: 'utf-8' codec", id="no UTF-8"),
    ],
)
def test_a_body_that_is_no_inference_request_is_refused(body: bytes, text: str) -> None:
    with pytest.raises(BadValue) as refused:
        read(body, ONE)

    assert refused.value.status == 400
    assert text in refused.value.text
    assert len(refused.value.text) < 500


def headed(data: bytes, /, *, size: int, **changed: Any) -> tuple[bytes, int]:
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": size}, **changed}
    head = json.dumps({"inputs": [entry]}).encode()
    return head + data, len(head)


@pytest.mark.parametrize(
    ("made", "inputs", "text"),
    [
        (headed(b"12345678", size=8), ONE, ""),
        (headed(b"1234567", size=8), ONE, "the body holds 7 for it"),
        (headed(b"123456789", size=8), ONE, "1 bytes behind the last input's"),
        (headed(b"1234", size=4), ONE, "has 8 bytes; the request holds 4"),
        (headed(b"12345678", size=8, shape=[2, 2]), ONE, "has 16 bytes; the request holds 8"),
        (headed(b"12345678", size=8, shape=[2**40, 2]), ONE, "the request holds 8"),
        (headed(b"12345678", size=8, data=[1.0, 2.0]), ONE, "and no 'data'"),
        (headed(b"12345678", size=8, datatype="INT64"), ONE, "expects FP32"),
        (headed(b"\x00\x02", size=2, datatype="BOOL"), [tensor("x", "bool", -1, 2)], "each of its bytes is 0 or 1"),
        (headed(b"\x01\0\0\0a\0\0\0\0", size=9, datatype="BYTES"), [tensor("x", "string", -1, 2)], ""),
        (headed(b"\x01\0\0\0a\0\0\0", size=8, datatype="BYTES"), [tensor("x", "string", -1, 2)], "in the middle of string 1"),
        (headed(b"\xff\xff\xff\xffa\0\0\0\0", size=9, datatype="BYTES"), [tensor("x", "string", -1, 2)], "in the middle of string 0"),
        (headed(b"\x01\0\0\0a\0\0\0\0z", size=10, datatype="BYTES"), [tensor("x", "string", -1, 2)], "1 bytes behind its last"),
        (headed(b"\0" * 8, size=8, datatype="BYTES", shape=[2**50, 2]), [tensor("x", "string", -1, 2)], "do not hold as many"),
    ],
)
def test_bytes_that_do_not_add_up_are_refused(made: tuple[bytes, int], inputs: list[TensorSpec], text: str) -> None:
    body, size = made

    try:
        read(body, inputs, json_bytes=size)
    except BadValue as refused:
        said = (refused.status, refused.text)
    else:
        said = (400, "")

    assert said[0] == 400
    assert text in said[1]
    assert bool(text) == bool(said[1])


@pytest.mark.parametrize("told", [b"-1", b"x", b"1.5", b"9999", b"", b"0x10", b"1" * 400])
def test_a_json_length_that_is_none_is_refused(told: bytes) -> None:
    request = Request(method="POST", path="/v2", headers=((b"inference-header-content-length", told),), body=b"{}")

    with pytest.raises(BadValue, match="Inference-Header-Content-Length is the number of bytes"):
        open_inference_rest.read(INFER, request, version(ONE))


@pytest.mark.parametrize(
    ("inputs", "body", "shape"),
    [
        (ONE, np.ones((3, 2), np.float32).tobytes(), (3, 2)),
        ([tensor("x", "float32", -1, -1)], np.ones(5, np.float32).tobytes(), (1, 5)),
        ([tensor("x", "uint8", 2, 3)], bytes(6), (2, 3)),
        ([tensor("x", "string", -1)], b"\x02\0\0\0hi", (1,)),
        (ONE, bytes(12), "has 8 bytes; the request holds 12"),
        (ONE, b"", "is empty"),
        (SUMS, bytes(16), "needs a model with one input"),
        ([tensor("x", "float32", -1, -1, -1)], bytes(16), "needs a shape with one free dimension"),
    ],
)
def test_a_raw_body_is_the_only_input(inputs: list[TensorSpec], body: bytes, shape: tuple[int, ...] | str) -> None:
    if isinstance(shape, str):
        with pytest.raises(BadValue) as refused:
            read(body, inputs, json_bytes=0)
        assert shape in refused.value.text
        return

    call = read(body, inputs, json_bytes=0)

    assert call.tensors["x"].shape == shape
    assert all(wanted.binary for wanted in call.output_forms)


def test_only_what_is_asked_for_is_answered_in_the_form_and_order_that_were_asked_for() -> None:
    made = version(ONE, [tensor("p", "float32", -1), tensor("q", "int64", -1), tensor("r", "string", -1)])
    asked = document(
        id="i-7", parameters={"binary_data_output": True}, outputs=[{"name": "r", "parameters": {"binary_data": False}}, {"name": "p"}]
    )
    call = open_inference_rest.read(INFER, Request(method="POST", path="/v2", body=json.dumps(asked).encode()), made)

    answer = call.response({"p": np.array([0.1], np.float32), "q": np.array([1]), "r": np.array([b"hi"], dtype=object)})

    size = int(dict(answer.headers)[b"inference-header-content-length"])
    assert json.loads(answer.body[:size]) == {
        "model_name": "m",
        "model_version": "3",
        "id": "i-7",
        "outputs": [
            {"name": "r", "datatype": "BYTES", "shape": [1], "data": ["hi"]},
            {"name": "p", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
        ],
    }
    assert answer.body[size:] == np.float32(0.1).tobytes()
    assert answer.content_type == b"application/octet-stream"


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.ones(1, np.float16), "FP16 data in JSON is not supported"),
        (np.ones(1, ml_dtypes.bfloat16), "BF16 data in JSON is not supported"),
        (np.array([b"\xff"], dtype=object), "are no UTF-8"),
        (np.ones(1, np.complex64), "has no datatype for"),
    ],
)
def test_an_output_without_a_json_form_says_so(array: np.ndarray, text: str) -> None:
    call = open_inference_rest.call_of(version(ONE), {}, (open_inference_rest.OutputForm("y", False),))

    with pytest.raises(BadValue) as refused:
        call.response({"y": array})

    assert text in refused.value.text


@given(st.binary(max_size=80), st.none() | st.integers(0, 80))
def test_any_bytes_are_read_or_refused(body: bytes, size: int | None) -> None:
    try:
        read(body, ONE, json_bytes=size)
    except BadValue as refused:
        said = (refused.status, len(refused.text) < 600)
    else:
        said = (400, size == 0)  # eight bytes are a row
    assert said == (400, True)


# --------------------------------------------------------------------------- what is known and does not answer


def loading() -> Registry:
    registry = Registry()
    registry.begin(version(ONE))
    return registry


@pytest.mark.parametrize(
    ("action", "name", "status", "document"),
    [
        ("live", "", 200, {"live": True}),
        ("ready", "", 503, {"live": True, "ready": False, "error": "not ready"}),
        ("model_ready", "m", 503, {"name": "m", "ready": False, "error": "not ready"}),
        ("metadata", "m", 503, {"error": "Model 'm' is not ready. Try again in a moment."}),
        ("model_ready", "z", 404, {"error": "Request for unknown model: 'z' is not found. GET / lists the endpoints."}),
        ("index", "", 200, [{"name": "m", "version": "3", "state": "LOADING", "reason": ""}]),
    ],
)
def test_a_model_that_is_loading_is_there_and_not_ready(action: str, name: str, status: int, document: Any) -> None:
    answer = open_inference_rest.look(loading(), open_inference_rest.PATHS.route(action, name=name), Request(method="GET", path="/v2"))

    assert (answer.status, json.loads(answer.body)) == (status, document)
    assert (status == 503) == (dict(answer.headers).get(b"retry-after") is not None)


async def test_asking_a_model_that_is_loading_is_503_and_one_that_ended_404() -> None:
    registry = loading()
    request = Request(method="POST", path="/v2/models/m/infer", body=json.dumps(document()).encode())

    assert (await RequestHandler(registry).respond(open_inference_rest, INFER, request)).status == 503
    assert (await RequestHandler(registry).respond(tfserving_rest, tfserving_rest.PATHS.route("predict", name="m"), request)).status == 404
    registry.failed(registry.versions("m")[0], "it was not equal to Keras")
    assert (await RequestHandler(registry).respond(open_inference_rest, INFER, request)).status == 404


def test_the_list_of_ready_models_leaves_out_the_others() -> None:
    answer = open_inference_rest.look(
        loading(), open_inference_rest.PATHS.route("index"), Request(method="POST", path="/v2", body=b'{"ready": true}')
    )

    assert json.loads(answer.body) == []


# --------------------------------------------------------------------------- base64, as MLServer's clients send bytes

TEXT = [tensor("x", "string", -1)]


def encoded(*data: Any, datatype: str = "BYTES", content_type: Any = "base64") -> bytes:
    entry = {"name": "x", "datatype": datatype, "shape": [len(data)], "data": data, "parameters": {"content_type": content_type}}
    return json.dumps({"inputs": [entry]}).encode()


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=4))
def test_data_that_says_it_is_base64_reaches_the_model_as_bytes(data: list[bytes]) -> None:
    body = encoded(*(base64.b64encode(one).decode() for one in data))

    assert read(body, TEXT).tensors["x"].tolist() == data


def test_base64_in_a_binary_tensor_is_decoded_too() -> None:
    """MLServer decodes by what an input says of itself, whatever way its bytes came."""
    text = base64.b64encode(b"\xff\0")
    entry = {"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 4 + len(text), "content_type": "base64"}}
    head = json.dumps({"inputs": [entry]}).encode()

    found = read(head + struct.pack("<I", len(text)) + text, TEXT, json_bytes=len(head))

    assert found.tensors["x"].tolist() == [b"\xff\0"]


@pytest.mark.parametrize("content_type", ["str", None])
def test_other_content_types_leave_texts_as_they_are(content_type: str | None) -> None:
    assert read(encoded("YQ==", content_type=content_type), TEXT).tensors["x"].tolist() == [b"YQ=="]


@pytest.mark.parametrize("data", ["Y", "Y?==", "YQ==\n", "ä", "data:image/png;base64,YQ=="])
def test_bad_base64_is_refused_by_its_place(data: str) -> None:
    with pytest.raises(BadValue, match="Input x says content_type base64, and its value 1 is none: ") as refused:
        read(encoded("YQ==", data), TEXT)

    assert refused.value.status == 400
    assert "Send base64 without a prefix and line breaks, or leave content_type out." in str(refused.value)


def test_numbers_have_no_base64() -> None:
    with pytest.raises(BadValue, match="Input x is of datatype FP32; content_type base64 is for BYTES"):
        read(encoded("YQ==", datatype="FP32"), [tensor("x", "float32", -1)])
