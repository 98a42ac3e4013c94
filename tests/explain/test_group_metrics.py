"""Metrics by group: by hand, by property, and beside fairlearn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import booleans, floats, integers, lists, sampled_from, tuples
from matplotlib.text import Text

from aiaas_magics.core import wire
from aiaas_magics.core.errors import DataMismatch, InvalidSpec
from aiaas_magics.core.group_report import GroupReport
from aiaas_magics.explain.group_metrics import GroupMetrics, area_under_roc, group_metrics
from aiaas_magics.plots import group_text
from aiaas_magics.plots.figure_style import as_png

ROWS = lists(tuples(booleans(), floats(0, 1, width=32), sampled_from(["a", "b", "c"])), min_size=1, max_size=60)


def by_name(report: GroupMetrics) -> dict[str, dict[str, float]]:
    return {row.group: dict(row.metrics) for row in report.groups}


def test_rates_are_those_counted_by_hand() -> None:
    truth = [1, 1, 0, 0, 1, 0, 0, 0]
    answers = [0.9, 0.4, 0.6, 0.1, 0.8, 0.7, 0.2, 0.1]
    sex = ["m", "m", "m", "m", "f", "f", "f", "f"]

    report = group_metrics(truth, answers, sex, column="sex")

    assert by_name(report)["m"]["accuracy"] == 0.5
    assert by_name(report)["m"]["true positive rate"] == 0.5
    assert by_name(report)["f"]["true positive rate"] == 1.0
    assert by_name(report)["f"]["false positive rate"] == pytest.approx(1 / 3)
    assert report.gap("equal opportunity difference") == 0.5
    assert report.gap("equalized odds difference") == 0.5
    assert report.gap("demographic parity difference") == 0.0
    assert report.overall.rows == 8


def test_numbers_have_errors_in_the_place_of_rates() -> None:
    report = group_metrics([1.0, 2.5, 3.0, 4.5], [1.5, 3.0, 3.0, 2.5], ["a", "a", "b", "b"])

    assert report.task == "numbers"
    assert by_name(report)["a"]["mean error"] == 0.5
    assert by_name(report)["b"]["mean error"] == -1.0
    assert by_name(report)["b"]["root mean squared error"] == pytest.approx(math.sqrt(2))
    assert report.gap("gap in mean error") == 1.5


def test_scores_of_several_classes_count_by_the_largest() -> None:
    scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.5, 0.3, 0.2]])

    report = group_metrics([0, 1, 2, 2], scores, ["a", "a", "b", "b"])
    of_class = group_metrics([0, 1, 2, 2], scores, ["a", "a", "b", "b"], positive=2)

    assert report.task == "classes"
    assert by_name(report) == {"a": {"accuracy": 1.0}, "b": {"accuracy": 0.5}}
    assert of_class.task == "binary"
    assert by_name(of_class)["b"]["true positive rate"] == 0.5


def test_one_hot_truth_and_words_are_labels_too() -> None:
    one_hot = group_metrics(np.eye(2)[[0, 1, 1, 0]], np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]]), [1, 1, 2, 2])
    words = group_metrics(["no", "yes", "yes", "no"], ["no", "yes", "no", "no"], [1, 1, 2, 2])

    assert by_name(one_hot)["2"]["accuracy"] == by_name(words)["2"]["accuracy"] == 0.5
    assert words.positive == "yes"


def test_a_group_without_positives_has_no_true_positive_rate_and_no_part_in_the_gap() -> None:
    report = group_metrics([1, 0, 0, 0], [0.9, 0.1, 0.9, 0.1], ["a", "a", "b", "b"])

    assert math.isnan(by_name(report)["b"]["true positive rate"])
    assert math.isnan(report.gap("equal opportunity difference"))
    assert report.gap("equalized odds difference") == 0.5, "the gap in false positive rate is known"
    assert "fewer than two groups" in group_text.group_text(report)


def test_a_column_of_many_numbers_becomes_quartiles_and_missing_values_a_group() -> None:
    age = np.append(np.arange(99, dtype=float), np.nan)
    truth = np.arange(100) % 2

    report = group_metrics(truth, truth.astype(float), age, column="age")

    assert [row.group for row in report.groups] == ["0 to 24", "25 to 49", "50 to 73", "74 to 98", "missing"]
    assert sum(row.rows for row in report.groups) == 100


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([1, 0], [0.5], ["a", "b"]), "1 answers for 2 rows"),
        (([1, 0], [0.5, 0.1], ["a"]), "1 values for 2 rows"),
        (([1, 0], [3.5, -2.0], ["a", "b"]), "no probabilities"),
        (([], [], []), "no rows"),
        (([1, 0], [0.5, math.nan], ["a", "b"]), "NaN"),
        (([0, 5], [[0.5, 0.5], [0.1, 0.9]], ["a", "b"]), "other labels than 0 to 1"),
    ],
)
def test_what_does_not_fit_is_one_sentence(arguments: tuple[Any, Any, Any], sentence: str) -> None:
    with pytest.raises(DataMismatch, match=sentence):
        group_metrics(*arguments)


def test_too_many_groups_and_unknown_labels_are_refused() -> None:
    with pytest.raises(InvalidSpec, match="21 different values"):
        group_metrics([0, 1] * 21, [0.5, 0.2] * 21, [f"town {n}" for n in range(21)] * 2)
    with pytest.raises(InvalidSpec, match="no label here"):
        group_metrics([0, 1], [0.1, 0.9], ["a", "b"], positive="yes")


@given(ROWS)
def test_groups_add_up_to_all_rows_and_gaps_lie_between_0_and_1(rows: list[tuple[bool, float, str]]) -> None:
    truth, scores, groups = zip(*rows, strict=True)

    report = group_metrics(np.array(truth), np.array(scores, np.float32), list(groups), task="binary")

    assert sum(row.rows for row in report.groups) == report.overall.rows == len(rows)
    weighted = sum(row.rows * row.metrics["accuracy"] for row in report.groups) / len(rows)
    assert weighted == pytest.approx(report.overall.metrics["accuracy"])
    assert all(0 <= gap.value <= 1 for gap in report.gaps if math.isfinite(gap.value))
    for row in (*report.groups, report.overall):
        assert all(low - 1e-12 <= row.metrics[name] <= high + 1e-12 for name, (low, high) in row.intervals.items())


@given(lists(tuples(booleans(), integers(0, 4)), min_size=1, max_size=40))
def test_the_area_is_the_share_of_ordered_pairs(pairs: list[tuple[bool, int]]) -> None:
    truth, scores = np.array([one for one, _ in pairs]), np.array([score for _, score in pairs], float)

    area = area_under_roc(truth, scores)

    compared = [(a > b) + 0.5 * (a == b) for a in scores[truth] for b in scores[~truth]]
    assert area == pytest.approx(np.mean(compared)) if compared else math.isnan(area)


def test_a_report_travels_and_shows_itself() -> None:
    rng = np.random.default_rng(3)
    report = group_metrics(rng.integers(0, 2, 300), rng.random(300), rng.choice(["north", "south", "$x_1$"], 300), column="region")

    assert wire.decode(wire.encode(report), GroupReport).groups == report.groups
    figure = report.plot()
    words = " ".join(text.get_text() for text in figure.findobj(Text))
    assert all(name in words for name in ("north", "south", "$x_1$", "Selection rate", "95 %"))
    assert as_png(figure).startswith(b"\x89PNG")
    assert "region" in group_text.group_text(report)
    assert list(report.to_frame().index) == [*(row.group for row in report.groups), "all"]


def test_fairlearn_computes_the_same() -> None:
    metrics = pytest.importorskip("fairlearn.metrics", reason="the extra `references` is not installed")
    from sklearn.metrics import accuracy_score, roc_auc_score

    rng = np.random.default_rng(7)
    truth, scores, groups = rng.integers(0, 2, 500), rng.random(500), rng.choice(["a", "b", "c", "d"], 500)
    answers = (scores >= 0.5).astype(int)

    report = group_metrics(truth, scores, groups)

    frame = metrics.MetricFrame(
        metrics={
            "accuracy": accuracy_score,
            "selection rate": metrics.selection_rate,
            "true positive rate": metrics.true_positive_rate,
            "false positive rate": metrics.false_positive_rate,
        },
        y_true=truth,
        y_pred=answers,
        sensitive_features=groups,
    )
    for name, row in by_name(report).items():
        assert {metric: row[metric] for metric in frame.by_group.columns} == pytest.approx(dict(frame.by_group.loc[name]))
    areas = metrics.MetricFrame(metrics=roc_auc_score, y_true=truth, y_pred=scores, sensitive_features=groups)
    assert {name: row["AUC"] for name, row in by_name(report).items()} == pytest.approx(dict(areas.by_group))
    assert report.gap("demographic parity difference") == pytest.approx(
        metrics.demographic_parity_difference(truth, answers, sensitive_features=groups)
    )
    assert report.gap("equalized odds difference") == pytest.approx(
        metrics.equalized_odds_difference(truth, answers, sensitive_features=groups)
    )
