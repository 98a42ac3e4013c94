"""Model inputs: rows as a user has them, as arrays in a model's order, with the names that figures show.

Owns the reading of arrays, frames, dictionaries and lists, and the check against the model's own shapes. Nothing here predicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.explain.model_structure import input_structure
from aiaas_magics.explain.players import is_text


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelRows:
    """Rows in a model's order.

    Args:
        arrays: one of shape (rows, *input shape) per input.
        inputs: the names of the inputs.
        columns: per input the names of its columns or channels; empty where there are none.
    """

    arrays: list[np.ndarray]
    inputs: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]


def model_rows(model: Any, rows: Any, *, columns: Sequence[str] = ()) -> ModelRows:
    """Rows for `model`, which need not be a Keras model.

    Raises:
        DataMismatch: rows that are no arrays of numbers or texts, or of another shape than the model takes.
    """
    specs = list(getattr(model, "inputs", None) or ())
    named = _named_parts(model, rows, specs)
    arrays = [
        _fitting(_array_of(value, name), specs[place] if place < len(specs) else None, name) for place, (name, value) in enumerate(named)
    ]
    if specs and len(arrays) != len(specs):
        raise DataMismatch(f"The model takes {len(specs)} inputs and the rows have {len(arrays)}. Give one array per input.")
    names = []
    for (name, value), array in zip(named, arrays, strict=True):
        own = tuple(columns) if columns and len(named) == 1 else tuple(map(str, getattr(value, "columns", ())))
        names.append(_names_of(array, name, own, several=len(named) > 1))
    return ModelRows(arrays=arrays, inputs=tuple(name for name, _ in named), columns=tuple(names))


def _named_parts(model: Any, rows: Any, specs: Sequence[Any]) -> list[tuple[str, Any]]:
    """Each input's name and rows, in the model's order."""
    spec_names = [str(spec.name) for spec in specs]
    if isinstance(rows, Mapping):
        structure = input_structure(model)
        order = sorted(structure) if isinstance(structure, dict) else spec_names or list(rows)
        if missing := [name for name in order if name not in rows]:
            raise DataMismatch(f"The rows have no input {missing[0]!r}, they have {', '.join(map(repr, rows))}. Give one array per input.")
        return [(name, rows[name]) for name in order]
    if (
        isinstance(rows, (list, tuple))
        and len(specs) != 1
        and rows
        and hasattr(rows[0], "__len__")
        and not isinstance(rows[0], (str, bytes))
    ):
        names = spec_names if len(spec_names) == len(rows) else [f"input {place}" for place in range(len(rows))]
        return list(zip(names, rows, strict=True))
    return [(spec_names[0] if spec_names else "x", rows)]


def _array_of(value: Any, name: str) -> np.ndarray:
    array = np.asarray(value.numpy() if hasattr(value, "numpy") and not hasattr(value, "to_numpy") else value)
    if array.dtype.kind == "O":
        kinds = {type(item) for item in array.ravel()}
        if kinds <= {str, bytes}:
            return array
        try:
            array = array.astype(np.float32)
        except (TypeError, ValueError):
            odd = next(item for item in array.ravel() if not isinstance(item, (int, float, bool, np.number)))
            raise DataMismatch(f"{name} holds {odd!r} among other kinds. Convert it to numbers, as for model.predict.") from None
    if array.dtype.kind not in "fiubSU":
        raise DataMismatch(f"{name} is of type {array.dtype}. Convert it to numbers, as for model.predict.")
    return array.astype(object) if array.dtype.kind in "SU" else array


def _fitting(array: np.ndarray, spec: Any, name: str) -> np.ndarray:
    """`array` in the rank that the model takes."""
    if spec is None:
        if not array.ndim:
            raise DataMismatch(f"{name} is a single value. Give a batch of rows, as in x_test[:1].")
        return array
    shape = tuple(spec.shape)
    if array.ndim + 1 == len(shape) and shape[-1] == 1 and array.ndim:
        array = array[..., None]
    fits = array.ndim == len(shape) and all(size is None or size == edge for size, edge in zip(shape[1:], array.shape[1:], strict=True))
    if not fits:
        hint = " Give a batch of rows, as in x_test[:1]." if array.ndim + 1 == len(shape) else " Give rows as for model.predict."
        raise DataMismatch(f"{name} has shape {array.shape} and the model takes {shape}.{hint}")
    return array


def _names_of(array: np.ndarray, name: str, own: tuple[str, ...], *, several: bool) -> tuple[str, ...]:
    """Names of columns (rank 1) or channels (series)."""
    if is_text(array):
        return ()
    width = array.shape[-1] if array.ndim > 1 else 1
    if own and len(own) != width:
        raise DataMismatch(f"{name} has {width} columns and there are {len(own)} names. Give one name per column.")
    if own:
        return own
    if several and width == 1:
        return (name,)
    return tuple(f"{name}[{place}]" if several else f"x{place}" for place in range(width))
