"""Explanation parts: what figures, words and frames take from an explanation.

Owns the way from arrays to what `plots` draws: kinds of inputs, titles of rows, captions, names of regions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from aiaas_magics.core.explain_settings import METHODS
from aiaas_magics.explain.agreement_of_methods import mean_agreement
from aiaas_magics.explain.attributions import Attributions
from aiaas_magics.explain.faithfulness import Faithfulness
from aiaas_magics.explain.players import is_text
from aiaas_magics.plots import explanation_twins
from aiaas_magics.plots.explanation_twins import (
    ComparedAttributions,
    FaithfulnessCurves,
    ImageAttributions,
    SeriesAttributions,
    TableAttributions,
    WordAttributions,
)
from aiaas_magics.plots.text_twins import seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOWS: Final = 8  # of a series, in a comparison


class ExplanationView(Protocol):
    """What is read of an `Explanation`."""

    @property
    def attributions(self) -> Attributions: ...
    @property
    def inputs(self) -> tuple[np.ndarray, ...]: ...
    @property
    def columns(self) -> tuple[tuple[str, ...], ...]: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def model(self) -> str: ...
    @property
    def why(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def workers(self) -> int: ...
    @property
    def first_row(self) -> int: ...
    @property
    def method(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def verdict(self) -> str: ...


def kind_of(explanation: ExplanationView, place: int) -> str:
    """What one input's rows are."""
    array = explanation.inputs[place]
    if is_text(array) or (explanation.attributions.tokens and array.ndim == 2):
        return "text"
    return {3: "series", 4: "image"}.get(array.ndim, "table" if array.ndim <= 2 else "image")


def main_input(explanation: ExplanationView) -> int:
    """The input that is shown: a text, or else the one of the highest rank."""
    ranks = [9 if is_text(array) else array.ndim for array in explanation.inputs]
    return int(np.argmax(ranks))


def class_of(explanation: ExplanationView, target: int) -> str:
    """The name of an output's column; "" where it has one column without a name."""
    names = explanation.class_names
    if explanation.attributions.columns == 1:
        return names[-1] if len(names) in (1, 2) else ""
    return names[target] if target < len(names) else f"class {target}"


def titles(explanation: ExplanationView) -> tuple[str, ...]:
    pairs = zip(explanation.attributions.outputs, explanation.attributions.targets, strict=True)
    named = ((float(output), class_of(explanation, int(target))) for output, target in pairs)
    return tuple(
        f"row {row}: {output:.3g}{f' for {name}' if name else ''}" for row, (output, name) in enumerate(named, explanation.first_row)
    )


def heading(explanation: ExplanationView) -> str:
    title = METHODS[explanation.method].title
    return f"{title[0].upper()}{title[1:]}" + (f" of {explanation.model}" if explanation.model else "")


def caption(explanation: ExplanationView) -> str:
    attributions = explanation.attributions
    took = f" in {seconds(explanation.seconds)}" if explanation.seconds else ""
    shared = f" on {explanation.workers} workers" if explanation.workers > 1 else ""
    rows = f"{attributions.rows} row{'' if attributions.rows == 1 else 's'}, {attributions.evaluations:,} evaluations{took}{shared}."
    return " ".join(sentence for sentence in (explanation.why, rows, *attributions.notes) if sentence)


def _shared(explanation: ExplanationView) -> dict[str, Any]:
    bases = explanation.attributions.base
    return {
        "heading": heading(explanation),
        "titles": titles(explanation),
        "caption": caption(explanation),
        "signed": METHODS[explanation.method].signed,
        "base": float(bases.mean()) if np.isfinite(bases).all() else float("nan"),
    }


# --------------------------------------------------------------------------- kinds


def table_part(explanation: ExplanationView) -> TableAttributions:
    """The columns of all inputs of rank 1, one after the other."""
    names: list[str] = []
    values, cells = [], []
    for array, own, attributed in zip(explanation.inputs, explanation.columns, explanation.attributions.values, strict=True):
        if array.ndim > 2 or is_text(array):
            continue
        names += own
        values.append(attributed.reshape(len(array), -1))
        cells.append(array.reshape(len(array), -1).astype(np.float64))
    return TableAttributions(
        names=tuple(names), values=np.concatenate(values, axis=1), cells=np.concatenate(cells, axis=1), **_shared(explanation)
    )


