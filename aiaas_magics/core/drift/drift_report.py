"""Drift report: makes a reference of rows, and compares later rows with it.

Owns the arithmetic: the population stability index (PSI) over tenths of the reference, the two-sample Kolmogorov-Smirnov test for
numbers and Pearson's chi-square test for categories, and what chance alone would give. Which columns there are belongs to `drift_features`.

References: PSI and its distribution without a shift, B. Yurdakul and J. Naranjo, "Statistical properties of the population stability
index", J. Risk Model Validation 14(4), 2020; the test's p value with M. Stephens' correction, J. R. Stat. Soc. B 32(1), 1970; quantiles
of chi-square, E. Wilson and M. Hilferty, PNAS 17(12), 1931.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from aiaas_magics.core.drift.drift_features import Feature
from aiaas_magics.core.drift.drift_values import LARGE, SOME, DriftReference, DriftReport, DriftVerdict, FeatureDrift, FeatureReference

MOST_FEATURES: Final = 256  # guess: a reference travels with the deployment, 400 kB of it at most
MOST_POINTS: Final = 257  # of a distribution: the test's statistic is known to 1/256
FEW_POINTS: Final = 65  # the same where there are more than `FINE_FEATURES`
FINE_FEATURES: Final = 64
BINS: Final = 10
MOST_CATEGORIES: Final = 20
LEAST_COUNT: Final = 5  # guess: what only few rows have is somebody's, and no category: a free text, say
Z_99: Final = 2.3263478740408408  # of the normal distribution


def reference_of(features: Sequence[Feature], *, rows: int, origin: str) -> DriftReference:
    """The distributions of `features`, of the first 256 of them."""
    most = MOST_POINTS if len(features) <= FINE_FEATURES else FEW_POINTS
    return DriftReference(rows=rows, origin=origin, features=tuple(_reference(feature, most) for feature in features[:MOST_FEATURES]))


def _reference(feature: Feature, most_points: int) -> FeatureReference:
    if feature.is_category:
        values, counts = np.unique(feature.values.astype(str), return_counts=True)
        often = np.argsort(-counts, kind="stable")[:MOST_CATEGORIES]
        often = often[counts[often] >= LEAST_COUNT]
        return FeatureReference(
            key=feature.key,
            name=feature.name,
            side=feature.side,
            rows=len(feature.values),
            categories=tuple(values[often].tolist()),
            counts=tuple(counts[often].tolist()),
            other=int(counts.sum() - counts[often].sum()),
        )
    present = np.sort(feature.values[~np.isnan(feature.values)])
    points = np.unique(present[np.round(np.linspace(0, len(present) - 1, most_points)).astype(int)]) if len(present) else present
    return FeatureReference(
        key=feature.key,
        name=feature.name,
        side=feature.side,
        rows=len(feature.values),
        missing=len(feature.values) - len(present),
        points=tuple(points.tolist()),
        under=tuple(np.searchsorted(present, points, "left").tolist()),
        up_to=tuple(np.searchsorted(present, points, "right").tolist()),
    )


def compared(
    endpoint: str,
    version: int,
    reference: DriftReference | None,
    features: Sequence[Feature],
    *,
    rows: int,
    since_s: float = 0.0,
    until_s: float = 0.0,
) -> DriftReport:
    """How the rows that `features` were made of differ from `reference`. Features that the reference has not are left out."""
    if reference is None:
        return DriftReport(endpoint=endpoint, version=version, rows_then=0, rows_now=rows, since_s=since_s, until_s=until_s)
    by_key = {feature.key: feature for feature in features}
    pairs = [(then, by_key[then.key]) for then in reference.features if then.key in by_key]
    found = [feature_drift(then, now.values) for then, now in pairs if _are_alike(then, now)]
    return DriftReport(
        endpoint=endpoint,
        version=version,
        rows_then=reference.rows,
        rows_now=rows,
        origin=reference.origin,
        since_s=since_s,
        until_s=until_s,
        features=tuple(sorted(found, key=lambda feature: -feature.psi)),
    )


def _are_alike(then: FeatureReference, now: Feature) -> bool:
    return then.rows > 0 and len(now.values) > 0 and bool(then.categories) == now.is_category


def feature_drift(then: FeatureReference, now: np.ndarray) -> FeatureDrift:
    """How `now`, the values of one feature, differs from its reference."""
    if then.categories:
        labels, before, after = _category_bins(then, now)
        test, (statistic, p) = "chi2", chi_square(before, after)
    else:
        missing = int(np.isnan(now).sum())
        present = np.sort(now[~np.isnan(now)])
        labels, before, after = _number_bins(then, present, missing)
        test, (statistic, p) = "KS", kolmogorov_smirnov(then, present)
    present = (before > 0) | (after > 0)  # a bin that neither has says nothing
    labels, before, after = [label for label, is_there in zip(labels, present, strict=True) if is_there], before[present], after[present]
    psi, noise = stability_index(before, after), noise_of(before, after)
    return FeatureDrift(
        name=then.name,
        side=then.side,
        psi=psi,
        noise=noise,
        test=test,
        statistic=statistic,
        p=p,
        verdict=_verdict(psi, noise),
        missing_then=then.missing / then.rows,
        missing_now=0.0 if then.categories else missing / len(now),
        bins=tuple(labels),
        then=tuple((before / before.sum()).tolist()),
        now=tuple((after / after.sum()).tolist()),
    )


def _verdict(psi: float, noise: float) -> DriftVerdict:
    if psi >= SOME and psi > noise:
        return DriftVerdict.LARGE if psi >= LARGE else DriftVerdict.SOME
    return DriftVerdict.STABLE if noise <= SOME else DriftVerdict.TOO_FEW


# --------------------------------------------------------------------------- bins


def _category_bins(then: FeatureReference, now: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    values = now.astype(str)
    after = [int((values == category).sum()) for category in then.categories]
    before = np.array([*then.counts, then.other], float)
    return [*then.categories, "other"], before, np.array([*after, len(values) - sum(after)], float)


def _number_bins(then: FeatureReference, present: np.ndarray, missing: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Tenths of the reference; of few values each its own bin and one for all others. Missing values are a bin, too."""
    points, up_to = np.array(then.points), np.array(then.up_to)
    if len(points) <= BINS and (not len(up_to) or up_to[-1] == then.rows - then.missing):
        each = up_to - np.array(then.under)
        if each.sum() == then.rows - then.missing:  # no value lies between the points
            now = np.searchsorted(present, points, "right") - np.searchsorted(present, points, "left")
            labels = [*(f"{point:.4g}" for point in points), "other", "missing"]
            before = np.array([*each, 0, then.missing], float)
            return labels, before, np.array([*now, len(present) - now.sum(), missing], float)
    targets = np.arange(1, BINS) / BINS * up_to[-1]
    edges = np.unique(np.searchsorted(up_to, targets - 1e-9, "left"))
    edges = edges[edges < len(points) - 1]
    before = np.diff([0, *up_to[edges], up_to[-1]])
    after = np.diff([0, *np.searchsorted(present, points[edges], "right"), len(present)])
    bounds = [f"{point:.3g}" for point in points[edges]]
    labels = [*(f"≤ {bound}" for bound in bounds), f"> {bounds[-1]}"] if bounds else ["all"]
    return [*labels, "missing"], np.array([*before, then.missing], float), np.array([*after, missing], float)


