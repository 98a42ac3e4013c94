"""Rows, steps and batches of a fit, as its data say before it runs.

Owns the counting, and a batch's dtypes and shapes as texts. Whether the model takes such a batch is found by `fit_checks`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from aiaas_magics.packing.data import batch_sources, fit_data

BATCH: Final = 32  # Keras' own
BatchSpec = tuple[Any, Any, Any]


def training_rows(arguments: Mapping[str, Any]) -> int:
    """Rows that are trained on; Keras rounds a validation split this way."""
    if isinstance(arguments.get("x"), batch_sources.BatchSource):
        return 0  # nobody knows before they have come
    rows = max(len(array) for _, array in fit_data.leaves(arguments.get("x"), "x"))
    split = arguments.get("validation_split") or 0.0
    if split and arguments.get("validation_data") is None:
        return math.floor(rows * (1.0 - split))
    return rows


def batch_spec(arguments: Mapping[str, Any]) -> BatchSpec:
    """x, y and weights of the first batch: the same structures, with "float32:16,6" in place of each array."""
    import keras

    if isinstance(arguments.get("x"), batch_sources.BatchSource):
        return _spec_of_source(arguments["x"], weighted=arguments.get("class_weight") is not None)
    rows = min(shape_rows(arguments), training_rows(arguments))

    def spec(array: np.ndarray) -> str:
        kind = array.dtype.kind
        if kind in "OSU":
            dtype = "string"
        elif kind == "f" or array.dtype.isbuiltin == 2:
            dtype = keras.config.floatx()
        else:
            dtype = keras.backend.standardize_dtype(array.dtype)
        return f"{dtype}:" + ",".join(map(str, (rows, *array.shape[1:])))

    x, y, sample_weight = (fit_data.map_leaves(spec, arguments.get(part)) for part in fit_data.PARTS)
    if arguments.get("class_weight") is not None:
        sample_weight = f"{keras.config.floatx()}:{rows}"
    return x, y, sample_weight


def _spec_of_source(source: batch_sources.BatchSource, *, weighted: bool) -> BatchSpec:
    import keras
    import tensorflow as tf

    def spec(leaf: Any) -> str | None:
        if isinstance(leaf, tf.OptionalSpec):
            return None
        return f"{leaf.dtype.name}:" + ",".join(map(str, (leaf.shape[0] or source.batch_rows or BATCH, *leaf.shape[1:])))

    leaves = tf.nest.map_structure(spec, source.spec)
    x, y, sample_weight = (*leaves, None, None)[:3] if isinstance(leaves, tuple) else (leaves, None, None)
    if weighted and y is not None:
        sample_weight = f"{keras.config.floatx()}:{y.partition(':')[2].partition(',')[0]}"
    return x, y, sample_weight


def symbols(batch: BatchSpec) -> tuple[Any, Any, Any]:
    """Symbolic tensors as `batch` tells."""
    import keras

    def symbol(spec: str | None) -> Any:
        if spec is None:
            return None
        dtype, _, shape = spec.partition(":")
        return keras.KerasTensor(tuple(None if n == "None" else int(n) for n in shape.split(",") if n), dtype=dtype)

    x, y, sample_weight = keras.tree.map_structure(symbol, tuple(batch), none_is_leaf=False)
    return x, y, sample_weight


def shape_rows(arguments: Mapping[str, Any]) -> int:
    """Rows of a full batch of arrays."""
    steps = arguments.get("steps_per_epoch")
    return int(arguments.get("batch_size") or (math.ceil(training_rows(arguments) / steps) if steps else BATCH))
