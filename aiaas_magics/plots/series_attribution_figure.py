"""Series attribution figure: each series along time, and below it the attribution of each step.

Owns the drawing; the same numbers in words come from `explanation_twins`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aiaas_magics.plots import figure_style
from aiaas_magics.plots.explanation_twins import SeriesAttributions

MOST_SERIES: Final = 3
MOST_CHANNELS: Final = 4  # lines in a panel; guess


def series_attribution_figure(explained: SeriesAttributions) -> Figure:
    """One column of two panels per row: the series above, signed bars of its attributions below."""
    count = min(len(explained.series), MOST_SERIES)
    channels = list(range(min(explained.series.shape[-1], MOST_CHANNELS)))
    left_out = len(explained.series) - count
    keys = [figure_style.key(explained.names[channel], **_look(channel)) for channel in channels] if len(channels) > 1 else []
    figure, axes = figure_style.new_figure(
        count,
        title=explained.heading,
        subtitle=f"{explained.series.shape[1]} steps, {explained.series.shape[2]} channels"
        + (f"; {left_out} more rows" if left_out else ""),
        caption=explained.caption,
        width=max(5.4, 3.2 * count + 0.6),
        height=1.35,
        lines=2,
        keys=keys,
    )
    for row in range(count):
        _lines(axes[row], explained, row, channels)
        _bars(axes[count + row], explained, row)
    return figure_style.plain(figure)


def _look(channel: int) -> dict[str, Any]:
    return {"color": figure_style.SERIES[channel % 6], "linestyle": figure_style.DASHES[channel % 6], "linewidth": 1.5}


def _lines(axes: Axes, explained: SeriesAttributions, row: int, channels: list[int]) -> None:
    for channel in channels:
        axes.plot(explained.series[row, :, channel], **_look(channel))
    strength = np.abs(explained.values[row]).sum(axis=-1)
    peak = float(strength.max())
    if peak > 0:
        steps = np.flatnonzero(strength >= 0.5 * peak)
        for first, last in _runs(steps):
            axes.axvspan(first - 0.5, last + 0.5, color=figure_style.AMBER, alpha=0.22, linewidth=0)
    axes.set_xlim(-0.5, explained.series.shape[1] - 0.5)
    figure_style.label(axes, title=explained.titles[row], x="")


def _bars(axes: Axes, explained: SeriesAttributions, row: int) -> None:
    """The attribution of each step, summed over channels; negative bars are hatched as well as blue."""
    totals = explained.values[row].sum(axis=-1)
    steps = np.arange(len(totals))
    wide: dict[str, Any] = {"width": 1.0 if len(totals) > 60 else 0.8, "linewidth": 0.0}
    axes.bar(steps, np.maximum(totals, 0), color=figure_style.ORANGE, **wide)
    axes.bar(steps, np.minimum(totals, 0), color=figure_style.BLUE, hatch="////", edgecolor="white", **wide)
    axes.axhline(0.0, color=figure_style.MUTED, linewidth=0.8)
    axes.set_xlim(-0.5, len(totals) - 0.5)
    figure_style.label(axes, title="Attribution", x="step")


def _runs(steps: np.ndarray) -> list[tuple[int, int]]:
    """First and last of each stretch of neighbours."""
    breaks = np.flatnonzero(np.diff(steps) > 1)
    firsts, lasts = np.append(0, breaks + 1), np.append(breaks, len(steps) - 1)
    return [(int(steps[first]), int(steps[last])) for first, last in zip(firsts, lasts, strict=True)]
