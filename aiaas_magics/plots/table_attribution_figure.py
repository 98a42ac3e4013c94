"""Table attribution figure: signed bars of one row; sizes and a beeswarm of several.

Owns the drawing; the same numbers in words come from `explanation_twins`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib import cm, colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aiaas_magics.plots import figure_style
from aiaas_magics.plots.explanation_twins import MOST_NAMES, TableAttributions, names_with_cells, signed_number

BAR_IN: Final = 0.26  # height of a bar and its gap
LETTER_IN: Final = 0.075  # width of a letter of 8.5 points, by eye
MOST_LETTERS: Final = 36
CELL_COLOURS: Final = "cividis"  # even in lightness, and read with any kind of colour blindness
DOT: Final = 13.0


def table_attribution_figure(explained: TableAttributions) -> Figure:
    """Signed bars of a single row; of several, mean sizes to the left and every row as a dot to the right."""
    return _bars_of_one(explained) if len(explained.values) == 1 else _summary(explained)


def _bars_of_one(explained: TableAttributions) -> Figure:
    order, rest = explained.order[:MOST_NAMES], explained.order[MOST_NAMES:]
    labels = names_with_cells(explained, order.tolist())
    values = explained.values[0, order].tolist()
    if len(rest):
        labels.append(f"{len(rest)} others")
        values.append(float(explained.values[0, rest].sum()))
    base = f"; base value {explained.base:.3g}" if np.isfinite(explained.base) else ""
    figure, (axes,) = figure_style.new_figure(
        1,
        title=explained.heading,
        subtitle=f"{explained.titles[0]}{base}",
        caption=explained.caption,
        width=7.6,
        height=BAR_IN * len(values) + 0.1,
        left_in=_left_in(labels),
    )
    signed_bars(axes, labels, values)
    figure_style.label(axes, title="", x="attribution" + (": orange adds, hatched blue takes away" if explained.signed else " (size)"))
    return figure_style.plain(figure)


def signed_bars(axes: Axes, labels: Sequence[str], values: Sequence[float]) -> None:
    """Horizontal bars from the top down; what is negative is hatched as well as blue."""
    places = np.arange(len(values))
    for place, value in zip(places, values, strict=True):
        negative = value < 0
        axes.barh(
            place,
            value,
            height=0.68,
            color=figure_style.BLUE if negative else figure_style.ORANGE,
            hatch="////" if negative else None,
            edgecolor="white" if negative else figure_style.ORANGE,
            linewidth=0.0,
        )
    largest = max((abs(value) for value in values), default=0.0) or 1.0
    for place, value in zip(places, values, strict=True):
        axes.text(
            value + (0.015 if value >= 0 else -0.015) * largest,
            float(place),
            signed_number(value),
            ha="left" if value >= 0 else "right",
            va="center",
            fontsize=8,
            color=figure_style.INK,
        )
    named_axis(axes, labels)
    axes.axvline(0.0, color=figure_style.MUTED, linewidth=0.8)
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.15 * (high - low or 1.0)  # for the numbers at the ends
    axes.set_xlim(low - (room if low < 0 else 0.1 * room), high + (room if high > 0 else 0.1 * room))


def named_axis(axes: Axes, labels: Sequence[str]) -> None:
    """Names on the y axis, the first on top."""
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels])
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=figure_style.GRID, linewidth=0.8)
    axes.tick_params(axis="y", length=0)


def _summary(explained: TableAttributions) -> Figure:
    order = explained.order[:MOST_NAMES]
    left_out = len(explained.names) - len(order)
    labels = [explained.names[place] for place in order]
    figure, (sizes, dots) = figure_style.new_figure(
        2,
        title=explained.heading,
        subtitle=f"{len(explained.values)} rows" + (f"; {left_out} more columns are in to_frame()" if left_out else ""),
        caption=explained.caption,
        width=9.2,
        height=max(1.5, BAR_IN * len(order) + 0.1),
        left_in=_left_in(labels),
    )
    signed_bars(sizes, labels, explained.sizes[order].tolist())
    for text in sizes.texts:
        text.set_text(text.get_text().lstrip("+"))
    figure_style.label(sizes, title="Mean size of the attributions", x="mean size")
    _swarm(dots, explained, order)
    return figure_style.plain(figure)


def _swarm(axes: Axes, explained: TableAttributions, order: np.ndarray) -> None:
    """Every row as a dot, its colour the cell's rank within the column; crowded dots move apart."""
    for place, column in enumerate(order):
        values, cells = explained.values[:, column], explained.cells[:, column]
        shown = np.isfinite(values)
        numbered = shown & np.isfinite(cells)
        height = place + spread_out(values[shown])
        axes.scatter(values[shown], height, s=DOT, c=figure_style.MUTED, linewidths=0.2, edgecolors="white", zorder=2)
        if numbered.any():
            share = np.full(len(cells), 0.5)
            low, high = np.nanpercentile(cells[numbered], (5, 95))
            share[numbered] = np.clip((cells[numbered] - low) / ((high - low) or 1.0), 0, 1)
            axes.scatter(
                values[numbered],
                place + spread_out(values[shown])[numbered[shown]],
                s=DOT,
                c=share[numbered],
                cmap=CELL_COLOURS,
                vmin=0,
                vmax=1,
                linewidths=0.2,
                edgecolors="white",
                zorder=3,
            )
    named_axis(axes, [""] * len(order))
    axes.axvline(0.0, color=figure_style.MUTED, linewidth=0.8)
    axes.margins(x=0.06)
    figure_style.label(axes, title="", x="attribution")
    axes.set_title("Each row's attribution", loc="left", fontsize=9.5, color=figure_style.INK, pad=7, y=1.0)
    _cell_scale(axes)


def _cell_scale(axes: Axes) -> None:
    """What the colours of dots mean."""
    inset = axes.inset_axes((0.66, 1.045, 0.14, 0.035), transform=axes.transAxes)
    axes.figure.colorbar(cm.ScalarMappable(colors.Normalize(0, 1), CELL_COLOURS), cax=inset, orientation="horizontal")
    inset.set_xticks([])
    inset.set_yticks([])
    for x, side, word in ((-0.06, "right", "low"), (1.06, "left", "high value")):
        inset.text(x, 0.5, word, ha=side, va="center", fontsize=7.5, color=figure_style.INK, transform=inset.transAxes)


def spread_out(values: np.ndarray) -> np.ndarray:
    """Offsets, -0.36 to 0.36, that part equal values: alternately up and down within each of 40 bins."""
    if not len(values):
        return np.zeros(0)
    low, high = float(values.min()), float(values.max())
    bins = np.zeros(len(values), dtype=int) if high <= low else ((values - low) / (high - low) * 39).astype(int)
    ranks = np.zeros(len(values))
    for crowd in np.unique(bins):
        members = np.flatnonzero(bins == crowd)
        steps = (np.arange(len(members)) + 1) // 2 * np.where(np.arange(len(members)) % 2, 1, -1)
        ranks[members] = steps
    return ranks * min(0.09, 0.36 / max(float(np.abs(ranks).max()), 1.0))


def _left_in(labels: Sequence[str]) -> float:
    return 0.35 + LETTER_IN * max((len(_short(label)) for label in labels), default=1)


def _short(label: str) -> str:
    return label if len(label) <= MOST_LETTERS else f"{label[: MOST_LETTERS - 1]}…"
