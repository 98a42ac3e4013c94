"""Recorded arrays: arrays to recorded tensors and back.

Owns the bytes of an array in a frame: numbers as they lie in memory, in C order; texts as UTF-8 with their lengths.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aiaas_magics.core.recording import RecordedTensor

TEXT = "string"


def tensor_of(name: str, array: np.ndarray) -> RecordedTensor:
    """
    >>> array_of(tensor_of("x", np.array([["a", ""]], object)))
    array([['a', '']], dtype=object)
    """
    array = np.asarray(array)
    if array.dtype.kind in "OSU":
        texts = [text if isinstance(text, bytes) else str(text).encode() for text in array.ravel().tolist()]
        return RecordedTensor(name, TEXT, array.shape, b"".join(texts), tuple(map(len, texts)))
    return RecordedTensor(name, array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes())


def array_of(tensor: RecordedTensor) -> np.ndarray:
    """The array of a recorded tensor, which may be written to; texts as `str`.

    Raises:
        ValueError: its bytes are not those of its shape.
    """
    if tensor.dtype != TEXT:
        return np.frombuffer(bytearray(tensor.data), _dtype(tensor.dtype)).reshape(tensor.shape)
    texts, place = np.empty(len(tensor.lengths), object), 0
    for index, length in enumerate(tensor.lengths):
        texts[index] = tensor.data[place : place + length].decode("utf-8", "replace")
        place += length
    return texts.reshape(tensor.shape)


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)
