"""Fit data: which kinds of data travel, and as which arrays.

Owns turning tensors, pandas objects and array-likes into numpy arrays by Keras' own rules,
and the counting of rows. Whether they fit the model is found by `fit_checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from aiaas_magics.core.errors import CannotTravel, DataMismatch
from aiaas_magics.packing.data import batch_sources
from aiaas_magics.packing.live.probing import has

ARRAYS: Final = "Give numpy arrays, tensors or pandas objects."
PARTS: Final = ("x", "y", "sample_weight")


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` of `fit` with numpy arrays in place of all other kinds of data; what yields batches stays as it is.

    Raises:
        CannotTravel: kinds of data that do not travel, by name.
        DataMismatch: what is no array at all.
    """
    plain = dict(arguments)
    for part in PARTS:
        if plain.get(part) is not None and not (part == "x" and batch_sources.is_source(plain["x"])):
            plain[part] = mapped(plain[part], part)
    validation = plain.get("validation_data")
    if validation is not None and not batch_sources.is_source(validation):
        if not isinstance(validation, (tuple, list)) or not 1 <= len(validation) <= 3:
            _refuse_sources(validation, "validation_data")
            raise DataMismatch("validation_data is not (x_val, y_val) or (x_val, y_val, weights). Give a tuple of arrays.")
        plain["validation_data"] = tuple(mapped(item, f"validation_data[{index}]") for index, item in enumerate(validation))
    return plain


def mapped(value: Any, path: str) -> Any:
    """`value`, a structure of arrays, with each leaf as a numpy array."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {key: mapped(item, f"{path}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, (int, float, bool, str)) for item in value):
            raise DataMismatch(f"{path} is a {type(value).__name__} of numbers, which Keras does not take. Use numpy.array({path}).")
        if value and all(isinstance(item, (list, tuple)) and item and isinstance(item[0], (int, float)) for item in value):
            raise DataMismatch(f"{path} is a {type(value).__name__} of rows, which Keras does not take. Use numpy.array({path}).")
        items = [mapped(item, f"{path}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return as_array(value, path)


def as_array(value: Any, path: str) -> np.ndarray:
    """One array-like as numpy. An array stays the very same object, so that its bytes are known by it."""
    import keras
    import tensorflow as tf

    if isinstance(value, np.ndarray):
        return _checked_texts(value, path)
    _refuse_sources(value, path)
    if isinstance(value, keras.KerasTensor):
        raise DataMismatch(f"{path} is a symbolic tensor, which has no values. {ARRAYS}")
    if isinstance(value, (tf.Tensor, tf.Variable, keras.Variable)):
        return np.asarray(value.numpy())
    pandas_array = _from_pandas(value)
    if pandas_array is not None:
        return _checked_texts(pandas_array, path)
    if has(value, "__array__"):
        return _checked_texts(np.asarray(value), path)
    raise DataMismatch(f"{path} is of type {type(value).__name__}, which is no array. {ARRAYS}")


def leaves(value: Any, path: str) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a structure with their paths."""
    if isinstance(value, np.ndarray):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")


def map_leaves(function: Callable[[np.ndarray], Any], value: Any) -> Any:
    """The same structure with `function` of each array."""
    if isinstance(value, np.ndarray):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_leaves(function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [map_leaves(function, item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def all_leaves(arguments: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for part in (*PARTS, "validation_data"):
        yield from leaves(arguments.get(part), part)


def with_texts_as_tensors(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` as Keras takes them in a worker: numpy knows texts, but Keras takes them only as tensors."""
    import tensorflow as tf

    def as_tensor(array: np.ndarray) -> Any:
        return tf.constant(array.astype(object), dtype=tf.string) if array.dtype.kind in "OSU" else array

    return {name: map_leaves(as_tensor, value) if name in {*PARTS, "validation_data"} else value for name, value in arguments.items()}


def _checked_texts(array: np.ndarray, path: str) -> np.ndarray:
    """An array of Python objects must hold texts only."""
    if array.dtype.kind == "O":
        odd = next((item for item in array.ravel() if not isinstance(item, (str, bytes))), None)
        if odd is not None:
            raise DataMismatch(
                f"{path} holds Python objects (a {type(odd).__name__}, for one), no numbers. Convert it, with .astype('float32') say."
            )
    return array


def _from_pandas(value: Any) -> np.ndarray | None:
    """A DataFrame or Series as Keras takes it: floats in `floatx`, a Series as one column."""
    import keras

    if not str(type(value).__module__).startswith("pandas.") or not has(value, "to_numpy"):
        return None
    array = np.asarray(value.to_numpy())
    if array.dtype.kind == "f" and array.dtype.name != keras.config.floatx():
        array = array.astype(keras.config.floatx())
    return array[:, np.newaxis] if array.ndim == 1 else array


def _refuse_sources(value: Any, path: str) -> None:
    """Refuse by name what yields batches instead of holding rows."""
    import tensorflow as tf

    named = None
    if isinstance(value, tf.distribute.DistributedDataset):
        named, move = "a distributed dataset", "Give the tf.data.Dataset itself, workers cut its batches."
    elif batch_sources.is_source(value):
        named, move = f"a {type(value).__name__}, which yields whole batches", "Give it as x by itself."
    elif isinstance(value, (tf.RaggedTensor, tf.SparseTensor)):
        named, move = f"a {type(value).__name__}", "Make it dense, with .to_tensor() or tf.sparse.to_dense()."
    elif str(type(value).__module__).partition(".")[0] in {"scipy", "grain", "torch"} and not has(value, "__array__"):
        named, move = f"of type {type(value).__module__.partition('.')[0]}.{type(value).__name__}", ARRAYS
    elif has(value, "__next__") or (callable(value) and not has(value, "__array__")):
        named, move = f"an iterator ({type(value).__name__})", ARRAYS
    if named is not None:
        raise CannotTravel(path, named, move)
