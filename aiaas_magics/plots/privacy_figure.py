"""Privacy figure: what a budget costs, as a score on kept-back rows against epsilon.

Owns the drawing and the twin in words of the same points. Measuring them belongs to whoever trains: `benchmarks/trust_private.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib import ticker
from matplotlib.figure import Figure

from aiaas_magics.plots import figure_style, text_twins

WIDTH: Final = 6.4
HEIGHT: Final = 2.6


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPoint:
    """The scores of one budget, one per run: the noise differs from run to run. `epsilon` of None is training without privacy."""

    epsilon: float | None
    scores: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.scores)


def privacy_figure(points: Sequence[BudgetPoint], *, metric: str, title: str = "Price of privacy", caption: str = "") -> Figure:
    """Median and range of `metric` against epsilon; a dashed line is training without privacy."""
    figure, (axes,) = figure_style.new_figure(
        1, title=title, subtitle=price_line(points, metric), caption=caption, width=WIDTH, height=HEIGHT
    )
    figure_style.label(axes, title=metric, x="epsilon (smaller is stricter)")
    private = [(point.epsilon, point) for point in points if point.epsilon is not None]
    if private:
        epsilons, medians = [epsilon for epsilon, _ in private], [point.median for _, point in private]
        low = [point.median - min(point.scores) for _, point in private]
        high = [max(point.scores) - point.median for _, point in private]
        axes.errorbar(
            epsilons,
            medians,
            yerr=[low, high],
            color=figure_style.BLUE,
            marker=figure_style.MARKERS[0],
            markersize=5,
            linewidth=1.7,
            capsize=3,
            label="private, median and range",
        )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(ticker.FixedLocator(epsilons))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    for point in points:
        if point.epsilon is None:
            axes.axhline(point.median, color=figure_style.ORANGE, linestyle=figure_style.DASHES[1], linewidth=1.7, label="without privacy")
    axes.margins(y=0.15)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=figure_style.INK, loc="lower right")
    return figure_style.plain(figure)


def price_line(points: Sequence[BudgetPoint], metric: str) -> str:
    """The points in one line, which the figure carries as its subtitle."""
    if not points:
        return "nothing was measured"
    parts = [
        f"{'without privacy' if point.epsilon is None else f'epsilon {point.epsilon:g}'}: {text_twins.number(point.median)}"
        for point in points
    ]
    return f"{metric} " + ", ".join(parts)
