"""Caller rows: a caller's rows as the arrays that an endpoint takes, by Keras' rules and names.

Owns reading what `predict` is called with. How arrays travel belongs to `tensor_protocol`, which inputs there are to the endpoint's view.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from aiaas_magics.client.serving import tensor_protocol
from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.core.spec import TensorSpec


def columns(endpoint: str, x: Any, inputs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """`x`, as Keras' `predict` takes it, by the names under which the inputs are served.

    Args:
        endpoint: its name, for messages.

    Raises:
        DataMismatch: they are not the model's inputs, or not of their shapes or dtypes.
    """
    specs = {spec.name: spec for spec in inputs} | {spec.original: spec for spec in inputs if spec.original}
    if len(inputs) > 1 and hasattr(x, "columns") and hasattr(x, "to_numpy"):  # a DataFrame
        x = {str(column): x[column] for column in x.columns}
    if isinstance(x, Mapping):
        named = dict(_paths(x))
    elif isinstance(x, (list, tuple)) and len(inputs) > 1:
        leaves = [leaf for _, leaf in _paths(x)] if len(x) != len(inputs) else x
        named = dict(zip([spec.name for spec in inputs], leaves, strict=False))
        if len(leaves) != len(inputs):
            raise DataMismatch(f"{endpoint} takes the inputs {_names(inputs)}; {len(leaves)} arrays were given. Give one for each.")
    else:
        named = {inputs[0].name: _unwrapped(x, inputs[0])}
    served = {specs[name].name: leaf for name, leaf in named.items() if name in specs}
    if len(served) != len(inputs) or len(named) != len(inputs):
        raise DataMismatch(f"{endpoint} takes the inputs {_names(inputs)}, not {sorted(named)}. Give a dict with exactly these names.")
    return {spec.name: _fitted(served[spec.name], spec) for spec in inputs}


def is_named(x: Any, inputs: Sequence[TensorSpec]) -> bool:
    """Whether `x` is a dict by exactly the names of the inputs."""
    return isinstance(x, Mapping) and (set(x) == {spec.name for spec in inputs} or set(x) == set(_names(inputs)))


def in_keras_names(answers: Mapping[str, np.ndarray], outputs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """Answers under the names that the model's own `predict` gives them."""
    return {spec.original or spec.name: answers[spec.name] for spec in outputs}


def _names(inputs: Sequence[TensorSpec]) -> list[str]:
    return [spec.original or spec.name for spec in inputs]


def _paths(x: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts and lists, each with the joined name under which it is served: {"a": {"b": ...}} gives "a_b"."""
    if isinstance(x, Mapping):
        for key, value in x.items():
            yield from _paths(value, (*path, str(key)))
    elif isinstance(x, (list, tuple)) and x and not _is_numbers(x):
        for place, value in enumerate(x):
            yield from _paths(value, (*path, str(place)))
    else:
        yield "_".join(path), x


def _is_numbers(x: Sequence[Any]) -> bool:
    """Whether a list holds rows rather than arrays."""
    first = x[0]
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    return np.ndim(first) == 0


def _unwrapped(x: Any, spec: TensorSpec) -> Any:
    """Keras takes a list of one array for a model of one input."""
    if isinstance(x, (list, tuple)) and len(x) == 1 and not _is_numbers(x) and np.ndim(x[0]) >= len(spec.shape):
        return x[0]
    return x


def _fitted(values: Any, spec: TensorSpec) -> np.ndarray:
    label = f"Input {(spec.original or spec.name)!r}"
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataMismatch(f"{label} has rows of different lengths. Pad them, with keras.utils.pad_sequences say.") from error
    array = _in_dtype(array, spec, label)
    if array.ndim == len(spec.shape) - 1 and spec.shape[-1] == 1:
        array = array[..., np.newaxis]
    elif array.ndim == len(spec.shape) + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    dimensions = ", ".join(spec.dimensions)
    if array.ndim != len(spec.shape) or any(n not in (-1, size) for n, size in zip(spec.shape[1:], array.shape[1:], strict=False)):
        raise DataMismatch(f"{label} has the shape ({dimensions}); {array.shape} was given. Give whole rows, the batch first.")
    return array


def _in_dtype(array: np.ndarray, spec: TensorSpec, label: str) -> np.ndarray:
    if spec.dtype == "string":
        return array.astype(object) if array.dtype.kind in "OS" else array.astype(str).astype(object)
    dtype = tensor_protocol.dtype_of(spec.dtype)
    try:
        if array.dtype.kind in "OV":
            array = np.asarray(array.tolist())
        if array.dtype.kind == "f" and dtype.kind in "iu" and bool((array == np.trunc(array)).all()):
            return array.astype(dtype)  # whole numbers, which Keras takes as indices
        return array.astype(dtype, casting="same_kind")
    except (TypeError, ValueError) as error:
        move = f"Convert it with .astype({spec.dtype!r})."
        if array.dtype.kind in "SU":
            raise DataMismatch(
                f"{label} takes numbers ({spec.dtype}); texts were given. Give what the model's preprocessing makes of them."
            ) from error
        raise DataMismatch(f"{label} is of dtype {spec.dtype}; {array.dtype} was given. {move}") from error
