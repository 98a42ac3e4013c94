"""Example messages: TensorFlow's Examples as tensors, for classify and regress.

Owns which list of a feature holds the values of which type, and that every example has them.
Which models answer such requests belongs to `tfserving_examples`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aiaas_magics.backend.serving.protocols import BadValue
from aiaas_magics.backend.serving.protocols.tfserving import tfserving_json
from aiaas_magics.backend.serving.protocols.tfserving.tfserving_examples import Method, check_output, row_size
from aiaas_magics.core.spec import DeploySpec, TensorSpec


def read_examples(message: Any, spec: DeploySpec, method: Method) -> dict[str, np.ndarray]:
    """The inputs of a model from an Input message.

    Raises:
        BadValue: it does not hold them, or the model's output is nothing of this kind.
    """
    check_output(spec, method)
    kind = message.WhichOneof("kind")
    if kind is None or not getattr(message, kind).examples:
        raise BadValue("Input is empty")
    context = dict(message.example_list_with_context.context.features.feature) if kind == "example_list_with_context" else {}
    examples = [{**context, **example.features.feature} for example in getattr(message, kind).examples]
    return {tensor.name: _feature(examples, tensor) for tensor in spec.inputs}


def _feature(examples: Sequence[dict[str, Any]], spec: TensorSpec) -> np.ndarray:
    kind = "string" if spec.dtype == "string" else np.dtype(spec.dtype).kind
    field = {"string": "bytes_list", "f": "float_list"}.get(kind, "int64_list")
    size = row_size(spec)
    flat: list[Any] = []
    for index, example in enumerate(examples):
        feature = example.get(spec.name)
        if feature is None or feature.WhichOneof("kind") != field:
            raise BadValue(
                f"Example {index}: Feature: {spec.name} (data type: {spec.dtype}) is required in a {field} but could not be found."
            )
        values = list(getattr(feature, field).value)
        size = size or len(values)
        if len(values) != size or not values:
            raise BadValue(f"Example {index}: Feature: {spec.name} has {len(values)} values; {size} are expected")
        flat += values
    row = [-1 if width < 0 else width for width in spec.shape[1:]]
    if spec.dtype == "string":
        strings = np.empty(len(flat), dtype=object)
        strings[:] = flat
        return strings.reshape(len(examples), *row)
    return tfserving_json.numbers(flat, spec).reshape(len(examples), *row)