# --------------------------------------------------------------------------- statistics


def stability_index(before: np.ndarray, after: np.ndarray) -> float:
    """The population stability index of two sets of counts: the sum of `(p - q) * log(p / q)` over the bins.

    Each count is raised by 0.5, so that an empty bin is a small share and not an infinite index.

    >>> stability_index(np.array([50.0, 50.0]), np.array([500.0, 500.0]))
    0.0
    """
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (before, after))
    return float(((p - q) * np.log(p / q)).sum())


def noise_of(before: np.ndarray, after: np.ndarray) -> float:
    """The PSI that 99 of 100 pairs of samples of these sizes stay below if both are of one distribution."""
    freedom = len(before) - 1
    if freedom < 1:
        return 0.0
    quantile = freedom * (1 - 2 / (9 * freedom) + Z_99 * math.sqrt(2 / (9 * freedom))) ** 3
    return float(quantile * (1 / before.sum() + 1 / after.sum()))


def kolmogorov_smirnov(then: FeatureReference, present: np.ndarray) -> tuple[float, float]:
    """The largest distance of the two cumulative distributions at the points of the reference, and the two-sided p value.

    Args:
        present: the values of the later sample, sorted.
    """
    first, second = then.rows - then.missing, len(present)
    if not first or not second:
        return 0.0, 1.0
    points = np.array(then.points)
    at = np.abs(np.array(then.up_to) / first - np.searchsorted(present, points, "right") / second)
    below = np.abs(np.array(then.under) / first - np.searchsorted(present, points, "left") / second)
    distance = float(max(at.max(), below.max()))
    root = math.sqrt(first * second / (first + second))
    return distance, kolmogorov_survival((root + 0.12 + 0.11 / root) * distance)


def kolmogorov_survival(x: float) -> float:
    """The probability that Kolmogorov's statistic is larger than `x`.

    >>> round(kolmogorov_survival(1.358), 3)
    0.05
    """
    if x < 0.2:
        return 1.0
    if x < 1.18:  # the other form of the same function, which converges there
        terms = [math.exp(-((2 * k - 1) ** 2) * math.pi**2 / (8 * x * x)) for k in range(1, 8)]
        return max(0.0, 1 - math.sqrt(2 * math.pi) / x * sum(terms))
    return min(1.0, max(0.0, 2 * sum((-1.0) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 8))))


def chi_square(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Pearson's statistic for two sets of counts with equal shares, and its p value."""
    counts = np.stack([before, after])
    counts = counts[:, counts.sum(axis=0) > 0]
    freedom = counts.shape[1] - 1
    if freedom < 1 or not counts.sum(axis=1).all():
        return 0.0, 1.0
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return statistic, 0.5 * math.erfc(z / math.sqrt(2))
