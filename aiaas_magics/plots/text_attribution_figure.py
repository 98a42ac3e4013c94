"""Text attribution figure: the words of each text on a ground of their attribution's colour.

Owns the drawing; the same in HTML and in words comes from `explanation_twins`.
"""

from __future__ import annotations

import textwrap
from typing import Final

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from aiaas_magics.plots import figure_style
from aiaas_magics.plots.explanation_twins import MOST_WORDS, WordAttributions

MOST_TEXTS: Final = 4
LETTERS: Final = 92  # per line, in the fixed-width face
LETTER_IN: Final = 0.0835  # of 10 points in DejaVu Sans Mono: 0.602 em
LINE_IN: Final = 0.27


def text_attribution_figure(explained: WordAttributions) -> Figure:
    """Orange words speak for the output, blue ones with a line below against it; the deeper, the more."""
    count = min(len(explained.words), MOST_TEXTS)
    laid = [lay_out(explained.words[row][:MOST_WORDS]) for row in range(count)]
    tallest = max((line for places in laid for line, _ in places), default=0) + 1
    left_out = len(explained.words) - count
    meaning = (
        "orange words speak for the output, underlined blue words against it" if explained.signed else "the deeper, the more it matters"
    )
    figure, axes = figure_style.new_figure(
        1,
        title=explained.heading,
        subtitle=meaning + (f"; {left_out} more rows" if left_out else ""),
        caption=explained.caption,
        width=LETTERS * LETTER_IN + 0.6,
        height=tallest * LINE_IN,
        lines=count,
        left_in=0.25,
        ticks_in=0.08,
    )
    for row, panel in enumerate(axes):
        panel.set_xlim(0, LETTERS)
        panel.set_ylim(tallest, 0)
        panel.axis("off")
        panel.set_title("\n".join(textwrap.wrap(explained.titles[row], 100)), loc="left", fontsize=9.5, color=figure_style.INK, pad=7)
        values = np.nan_to_num(explained.values[row])
        largest = float(np.abs(values).max(initial=0.0)) or 1.0
        for (line, column), word, value in zip(laid[row], explained.words[row], values, strict=False):
            share = min(abs(float(value)) / largest, 1.0)
            ground = to_rgba(figure_style.ORANGE if value >= 0 else figure_style.BLUE, 0.7 * share)
            panel.add_patch(Rectangle((column - 0.15, line + 0.08), len(word) + 0.3, 0.84, color=ground, linewidth=0))
            shown = word if len(word) <= LETTERS else f"{word[: LETTERS - 1]}…"
            panel.text(column, line + 0.5, shown, family="DejaVu Sans Mono", fontsize=10, va="center", ha="left", color=figure_style.INK)
            if value < 0 and share > 0.1:
                panel.plot([column, column + len(word)], [line + 0.93] * 2, color=figure_style.BLUE, linewidth=1.2)
    return figure_style.plain(figure)


def lay_out(words: tuple[str, ...], letters: int = LETTERS) -> list[tuple[int, int]]:
    """Line and first letter of each word, wrapped.

    >>> lay_out(("a", "bcd", "ef"), letters=5)
    [(0, 0), (0, 2), (1, 0)]
    """
    places, line, column = [], 0, 0
    for word in words:
        if column and column + len(word) > letters:
            line, column = line + 1, 0
        places.append((line, column))
        column += len(word) + 1
    return places
