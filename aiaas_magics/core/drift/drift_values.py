"""Drift values: the reference distribution that travels with a deployment, and what a comparison with it found.

Owns the values, which need no NumPy. Making a reference and comparing belong to `drift_report`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

from aiaas_magics.core.value import Value

SOME: Final = 0.1  # the customary limits of the PSI: below the first there is no shift worth a look, above the second one to act on
LARGE: Final = 0.25

Side = Literal["input", "output"]


class FeatureReference(Value, frozen=True, kw_only=True):
    """The distribution of one feature in the reference data, and none of its rows.

    Of numbers it is the cumulative distribution at some of the values: `under` counts the rows below a point, `up_to` those below or
    at it. Of categories it is how often each was; the rarer ones count as `other`.
    """

    key: str  # by which the same feature of recorded rows is found
    name: str  # for people
    side: Side
    rows: int
    missing: int = 0  # NaN, among the rows
    points: tuple[float, ...] = ()
    under: tuple[int, ...] = ()
    up_to: tuple[int, ...] = ()
    categories: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    other: int = 0


class DriftReference(Value, frozen=True, kw_only=True):
    """What inputs and outputs were like when the model was deployed. `origin` says on which data."""

    rows: int
    origin: str
    features: tuple[FeatureReference, ...]


class DriftVerdict(StrEnum):
    LARGE = "large shift"
    SOME = "some shift"
    STABLE = "stable"
    TOO_FEW = "too few rows"  # chance alone reaches such a PSI with so few


class FeatureDrift(Value, frozen=True, kw_only=True):
    """How one feature of the recorded rows differs from the reference."""

    name: str
    side: Side
    psi: float
    noise: float  # the PSI that 99 of 100 samples of this size stay below when nothing has changed
    test: str  # "KS": two-sample Kolmogorov-Smirnov; "chi2": Pearson's test of equal shares
    statistic: float
    p: float  # of the test, for this feature alone
    verdict: DriftVerdict
    missing_then: float  # share
    missing_now: float  # share
    bins: tuple[str, ...]
    then: tuple[float, ...]  # shares, in the order of `bins`
    now: tuple[float, ...]


class DriftReport(Value, frozen=True, kw_only=True):
    """The features of an endpoint's recorded rows against the reference, those with the largest PSI first."""

    endpoint: str
    version: int
    rows_then: int
    rows_now: int
    origin: str = ""  # of the reference; "" where the version came with none
    since_s: float = 0.0  # unix times of the oldest and the newest recorded request
    until_s: float = 0.0
    features: tuple[FeatureDrift, ...] = ()

    @property
    def shifted(self) -> tuple[FeatureDrift, ...]:
        """The features with some or a large shift."""
        return tuple(feature for feature in self.features if feature.verdict in (DriftVerdict.LARGE, DriftVerdict.SOME))

    @property
    def verdict(self) -> DriftVerdict:
        """That of the feature with the largest shift; too few rows where no feature has enough of them."""
        verdicts = {feature.verdict for feature in self.features}
        for verdict in (DriftVerdict.LARGE, DriftVerdict.SOME, DriftVerdict.STABLE):
            if verdict in verdicts:
                return verdict
        return DriftVerdict.TOO_FEW
