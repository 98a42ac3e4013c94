"""The codec alone: what goes out comes back bit for bit, and nothing that comes in can do more than be refused."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aiaas_magics.backend.serving.protocols import BadValue
from aiaas_magics.backend.serving.protocols.tfserving import tfserving_json
from aiaas_magics.backend.serving.protocols.tfserving.tfserving_json import json_of, read_predict, shown, write_predict
from aiaas_magics.core.spec import TensorSpec
from tests.backend.serving.support.serving_models import tensor

DTYPES = ["float32", "float64", "int8", "int32", "int64", "uint8", "bool"]
INTERFACES = [
    [tensor("x", "float32", -1, 2)],
    [tensor("x", "int32", -1)],
    [tensor("x", "string", -1, -1)],
    [tensor("a", "float32", -1, 2), tensor("b", "bool", -1)],
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "a", "b", "b64", "z"]), inner, max_size=3),
    max_leaves=12,
)


def int_range(sign: str, bits: int) -> tuple[int, int]:
    return (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


@given(st.data(), st.sampled_from(DTYPES), st.sampled_from(["row", "column"]))
def test_any_tensor_survives_a_round_trip(data: st.DataObject, dtype: str, layout: Any) -> None:
    array = data.draw(hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)))
    key, answer = ("instances", "predictions") if layout == "row" else ("inputs", "outputs")

    written = write_predict({"x": array}, layout)
    read = read_predict(written.replace(answer.encode(), key.encode(), 1), [tensor("x", dtype, *array.shape)])

    assert same(read.tensors["x"], array)
    assert (read.layout, read.rows) == (layout, len(array))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64", "complex128"])
@pytest.mark.parametrize("body", [b'{"instances": [[1.0, 2.0]]}', b'{"inputs": {"x": [[1.0, 2.0]]}}'])
def test_a_type_without_a_form_in_json_is_not_implemented(dtype: str, body: bytes) -> None:
    with pytest.raises(BadValue, match=f"{dtype}, which has no form in JSON") as refused:
        read_predict(body, [tensor("x", dtype, -1, 2)])

    assert refused.value.status == 501


@pytest.mark.parametrize(("dtype", "least", "most"), [(f"{u}int{n}", *int_range(u, n)) for u in ("", "u") for n in (8, 16, 32, 64)])
def test_a_whole_number_is_taken_up_to_the_ends_of_its_type(dtype: str, least: int, most: int) -> None:
    inputs = [tensor("x", dtype, -1)]

    assert read_predict(json.dumps({"instances": [least, most]}).encode(), inputs).tensors["x"].tolist() == [least, most]
    for wrong in (least - 1, most + 1, 1.0, True, "1", None):
        with pytest.raises(BadValue, match=f"is not of expected type: {dtype}"):
            read_predict(json.dumps({"instances": [0, wrong]}).encode(), inputs)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 4))), hnp.arrays(np.int64, st.tuples(st.integers(1, 3))))
def test_several_outputs_are_rows_of_objects_when_they_agree_in_rows(one: np.ndarray, other: np.ndarray) -> None:
    outputs = {"one": one, "other": other}
    if len(one) != len(other):
        with pytest.raises(BadValue, match="inconsistent batch sizes"):
            write_predict(outputs, "row")
        return

    document = json.loads(write_predict(outputs, "row"))

    for row, found in enumerate(document["predictions"]):
        assert found["other"] == other[row]
        assert same(np.array(found["one"], np.float32), one[row])


@given(st.dictionaries(st.sampled_from(["instances", "inputs", "signature_name", "z"]), JSON, max_size=3), st.sampled_from(INTERFACES))
def test_any_document_is_read_or_refused_with_a_sentence(document: Any, inputs: Any) -> None:
    try:
        call = read_predict(json.dumps(document).encode(), inputs)
    except BadValue as refusal:
        said = (refusal.status, bool(refusal.text), len(refusal.text) < 600)
    else:
        assert call.tensors.keys() == {spec.name for spec in inputs}
        assert all(array.size for array in call.tensors.values())
        return
    assert said == (400, True, True)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with pytest.raises(BadValue):
        read_predict(body, INTERFACES[0])


@given(hnp.arrays(np.float32, st.integers(1, 6), elements=st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.5, -0.0])))
def test_tokens_stand_where_the_values_stood(array: np.ndarray) -> None:
    assert same(np.array(json.loads(json_of("y", array)), np.float32), array)


@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
        elements=st.sampled_from([math.nan, -math.inf, 0.0, 1.5]),
    ).filter(len),
    st.booleans(),
)
def test_rows_cut_from_the_text_of_all_are_those_written_alone(array: np.ndarray, alone: bool) -> None:
    counts = [1] * len(array) if alone else [1, len(array) - 1]
    cut = [array[:1], array[1:]] if not alone else [array[at : at + 1] for at in range(len(array))]

    assert tfserving_json.json_of_each("y", array, counts) == [json_of("y", part) for part in cut]


@pytest.mark.parametrize(
    ("name", "array", "text"),
    [
        ("y", np.array(["a", "b"], dtype=object), b'["a","b"]'),
        ("y", np.array([b"a", "ä".encode()], dtype=object), '["a","ä"]'.encode()),
        ("y_bytes", np.array([b"hi", b"\xff"], dtype=object), b'[{"b64":"aGk="},{"b64":"/w=="}]'),
        ("y", np.array([["null"], ["NaN"]], dtype=object), b'[["null"],["NaN"]]'),
        ("y", np.float32(0.1), b"0.1"),
        ("y", np.float32("nan"), b"NaN"),
        ("y", np.array([0.5, 1], np.float16), b"[0.5,1.0]"),
        ("y", np.zeros((2, 0), np.float32), b"[[],[]]"),
        ("y", np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::2], b"[[0,2],[3,5]]"),
    ],
)
def test_outputs_of_every_kind_have_their_text(name: str, array: Any, text: bytes) -> None:
    assert json_of(name, array) == text


NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(width=32), st.floats(), st.booleans(), st.sampled_from(["1", None, 1e39, -1e39, 3.4028235e38])
)


def plainly_read(body: bytes, inputs: list[TensorSpec]) -> np.ndarray | None:
    reading = tfserving_json.plain_rows(inputs)
    assert reading is not None
    found = reading(body, 0)
    return None if found is None else np.ndarray(found[1:], tfserving_json.plain_dtype(inputs[0]), found[0])


@given(st.lists(st.lists(NUMBERS, max_size=3), max_size=3), st.sampled_from(["float32", "float64"]), st.sampled_from([-1, 1, 2, 3]))
def test_the_quick_reading_of_plain_rows_decides_as_the_other_does(rows: list[list[object]], dtype: str, columns: int) -> None:
    inputs = [tensor("x", dtype, -1, columns)]
    body = json.dumps({"instances": rows}).encode()
    quick = plainly_read(body, inputs)
    if quick is None:
        return

    slow = tfserving_json.read_predict(body, inputs)

    assert (slow.layout, slow.rows) == ("row", len(quick))
    assert quick.dtype == slow.tensors["x"].dtype
    assert np.array_equal(quick, slow.tensors["x"], equal_nan=True)


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": [[true, 1.0]]}',
        b'{"instances": [["1", 1.0]]}',
        b'{"instances": [[1e39, 1.0]]}',
        b'{"instances": [[NaN, 1.0]]}',
        b'{"instances": [[1.0, 2.0], [1.0]]}',
        b'{"instances": [[1.0, 2.0]], "inputs": 1}',
        b'{"instances": [[1.0, 2.0]], "signature_name": "other"}',
        b'{"instances": []}',
        b'{"instances": [[]]}',
        b'{"instances": [[1.0, 2.0]]} and more',
    ],
)
def test_what_is_not_plain_is_left_to_the_rules(body: bytes) -> None:
    assert plainly_read(body, [tensor("x", "float32", -1, 2)]) is None


def test_plain_rows_are_read_quickly() -> None:
    assert plainly_read(b'{"instances": [[1, 2.5], [3, 4]]}', [tensor("x", "float32", -1, 2)]) is not None


def test_what_a_sentence_shows_of_a_value_needs_no_more_of_it() -> None:
    long = [["x" * 60, "y" * 60], object()]

    assert shown(long) == "[" + json.dumps(long[0])[:99] + "..."
    assert shown([1, {"a": None}]) == '[1, {"a": null}]'
    assert shown([object()]) == "Array"
    assert len(shown("z" * 1_000_000)) < 110
