"""ROC curve: how well scores tell two groups apart, with the uncertainty of that.

Owns the arithmetic. References: the area's variance, E. DeLong, D. DeLong and D. Clarke-Pearson, Biometrics 44(3), 1988; intervals of
shares, E. Wilson, JASA 22, 1927; why a low false positive rate matters, N. Carlini et al., "Membership inference attacks from first
principles", IEEE S&P 2022.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

Z_95: Final = 1.959963984540054
MOST_POINTS: Final = 201  # of a curve that is drawn


def area(positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float, float]:
    """The area under the ROC curve, and its 95 % interval.

    It is the probability that a positive has a higher score than a negative; ties count half.

    Args:
        positives: scores of shape `(m,)`.
        negatives: scores of shape `(n,)`.

    >>> area(np.array([2.0, 3.0]), np.array([0.0, 1.0]))[0]
    1.0
    """
    m, n = len(positives), len(negatives)
    above = _below_or_tied(negatives, positives) / n  # of each positive: the share of negatives below it
    under = 1 - _below_or_tied(positives, negatives) / m
    value = float(above.mean())
    deviation = math.sqrt(_variance(above) / m + _variance(under) / n)
    return value, max(0.0, value - Z_95 * deviation), min(1.0, value + Z_95 * deviation)


def _below_or_tied(scores: np.ndarray, at: np.ndarray) -> np.ndarray:
    """How many of `scores` are below each of `at`; those that are equal count half."""
    ordered = np.sort(scores)
    return (np.searchsorted(ordered, at, "left") + np.searchsorted(ordered, at, "right")) / 2


def _variance(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.25


def curve(positives: np.ndarray, negatives: np.ndarray, *, most_points: int = MOST_POINTS) -> tuple[tuple[float, float], ...]:
    """Points (false positive rate, true positive rate) of the ROC curve, from (0, 0) to (1, 1); more of them at low rates."""
    thresholds = np.unique(np.concatenate([positives, negatives]))[::-1]
    true = 1 - np.searchsorted(np.sort(positives), thresholds, "left") / len(positives)
    false = 1 - np.searchsorted(np.sort(negatives), thresholds, "left") / len(negatives)
    wanted = np.concatenate([np.linspace(0, 1, most_points // 2), np.geomspace(1e-4, 1, most_points // 2)])
    places = np.unique(np.clip(np.searchsorted(false, wanted, "right") - 1, 0, len(false) - 1))
    points = [(0.0, 0.0), *zip(false[places].tolist(), true[places].tolist(), strict=True), (1.0, 1.0)]
    return tuple(dict.fromkeys(points))


def true_rate_at(positives: np.ndarray, negatives: np.ndarray, false_rate: float) -> tuple[float, float, float]:
    """The share of positives above the threshold that at most `false_rate` of the negatives are above, and its 95 % interval."""
    ordered = np.sort(negatives)[::-1]
    threshold = ordered[min(len(ordered) - 1, int(false_rate * len(ordered)))]
    return wilson(int((positives > threshold).sum()), len(positives))


def wilson(hits: int, trials: int) -> tuple[float, float, float]:
    """A share, and its 95 % interval."""
    share, z2 = hits / trials, Z_95**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials)) / (1 + z2 / trials)
    return share, max(0.0, middle - half), min(1.0, middle + half)
