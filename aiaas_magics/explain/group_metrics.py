"""Group metrics: how well a model does for each group of a sensitive column, and how far the groups are apart.

Owns reading truth and answers, the metrics and the gaps, in numpy alone: the metrics are a few counts per group, so a library
would cost more to install than it computes. They equal `fairlearn.metrics.MetricFrame` (a test compares them). The values belong
to `core.group_report`, drawing them to `plots`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from aiaas_magics.core.errors import DataMismatch, InvalidSpec
from aiaas_magics.core.group_report import GroupGap, GroupReport, GroupRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Task = Literal["binary", "classes", "numbers"]

MOST_GROUPS: Final = 20  # guess: a table or figure of more cannot be read
RANGES: Final = 4  # a column of many numbers is cut at its quartiles
SMALL_ROWS: Final = 30  # guess, the usual one: below, a rate says little
Z95: Final = 1.959963984540054  # 97.5 % quantile of the normal distribution
MISSING: Final = "missing"
DEMOGRAPHIC_PARITY: Final = "demographic parity difference"
EQUALIZED_ODDS: Final = "equalized odds difference"
RATES: Final = ("accuracy", "selection rate", "true positive rate", "false positive rate")


class GroupMetrics(GroupReport, frozen=True, kw_only=True):
    """Metrics by group, with a figure and a table. `group_metrics` makes it."""

    def to_frame(self) -> Any:
        """Make a pandas DataFrame: one row per group, the overall row last; columns rows and one per metric."""
        import pandas as pd

        lines = (*self.groups, self.overall)
        return pd.DataFrame([{"rows": line.rows, **line.metrics} for line in lines], index=[line.group for line in lines])

    def plot(self) -> Figure:
        """Draw each metric by group, with 95 % intervals and the overall value, as one matplotlib figure."""
        from aiaas_magics.plots.group_figure import group_figure

        return group_figure(self)


def group_metrics(
    truth: Any,
    answers: Any,
    groups: Any,
    *,
    column: str = "",
    task: Task | None = None,
    threshold: float = 0.5,
    positive: Any = None,
) -> GroupMetrics:
    """Compute a model's metrics for each group of a sensitive column, and the gaps between groups.

    Gaps are the largest group minus the smallest. The demographic parity difference is the gap in selection rate (Calders et al.
    2009), the equalized odds difference the larger of the gaps in true and false positive rate (Hardt et al. 2016). Intervals are
    Wilson's for rates and the normal approximation for means. A group without positives has no true positive rate (NaN) and takes
    no part in that gap; fairlearn counts it as 0.

    Args:
        truth: what is true, of shape `(rows,)` or `(rows, 1)`: labels of any dtype, or numbers; or one-hot `(rows, classes)`.
        answers: what the model says, as `predict` returns it: `(rows,)` or `(rows, 1)` probabilities, labels or numbers;
            `(rows, classes)` scores, of which the largest counts.
        groups: the sensitive column, of shape `(rows,)` and any dtype. Numbers with many values are cut at their quartiles.
        column: the column's name; "" takes the name that `groups` has itself, if any.
        task: "binary", "classes" or "numbers"; None decides by the data.
        threshold: which probability counts as positive, in a binary task.
        positive: the label that rates are about; None is the larger of two labels. With more than two classes, rates are
            those of this class against the others.

    Raises:
        DataMismatch: the arrays do not have equally many rows, or do not fit the task.
        InvalidSpec: there are more than 20 groups, or `positive` is no label of the data.

    >>> report = group_metrics([1, 0, 1, 0], [0.9, 0.2, 0.4, 0.1], ["a", "a", "b", "b"], column="sex")
    >>> report.gap("demographic parity difference"), report.gap("equalized odds difference")
    (0.5, 1.0)
    """
    cells, notes, ranges = _cells(groups)
    judged = _judged(truth, answers, task=task, threshold=threshold, positive=positive)
    if len(cells) != len(judged.truth):
        raise DataMismatch(f"The column has {len(cells):,} values for {len(judged.truth):,} rows. Give one value for each row.")
    names, counts = np.unique(cells, return_counts=True)
    order = [*ranges, *(name for name in names[np.argsort(-counts, kind="stable")] if name not in ranges)]
    rows = tuple(_row(str(name), judged.of(cells == name)) for name in order)
    small = [row.group for row in rows if row.rows < SMALL_ROWS]
    if small:
        notes = (*notes, f"Fewer than {SMALL_ROWS} rows: {', '.join(small[:6])}. Look at the intervals before you conclude anything.")
    return GroupMetrics(
        column=column or str(getattr(groups, "name", None) or "group"),
        task=judged.task,
        positive=judged.positive,
        overall=_row("all", judged),
        groups=rows,
        gaps=_gaps(rows, judged.task),
        notes=(*judged.notes, *notes),
    )


# --------------------------------------------------------------------------- what is given


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Truth and answers after reading. Of a binary task both are bool, and `scores` are probabilities, if the answers were."""

    task: Task
    truth: np.ndarray
    answers: np.ndarray
    scores: np.ndarray | None = None
    positive: str = ""
    notes: tuple[str, ...] = ()

    def of(self, rows: np.ndarray) -> Judged:
        """The same of some rows."""
        scores = None if self.scores is None else self.scores[rows]
        return Judged(task=self.task, truth=self.truth[rows], answers=self.answers[rows], scores=scores, positive=self.positive)