def image_part(explanation: ExplanationView) -> ImageAttributions:
    """The pictures and their attributions, summed over channels; of volumes the middle slice."""
    place = main_input(explanation)
    pictures, values = explanation.inputs[place], explanation.attributions.values[place]
    while pictures.ndim > 4:
        middle = pictures.shape[1] // 2
        pictures, values = pictures[:, middle], values[:, middle]
    return ImageAttributions(pictures=pictures, values=values.sum(axis=-1), **_shared(explanation))


def series_part(explanation: ExplanationView) -> SeriesAttributions:
    place = main_input(explanation)
    return SeriesAttributions(
        names=explanation.columns[place],
        series=explanation.inputs[place],
        values=explanation.attributions.values[place],
        **_shared(explanation),
    )


def text_part(explanation: ExplanationView) -> WordAttributions:
    values = explanation.attributions.values[main_input(explanation)]
    words = explanation.attributions.tokens
    return WordAttributions(
        words=words, values=tuple(row[: len(own)] for row, own in zip(values, words, strict=True)), **_shared(explanation)
    )


def words(explanation: ExplanationView) -> str:
    """The explanation in words."""
    twins: dict[str, Callable[[], str]] = {
        "table": lambda: explanation_twins.table_words(table_part(explanation)),
        "image": lambda: explanation_twins.image_words(image_part(explanation)),
        "series": lambda: explanation_twins.series_words(series_part(explanation)),
        "text": lambda: explanation_twins.text_words(text_part(explanation)),
    }
    return twins[explanation.kind]()


def colored_words(explanation: ExplanationView) -> str:
    return explanation_twins.text_html(text_part(explanation))


def figure(explanation: ExplanationView) -> Figure:
    """The figure of the explanation's kind; matplotlib is loaded here."""
    match explanation.kind:
        case "table":
            from aiaas_magics.plots.table_attribution_figure import table_attribution_figure

            return table_attribution_figure(table_part(explanation))
        case "image":
            from aiaas_magics.plots.image_attribution_figure import image_attribution_figure

            return image_attribution_figure(image_part(explanation))
        case "series":
            from aiaas_magics.plots.series_attribution_figure import series_attribution_figure

            return series_attribution_figure(series_part(explanation))
        case _:
            from aiaas_magics.plots.text_attribution_figure import text_attribution_figure

            return text_attribution_figure(text_part(explanation))


def alt_text(explanation: ExplanationView) -> str:
    """The strongest parts by name."""
    names, sizes = named_sizes(explanation)
    order = np.argsort(-sizes, kind="stable")[:3]
    strongest = ", ".join(f"{names[place]} ({sizes[place]:.3g})" for place in order)
    rows = f"{explanation.rows} row{'' if explanation.rows == 1 else 's'}"
    return f"{heading(explanation)}, {rows} of kind {explanation.kind}. Largest mean sizes: {strongest}. {explanation.verdict}".strip()


def named_sizes(explanation: ExplanationView) -> tuple[list[str], np.ndarray]:
    """Parts with names and their mean sizes: columns, ninths of a picture, stretches of a series, words."""
    match explanation.kind:
        case "table":
            part = table_part(explanation)
            return list(part.names), part.sizes
        case "image":
            sizes = np.abs(image_part(explanation).values).mean(axis=0)
            ninths = [np.array_split(strip, 3, axis=1) for strip in np.array_split(sizes, 3, axis=0)]
            names = [f"{line} {column}" for line in ("upper", "middle", "lower") for column in ("left", "center", "right")]
            return names, np.array([float(cell.sum()) for strip in ninths for cell in strip])
        case "series":
            sizes = np.abs(series_part(explanation).values).sum(axis=-1).mean(axis=0)
            stretches = np.array_split(np.arange(len(sizes)), min(WINDOWS, len(sizes)))
            return [f"steps {part[0]} to {part[-1]}" for part in stretches], np.array([float(sizes[part].sum()) for part in stretches])
        case _:
            text = text_part(explanation)
            totals: dict[str, float] = {}
            for own, values in zip(text.words, text.values, strict=True):
                for word, value in zip(own, values, strict=False):
                    totals[word] = totals.get(word, 0.0) + abs(float(value)) / explanation.rows
            return list(totals), np.array(list(totals.values()))


