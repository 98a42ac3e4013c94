"""Evaluation: a model's metrics on rows whose truth is known, overall and by group, for its card.

Owns predicting and choosing the metrics: the model's own compiled ones, and those of `explain.group_metrics`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.core.group_report import GroupReport
from aiaas_magics.core.model_card import CardMetric


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Metrics on some rows.

    Attributes:
        task: "binary", "classes", "numbers", or "" if the answers are none of these.
        axes: the axes of one row: 1 is a table, 3 an image.
        rows: how many rows.
        data: what the rows are called, such as "x_test".
        values: name and value of each metric; those of `compile` carry "(compiled)".
        groups: metrics by group; None without a column.
    """

    task: str
    axes: int
    rows: int
    data: str
    values: tuple[tuple[str, float], ...]
    groups: GroupReport | None = None

    @property
    def metrics(self) -> tuple[CardMetric, ...]:
        """The numbers for the card's head."""
        return tuple(CardMetric(name=name, value=value, data=self.data) for name, value in self.values if math.isfinite(value))


def evaluate(
    model: Any,
    x: Any,
    y: Any,
    *,
    data: str = "the given rows",
    by: Any = None,
    column: str = "",
) -> Evaluation:
    """Predict and measure.

    Args:
        model: a Keras model, whose compiled metrics are measured too, or anything else with a `predict`, such as an endpoint.
        x: rows, as `predict` takes them.
        y: what is true, with as many rows.
        data: what the rows are called.
        by: the sensitive column; None for no groups.
        column: the column's name.

    Raises:
        DataMismatch: rows, truth and column do not fit together, or nothing can be measured of these answers.
    """
    from aiaas_magics.explain.group_metrics import group_metrics

    answers = _predicted(model, x)
    values, why = _compiled(model, y, answers)
    report: GroupReport | None = None
    overall: GroupReport | None = None
    if not isinstance(answers, (dict, list, tuple)):
        try:
            truth = np.asarray(y)
            overall = group_metrics(truth, answers, np.zeros(len(truth)))
            report = None if by is None else group_metrics(truth, answers, by, column=column)
        except DataMismatch:
            if by is not None or not values:
                raise
    elif by is not None:
        raise DataMismatch("The model has several outputs, and metrics by group need one. Leave --by out.")
    if overall is not None:
        values = (*overall.overall.metrics.items(), *values)
    if not values:
        raise DataMismatch(
            f"Nothing could be measured: {why or 'the answers are no labels and no numbers'}. Compile the model with metrics."
        )
    several = isinstance(x, (list, tuple)) and len(x) > 0 and hasattr(x[0], "shape")
    first = x[next(iter(x))] if isinstance(x, dict) else x[0] if several else x
    return Evaluation(
        task="" if overall is None else overall.task,
        axes=max(0, np.ndim(first) - 1),
        rows=len(first),
        data=data,
        values=tuple((name, float(value)) for name, value in values if math.isfinite(value)),
        groups=report,
    )


def _is_keras(model: Any) -> bool:
    return any(cls.__module__.partition(".")[0] == "keras" for cls in type(model).__mro__)


def _predicted(model: Any, x: Any) -> Any:
    if not callable(getattr(model, "predict", None)):
        raise DataMismatch(f"{type(model).__name__} has no predict. Deploy it, and make the card of the endpoint.")
    return model.predict(x, verbose=0) if _is_keras(model) else model.predict(x)


def _compiled(model: Any, y: Any, answers: Any) -> tuple[tuple[tuple[str, float], ...], str]:
    """The model's own metrics and loss, and why there are none."""
    if not _is_keras(model):
        return (), ""
    from aiaas_magics.packing.data import fit_data
    from aiaas_magics.packing.export import accuracy_impact

    lines, why = accuracy_impact.own_figures(model, fit_data.mapped(y, "y"), answers, answers)
    return tuple((f"{line.measure} (compiled)", line.after) for line in lines), why.rstrip(".")