def _judged(truth: Any, answers: Any, *, task: Task | None, threshold: float, positive: Any) -> Judged:
    own, given_answers = _flat(truth, "truth"), _flat(answers, "answers")
    if len(own) != len(given_answers):
        raise DataMismatch(f"There are {len(given_answers):,} answers for {len(own):,} rows of truth. Give as many of each.")
    if not len(own):
        raise DataMismatch("There are no rows. Give at least one row of each group.")
    classes = given_answers.shape[1] if given_answers.ndim == 2 else 0
    if own.ndim == 2:  # one-hot
        if own.shape[1] != classes:
            raise DataMismatch(
                f"The truth has {own.shape[1]} columns and the answers {classes or 1}. Give labels, or one column per class."
            )
        own = own.argmax(axis=1)
    labels = np.unique(own)
    task = task or _task_of(own, labels, classes=classes)
    if task == "numbers":
        if classes or own.dtype.kind not in "biuf" or given_answers.dtype.kind not in "biuf":
            raise DataMismatch("Metrics of numbers need one number per row in truth and answers. Give a task, or other columns.")
        return Judged(task="numbers", truth=own.astype(np.float64), answers=given_answers.astype(np.float64))
    return _classified(own, given_answers, labels, classes=classes, task=task, threshold=threshold, positive=positive)


def _task_of(truth: np.ndarray, labels: np.ndarray, *, classes: int) -> Task:
    """Whole numbers with one answer column count as numbers from the third value on: a class index has a column per class."""
    if truth.dtype.kind == "f" and not np.array_equal(labels, np.round(labels)):
        return "numbers"
    if len(labels) <= 2 and classes in (0, 2):
        return "binary"
    return "classes" if classes or truth.dtype.kind not in "biuf" else "numbers"


