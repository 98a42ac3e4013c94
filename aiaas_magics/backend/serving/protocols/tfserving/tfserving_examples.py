"""Examples: TensorFlow Serving's classify and regress, examples in, labels with scores or numbers out.

Owns the form of examples, and what the output of a Keras model says as a classification or a
regression. Routes belong to `tfserving_rest`, values to `tfserving_json`.

TensorFlow Serving wants a signature of that method, which a Keras export does not have. Here
one output decides: a regression is one number a row; a classification is one score a class,
labelled with the class's index. An output of one number a row, as behind a sigmoid, is the
probability of class "1" of two: what TensorFlow's own binary heads exported.

Sources: util/json_tensor.cc, servables/tensorflow/classifier.cc and regressor.cc of
https://github.com/tensorflow/serving. Its documentation says "result"; its code says "results".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
import numpy as np

from aiaas_magics.backend.serving.protocols import BadValue, Response
from aiaas_magics.backend.serving.protocols.tfserving import tfserving_json
from aiaas_magics.core.spec import DeploySpec, TensorSpec

Method = Literal["classify", "regress"]
METHODS: Final[Mapping[str, Method]] = {"classify": "classify", "regress": "regress"}
KINDS: Final[Mapping[Method, str]] = {"classify": "classification", "regress": "regression"}


class ExamplesCall(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded classify or regress request."""

    method: Method
    tensors: Mapping[str, np.ndarray]
    rows: int | None
    timeout_s: float = math.inf
    id: str | None = None  # this protocol has none

    def response(self, outputs: Mapping[str, np.ndarray]) -> Response:
        ((name, output),) = outputs.items()
        if len(output) != self.rows:
            raise BadValue(f"Expected output batch size of {self.rows}. Got: {len(output)}")
        if self.method == "regress":
            return Response(200, b'{"results":' + tfserving_json.json_of(name, output.reshape(-1)) + b"}")
        return Response(200, b'{"results":' + classified(name, output) + b"}")


def read_examples(body: bytes, spec: DeploySpec, method: Method) -> ExamplesCall:
    """The tensors of the examples in `body`.

    Raises:
        BadValue: with TF Serving's status code and, where it has one, its sentence.
    """
    check_output(spec, method)
    document = tfserving_json.parse(body)
    if type(document) is not dict:
        raise BadValue(f"Malformed request: expected a JSON object, got {tfserving_json.shown(document)}")
    tfserving_json.check_signature(document.get("signature_name", ""))
    if "examples" not in document:
        raise BadValue(f"When method is {method}, key 'examples' is expected and was not found")
    examples, context = document["examples"], document.get("context", {})
    if type(examples) is not list:
        raise BadValue("Expecting 'examples' value to be an list/array")
    if not examples:
        raise BadValue("'examples' value is an empty array")
    for example in (context, *examples):
        if type(example) is not dict:
            raise BadValue(f"Example must be JSON object but got JSON {tfserving_json.json_type(example)}")
    tensors = {tensor.name: _feature([{**context, **example} for example in examples], tensor) for tensor in spec.inputs}
    return ExamplesCall(method=method, tensors=tensors, rows=len(examples))


def check_output(spec: DeploySpec, method: Method) -> None:
    """Raises `BadValue` where the model's outputs say nothing of this kind."""
    if not kind_fits(spec, method):
        raise BadValue(
            f"Expected {KINDS[method]} signature method_name to be tensorflow/serving/{method}. "
            "Was: tensorflow/serving/predict. Use :predict instead."
        )


def kind_fits(spec: DeploySpec, method: Method) -> bool:
    """Whether the model has one output, of one float a row for a regression, of one or several for a classification."""
    if len(spec.outputs) != 1 or spec.outputs[0].dtype not in ("float16", "float32", "float64"):
        return False
    shape = spec.outputs[0].shape
    return len(shape) == 2 if method == "classify" else len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)


def classified(name: str, output: np.ndarray) -> bytes:
    """For each row, a list of label and score for each class."""
    scores = scores_of(output)
    labels = [f'["{label}",'.encode() for label in range(scores.shape[1])]
    values = tfserving_json.json_of(name, scores.reshape(-1))[1:-1].split(b",")
    rows = (values[at : at + len(labels)] for at in range(0, len(values), len(labels)))
    return b"[" + b",".join(b"[" + b",".join(map(_pair, labels, row)) + b"]" for row in rows) + b"]"


def scores_of(output: np.ndarray) -> np.ndarray:
    """One score a class in each row, also where the output is the probability of one of two."""
    if output.shape[1] > 1:
        return output
    if not ((output >= 0) & (output <= 1)).all():
        raise BadValue("The model's output is no probability, which a classification by one number needs. Use :regress instead.")
    return np.concatenate([1 - output, output], axis=1)


def _pair(label: bytes, score: bytes) -> bytes:
    return label + score + b"]"


def _feature(examples: Sequence[Mapping[str, Any]], spec: TensorSpec) -> np.ndarray:
    """One feature of all examples: each holds the values of its row as one flat list, or as a bare value for one."""
    if spec.dtype in tfserving_json.NO_JSON_FORM:
        raise BadValue(f"Feature {spec.name} is of type {spec.dtype}, which has no form in JSON", 501)
    size = row_size(spec)
    flat: list[Any] = []
    for index, example in enumerate(examples):
        if spec.name not in example:
            raise BadValue(f"Example {index}: Feature: {spec.name} (data type: {spec.dtype}) is required but could not be found.")
        value = example[spec.name]
        values = value if type(value) is list else [value]
        nested = next((value for value in values if type(value) is list), None)
        if nested is not None:
            raise BadValue(f"Feature: {spec.name} has element with unexpected JSON type: Array. Give the values of a row as one flat list.")
        size = size or len(values)
        if len(values) != size or not values:
            raise BadValue(f"Example {index}: Feature: {spec.name} has {len(values)} values; {size} are expected")
        flat += values
    row = [-1 if width < 0 else width for width in spec.shape[1:]]
    if spec.dtype == "string":
        return tfserving_json.strings(flat).reshape(len(examples), *row)
    if np.dtype(spec.dtype).kind in "iu":
        flat = [int(value) if type(value) is bool else value for value in flat]
    tfserving_json.check_types(flat, spec)
    return tfserving_json.numbers(flat, spec).reshape(len(examples), *row)


def row_size(spec: TensorSpec) -> int | None:
    """How many values a row has; None where the examples decide, all alike."""
    free = [width for width in spec.shape[1:] if width < 0]
    if len(free) > 1:
        raise BadValue(
            f"Feature {spec.name} has rows of the shape {tfserving_json.dims(spec.shape[1:])}, "
            "and a flat list does not say how to fill it. Use :predict."
        )
    return None if free else math.prod(spec.shape[1:])
