"""Explanation: attributions of some rows with their names, figures and measure of faithfulness.

Owns the value that users hold. Computing it belongs to the methods, drawing it to `plots`, what is drawn to `explanation_parts`.
"""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.explain_settings import METHODS
from aiaas_magics.explain import explanation_parts
from aiaas_magics.explain.agreement_of_methods import mean_agreement, row_agreements
from aiaas_magics.explain.attributions import Attributions
from aiaas_magics.explain.faithfulness import Faithfulness
from aiaas_magics.plots import explanation_twins

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Explanation:
    """Why a model gave its outputs for some rows. `explain_model`, `Backend.explain` and `Endpoint.explain` return one.

    Attributes:
        attributions: the contributions of each entry, with base values, outputs and targets.
        inputs: the rows, one array of shape (rows, *input shape) per input.
        input_names: names of the inputs.
        columns: per input the names of its columns or channels.
        class_names: names of the output's columns; of both classes where the output has one column.
        model: the name of the model or endpoint.
        why: why `auto` took this method; "" where it was named.
        seconds: how long it took.
        workers: how many workers shared the rows.
        faithfulness: what hiding and showing parts of the rows says of it; None where it was not measured.
        first_row: the number of the first row, where this is a part of another explanation.
    """

    attributions: Attributions
    inputs: tuple[np.ndarray, ...]
    input_names: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    class_names: tuple[str, ...] = ()
    model: str = ""
    why: str = ""
    seconds: float = 0.0
    workers: int = 1
    faithfulness: Faithfulness | None = None
    first_row: int = 0

    @property
    def method(self) -> str:
        """The name of the method, as `method=` takes it."""
        return self.attributions.method

    @property
    def rows(self) -> int:
        """How many rows are explained."""
        return self.attributions.rows

    @property
    def kind(self) -> str:
        """What the rows are: "table", "image", "series" or "text". Of several inputs it is that of the one with the highest rank."""
        return explanation_parts.kind_of(self, explanation_parts.main_input(self))

    @property
    def text(self) -> str:
        """The figure in words, with the verdict on faithfulness."""
        return "\n".join(line for line in (explanation_parts.words(self), self.verdict) if line)

    @property
    def verdict(self) -> str:
        """A sentence on faithfulness; "" where it was not measured."""
        return "" if self.faithfulness is None else explanation_twins.verdict_sentence(explanation_parts.curves(self, self.faithfulness))

    @property
    def alt_text(self) -> str:
        """What the figure shows, in a sentence or two, for those who do not see it."""
        return explanation_parts.alt_text(self)

    def to_frame(self) -> pd.DataFrame:
        """Attributions as a pandas frame: for tables a column per column; otherwise a line per entry of each row.

        Raises:
            InvalidSpec: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise InvalidSpec("to_frame() needs pandas, which is not installed. Install it with: pip install pandas") from error
        frame: pd.DataFrame = explanation_parts.frame(self, pandas)
        return frame

    def plot(self, show: Literal["attributions", "faithfulness"] = "attributions", *, row: int | None = None) -> Figure:
        """The explanation as a figure.

        Args:
            show: "attributions": signed bars and a beeswarm for tables, an overlay for images, colored words, bars along time; or
                "faithfulness": the curves of hiding and showing parts.
            row: only this row; None shows all, or the first few.

        Raises:
            InvalidSpec: faithfulness that was not measured, or a row that is not there.
        """
        if show == "faithfulness":
            if self.faithfulness is None:
                raise InvalidSpec("Faithfulness was not measured. Run explain again with faithfulness=True.")
            from aiaas_magics.plots.faithfulness_figure import faithfulness_figure

            return faithfulness_figure(explanation_parts.curves(self, self.faithfulness))
        return explanation_parts.figure(self if row is None else self.take(row))

    def take(self, row: int) -> Explanation:
        """The explanation of one row.

        Args:
            row: its place, from 0.
        """
        if not 0 <= row < self.rows:
            raise InvalidSpec(f"row={row}: {self.rows} rows are explained. Use a row from 0 to {self.rows - 1}.")
        inputs = tuple(array[row : row + 1] for array in self.inputs)
        return replace(
            self, attributions=self.attributions.take(slice(row, row + 1)), inputs=inputs, faithfulness=None, first_row=self.first_row + row
        )

    def compare(self, other: Explanation) -> ExplanationComparison:
        """This explanation beside another one of the same rows: by another method, of another model or version.

        Args:
            other: its rows must have the same shapes.

        Raises:
            DataMismatch: explanations of other rows or inputs.
        """
        agreements = row_agreements(self.attributions, other.attributions)
        return ExplanationComparison(first=self, second=other, agreements=agreements)

    def __repr__(self) -> str:
        name = f" of {self.model}" if self.model else ""
        return f"<Explanation{name}: {METHODS[self.method].title}, {self.rows} rows, {self.kind}>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """In a notebook: the figure, or the colored words of a text, with its words for terminals and screen readers."""
        if self.kind == "text":
            verdict = f"<p>{html.escape(self.verdict)}</p>" if self.verdict else ""
            return {"text/html": explanation_parts.colored_words(self) + verdict, "text/plain": self.text}
        return {"text/html": figure_html(self.plot(), self.alt_text, self.verdict), "text/plain": self.text}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ExplanationComparison:
    """Two explanations of the same rows.

    Attributes:
        first: the one that `compare` was called on.
        second: the other one.
        agreements: float64 (rows,): how alike both rank the entries of each row, -1 to 1; NaN where one ranks nothing.
    """

    first: Explanation
    second: Explanation
    agreements: np.ndarray

    @property
    def agreement(self) -> float:
        """Mean rank correlation over the rows."""
        return mean_agreement(self.agreements)

    @property
    def text(self) -> str:
        """The figure in words."""
        return explanation_twins.comparison_words(explanation_parts.compared(self.first, self.second, self.agreements))

    def plot(self) -> Figure:
        """Mean sizes of both side by side."""
        from aiaas_magics.plots.comparison_figure import comparison_figure

        return comparison_figure(explanation_parts.compared(self.first, self.second, self.agreements))

    def __repr__(self) -> str:
        return f"<ExplanationComparison: {self.first!r} and {self.second!r}, mean rank correlation {self.agreement:.2f}>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/html": figure_html(self.plot(), self.text, ""), "text/plain": self.text}


def figure_html(figure: Figure, alt_text: str, below: str) -> str:
    """A figure as an image with its alternative text, and a sentence below."""
    from aiaas_magics.plots.figure_style import as_png

    data = base64.b64encode(as_png(figure)).decode("ascii")
    sentence = f"<p>{html.escape(below)}</p>" if below else ""
    return f"<img alt='{html.escape(alt_text, quote=True)}' src='data:image/png;base64,{data}'>{sentence}"