def _classified(
    truth: np.ndarray, answers: np.ndarray, labels: np.ndarray, *, classes: int, task: Task, threshold: float, positive: Any
) -> Judged:
    scores: np.ndarray | None = None
    names = np.arange(classes) if classes else np.unique(np.concatenate([labels, _as_labels(answers, labels)]))
    chosen_label = _positive(names, positive, task)
    if classes:
        if truth.dtype.kind not in "biuf" or truth.min() < 0 or truth.max() >= classes:
            raise DataMismatch(f"The truth has other labels than 0 to {classes - 1}, the answers' columns. Give class numbers as truth.")
        label_answers: np.ndarray = answers.argmax(axis=1)
        scores = answers[:, int(chosen_label)] if chosen_label is not None else None
    elif _are_probabilities(answers, labels):
        if answers.min() < 0 or answers.max() > 1:
            raise DataMismatch(
                f"The answers lie between {answers.min():.3g} and {answers.max():.3g}, so they are no probabilities. "
                "Give them through a sigmoid, or as labels."
            )
        scores, label_answers = answers.astype(np.float64), np.where(answers >= threshold, 1, 0)
        if not np.isin(labels, (0, 1)).all():
            raise DataMismatch("The answers are probabilities, and the truth has other labels than 0 and 1. Give 0 and 1 as truth.")
    else:
        label_answers = _as_labels(answers, labels)
    if chosen_label is None:
        return Judged(task="classes", truth=truth, answers=label_answers)
    note = f"Rates are those of class {chosen_label} against all others." if task == "classes" else ""
    return Judged(
        task="binary",
        truth=truth == chosen_label,
        answers=label_answers == chosen_label,
        scores=scores,
        positive=str(chosen_label),
        notes=(note,) if note else (),
    )


def _are_probabilities(answers: np.ndarray, labels: np.ndarray) -> bool:
    return answers.dtype.kind == "f" and not np.isin(answers, labels).all()


