"""History figure: loss and metrics of a training run by epoch.

Owns the drawing; the same numbers in words come from `text_twins`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aiaas_magics.core.story import EpochRow, epochs_of
from aiaas_magics.plots import figure_style, text_twins

WIDTH: Final = 8.6
HEIGHT: Final = 2.1
CURVES: Final = 6  # a panel with more cannot be read (guess)


def history_figure(epochs: Sequence[EpochRow], title: str = "Training", *, caption: str = "") -> Figure:
    """Loss to the left, the other metrics to the right; validation is dashed with hollow markers."""
    names = text_twins.metric_names(epochs)
    losses = [name for name in names if _is_loss(name)]
    other_names = [name for name in names if not _is_loss(name)]
    panels = [group for group in (losses, other_names) if group] or [[]]
    figure, axes = figure_style.new_figure(
        len(panels), title=title, subtitle=_subtitle(epochs), caption=caption, width=WIDTH if len(panels) > 1 else 5.2, height=HEIGHT
    )
    for panel, group in zip(axes, panels, strict=True):
        _curves(panel, epochs, group)
    return figure_style.plain(figure)


def _subtitle(epochs: Sequence[EpochRow]) -> str:
    if not epochs:
        return "no epoch has ended yet"
    last = epochs[-1]
    logs = ", ".join(f"{name} {text_twins.number(value)}" for name, value in list(last.logs.items())[:4])
    count = epochs_of(epochs)
    # Where not each epoch has a row, nobody knows here how long those without took.
    took = f" in {text_twins.seconds(sum(row.seconds for row in epochs))}" if count == len(epochs) else ""
    return f"{count:,} epochs{took}; last: {logs}"


def _is_loss(name: str) -> bool:
    return name.removeprefix("val_").endswith("loss")


def _curves(axes: Axes, epochs: Sequence[EpochRow], names: Sequence[str]) -> None:
    stems = list(dict.fromkeys(name.removeprefix("val_") for name in names))[:CURVES]
    left_out = len({name.removeprefix("val_") for name in names}) - len(stems)
    title = "Loss" if names and _is_loss(names[0]) else "Metrics"
    figure_style.label(axes, title=f"{title} ({left_out} more in the table)" if left_out else title, x="epoch")
    for index, stem in enumerate(stems):
        for name in (stem, f"val_{stem}"):
            values = [(row.epoch + 1, row.logs[name]) for row in epochs if math.isfinite(row.logs.get(name, math.nan))]
            if values:
                _curve(axes, values, name, index, validation=name.startswith("val_"))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=8))
    axes.margins(x=0.04, y=0.12)
    if axes.get_legend_handles_labels()[0]:  # none where every value is NaN
        axes.legend(frameon=False, fontsize=8.5, labelcolor=figure_style.INK)


def _curve(axes: Axes, values: Sequence[tuple[int, float]], name: str, index: int, *, validation: bool) -> None:
    colour = figure_style.SERIES[index % len(figure_style.SERIES)]
    axes.plot(
        [epoch for epoch, _ in values],
        [value for _, value in values],
        label=name,
        color=colour,
        linestyle=figure_style.DASHES[1] if validation else figure_style.DASHES[0],
        linewidth=1.7,
        marker=figure_style.MARKERS[index % len(figure_style.MARKERS)],
        markersize=5,
        markevery=max(1, len(values) // 12),
        markerfacecolor="white" if validation else colour,
    )
