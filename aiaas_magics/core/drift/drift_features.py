"""Drift features: rows of any shape as columns whose distributions can be compared.

Owns which columns a tensor has: a table its own; an image its brightness, contrast and sharpness; texts their length and the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from aiaas_magics.core.drift.drift_values import Side

MOST_COLUMNS: Final = 64  # guess: of one tensor; wider rows are summed up
COLOURS: Final = (1, 3, 4)


@dataclass(frozen=True, slots=True, eq=False)
class Feature:
    """A column of numbers or of categories (an object array of `str`), one value a row."""

    key: str
    name: str
    side: Side
    values: np.ndarray

    @property
    def is_category(self) -> bool:
        return self.values.dtype.hasobject


def features_of(side: Side, arrays: Mapping[str, np.ndarray], labels: Mapping[str, Sequence[str]] | None = None) -> list[Feature]:
    """The features of rows.

    Args:
        side: whether the arrays are inputs or outputs of a model.
        arrays: by the tensors' names, each of shape `(rows, ...)`.
        labels: names of the columns of a tensor of shape `(rows, columns)`, where they are known.
    """
    features = []
    for tensor, array in arrays.items():
        own = (labels or {}).get(tensor, ())
        for place, (suffix, values) in enumerate(_columns(np.asarray(array), side)):
            label = own[place] if place < len(own) and suffix.startswith("[") else f"{tensor}{suffix}"
            features.append(Feature(f"{side}:{tensor}{suffix}", label, side, values))
    return features


def _columns(array: np.ndarray, side: Side) -> Iterator[tuple[str, np.ndarray]]:
    if array.ndim == 0 or not len(array):
        return
    rows = array.reshape(len(array), -1)
    if array.dtype.kind in "OSU":
        yield from _of_texts(rows)
    elif rows.shape[1] == 1:
        yield "", _numbers(rows[:, 0])
    elif array.ndim == 2 and rows.shape[1] <= MOST_COLUMNS:
        for column in range(rows.shape[1]):
            yield f"[{column}]", _numbers(rows[:, column])
        if side == "output":
            yield " (class)", _as_categories(np.argmax(rows, axis=1))
    else:
        yield from _of_large_rows(array)


def _numbers(values: np.ndarray) -> np.ndarray:
    return _as_categories(values) if values.dtype.kind == "b" else values.astype(np.float64)


def _as_categories(values: np.ndarray) -> np.ndarray:
    return np.array([str(value) for value in values.tolist()], object)


def _of_texts(rows: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    texts = [[text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in row] for row in rows.tolist()]
    yield " (length)", np.array([sum(map(len, row)) for row in texts], np.float64)
    if rows.shape[1] == 1:
        yield "", np.array([row[0][:100] for row in texts], object)


def _of_large_rows(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What a whole row is like: of images the brightness (mean), contrast (standard deviation) and sharpness (mean difference)."""
    values = array.astype(np.float32)
    is_image = array.ndim == 4 and array.shape[-1] in COLOURS
    mean, spread, roughness = ("brightness", "contrast", "sharpness") if is_image else ("mean", "spread", "roughness")
    every = tuple(range(1, values.ndim))
    yield f" ({mean})", values.mean(axis=every, dtype=np.float64)
    yield f" ({spread})", values.std(axis=every, dtype=np.float64)
    along = -2 if array.ndim >= 4 else 1
    if values.shape[along] > 1:
        yield f" ({roughness})", np.abs(np.diff(values, axis=along)).mean(axis=every, dtype=np.float64)
    if is_image and array.shape[-1] > 1:
        for channel in range(array.shape[-1]):
            yield f" (channel {channel})", values[..., channel].mean(axis=(1, 2), dtype=np.float64)
