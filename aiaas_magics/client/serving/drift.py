"""Drift: how an endpoint's recorded traffic differs from the data that it was deployed with, for a notebook.

Owns the value that a user holds. The arithmetic belongs to `core.drift`, the figure and its words to `plots`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiaas_magics.client.serving.recorded_requests import pandas
from aiaas_magics.core.drift.drift_values import DriftReport, DriftVerdict, FeatureDrift

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Drift:
    """Recorded rows against the data that the endpoint was deployed with. `Endpoint.drift` makes it.

    Attributes:
        report: all numbers, as the backend computed them.
    """

    report: DriftReport

    @property
    def features(self) -> tuple[FeatureDrift, ...]:
        """Inputs and outputs, those with the largest PSI first."""
        return self.report.features

    @property
    def verdict(self) -> DriftVerdict:
        """That of the feature that shifted most; `DriftVerdict.TOO_FEW` if no feature has enough rows to say."""
        return self.report.verdict

    def to_frame(self) -> pd.DataFrame:
        """A line per feature: PSI, the PSI that chance alone reaches (99 %), the test with its p value, the share of missing values.

        Raises:
            InvalidSpec: pandas is not installed.
        """
        names = ("name", "side", "psi", "noise", "test", "statistic", "p", "verdict", "missing_then", "missing_now")
        rows = [{name: getattr(feature, name) for name in names} | {"verdict": str(feature.verdict)} for feature in self.features]
        frame: pd.DataFrame = pandas().DataFrame(rows, columns=list(names))
        return frame

    def plot(self) -> Figure:
        """Draw the PSI of each feature, and how the one that shifted most was distributed then and now."""
        from aiaas_magics.plots.drift_figure import drift_figure

        return drift_figure(self.report)

    def __str__(self) -> str:
        from aiaas_magics.plots.drift_words import drift_text

        return drift_text(self.report)
