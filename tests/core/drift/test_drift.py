"""Drift: a planted shift is found first, none is found where there is none, and the tests keep their level."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiaas_magics.core import wire
from aiaas_magics.core.drift.drift_features import Feature, features_of
from aiaas_magics.core.drift.drift_report import compared, feature_drift, kolmogorov_survival, reference_of
from aiaas_magics.core.drift.drift_values import SOME, DriftReference, DriftReport, DriftVerdict, FeatureReference


def described(**arrays: np.ndarray) -> DriftReference:
    rows = len(next(iter(arrays.values())))
    return reference_of(features_of("input", arrays), rows=rows, origin="a test")


def drift_of(then: dict[str, np.ndarray], now: dict[str, np.ndarray]) -> DriftReport:
    rows = len(next(iter(now.values())))
    return compared("churn", 1, described(**then), features_of("input", now), rows=rows)


def one(values: np.ndarray) -> FeatureReference:
    """The reference of one column."""
    (feature,) = reference_of([Feature("input:x", "x", "input", values)], rows=len(values), origin="a test").features
    return feature


def test_the_planted_shift_is_found_first_and_alone() -> None:
    draw = np.random.default_rng(1)
    then, now = draw.normal(size=(4000, 12)), draw.normal(size=(1500, 12))
    now[:, 7] += 0.6

    report = drift_of({"x": then}, {"x": now})

    assert report.features[0].name == "x[7]"
    assert report.features[0].verdict is DriftVerdict.LARGE
    assert [feature.name for feature in report.shifted] == ["x[7]"]
    assert report.features[0].p < 1e-6


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), rows=st.integers(300, 3000))
def test_without_a_shift_the_index_stays_below_a_tenth_and_nearly_always_below_its_noise(seed: int, rows: int) -> None:
    draw = np.random.default_rng(seed)
    then, now = draw.gamma(2.0, size=(3000, 20)), draw.gamma(2.0, size=(rows, 20))

    features = drift_of({"x": then}, {"x": now}).features

    assert all(feature.verdict is DriftVerdict.STABLE for feature in features)
    assert sum(feature.psi > feature.noise for feature in features) <= 4  # of 20, at 1 %


def test_too_few_rows_are_said_and_a_giant_shift_is_seen_with_few() -> None:
    draw = np.random.default_rng(2)

    few = drift_of({"x": draw.normal(size=4000)}, {"x": draw.normal(size=40)}).features[0]
    giant = drift_of({"x": draw.normal(size=4000)}, {"x": draw.normal(5, 1, size=40)}).features[0]

    assert few.verdict is DriftVerdict.TOO_FEW
    assert few.noise > SOME
    assert giant.verdict is DriftVerdict.LARGE


def uniformity(p_values: list[float]) -> float:
    """The largest distance of the cumulative distribution from that of uniform numbers."""
    ordered = np.sort(p_values)
    steps = np.arange(1, len(ordered) + 1) / len(ordered)
    return float(max(np.abs(steps - ordered).max(), np.abs(steps - 1 / len(ordered) - ordered).max()))


@pytest.mark.parametrize("rows", [400, pytest.param(100, marks=pytest.mark.nightly), pytest.param(2000, marks=pytest.mark.nightly)])
def test_without_a_shift_the_p_values_of_the_test_are_uniform(rows: int) -> None:
    draw = np.random.default_rng(rows)
    p_values = [feature_drift(one(draw.normal(size=4000)), draw.normal(size=rows)).p for _ in range(600)]

    assert uniformity(p_values) < 1.63 / math.sqrt(600) + 0.03  # the 1 % limit, and what is lost between the points of the reference
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.08


def test_the_statistic_is_that_of_all_rows_up_to_the_points_of_the_reference() -> None:
    draw = np.random.default_rng(3)
    then, now = draw.normal(size=200), draw.normal(0.3, 1.2, size=150)  # 200 rows are all points

    found = feature_drift(one(then), now)

    every = np.concatenate([then, now])
    exact = max(abs((then <= value).mean() - (now <= value).mean()) for value in every)
    assert found.statistic == pytest.approx(exact, abs=1 / 150)
    assert found.statistic <= exact + 1e-12


@pytest.mark.parametrize(("x", "probability"), [(0.5, 0.9639), (0.8276, 0.5), (1.0, 0.27), (1.2238, 0.1), (1.3581, 0.05), (1.6276, 0.01)])
def test_the_survival_function_has_the_values_of_the_tables(x: float, probability: float) -> None:
    assert kolmogorov_survival(x) == pytest.approx(probability, abs=2e-4)


def test_values_that_were_always_the_same_and_are_no_more_are_a_shift() -> None:
    drift = feature_drift(one(np.zeros(1000)), np.where(np.arange(1000) % 2, 1.0, 0.0))

    assert drift.verdict is DriftVerdict.LARGE
    assert drift.p < 1e-6


def test_missing_values_are_a_bin_and_counted() -> None:
    draw = np.random.default_rng(4)
    now = draw.normal(size=2000)
    now[:600] = np.nan

    drift = feature_drift(one(draw.normal(size=2000)), now)

    assert drift.verdict is DriftVerdict.LARGE
    assert (drift.missing_then, drift.missing_now) == (0.0, 0.3)
    assert drift.p > 0.001  # the values that are there did not change


def test_categories_are_compared_by_their_shares_and_new_ones_are_others() -> None:
    then = np.array(["a"] * 500 + ["b"] * 500, object)

    same = feature_drift(one(then), np.array(["a"] * 240 + ["b"] * 260, object))
    new = feature_drift(one(then), np.array(["a"] * 200 + ["c"] * 300, object))

    assert same.verdict is DriftVerdict.STABLE
    assert same.p > 0.05
    assert new.verdict is DriftVerdict.LARGE
    assert new.bins == ("a", "b", "other")


def test_a_darker_camera_shows_in_the_brightness_of_images() -> None:
    draw = np.random.default_rng(5)
    then, now = draw.uniform(size=(1000, 8, 8, 3)), draw.uniform(size=(600, 8, 8, 3)) * 0.7

    report = drift_of({"x": then.astype("float32")}, {"x": now.astype("float32")})

    names = {feature.name for feature in report.features}
    assert {"x (brightness)", "x (contrast)", "x (sharpness)", "x (channel 2)"} <= names
    assert report.features[0].verdict is DriftVerdict.LARGE


def test_outputs_of_several_classes_are_compared_by_the_class_too() -> None:
    scores = np.eye(3)[np.arange(900) % 3]
    then = reference_of(features_of("output", {"y": scores}), rows=900, origin="a test")
    features = features_of("output", {"y": np.eye(3)[np.zeros(500, int)]})

    report = compared("churn", 1, then, features, rows=500)

    by_class = next(feature for feature in report.features if feature.name == "y (class)")
    assert by_class.bins == ("0", "1", "2")
    assert by_class.now == (1.0, 0.0, 0.0)


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=60),
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=60),
)
def test_any_numbers_have_a_finite_index_and_a_probability(then: list[float], now: list[float]) -> None:
    drift = feature_drift(one(np.array(then)), np.array(now))

    assert math.isfinite(drift.psi)
    assert drift.psi >= 0
    assert 0 <= drift.p <= 1
    assert sum(drift.then) == pytest.approx(1)
    assert sum(drift.now) == pytest.approx(1)


def test_a_reference_holds_no_row_stays_small_and_travels() -> None:
    draw = np.random.default_rng(6)
    reference = described(x=draw.normal(size=(4096, 60)))

    assert len(wire.encode(reference)) < 500_000
    assert max(len(feature.points) for feature in reference.features) <= 257
    assert wire.decode(wire.encode(reference), DriftReference) == reference


def test_a_text_that_only_few_rows_have_is_in_no_reference() -> None:
    texts = np.array([f"a letter of customer {number}" for number in range(500)] + ["yes"] * 300, object)

    reference = described(x=texts)

    assert b"customer" not in wire.encode(reference)
    assert next(feature for feature in reference.features if feature.categories).categories == ("yes",)
    assert {feature.name for feature in drift_of({"x": texts[:500]}, {"x": texts}).features} == {"x (length)"}, "no text repeats"


def test_names_of_columns_are_those_of_the_data_frame() -> None:
    features = features_of("input", {"x": np.ones((3, 2))}, {"x": ("age", "income")})

    assert [(feature.key, feature.name) for feature in features] == [("input:x[0]", "age"), ("input:x[1]", "income")]
