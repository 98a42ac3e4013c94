"""TF Serving's classify and regress: what an example is, what the outputs of a Keras model say as labels and numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas_magics.backend.serving.protocols import BadValue
from aiaas_magics.backend.serving.protocols.tfserving.tfserving_examples import Method, read_examples
from aiaas_magics.core.spec import DeploySpec, TensorSpec
from tests.backend.serving.support.serving_models import Made, spec_of, tensor
from tests.backend.serving.support.serving_rig import Rig


def model(*inputs: TensorSpec, output: TensorSpec | None = None) -> DeploySpec:
    return spec_of("m", list(inputs), [output or tensor("y", "float32", -1, 3)])


NUMBER = tensor("y", "float32", -1, 1)
ROW = tensor("x", "float32", -1, 2)
TEXT = tensor("t", "string", -1, 1)


def read(document: Any, spec: DeploySpec, method: Method = "classify") -> dict[str, Any]:
    call = read_examples(json.dumps(document).encode(), spec, method)
    assert call.rows == len(document["examples"])
    return {name: array.tolist() for name, array in call.tensors.items()}


def test_the_articles_model_is_a_classifier_and_a_regressor(rig: Rig, article: Made) -> None:
    rig.load(article)
    rows = np.random.default_rng(3).normal(size=(2, 100)).astype("float32").tolist()
    predicted = rig.predict("article", {"instances": rows}).document["predictions"]
    body = json.dumps({"examples": [{"x": row} for row in rows]}).encode()

    classes = rig.call("POST", "/v1/models/article:classify", body).document
    numbers = rig.call("POST", "/v1/models/article/versions/1:regress", body).document

    assert numbers == {"results": [value for (value,) in predicted]}
    assert classes == {"results": [[["0", pytest.approx(1 - value)], ["1", value]] for (value,) in predicted]}


@pytest.mark.parametrize(
    ("inputs", "document", "tensors"),
    [
        ([ROW], {"examples": [{"x": [1.5, 2]}, {"x": [3, 4.5]}]}, {"x": [[1.5, 2.0], [3.0, 4.5]]}),
        ([ROW], {"examples": [{"x": [1, 2], "other": "ignored"}], "signature_name": "serving_default"}, {"x": [[1.0, 2.0]]}),
        ([tensor("x", "float32", -1)], {"examples": [{"x": 1}, {"x": [2]}]}, {"x": [1.0, 2.0]}),
        ([tensor("x", "int32", -1, 2, 2)], {"examples": [{"x": [1, 2, 3, True]}]}, {"x": [[[1, 2], [3, 1]]]}),
        ([tensor("x", "float32", -1, -1)], {"examples": [{"x": [1, 2, 3]}]}, {"x": [[1.0, 2.0, 3.0]]}),
        ([ROW, TEXT], {"context": {"t": "all"}, "examples": [{"x": [1, 2]}, {"x": [3, 4], "t": {"b64": "b25l"}}]}, {
            "x": [[1.0, 2.0], [3.0, 4.0]], "t": [[b"all"], [b"one"]],
        }),
    ],
)  # fmt: skip
def test_examples_become_the_models_inputs(inputs: list[TensorSpec], document: Any, tensors: Any) -> None:
    assert read(document, model(*inputs)) == tensors


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([], "expected a JSON object"),
        ({}, "key 'examples' is expected and was not found"),
        ({"examples": {}}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": [[1, 2]]}, "Example must be JSON object but got JSON Array"),
        ({"examples": [{"x": [1, 2]}], "context": 7}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{"z": [1, 2]}]}, "Example 0: Feature: x (data type: float32) is required but could not be found."),
        ({"examples": [{"x": [1, 2]}, {"x": [1]}]}, "Example 1: Feature: x has 1 values; 2 are expected"),
        ({"examples": [{"x": []}]}, "has 0 values"),
        ({"examples": [{"x": [[1, 2]]}]}, "has element with unexpected JSON type: Array"),
        ({"examples": [{"x": [None, 2]}]}, "is not of expected type: float"),
        ({"examples": [{"x": ["1", 2]}]}, "is not of expected type: float"),
        ({"examples": [{"x": [1, 2]}], "signature_name": "other"}, "not found in signature def"),
    ],
)
def test_what_is_no_example_is_400_with_a_sentence(document: Any, text: str) -> None:
    with pytest.raises(BadValue) as refused:
        read_examples(json.dumps(document).encode(), model(ROW), "classify")

    assert refused.value.status == 400
    assert text in refused.value.text


@pytest.mark.parametrize(
    ("outputs", "method", "fits"),
    [
        ([tensor("y", "float32", -1, 10)], "classify", True),
        ([tensor("y", "float32", -1, 10)], "regress", False),
        ([NUMBER], "classify", True),
        ([NUMBER], "regress", True),
        ([tensor("y", "float32", -1)], "regress", True),
        ([tensor("y", "float32", -1)], "classify", False),
        ([tensor("y", "float32", -1, 8, 8)], "classify", False),
        ([tensor("y", "string", -1, 1)], "classify", False),
        ([NUMBER, tensor("z", "float32", -1, 1)], "regress", False),
    ],
)
def test_the_only_output_decides_what_a_model_can_answer(outputs: list[TensorSpec], method: Method, fits: bool) -> None:
    spec, body = spec_of("m", [ROW], outputs), b'{"examples": [{"x": [1, 2]}]}'
    if fits:
        assert read_examples(body, spec, method).rows == 1
        return

    with pytest.raises(BadValue, match=f"signature method_name to be tensorflow/serving/{method}. Was: tensorflow/serving/predict"):
        read_examples(body, spec, method)


def test_a_feature_without_a_json_form_is_501() -> None:
    with pytest.raises(BadValue) as refused:
        read_examples(b'{"examples": [{"x": [1.0]}]}', model(tensor("x", "float16", -1, 1)), "classify")

    assert refused.value.status == 501


def test_labels_are_the_classes_indices() -> None:
    call = read_examples(b'{"examples": [{"x": [1, 2]}]}', model(ROW), "classify")

    answer = call.response({"y": np.array([[0.1, 0.7, np.nan]], np.float32)})

    assert answer.body == b'{"results":[[["0",0.1],["1",0.7],["2",NaN]]]}'


def test_a_number_that_is_no_probability_is_no_classification() -> None:
    call = read_examples(b'{"examples": [{"x": [1, 2]}]}', model(ROW, output=NUMBER), "classify")

    with pytest.raises(BadValue, match=r"no probability.*Use :regress"):
        call.response({"y": np.array([[1.5]], np.float32)})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "t", "b64", "z"]), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["examples", "context", "signature_name"]), JSON, max_size=3))
def test_any_document_is_examples_or_refused_with_a_sentence(document: Any) -> None:
    try:
        call = read_examples(json.dumps(document).encode(), model(ROW, TEXT), "regress" if "z" in document else "classify")
    except BadValue as refused:
        said = (refused.status, bool(refused.text), len(refused.text) < 600)
    else:
        assert call.tensors.keys() == {"x", "t"}
        return
    assert said == (400, True, True)
