"""Group figure: each metric by group, with its interval and the value over all rows.

Owns the drawing; the same numbers in words come from `group_text`.
"""

from __future__ import annotations

import math
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aiaas_magics.core.group_report import GroupReport
from aiaas_magics.plots import figure_style, group_text

PANELS: Final = 4
PANEL_IN: Final = 2.35  # inches, by eye
LINE_IN: Final = 0.27  # inches per group, by eye
LETTER_IN: Final = 0.072  # inches a letter of a group's name takes, by eye
EDGE_IN: Final = 0.3
NAME_CHARACTERS: Final = 22
SHOWN: Final = (
    "accuracy",
    "selection rate",
    "true positive rate",
    "false positive rate",
    "mean answer",
    "mean error",
    "mean absolute error",
)


def group_figure(report: GroupReport, *, caption: str = "") -> Figure:
    """One panel per metric, one line per group; the dashed line is the value over all rows, bars are 95 % intervals.

    Args:
        report: the metrics by group.
        caption: a sentence below the figure; "" names the groups' sizes.
    """
    names = [name for name in report.names if name in SHOWN][:PANELS]
    sizes = ", ".join(f"{row.group}: {row.rows:,}" for row in report.groups)
    figure, axes = figure_style.new_figure(
        len(names),
        title=group_text.group_title(report),
        subtitle=" ".join(group_text.gap_sentence(gap) for gap in report.gaps[:2]),
        caption=caption or f"Bars are 95 % intervals; the dashed line is all {report.overall.rows:,} rows. Rows by group: {sizes}.",
        width=max(4.6, 1.6 + PANEL_IN * len(names)),
        height=0.35 + LINE_IN * len(report.groups),
    )
    labels = [_short(row.group) for row in report.groups]
    left = EDGE_IN + LETTER_IN * max(map(len, labels))
    grid: Any = axes[0].get_gridspec()
    grid.update(left=left / figure.get_figwidth(), wspace=0.16)
    for panel in axes:  # a grid moves its panels by itself in pyplot's figures only
        place: Any = panel.get_subplotspec()
        panel.set_position(place.get_position(figure))
    for column, (panel, name) in enumerate(zip(axes, names, strict=True)):
        _panel(panel, report, name, labels if column == 0 else [""] * len(labels))
    return figure_style.plain(figure)


def _panel(axes: Axes, report: GroupReport, name: str, labels: list[str]) -> None:
    figure_style.label(axes, title=name[0].upper() + name[1:], x="")
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=figure_style.GRID, linewidth=0.8)
    overall = report.overall.metrics.get(name, math.nan)
    if math.isfinite(overall):
        axes.axvline(overall, color=figure_style.MUTED, linestyle=figure_style.DASHES[1], linewidth=1.2)
    for place, row in enumerate(report.groups):
        value = row.metrics.get(name, math.nan)
        if not math.isfinite(value):
            axes.text(overall if math.isfinite(overall) else 0.0, place, "no rows", fontsize=8, color=figure_style.MUTED, va="center")
            continue
        if bounds := row.intervals.get(name):
            axes.plot(bounds, (place, place), color=figure_style.BLUE, linewidth=1.6, solid_capstyle="butt")
        axes.plot([value], [place], marker="o", markersize=5.5, color=figure_style.BLUE)
    axes.set_ylim(len(report.groups) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), labels)
    axes.locator_params(axis="x", nbins=4)
    axes.margins(x=0.08)


def _short(name: str) -> str:
    return name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1]}…"
