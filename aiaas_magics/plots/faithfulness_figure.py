"""Faithfulness figure: the output while parts are hidden or shown in an explanation's order, against random orders.

Owns the drawing; the same numbers in words come from `explanation_twins`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aiaas_magics.plots import figure_style
from aiaas_magics.plots.explanation_twins import FaithfulnessCurves, faithfulness_notes, verdict_sentence

WIDTH: Final = 8.6
HEIGHT: Final = 2.1


def faithfulness_figure(curves: FaithfulnessCurves) -> Figure:
    """Deletion to the left (lower is better), insertion to the right (higher is better); random orders are dashed."""
    figure, (hidden, shown) = figure_style.new_figure(
        2,
        title=curves.heading,
        subtitle=verdict_sentence(curves),
        caption=" ".join(faithfulness_notes(curves)).removeprefix(verdict_sentence(curves)).strip(),
        width=WIDTH,
        height=HEIGHT,
    )
    deletion, insertion, random = curves.areas
    _curve(hidden, curves.fractions, curves.deletion, curves.random, areas=(deletion, random))
    _curve(shown, curves.fractions, curves.insertion, curves.random[::-1], areas=(insertion, random))
    figure_style.label(hidden, title="Output, most important hidden first (low is good)", x="part of the row that is hidden")
    figure_style.label(shown, title="Output, most important shown first (high is good)", x="part of the row that is shown")
    return figure_style.plain(figure)


def _curve(axes: Axes, fractions: np.ndarray, ordered: np.ndarray, random: np.ndarray, *, areas: tuple[float, float]) -> None:
    axes.fill_between(fractions, ordered, random, color=figure_style.SKY, alpha=0.25, linewidth=0)
    axes.plot(
        fractions, ordered, color=figure_style.BLUE, marker="o", markersize=4, linewidth=1.7, label=f"explanation, area {areas[0]:.3g}"
    )
    axes.plot(
        fractions,
        random,
        color=figure_style.ORANGE,
        marker="s",
        markersize=3.5,
        linestyle=(0, (5, 2)),
        label=f"random order, area {areas[1]:.3g}",
    )
    axes.xaxis.set_major_formatter(ticker.PercentFormatter(xmax=1.0))
    axes.margins(x=0.03, y=0.1)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=figure_style.INK, loc="best")
