"""Agreement of answers: one rule for whether they come near enough to the expected ones, in the kernel and on the host.

Owns the arithmetic only. How near is near enough belongs to `dtype_policy`, running a model to whoever has one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aiaas_magics.core.precision import Precision


@dataclass(frozen=True, slots=True)
class Agreement:
    """The largest absolute difference, and the row that is furthest beyond what is allowed; None where all rows agree."""

    largest: float
    row: int | None

    def __bool__(self) -> bool:
        return self.row is None


def largest_of(expected: np.ndarray) -> float:
    """The largest finite absolute value."""
    sizes = np.abs(expected.astype(np.float64))
    return float(np.where(np.isfinite(sizes), sizes, 0.0).max(initial=0.0))


def compare(answers: np.ndarray, expected: np.ndarray, allowed: Precision, *, largest: float) -> Agreement:
    """Numbers of the same shape against each other. NaN equals NaN, and infinity its own sign.

    Args:
        largest: the largest value of this output over all samples. Rounding errors are parts of the terms of a sum, not of what
            is left of them: a value near zero among large ones is not known to five digits, in Keras neither.
    """
    computed, reference = answers.astype(np.float64), expected.astype(np.float64)
    apart = _apart(computed, reference)
    sizes = np.abs(np.where(np.isfinite(reference), reference, 0.0))
    excess = apart - (allowed.atol + allowed.rtol * sizes + allowed.of_largest * largest)
    row = None
    if (excess > 0).any():
        row = int(np.unravel_index(int(np.argmax(excess)), excess.shape)[0]) if excess.ndim else 0
    return Agreement(float(apart.max(initial=0.0)), row)


def spread(answers: np.ndarray, expected: np.ndarray, *, largest: float) -> float:
    """The largest difference as a part of `largest`; infinite where one side is no number."""
    apart = float(_apart(answers.astype(np.float64), expected.astype(np.float64)).max(initial=0.0))
    return apart / largest if largest else apart


def _apart(computed: np.ndarray, reference: np.ndarray) -> np.ndarray:
    equal = (computed == reference) | (np.isnan(computed) & np.isnan(reference))
    with np.errstate(invalid="ignore"):
        apart = np.where(equal, 0.0, np.abs(computed - reference))
    return np.where(np.isnan(apart), np.inf, apart)