def _as_labels(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`answers` among labels; those of probabilities are 0 and 1."""
    if answers.dtype.kind in "biuf" and labels.dtype.kind in "biuf":
        return np.array([0, 1]) if _are_probabilities(answers, labels) else answers
    return answers.astype(str)


def _positive(names: np.ndarray, positive: Any, task: Task) -> Any:
    if positive is None:
        return names[-1] if task == "binary" and len(names) else None
    matching = [name for name in names if str(name) == str(positive) or name == positive]
    if not matching:
        raise InvalidSpec(f"positive={positive!r} is no label here. Use one of: {', '.join(map(str, names[:MOST_GROUPS]))}.")
    return matching[0]


def _flat(values: Any, what: str) -> np.ndarray:
    """`values` as an array of rows, or of rows and columns; words as str."""
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2):
        raise DataMismatch(f"The {what} have the shape {array.shape}. Give one value per row, or one column per class.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataMismatch(f"The {what} hold NaN or infinity. Leave these rows out.")
    return array if array.dtype.kind in "biuf" else array.astype(str)


def _cells(groups: Any) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """The group of each row by name, what is to be known of the groups, and the names of ranges in their order."""
    array = np.asarray(groups)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataMismatch(f"The column has the shape {array.shape}. Give one value per row.")
    is_missing = np.array([value is None or value != value for value in array.tolist()], dtype=bool)
    notes: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    if array.dtype.kind in "iuf" and len(np.unique(array[~is_missing])) > MOST_GROUPS:
        names, ranges = _ranges(array.astype(np.float64), is_missing)
        notes = ("The column holds many numbers, so its quartiles are the groups.",)
    else:
        names = array.astype(str)
    cells = np.where(is_missing, MISSING, names)
    count = len(np.unique(cells))
    if count > MOST_GROUPS:
        raise InvalidSpec(f"The column has {count} different values; {MOST_GROUPS} groups can be compared. Choose a coarser column.")
    return cells, notes, ranges


def _ranges(numbers: np.ndarray, is_missing: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Names of the quartiles that the numbers lie in, as "17 to 28", and these names from the lowest up."""
    present = numbers[~is_missing]
    edges = np.unique(np.quantile(present, np.linspace(0, 1, RANGES + 1)))
    place = np.clip(np.searchsorted(edges, numbers, side="left") - 1, 0, max(len(edges) - 2, 0))
    names = np.full(len(numbers), MISSING, dtype=object)
    ranges = []
    for index in np.unique(place[~is_missing]):
        chosen_rows = (place == index) & ~is_missing
        ranges.append(f"{numbers[chosen_rows].min():g} to {numbers[chosen_rows].max():g}")
        names[chosen_rows] = ranges[-1]
    return names.astype(str), tuple(ranges)


# --------------------------------------------------------------------------- metrics


def _row(name: str, judged: Judged) -> GroupRow:
    table = {"binary": _of_rates, "classes": _of_classes, "numbers": _of_numbers}[judged.task](judged)
    return GroupRow(
        group=name,
        rows=len(judged.truth),
        metrics={metric: value for metric, (value, _) in table.items()},
        intervals={metric: bounds for metric, (_, bounds) in table.items() if bounds is not None},
    )


Metrics = Mapping[str, tuple[float, tuple[float, float] | None]]


def _of_rates(judged: Judged) -> Metrics:
    truth, answers = judged.truth, judged.answers
    table: dict[str, tuple[float, tuple[float, float] | None]] = {
        "positives": (_share(truth), None),
        "accuracy": _rate(truth == answers),
        "selection rate": _rate(answers),
        "true positive rate": _rate(answers[truth]),
        "false positive rate": _rate(answers[~truth]),
    }
    if judged.scores is not None:
        table["AUC"] = (area_under_roc(truth, judged.scores), None)
    return table


def _of_classes(judged: Judged) -> Metrics:
    return {"accuracy": _rate(judged.truth == judged.answers)}


def _of_numbers(judged: Judged) -> Metrics:
    error = judged.answers - judged.truth
    return {
        "mean answer": _mean(judged.answers),
        "mean error": _mean(error),
        "mean absolute error": _mean(np.abs(error)),
        "root mean squared error": (float(np.sqrt(np.mean(error**2))), None),
    }


def _share(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _rate(values: np.ndarray) -> tuple[float, tuple[float, float] | None]:
    """A share with Wilson's 95 % interval (Wilson 1927)."""
    n = len(values)
    if not n:
        return math.nan, None
    share = float(np.mean(values))
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return share, (max(0.0, centre - half), min(1.0, centre + half))


def _mean(values: np.ndarray) -> tuple[float, tuple[float, float] | None]:
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    half = Z95 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, (mean - half, mean + half)


def area_under_roc(truth: np.ndarray, scores: np.ndarray) -> float:
    """The share of pairs of a positive and a negative row that `scores` put in order; ties count half. NaN without both kinds.

    Args:
        truth: bool, of shape `(rows,)`.
        scores: numbers, of shape `(rows,)`.
    """
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return math.nan
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


# --------------------------------------------------------------------------- gaps


def _gaps(rows: Sequence[GroupRow], task: Task) -> tuple[GroupGap, ...]:
    def gap(metric: str, measure: str = "") -> GroupGap:
        return _gap(rows, measure or f"gap in {metric}", lambda row: row.metrics.get(metric, math.nan))

    if task == "numbers":
        return gap("mean answer"), gap("mean error"), gap("mean absolute error")
    if task == "classes":
        return (gap("accuracy"),)
    odds = [gap("true positive rate", EQUALIZED_ODDS), gap("false positive rate", EQUALIZED_ODDS)]
    known_odds = [one_gap for one_gap in odds if math.isfinite(one_gap.value)]
    widest = max(known_odds, key=lambda one_gap: one_gap.value) if known_odds else GroupGap(measure=EQUALIZED_ODDS, value=math.nan)
    areas = (gap("AUC"),) if any("AUC" in row.metrics for row in rows) else ()
    return (
        gap("selection rate", DEMOGRAPHIC_PARITY),
        widest,
        gap("true positive rate", "equal opportunity difference"),
        gap("accuracy"),
        *areas,
    )


def _gap(rows: Sequence[GroupRow], measure: str, value_of: Callable[[GroupRow], float]) -> GroupGap:
    known_rows = [row for row in rows if math.isfinite(value_of(row))]
    if len(known_rows) < 2:
        return GroupGap(measure=measure, value=math.nan)
    low, high = min(known_rows, key=value_of), max(known_rows, key=value_of)
    return GroupGap(measure=measure, value=value_of(high) - value_of(low), low=low.group, high=high.group)
