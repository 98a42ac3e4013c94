"""TF Serving's value rules, each on a real server: which JSON value may stand for which dtype."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest

from tests.backend.serving.support.serving_rig import Rig

ACCEPTED: list[tuple[str, str, str]] = [
    # model, one row as JSON text, the row in the answer
    ("echo-float32", "[0.1, 1]", "[0.1,1.0]"),
    ("echo-float32", "[NaN, Infinity]", "[NaN,Infinity]"),
    ("echo-float32", "[-Infinity, 1e-7]", "[-Infinity,1e-7]"),
    ("echo-float64", "[0.1, 16777217]", "[0.1,16777217.0]"),
    ("echo-int8", "[-128, 127]", "[-128,127]"),
    ("echo-int32", "[1, -2147483648]", "[1,-2147483648]"),
    ("echo-int64", "[9223372036854775807, 0]", "[9223372036854775807,0]"),
    ("echo-uint8", "[0, 255]", "[0,255]"),
    ("echo-bool", "[true, false]", "[true,false]"),
    ("echo-string", '["a", "ä€"]', '["a","ä€"]'),
    ("echo-string", '[{"b64": "aGk="}, "x"]', '["hi","x"]'),
    ("echo-string", '["", "{}"]', '["","{}"]'),
]

REFUSED: list[tuple[str, str, int, str]] = [
    # model, one row as JSON text, status, what the error says
    ("echo-float32", '["1.0", 1]', 400, "Type: String is not of expected type: float"),
    ("echo-float32", "[true, 1.0]", 400, "JSON Value: true Type: Boolean is not of expected type: float"),
    ("echo-float32", "[null, 1.0]", 400, "is not of expected type: float"),
    ("echo-float32", "[1e39, 1.0]", 400, "is not of expected type: float"),
    ("echo-float64", "[1e999, 1.0]", 400, "JSON Parse error"),
    ("echo-float32", '[{"b64": "aGk="}, 1.0]', 400, "Type: Object is not of expected type: float"),
    ("echo-int32", "[1.0, 2]", 400, "JSON Value: 1.0 Type: Number is not of expected type: int32"),
    ("echo-int32", "[true, 2]", 400, "is not of expected type: int32"),
    ("echo-int32", "[2147483648, 2]", 400, "JSON Value: 2147483648 Type: Number is not of expected type: int32"),
    ("echo-int64", "[9223372036854775808, 2]", 400, "is not of expected type: int64"),
    ("echo-uint8", "[-1, 2]", 400, "is not of expected type: uint8"),
    ("echo-int8", "[128, 2]", 400, "is not of expected type: int8"),
    ("echo-bool", "[0, 1]", 400, "is not of expected type: bool"),
    ("echo-bool", '["true", true]', 400, "is not of expected type: bool"),
    ("echo-string", "[1, 2]", 400, "is not of expected type: string"),
    ("echo-string", '[{"b64": "aGk=", "more": 1}, "x"]', 400, "Type: Object is not of expected type: string"),
    ("echo-string", '[{"b64": "not base64!"}, "x"]', 400, "Unable to base64 decode"),
    ("echo-string", '[{"b64": 7}, "x"]', 400, "is not of expected type: string"),
    ("echo-string", '["\\ud800", "x"]', 400, ""),
    ("echo-string", '[{"b64": "/w=="}, "x"]', 400, "a string is not UTF-8"),
    ("echo-float16", "[1.0, 2.0]", 501, "float16, which has no form in JSON"),
    ("echo-float32", "[1.0]", 400, "has the shape (any, 2); the request holds (1, 1)"),
    ("echo-float32", "[1.0, 2.0, 3.0]", 400, "has the shape (any, 2); the request holds (1, 3)"),
    ("echo-float32", "[[1.0, 2.0]]", 400, "nested deeper"),
    ("echo-float32", "1.0", 400, "has the shape (any, 2); the request holds (1)"),
    ("echo-float32", "1.0, 2.0", 400, "the request holds (2). One row is a list in a list"),
    ("echo-float32", "[]", 400, "has the shape (any, 2); the request holds (1, 0)"),
    ("echo-float32", '{"wrong": [1.0, 2.0]}', 400, "must equal x"),
]


@pytest.mark.parametrize(("model", "row", "back"), ACCEPTED)
def test_a_value_of_its_type_comes_back_in_both_formats(shared: Rig, model: str, row: str, back: str) -> None:
    rows = shared.predict(model, f'{{"instances": [{row}, {row}]}}'.encode())
    columns = shared.predict(model, f'{{"inputs": {{"x": [{row}]}}}}'.encode())

    assert (rows.status, columns.status) == (200, 200), (rows.body, columns.body)
    assert rows.body.decode() == f'{{"predictions":[{back},{back}]}}'
    assert columns.body.decode() == f'{{"outputs":[{back}]}}'
    assert rows.headers["content-type"] == "application/json"


@pytest.mark.parametrize(("model", "row", "status", "text"), REFUSED)
def test_a_value_of_another_type_is_refused_with_its_reason(shared: Rig, model: str, row: str, status: int, text: str) -> None:
    answer = shared.predict(model, f'{{"instances": [{row}]}}'.encode())

    assert answer.status == status, answer.body
    assert text in answer.error
    assert shared.predict("plus", {"instances": [[1.0]]}).document == {"predictions": [[2.0]]}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"  \n", "JSON Parse error: The document is empty"),
        (b"{", "JSON Parse error"),
        (b"not json", "JSON Parse error"),
        (b"\xff\xfe", "JSON Parse error"),
        (b'{"instances": [[1.0]', "JSON Parse error"),
        (b"[1, 2]", "expected a JSON object"),
        (b'"text"', "expected a JSON object"),
        (b"null", "expected a JSON object"),
        (b"{}", "Missing 'inputs' or 'instances' key"),
        (b'{"instances": [[1.0]], "inputs": [[1.0]]}', "only one of"),
        (b'{"instances": []}', "holds no row"),
        (b'{"instances": {"x": [1.0]}}', "is not a list"),
        (b'{"instances": 1.0}', "is not a list"),
        (b'{"instances": [[1.0]], "signature_name": 7}', "must be a string"),
        (b'{"instances": [[1.0]], "signature_name": "other"}', 'Serving signature name: "other" not found in signature def'),
        (b'{"instances": [[1.0], [1.0, 2.0]]}', "lists of different lengths"),
        (b'{"instances": [[1.0], 2.0]}', "lists and values side by side"),
        (b'{"instances": [2.0, [1.0]]}', "has the shape"),
        (b'{"instances": [{"x": [1.0]}, [1.0]]}', "Failed to process element: 1"),
        (b'{"instances": [{"x": [1.0], "z": 1}]}', "must equal x"),
        (b'{"inputs": {"z": [[1.0]]}}', "Missing named input: x in 'inputs' object."),
        (b'{"inputs": []}', "has the shape"),
        (b'{"inputs": [[]]}', "has the shape"),
        (b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON Parse error"),
        (b'{"instances": ' + b"[" * 500 + b"]" * 500 + b"}", "nested deeper"),
        (b'{"instances": [[' + b"9" * 1_000_000 + b"]]}", ""),
        (b'{"a":' * 2000 + b"1" + b"}" * 2000, "JSON Parse error"),
    ],
)
def test_a_body_that_is_no_predict_request_is_400_with_a_sentence(shared: Rig, body: bytes, text: str) -> None:
    answer = shared.predict("plus", body)

    assert answer.status == 400
    assert text in answer.error
    assert len(answer.error) < 500
    assert shared.predict("plus", {"instances": [[1.0]]}).status == 200


@pytest.mark.parametrize(
    "document",
    [
        {"instances": [[1.0], [2.0]]},
        {"instances": [{"x": [1.0]}, {"x": [2.0]}]},
        {"instances": [[1.0], [2.0]], "signature_name": "serving_default"},
        {"instances": [[1.0], [2.0]], "signature_name": "", "other": None},
    ],
)
def test_rows_may_be_values_or_objects_by_input_name(shared: Rig, document: dict[str, Any]) -> None:
    assert shared.predict("plus", document).document == {"predictions": [[2.0], [3.0]]}


@pytest.mark.parametrize(
    "document", [{"inputs": [[1.0], [2.0]]}, {"inputs": {"x": [[1.0], [2.0]]}}, {"inputs": {"x": [[1.0], [2.0]], "extra": 7}}]
)
def test_columns_may_be_bare_or_by_name_and_extra_names_are_ignored(shared: Rig, document: dict[str, Any]) -> None:
    assert shared.predict("plus", document).document == {"outputs": [[2.0], [3.0]]}


def test_what_follows_the_first_document_is_ignored(shared: Rig) -> None:
    assert shared.predict("plus", b' {"instances": [[1.0]]} trailing {{{').document == {"predictions": [[2.0]]}


def test_several_inputs_and_outputs_travel_by_name(shared: Rig) -> None:
    rows = shared.predict("sums", {"instances": [{"a": [1.5, 2.5], "b": [3, 1]}, {"b": [0, 0], "a": [1, 1]}]})
    columns = shared.predict("sums", {"inputs": {"a": [[1.5, 2.5]], "b": [[3, 1]]}})

    assert rows.document == {
        "predictions": [{"total": [4.5, 3.5], "most": [3.0, 2.5]}, {"total": [1.0, 1.0], "most": [1.0, 1.0]}],
    }
    assert columns.document == {"outputs": {"total": [[4.5, 3.5]], "most": [[3.0, 2.5]]}}


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"instances": [{"a": [1.5, 2.5]}]}, "must equal a, b"),
        ({"instances": [[1.5, 2.5]]}, "Expected an object by input name"),
        ({"inputs": {"a": [[1.5, 2.5]]}}, "Missing named input: b"),
        ({"inputs": [[1.5, 2.5]]}, "to be an object with the keys a, b"),
        ({"instances": [{"a": [1.5, 2.5], "b": [3, 1]}, {"a": [1.5], "b": [3, 1]}]}, "Tensor a: lists of different lengths"),
        ({"instances": [{"a": [1.5, 2.5], "b": [3.0, 1]}]}, "is not of expected type: int32"),
    ],
)
def test_several_inputs_must_all_be_there_and_fit(shared: Rig, document: dict[str, Any], text: str) -> None:
    answer = shared.predict("sums", document)

    assert answer.status == 400
    assert text in answer.error


def test_a_model_of_scalars_takes_a_flat_list(shared: Rig) -> None:
    assert shared.predict("scalar", {"instances": [1.0, 2.5]}).document == {"predictions": [1.0, 2.5]}
    assert shared.predict("scalar", {"inputs": [1.0, 2.5]}).document == {"outputs": [1.0, 2.5]}


@pytest.mark.parametrize(("a", "told"), [(1, "1 row"), (2, "2 rows")])
def test_inputs_of_different_numbers_of_rows_are_refused_and_not_repeated(shared: Rig, a: int, told: str) -> None:
    """The graph itself would add one row to each of three."""
    text = f"Input 'a' has {told} and input 'b' has 3 rows. Give all inputs the same number of rows"
    one, three = [[1.0, 1.0]] * a, [[1, 1], [2, 2], [3, 3]]
    tensors = [
        {"name": "a", "datatype": "FP32", "shape": [a, 2], "data": one},
        {"name": "b", "datatype": "INT32", "shape": [3, 2], "data": three},
    ]

    columns = shared.predict("sums", {"inputs": {"a": one, "b": three}})
    v2 = shared.call("POST", "/v2/models/sums/infer", json.dumps({"inputs": tensors}).encode())

    assert (columns.status, v2.status) == (400, 400)
    assert columns.error == v2.error == text


def test_the_engines_sentence_tells_nothing_of_its_source(shared: Rig) -> None:
    answer = shared.predict("lookup", {"instances": [99]})

    assert answer.status == 400
    assert "out of data bounds" in answer.error
    assert "/" not in answer.error
    assert "::" not in answer.error


def test_an_input_that_the_graph_cannot_compute_is_400_with_the_engines_sentence(shared: Rig) -> None:
    answer = shared.predict("lookup", {"instances": [99]})

    assert answer.status == 400
    assert "cannot compute this input" in answer.error
    assert "99" in answer.error
    assert shared.predict("lookup", {"instances": [1]}).document == {"predictions": [[2.0, 3.0]]}


def test_floats_are_the_shortest_that_are_exact_at_their_width(shared: Rig) -> None:
    values = [0.1, 1.0, 1e-45, 3.4028235e38, 1 / 3, 16777216.0]

    answers = [shared.predict("echo-float32", {"instances": [[value, 0.0]]}).body.decode() for value in values]

    assert [text[len('{"predictions":[[') : text.index(",0.0")] for text in answers] == [
        "0.1", "1.0", "1e-45", "3.4028235e+38", "0.33333334", "16777216.0",
    ]  # fmt: skip


def test_nan_and_infinity_stay_in_their_places(shared: Rig) -> None:
    rows = [[math.nan, 1.0], [math.inf, -math.inf], [2.0, math.nan]]

    answer = shared.predict("echo-float32", json.dumps({"instances": rows}).encode())

    assert answer.body == b'{"predictions":[[NaN,1.0],[Infinity,-Infinity],[2.0,NaN]]}'


def test_strings_of_any_length_and_script_survive(shared: Rig) -> None:
    texts = ["null", "NaN", 'a\nb\t"c"\\', "Ω≈ç√", "x" * 10_000, base64.b64encode(b"plain").decode()]

    for text in texts:
        assert shared.predict("echo-string", {"instances": [[text, ""]]}).document == {"predictions": [[text, ""]]}
