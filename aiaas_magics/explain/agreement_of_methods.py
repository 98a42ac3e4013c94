"""Agreement of methods: whether two explanations of the same rows rank the parts of a row alike.

Owns the rank correlation. It is no proof of either: two methods can be wrong together.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.core.explain_settings import METHODS
from aiaas_magics.explain.attributions import Attributions

ROUNDING: Final = 1e-6  # of a row's largest: float32 has seven digits


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, the mean rank where values are equal.

    >>> ranks(np.array([5.0, 1.0, 5.0])).tolist()
    [1.5, 0.0, 1.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return np.asarray((last - (counts - 1) / 2)[inverse])


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation, -1 to 1; NaN where one side ranks nothing.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    both_ranked = np.isfinite(first) & np.isfinite(second)
    left, right = ranks(first[both_ranked]), ranks(second[both_ranked])
    left, right = left - left.mean() if left.size else left, right - right.mean() if right.size else right
    size = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum() / size) if size > 0 else float("nan")


def row_agreements(first: Attributions, second: Attributions) -> np.ndarray:
    """float64 (rows,): the rank correlation of each row's attributions; of their sizes where a method has no sign.

    Raises:
        DataMismatch: explanations of other rows or inputs.
    """
    shapes = [values.shape for values in first.values], [values.shape for values in second.values]
    if shapes[0] != shapes[1]:
        raise DataMismatch(f"The explanations have shapes {shapes[0]} and {shapes[1]}. Give two explanations of the same rows.")
    signed = METHODS[first.method].signed and METHODS[second.method].signed
    left, right = without_rounding(flat_rows(first)), without_rounding(flat_rows(second))
    if not signed:
        left, right = np.abs(left), np.abs(right)
    return np.array([rank_correlation(one_row, other_row) for one_row, other_row in zip(left, right, strict=True)])


def without_rounding(rows: np.ndarray) -> np.ndarray:
    """`rows` with 0 for what is rounding beside the largest entry of its row, so that nothing is ranked by it."""
    largest = np.nanmax(np.abs(rows), axis=1, keepdims=True, initial=0.0)
    return np.where(np.abs(rows) <= ROUNDING * largest, 0.0, rows)


def flat_rows(attributions: Attributions) -> np.ndarray:
    """float64 (rows, entries of all inputs)."""
    return np.concatenate([values.reshape(len(values), -1).astype(np.float64) for values in attributions.values], axis=1)


def mean_agreement(agreements: np.ndarray) -> float:
    """The mean over the rows that rank something; NaN without one."""
    ranked = agreements[np.isfinite(agreements)]
    return float(ranked.mean()) if ranked.size else float("nan")
