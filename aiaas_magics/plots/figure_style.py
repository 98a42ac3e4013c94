"""Figure style: one palette, one frame, one caption.

Owns looks only. Every figure is opaque white, so that it can be read in a dark theme, on
GitHub and in print; series differ by marker and dash as well as by colour.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any, Final

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

# Okabe and Ito's palette, told apart with any kind of colour blindness (https://jfly.uni-koeln.de/color/).
BLUE: Final = "#0072B2"
ORANGE: Final = "#D55E00"
GREEN: Final = "#009E73"
PURPLE: Final = "#CC79A7"
SKY: Final = "#56B4E9"
AMBER: Final = "#E69F00"
INK: Final = "#1F2933"
MUTED: Final = "#667380"
GRID: Final = "#E3E8EC"

SERIES: Final = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)
MARKERS: Final = ("o", "s", "^", "D", "v", "P")
DASHES: Final = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (8, 2)))
DPI: Final = 110  # guess: sharp on a laptop, 90 kB a figure
CAPTION_SIZE: Final = 8.0
# Inches, by eye.
LINE_IN: Final = 0.165  # a caption's line
SUBTITLE_IN: Final = 0.19
LEGEND_IN: Final = 0.27
PANEL_TITLE_IN: Final = 0.30
TICKS_IN: Final = 0.56  # below a panel: ticks, their labels, the axis' own
EDGE_IN: Final = 0.16


def new_figure(
    panels: int,
    *,
    title: str,
    subtitle: str,
    caption: str,
    width: float,
    height: float,
    keys: Sequence[Line2D] = (),
    lines: int = 1,
    left_in: float = 0.62,
    ticks_in: float = TICKS_IN,
) -> tuple[Figure, list[Axes]]:
    """A figure with `panels` axes side by side, `height` inches each; title and `keys` above, caption below.

    Args:
        lines: lines of panels; the axes come line by line.
        left_in: inches left of the first panel, for the labels of its axis.
        ticks_in: inches below each panel, for its ticks and their labels.
    """
    above = textwrap.wrap(subtitle, width=int(width * 13.2)) or [""]
    below = textwrap.wrap(caption, width=int(width * 16.6)) or [""]
    head = 0.46 + SUBTITLE_IN * len(above) + (LEGEND_IN if keys else 0.0)
    foot = 0.14 + LINE_IN * len(below)
    between = PANEL_TITLE_IN + ticks_in
    total = head + lines * (height + between) + foot
    figure = Figure(figsize=(width, total), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        lines,
        panels,
        left=left_in / width,
        right=1 - 0.16 / width,
        bottom=(foot + ticks_in) / total,
        top=1 - (head + PANEL_TITLE_IN) / total,
        wspace=0.27,
        hspace=between / height,
    )
    left = EDGE_IN / width
    figure.text(left, 1 - 0.14 / total, title, ha="left", va="top", fontsize=13, fontweight="bold", color=INK)
    figure.text(left, 1 - 0.42 / total, "\n".join(above), ha="left", va="top", fontsize=9.5, color=INK, linespacing=1.3)
    figure.text(left, 0.08 / total, "\n".join(below), ha="left", va="bottom", fontsize=CAPTION_SIZE, color=MUTED, linespacing=1.25)
    if keys:
        _legend(figure, keys, left=left - 0.05 / width, top=1 - (head - LEGEND_IN + 0.02) / total)
    return figure, [_framed(figure.add_subplot(grid[line, column])) for line in range(lines) for column in range(panels)]


def plain(figure: Figure) -> Figure:
    """`figure` with every text drawn as it stands: names are the user's and a backend's, and "$" in one of them is no formula."""
    for artist in figure.findobj(Text):
        artist.set_parse_math(False)
    return figure


def _framed(axes: Axes) -> Axes:
    axes.set_facecolor("white")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
        axes.spines[side].set_linewidth(0.8)
    axes.tick_params(colors=INK, labelsize=8.5, length=3, width=0.8, color=MUTED)
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def label(axes: Axes, *, title: str, x: str, y: str = "") -> None:
    """What a panel shows: its title says the quantity and unit, so that no label stands sideways."""
    axes.set_title(title, loc="left", fontsize=9.5, color=INK, pad=7)
    axes.set_xlabel(x, fontsize=8.5, color=INK)
    if y:
        axes.set_ylabel(y, fontsize=8.5, color=INK)


def count_axis(axes: Axes, counts: Sequence[int], *, log_from: int = 8) -> None:
    """Whole numbers on the x axis, each measured one a tick; base-2 logarithm from `log_from` up."""
    if max(counts) >= log_from:
        axes.set_xscale("log", base=2)
        axes.set_xlim(min(counts) / 1.25, max(counts) * 1.25)
    else:
        margin = 0.25 if len(counts) > 1 else 0.5
        axes.set_xlim(min(counts) - margin, max(counts) + margin)
    axes.xaxis.set_major_locator(ticker.FixedLocator(list(counts)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())


def log_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic y axis around `values`, in plain numbers, with room above for a legend."""
    axes.set_yscale("log")
    positive = [value for value in values if value > 0]
    if positive:
        axes.set_ylim(min(positive) / 1.5, max(positive) * 2.2)
        axes.yaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1.0, 2.0, 5.0) if max(positive) < 100 * min(positive) else (1.0,)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def _legend(figure: Figure, keys: Sequence[Line2D], *, left: float, top: float) -> None:
    """One legend for all panels, in a row."""
    figure.legend(
        handles=list(keys),
        loc="upper left",
        bbox_to_anchor=(left, top),
        ncols=len(keys),
        frameon=False,
        fontsize=8.5,
        handlelength=2.4,
        columnspacing=1.6,
        borderaxespad=0.0,
        borderpad=0.1,
        labelcolor=INK,
    )


def key(label: str, **look: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], label=label, **look)


def as_png(figure: Figure) -> bytes:
    """The figure as it is kept in a notebook."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()
