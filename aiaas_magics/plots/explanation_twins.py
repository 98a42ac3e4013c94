"""Explanation twins: the numbers of explanation figures, and the same in words.

Owns what the figures of explanations are drawn from, their text tables and the coloured words in HTML. No matplotlib here.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from aiaas_magics.plots.text_twins import number, table

MOST_NAMES: Final = 12  # columns that a figure or table shows; the rest is one line (guess: fits a screen)
MOST_WORDS: Final = 120  # of a text in a figure
POSITIVE_HTML: Final = "213,94,0"  # figure_style.ORANGE
NEGATIVE_HTML: Final = "0,114,178"  # figure_style.BLUE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExplainedRows:
    """What every kind of explanation says of its rows.

    Args:
        titles: one per row: "row 0: 0.93 for cat".
        signed: whether attributions have a sign that means something.
        base: mean base value; NaN without one.
        caption: method, rows, evaluations, notes.
    """

    heading: str
    titles: tuple[str, ...]
    caption: str
    signed: bool = True
    base: float = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TableAttributions(ExplainedRows):
    """Attributions of columns: float (rows, columns), and the cells themselves; NaN cells have no number to show."""

    names: tuple[str, ...]
    values: np.ndarray
    cells: np.ndarray

    @property
    def order(self) -> np.ndarray:
        """Columns by mean size, largest first."""
        return np.argsort(-self.sizes, kind="stable")

    @property
    def sizes(self) -> np.ndarray:
        return np.asarray(np.abs(self.values).mean(axis=0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageAttributions(ExplainedRows):
    """Pictures (rows, height, width, channels) and attributions (rows, height, width)."""

    pictures: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeriesAttributions(ExplainedRows):
    """Series (rows, time, channels) and attributions of the same shape."""

    names: tuple[str, ...]
    series: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WordAttributions(ExplainedRows):
    """Words of each row, and an attribution per word."""

    words: tuple[tuple[str, ...], ...]
    values: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FaithfulnessCurves:
    """Mean curves of hiding and showing, each of shape (points,), and what follows from them."""

    heading: str
    fractions: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    random: np.ndarray
    areas: tuple[float, float, float]  # deletion, insertion, random
    rows: int
    verdict: str
    signed: bool = True
    completeness: float | None = None
    sanity: float | None = None
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ComparedAttributions:
    """Mean sizes of two explanations' attributions, by name, and how far their rows rank alike."""

    labels: tuple[str, str]
    names: tuple[str, ...]
    first: np.ndarray
    second: np.ndarray
    agreement: float
    rows: int
    caption: str = ""
    notes: tuple[str, ...] = field(default=())


# --------------------------------------------------------------------------- words


def signed_number(value: float) -> str:
    """An attribution: three digits, with its sign.

    >>> signed_number(0.25), signed_number(-12.0), signed_number(0.0)
    ('+0.25', '-12', '0')
    """
    if not np.isfinite(value):
        return str(value)
    return f"{value:+.3g}" if value else "0"


def table_words(explained: TableAttributions) -> str:
    """`table_attribution_figure` in words."""
    header, rows = table_cells(explained)
    return "\n".join(line for line in (explained.heading, *explained.titles[:1], table(header, rows), explained.caption) if line)


def table_cells(explained: TableAttributions) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: of one row each column's cell and attribution, of several the mean size and the mean."""
    order, rest = explained.order[:MOST_NAMES], explained.order[MOST_NAMES:]
    rows: list[tuple[str, ...]]
    if len(explained.values) == 1:
        values = explained.values[0]
        rows = [(explained.names[place], cell_text(explained.cells[0, place]), signed_number(float(values[place]))) for place in order]
        if len(rest):
            rows.append((f"{len(rest)} others", "", signed_number(float(values[rest].sum()))))
        return ("column", "value", "attribution"), rows
    means = explained.values.mean(axis=0)
    rows = [(explained.names[place], number(float(explained.sizes[place])), signed_number(float(means[place]))) for place in order]
    if len(rest):
        rows.append((f"{len(rest)} others", number(float(explained.sizes[rest].sum())), signed_number(float(means[rest].sum()))))
    return ("column", "mean size", "mean"), rows


def cell_text(cell: float) -> str:
    return number(float(cell)) if np.isfinite(cell) else ""


def image_words(explained: ImageAttributions) -> str:
    """`image_attribution_figure` in words: which ninth of each picture has most of the attribution."""
    lines = [explained.heading]
    for title, values in zip(explained.titles, explained.values, strict=True):
        share, place = strongest_ninth(values)
        lines.append(f"{title}: {share:.0%} of the attribution lies in the {place}.")
    return "\n".join((*lines, explained.caption))


def strongest_ninth(values: np.ndarray) -> tuple[float, str]:
    """The ninth of a picture with most of its attribution's size, and its share.

    >>> strongest_ninth(np.eye(3)[:1].repeat(3, axis=0) * [[1], [0], [0]])
    (1.0, 'upper left')
    """
    size = np.abs(np.nan_to_num(values))
    total = float(size.sum()) or 1.0
    vertical, horizontal = ("upper", "middle", "lower"), ("left", "center", "right")
    shares = {
        f"{vertical[line]} {horizontal[column]}": float(part.sum()) / total
        for line, strip in enumerate(np.array_split(size, 3, axis=0))
        for column, part in enumerate(np.array_split(strip, 3, axis=1))
    }
    place = max(shares, key=shares.__getitem__)
    return shares[place], place


