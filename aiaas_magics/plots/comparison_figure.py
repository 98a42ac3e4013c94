"""Comparison figure: the sizes of two explanations' attributions side by side.

Owns the drawing; the same numbers in words come from `explanation_twins`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from aiaas_magics.plots import figure_style
from aiaas_magics.plots.explanation_twins import MOST_NAMES, ComparedAttributions, agreement_sentence
from aiaas_magics.plots.table_attribution_figure import named_axis

PAIR_IN: Final = 0.3


def comparison_figure(compared: ComparedAttributions) -> Figure:
    """A line per name from the first explanation's mean size (circle) to the second's (square)."""
    order = np.argsort(-np.maximum(compared.first, compared.second), kind="stable")[:MOST_NAMES]
    labels = [compared.names[place] for place in order]
    looks: list[dict[str, Any]] = [
        {"color": figure_style.SERIES[place], "marker": figure_style.MARKERS[place], "linestyle": "none", "markersize": 7}
        for place in (0, 1)
    ]
    figure, (axes,) = figure_style.new_figure(
        1,
        title="Explanations compared",
        subtitle=agreement_sentence(compared),
        caption=compared.caption,
        width=7.6,
        height=PAIR_IN * len(order) + 0.1,
        keys=[figure_style.key(label, **look) for label, look in zip(compared.labels, looks, strict=True)],
        left_in=0.35 + 0.075 * min(36, max(map(len, labels), default=1)),
    )
    places = np.arange(len(order))
    first, second = compared.first[order], compared.second[order]
    axes.hlines(places, np.minimum(first, second), np.maximum(first, second), color=figure_style.MUTED, linewidth=1.4, zorder=1)
    for values, look in zip((first, second), looks, strict=True):
        axes.plot(values, places, zorder=2, **look)
    named_axis(axes, labels)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    figure_style.label(axes, title="", x="mean size of the attributions")
    return figure_style.plain(figure)
