"""Group text: metrics by group in words, for tables, terminals and model cards.

Owns the rows and sentences; the figure is `group_figure`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aiaas_magics.core.group_report import GroupGap, GroupReport, GroupRow
from aiaas_magics.plots import text_twins


def group_header(report: GroupReport) -> tuple[str, ...]:
    return (report.column, "rows", *report.names)


def group_rows(report: GroupReport) -> list[tuple[str, ...]]:
    """One row per group, the overall row last; 95 % intervals in brackets."""
    return [_cells(report, row) for row in (*report.groups, report.overall)]


def _cells(report: GroupReport, row: GroupRow) -> tuple[str, ...]:
    return (row.group, f"{row.rows:,}", *(_cell(row, name) for name in report.names))


def _cell(row: GroupRow, name: str) -> str:
    value = row.metrics.get(name, math.nan)
    if not math.isfinite(value):
        return ""
    bounds = row.intervals.get(name)
    return f"{value:.3g}" + (f" [{bounds[0]:.3g}, {bounds[1]:.3g}]" if bounds else "")


def group_notes(report: GroupReport) -> list[str]:
    """A sentence per gap, and what limits the numbers."""
    about = f"The rates are about {report.positive!r}." if report.positive else ""
    return [*map(gap_sentence, report.gaps), *([about] if about else []), *report.notes]


def gap_sentence(gap: GroupGap) -> str:
    name = f"{gap.measure[0].upper()}{gap.measure[1:]}"
    if not math.isfinite(gap.value):
        return f"{name}: fewer than two groups have it."
    return f"{name}: {gap.value:.3g} ({gap.high} against {gap.low})."


def group_title(report: GroupReport) -> str:
    return f"Metrics by {report.column}"


def group_text(report: GroupReport) -> str:
    """The figure's twin in words."""
    lines: Sequence[str] = (group_title(report), text_twins.table(group_header(report), group_rows(report)), *group_notes(report))
    return "\n".join(lines)