def series_words(explained: SeriesAttributions) -> str:
    """`series_attribution_figure` in words: the moment and channel that each row's attribution is largest at."""
    lines = [explained.heading]
    for title, values in zip(explained.titles, explained.values, strict=True):
        moment, channel = np.unravel_index(int(np.argmax(np.abs(values))), values.shape)
        strongest = signed_number(float(values[moment, channel]))
        lines.append(f"{title}: the largest attribution is {strongest}, of {explained.names[channel]} at step {moment} of {len(values)}.")
    return "\n".join((*lines, explained.caption))


def text_words(explained: WordAttributions) -> str:
    """Texts with the attribution of each word behind it."""
    lines = [explained.heading]
    for title, words, values in zip(explained.titles, explained.words, explained.values, strict=True):
        marked = [f"{word}({signed_number(float(value))})" for word, value in zip(words, values, strict=False)]
        lines += [title, "  " + " ".join(marked[:MOST_WORDS])]
    return "\n".join((*lines, explained.caption))


def text_html(explained: WordAttributions) -> str:
    """Texts as coloured words: orange speaks for the output, blue with a line below against it; the number is each word's title."""
    paragraphs = []
    for title, words, values in zip(explained.titles, explained.words, explained.values, strict=True):
        largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
        spans = [_word_span(word, float(value), largest) for word, value in zip(words, values, strict=False)]
        paragraphs.append(f"<p><b>{html.escape(title)}</b></p><p style='line-height:1.9'>{' '.join(spans)}</p>")
    return (
        f"<div style='background:#fff;color:#1F2933;padding:8px'><p>{html.escape(explained.heading)}</p>{''.join(paragraphs)}"
        f"<p style='color:#667380;font-size:85%'>{html.escape(explained.caption)}</p></div>"
    )


def _word_span(word: str, value: float, largest: float) -> str:
    share = min(abs(value) / largest, 1.0)
    colour = POSITIVE_HTML if value >= 0 else NEGATIVE_HTML
    line = ";text-decoration:underline" if value < 0 and share > 0.1 else ""
    style = f"background:rgba({colour},{0.75 * share:.2f});padding:1px 2px;border-radius:2px{line}"
    return f"<span style='{style}' title='{signed_number(value)}'>{html.escape(word)}</span>"


def faithfulness_words(curves: FaithfulnessCurves) -> str:
    """`faithfulness_figure` in words."""
    picked = np.unique(np.linspace(0, len(curves.fractions) - 1, 6).round().astype(int))
    rows = [
        (
            f"{curves.fractions[place]:.0%}",
            number(float(curves.deletion[place])),
            number(float(curves.insertion[place])),
            number(float(curves.random[place])),
        )
        for place in picked
    ]
    areas = tuple(number(area) for area in curves.areas)
    return "\n".join((curves.heading, table(("part", "hidden", "shown", "random"), [*rows, ("area", *areas)]), *faithfulness_notes(curves)))


def faithfulness_notes(curves: FaithfulnessCurves) -> list[str]:
    """The sentences below the figure, the verdict first."""
    deletion, insertion, random = curves.areas
    areas = f"Area when hidden {deletion:.3g}, when shown {insertion:.3g}, in random order {random:.3g} ({curves.rows} rows)."
    notes = [f"{verdict_sentence(curves)} {areas}"]
    if not curves.signed:
        notes.append("The method has no sign, so each output is drawn less its distance from the row's own.")
    if curves.completeness is not None:
        notes.append(f"Completeness error: {curves.completeness:.1%} of the mean distance from the base value.")
    if curves.sanity is not None:
        notes.append(f"Rank correlation with models of random weights: {curves.sanity:.2f}.")
    return notes


def verdict_sentence(curves: FaithfulnessCurves) -> str:
    if curves.failures:
        return f"This explanation fails: {'; '.join(curves.failures)}. Try another method."
    if curves.verdict == "unclear":
        return "Unclear: it beats a random order on average, but its rows disagree. Explain more rows."
    return "The explanation holds: the parts that it names first move the output more than parts in random order."


def comparison_words(compared: ComparedAttributions) -> str:
    """`comparison_figure` in words."""
    order = np.argsort(-np.maximum(compared.first, compared.second), kind="stable")[:MOST_NAMES]
    rows = [(compared.names[place], number(float(compared.first[place])), number(float(compared.second[place]))) for place in order]
    return "\n".join((agreement_sentence(compared), table(("", *compared.labels), rows), *compared.notes))


def agreement_sentence(compared: ComparedAttributions) -> str:
    first, second = compared.labels
    if not np.isfinite(compared.agreement):
        return f"{first} and {second} cannot be compared by rank: one of them ranks nothing."
    rows = f"{compared.rows} rows; 1 is equal"
    return (
        f"{first[0].upper()}{first[1:]} and {second} rank the parts of a row with a mean correlation of {compared.agreement:.2f} ({rows})."
    )


def names_with_cells(explained: TableAttributions, places: Sequence[int]) -> list[str]:
    """Labels of one row's bars: "age = 41"."""
    shown = ((explained.names[place], cell_text(explained.cells[0, place])) for place in places)
    return [f"{name} = {cell}" if cell else name for name, cell in shown]
