"""Group report: a model's metrics by group of a sensitive column, and the gaps between groups, as values.

Owns the values. Computing them belongs to `explain.group_metrics`, drawing them to `plots`.
"""

from __future__ import annotations

import math

from msgspec import field

from aiaas_magics.core.value import Value


class GroupRow(Value, frozen=True, kw_only=True):
    """One group. `metrics` has NaN where the group has no rows that the metric is about; `intervals` are 95 % bounds."""

    group: str
    rows: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


class GroupGap(Value, frozen=True, kw_only=True):
    """The largest difference between two groups in one measure. `low` and `high` name these groups."""

    measure: str
    value: float
    low: str = ""
    high: str = ""


class GroupReport(Value, frozen=True, kw_only=True):
    """Metrics by group.

    Attributes:
        column: the name of the sensitive column.
        task: "binary", "classes" or "numbers".
        positive: the label that the rates are about; "" if there is none.
        overall: the same metrics over all rows.
        groups: one row per group, largest group first; ranges of numbers from the lowest up.
        gaps: differences between groups; NaN where fewer than two groups have the metric.
        notes: sentences on what limits the numbers.
    """

    column: str
    task: str
    positive: str
    overall: GroupRow
    groups: tuple[GroupRow, ...]
    gaps: tuple[GroupGap, ...]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the metrics, in the order in which they are shown."""
        return tuple(self.overall.metrics)

    def gap(self, measure: str) -> float:
        """The gap in `measure`; NaN if it was not computed."""
        return next((gap.value for gap in self.gaps if gap.measure == measure), math.nan)