def curves(explanation: ExplanationView, measured: Faithfulness) -> FaithfulnessCurves:
    """What the figure of faithfulness is drawn from."""
    return FaithfulnessCurves(
        heading=f"Faithfulness of {heading(explanation)[0].lower()}{heading(explanation)[1:]}",
        fractions=measured.fractions,
        deletion=measured.deletion.mean(axis=0),
        insertion=measured.insertion.mean(axis=0),
        random=measured.random.mean(axis=0),
        areas=(measured.deletion_area, measured.insertion_area, measured.random_area),
        rows=len(measured.deletion),
        verdict=measured.verdict,
        signed=METHODS[measured.method].signed,
        completeness=measured.completeness,
        sanity=measured.sanity,
        failures=measured.failures,
    )


def compared(first: ExplanationView, second: ExplanationView, agreements: np.ndarray) -> ComparedAttributions:
    """Mean sizes of both by name; a name of one only has size 0 in the other."""
    parts = [dict(zip(*named_sizes(explanation), strict=True)) for explanation in (first, second)]
    names = list(dict.fromkeys((*parts[0], *parts[1])))
    labels = _labels(first, second)
    moved = first.attributions.targets != second.attributions.targets
    notes = (f"{int(moved.sum())} rows are explained for different classes.",) if moved.any() else ()
    return ComparedAttributions(
        labels=labels,
        names=tuple(names),
        first=np.array([float(parts[0].get(name, 0.0)) for name in names]),
        second=np.array([float(parts[1].get(name, 0.0)) for name in names]),
        agreement=mean_agreement(agreements),
        rows=first.rows,
        caption=" ".join(notes),
        notes=notes,
    )


def _labels(first: ExplanationView, second: ExplanationView) -> tuple[str, str]:
    """What tells two explanations apart: methods, models, or their order."""
    if first.method != second.method and first.model == second.model:
        return METHODS[first.method].title, METHODS[second.method].title
    if first.method == second.method and first.model and second.model and first.model != second.model:
        return first.model, second.model
    if first.method == second.method:
        return "the first", "the second"
    return heading(first), heading(second)


# --------------------------------------------------------------------------- frame


def frame(explanation: ExplanationView, pandas: Any) -> Any:
    """The attributions as a frame, with base, output and target of each row."""
    attributions = explanation.attributions
    if explanation.kind == "table" and all(array.ndim <= 2 for array in explanation.inputs):
        part = table_part(explanation)
        wide = pandas.DataFrame(part.values, columns=list(part.names))
        targets = [class_of(explanation, int(target)) or int(target) for target in attributions.targets]
        return wide.assign(**{"base value": attributions.base, "output": attributions.outputs, "target": targets})
    if explanation.kind == "text":
        text = text_part(explanation)
        entries = [
            (row, place, word, float(value))
            for row, (own, values) in enumerate(zip(text.words, text.values, strict=True))
            for place, (word, value) in enumerate(zip(own, values, strict=False))
        ]
        return pandas.DataFrame(entries, columns=["row", "place", "word", "attribution"])
    place = main_input(explanation)
    values, array = attributions.values[place], explanation.inputs[place]
    axes = {3: ["row", "step", "channel"], 4: ["row", "y", "x", "channel"]}.get(
        array.ndim, ["row", *[f"axis {n}" for n in range(1, array.ndim)]]
    )
    index = np.indices(values.shape).reshape(values.ndim, -1)
    columns = {name: index[axis] for axis, name in enumerate(axes)}
    return pandas.DataFrame({**columns, "value": array.ravel(), "attribution": values.ravel()})
