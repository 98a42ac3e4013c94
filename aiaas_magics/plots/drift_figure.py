"""Drift figure: the PSI of each feature, and the one that shifted most, then and now.

Owns the drawing; the same numbers in words come from `drift_words`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aiaas_magics.core.drift.drift_values import LARGE, SOME, DriftReport, FeatureDrift
from aiaas_magics.plots import drift_words, figure_style

SHOWN: Final = 12
WIDTH: Final = 8.8
LABEL: Final = 22  # characters of a name
NAMES_IN: Final = 1.75  # of the features, beside the bars
BINS_IN: Final = 0.3  # of the bins, below the axis, beyond the room that ticks have


def drift_figure(report: DriftReport) -> Figure:
    """Bars of the PSI with the customary limits and the level of chance; beside them the shares per bin of the worst feature."""
    shown = report.features[:SHOWN]
    figure, (index, shares) = figure_style.new_figure(
        2,
        title=drift_words.drift_title(report),
        subtitle=drift_words.drift_line(report),
        caption=" ".join(drift_words.drift_notes(report)[1:]),
        width=WIDTH,
        height=max(2.1, 0.24 * len(shown) + 0.3),
        keys=[
            figure_style.key("PSI", color=figure_style.BLUE, linewidth=7),
            figure_style.key("by chance", color=figure_style.INK, marker="|", markersize=9, linestyle="none"),
            figure_style.key(f"limits {SOME:g} and {LARGE:g}", color=figure_style.ORANGE, linestyle=(0, (4, 2))),
        ],
    )
    figure_style.label(index, title="Population stability index", x="PSI")
    if not shown:
        figure_style.label(shares, title="Nothing to compare", x="")
        return figure_style.plain(figure)
    _draw_index(index, shown)
    _draw_shares(shares, shown[0])
    _make_room(figure, index, left_in=NAMES_IN, right_in=WIDTH / 2 - 0.15, below_in=0.0)
    _make_room(figure, shares, left_in=WIDTH / 2 + 0.6, right_in=WIDTH - 0.16, below_in=BINS_IN)
    return figure_style.plain(figure)


def _make_room(figure: Figure, axes: Axes, *, left_in: float, right_in: float, below_in: float) -> None:
    """Set the sides of a panel, and give labels room below it."""
    place, height_in = axes.get_position(), figure.get_size_inches()[1]
    below = below_in / height_in
    axes.set_position((left_in / WIDTH, place.y0 + below, (right_in - left_in) / WIDTH, place.height - below))


def _draw_index(axes: Axes, shown: tuple[FeatureDrift, ...]) -> None:
    places = np.arange(len(shown))[::-1]
    axes.barh(places, [feature.psi for feature in shown], color=figure_style.BLUE, height=0.62, zorder=2)
    axes.plot([feature.noise for feature in shown], places, color=figure_style.INK, marker="|", markersize=11, linestyle="none", zorder=3)
    for limit in (SOME, LARGE):
        axes.axvline(limit, color=figure_style.ORANGE, linestyle=(0, (4, 2)), linewidth=1.2, zorder=1)
    axes.set_yticks(places, [_short(feature.name) for feature in shown])
    axes.set_xlim(0, 1.12 * max(LARGE * 1.2, *(max(feature.psi, feature.noise) for feature in shown)))
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=figure_style.GRID, linewidth=0.8)


def _draw_shares(axes: Axes, worst: FeatureDrift) -> None:
    places = np.arange(len(worst.bins))
    axes.bar(places - 0.2, worst.then, width=0.38, color=figure_style.SKY, edgecolor=figure_style.INK, linewidth=0.5, label="then")
    axes.bar(
        places + 0.2, worst.now, width=0.38, color=figure_style.ORANGE, edgecolor=figure_style.INK, linewidth=0.5, hatch="//", label="now"
    )
    axes.set_xticks(places, [_short(label) for label in worst.bins], rotation=40, ha="right", fontsize=7)
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
    axes.set_ylim(0, 1.25 * max(*worst.then, *worst.now))
    axes.legend(frameon=False, fontsize=8.5, labelcolor=figure_style.INK, loc="upper left", ncols=2)
    figure_style.label(axes, title=f"{_short(worst.name)}: share of rows per bin", x="")


def _short(name: str) -> str:
    return name if len(name) <= LABEL else f"{name[: LABEL - 1]}…"
