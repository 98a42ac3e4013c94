"""Image attribution figure: each picture, and beside it what the model looked at.

Owns the drawing; the same numbers in words come from `explanation_twins`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure

from aiaas_magics.plots import figure_style
from aiaas_magics.plots.explanation_twins import ImageAttributions

MOST_PICTURES: Final = 6
PAIRS_PER_LINE: Final = 2
STRONGEST: Final = 99.0  # percentile that has the full colour: one pixel must not fade all others
OUTLINED: Final = 0.5  # of the largest value of the smoothed map


def image_attribution_figure(explained: ImageAttributions) -> Figure:
    """Pictures with an overlay beside each: orange speaks for the output, blue against it; outlines mark the strongest places."""
    count = min(len(explained.pictures), MOST_PICTURES)
    pairs = min(count, PAIRS_PER_LINE)
    lines = -(-count // pairs)
    left_out = len(explained.pictures) - count
    meaning = "orange speaks for the output, blue against it" if explained.signed else "the darker, the more it matters"
    outline = "solid and dashed outlines" if explained.signed else "outlines"
    figure, axes = figure_style.new_figure(
        2 * pairs,
        title=explained.heading,
        subtitle=f"Each picture and its overlay: {meaning}; {outline} mark the strongest places."
        + (f" {left_out} more rows are explained." if left_out else ""),
        caption=explained.caption,
        width=2.2 * 2 * pairs + 0.4,
        height=1.85,
        lines=lines,
        left_in=0.2,
        ticks_in=0.12,
    )
    for panel in axes:
        _without_ticks(panel)
    for row in range(count):
        picture, overlay = axes[2 * row], axes[2 * row + 1]
        shown = displayed(explained.pictures[row])
        picture.imshow(shown, interpolation="nearest", **_grey(shown))
        figure_style.label(picture, title=explained.titles[row], x="")
        _overlay(overlay, shown, explained.values[row], signed=explained.signed)
    for panel in axes[2 * count :]:
        panel.set_visible(False)
    return figure_style.plain(figure)


def displayed(picture: np.ndarray) -> np.ndarray:
    """A picture from 0 to 1, of any range: (height, width) or (height, width, 3)."""
    pixels = picture[..., 0] if picture.shape[-1] not in (3, 4) else picture[..., :3]
    pixels = np.nan_to_num(pixels.astype(np.float64))
    low, high = float(pixels.min()), float(pixels.max())
    if low >= 0 and high <= 1:
        return np.asarray(pixels)
    if low >= 0 and high <= 255 and high > 2:
        return np.asarray(pixels / 255)
    return np.asarray((pixels - low) / ((high - low) or 1.0))


def _grey(pixels: np.ndarray) -> dict[str, Any]:
    return {"cmap": "gray", "vmin": 0.0, "vmax": 1.0} if pixels.ndim == 2 else {}


def _overlay(axes: Axes, picture: np.ndarray, values: np.ndarray, *, signed: bool) -> None:
    grey = picture if picture.ndim == 2 else picture.mean(axis=-1)
    axes.imshow(0.55 + 0.45 * grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    limit = float(np.percentile(np.abs(values), STRONGEST)) or float(np.abs(values).max()) or 1.0
    axes.imshow(values, cmap=_two_sided() if signed else _one_sided(), vmin=-limit if signed else 0.0, vmax=limit, interpolation="nearest")
    smooth = smoothed(values)
    peak = float(np.abs(smooth).max())
    if peak > 0 and min(smooth.shape) > 2:
        for sign, dash in ((1, "solid"), (-1, "dashed")):
            if (sign * smooth).max() > OUTLINED * peak:
                axes.contour(sign * smooth, levels=[OUTLINED * peak], colors=[figure_style.INK], linewidths=0.9, linestyles=[dash])


def smoothed(values: np.ndarray) -> np.ndarray:
    """A mean over a sixteenth of each edge, so that outlines go around regions and not around pixels."""
    smooth = np.asarray(values, dtype=np.float64)
    for axis, edge in enumerate(values.shape):
        half = max(1, edge // 16) if edge > 8 else 0
        sums = np.cumsum(np.pad(smooth, [(half + 1, half) if axis == other else (0, 0) for other in range(smooth.ndim)], "edge"), axis=axis)
        width = 2 * half + 1
        smooth = np.asarray((np.take(sums, np.arange(width, width + edge), axis) - np.take(sums, np.arange(edge), axis)) / width)
    return smooth


def _two_sided() -> LinearSegmentedColormap:
    """Blue, clear, orange."""
    return LinearSegmentedColormap.from_list(
        "for_and_against", [to_rgba(figure_style.BLUE, 0.9), to_rgba("white", 0.0), to_rgba(figure_style.ORANGE, 0.9)]
    )


def _one_sided() -> LinearSegmentedColormap:
    """Clear, amber, orange."""
    return LinearSegmentedColormap.from_list(
        "strength", [to_rgba("white", 0.0), to_rgba(figure_style.AMBER, 0.6), to_rgba(figure_style.ORANGE, 0.95)]
    )


def _without_ticks(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
