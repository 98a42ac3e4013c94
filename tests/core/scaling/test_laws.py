"""The arithmetic of scaling, against its own definitions and against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers, lists

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.scaling import laws
from aiaas_magics.core.scaling.laws import SpeedupPoint

seconds = floats(1e-3, 1e4)
fractions = floats(0.0, 1.0)
worker_counts = lists(integers(1, 64), min_size=2, max_size=8, unique=True)


def amdahl_points(one_worker_s: float, serial: float, counts: list[int]) -> list[SpeedupPoint]:
    return [SpeedupPoint(workers=n, seconds=one_worker_s * (serial + (1 - serial) / n), rows_per_s=1.0) for n in counts]


@given(work_s=seconds, workers=integers(1, 1000))
def test_ideal_time_capacity_and_response_share_the_work_equally(work_s: float, workers: int) -> None:
    assert laws.ideal_seconds(work_s, workers=workers) * workers == pytest.approx(work_s)
    assert laws.ideal_response(work_s, replicas=workers) * workers == pytest.approx(work_s)
    assert laws.ideal_capacity(work_s, workers=workers) / workers == pytest.approx(work_s)


@given(one_worker_s=seconds, serial=fractions, counts=worker_counts)
def test_the_fit_finds_the_serial_fraction_that_made_the_points(one_worker_s: float, serial: float, counts: list[int]) -> None:
    law = laws.fit_amdahl(amdahl_points(one_worker_s, serial, counts))

    assert law is not None
    assert law.serial_fraction == pytest.approx(serial, abs=1e-4)
    assert law.one_worker_s == pytest.approx(one_worker_s, rel=1e-3)
    assert law.largest_miss < 1e-4


@given(times=lists(seconds, min_size=2, max_size=8))
def test_whatever_was_measured_the_serial_fraction_stays_between_0_and_1(times: list[float]) -> None:
    points = [SpeedupPoint(workers=n + 1, seconds=time) for n, time in enumerate(times)]

    law = laws.fit_amdahl(points)

    assert law is not None
    assert 0 <= law.serial_fraction <= 1
    assert law.one_worker_s > 0


@given(contention=floats(0.0, 0.5), coherency=floats(0.0, 0.05))
def test_gunthers_law_finds_the_parameters_that_made_the_points(contention: float, coherency: float) -> None:
    truth = laws.UslFit(contention=contention, coherency=coherency, largest_miss=0.0)
    points = [SpeedupPoint(workers=n, seconds=10 / truth.speedup(n)) for n in (1, 2, 4, 8, 16)]

    found = laws.fit_usl(points)

    assert found is not None
    assert found.contention == pytest.approx(contention, abs=1e-6)
    assert found.coherency == pytest.approx(coherency, abs=1e-6)


def test_gunthers_law_knows_where_more_workers_become_slower() -> None:
    law = laws.UslFit(contention=0.0, coherency=0.01, largest_miss=0.0)

    assert law.best_workers == pytest.approx(10)
    assert law.speedup(10) > law.speedup(9)
    assert law.speedup(10) > law.speedup(11)


def test_gunthers_law_is_not_guessed_from_three_points_or_without_one_worker() -> None:
    assert laws.fit_usl(amdahl_points(1, 0.1, [1, 2, 4])) is None
    assert laws.fit_usl(amdahl_points(1, 0.1, [2, 4, 8, 16])) is None


@given(counts=worker_counts, serial=fractions)
def test_speedup_and_efficiency_agree_and_never_beat_the_ideal_under_amdahls_law(counts: list[int], serial: float) -> None:
    rows = laws.scaling(amdahl_points(3.0, serial, counts))

    assert [row.workers for row in rows] == sorted(counts)
    assert rows[0].efficiency == pytest.approx(1.0)
    for row in rows:
        assert row.speedup == pytest.approx(row.efficiency * row.workers)
        assert row.seconds >= row.ideal_s * (1 - 1e-9)


def gustafson_points(one_worker_s: float, serial: float, counts: list[int]) -> list[SpeedupPoint]:
    """n workers that each do the work of `one_worker_s`, the fraction `serial` of their time not in parallel."""
    return [SpeedupPoint(workers=n, seconds=one_worker_s * n / (n - serial * (n - 1)), rows_per_s=n - serial * (n - 1)) for n in counts]


@given(one_worker_s=seconds, serial=floats(0.0, 0.95), counts=worker_counts)
def test_gustafsons_law_finds_the_serial_fraction_that_made_the_points(one_worker_s: float, serial: float, counts: list[int]) -> None:
    law = laws.fit_gustafson(gustafson_points(one_worker_s, serial, counts))

    assert law is not None
    assert law.serial_fraction == pytest.approx(serial, abs=1e-4)
    assert law.one_worker_s == pytest.approx(one_worker_s, rel=1e-3)
    assert law.largest_miss < 1e-4


@given(counts=worker_counts, serial=fractions.filter(lambda share: share < 0.95))
def test_of_weak_scaling_the_ideal_is_constant_time_and_speedup_counts_the_grown_work(counts: list[int], serial: float) -> None:
    rows = laws.scaling(gustafson_points(3.0, serial, counts), weak=True)

    first = rows[0]
    for row in rows:
        assert row.ideal_s == pytest.approx(first.seconds)
        assert row.efficiency == pytest.approx(first.seconds / row.seconds)
        assert row.speedup == pytest.approx(row.rows_per_s / first.rows_per_s * first.workers)


def test_a_weak_study_is_judged_by_gustafsons_law_and_recommends_what_still_pays() -> None:
    fit = laws.fit_study(gustafson_points(1.0, 0.1, [1, 2, 4]), weak=True)
    collapsed = laws.fit_study([SpeedupPoint(workers=n, seconds=time) for n, time in ((1, 1.0), (2, 3.0))], weak=True)

    assert fit.amdahl is None
    assert fit.fits
    assert "10.0%" in fit.verdict
    assert "R² 1.000" in fit.verdict
    assert fit.recommended == 4
    assert "Gustafson's law does not fit: 2 workers process fewer rows/s than 1" in collapsed.verdict
    assert collapsed.recommended == 1


def test_weak_scaling_beyond_the_ideal_is_no_serial_fraction_below_zero() -> None:
    fit = laws.fit_study([SpeedupPoint(workers=n, seconds=time) for n, time in ((1, 1.0), (2, 0.6))], weak=True)

    assert fit.serial_fraction == 0
    assert "better than ideal" in fit.verdict


@given(
    rows=lists(lists(floats(-10, 10), min_size=3, max_size=3), min_size=3, max_size=8),
    steps=lists(floats(0, 1), min_size=3, max_size=3),
)
def test_least_squares_with_bounds_is_not_beaten_by_a_step_within_them(rows: list[list[float]], steps: list[float]) -> None:
    targets = [1.0] * len(rows)

    def cost(x: tuple[float, ...]) -> float:
        return sum((sum(a * b for a, b in zip(row, x, strict=True)) - 1) ** 2 for row in rows)

    found = laws.least_squares(rows, targets)

    assert min(found) >= 0
    assert cost(found) <= cost(tuple(steps)) + 1e-6
    assert cost(found) <= cost(tuple(value + step / 100 for value, step in zip(found, steps, strict=True))) + 1e-6


def test_the_range_of_an_efficiency_encloses_it() -> None:
    row = laws.scaling([SpeedupPoint(workers=1, seconds=2.0), SpeedupPoint(workers=2, seconds=1.25, spread=0.1)])[1]
    low, high = row.efficiency_range

    assert low < row.efficiency < high


def test_a_point_is_the_median_of_its_repeats_scaled_to_what_is_reported() -> None:
    point = laws.point_of([1.0, 5.0, 1.2], workers=2, rows=600, scale=10)

    assert point.seconds == pytest.approx(12.0)
    assert point.rows_per_s == pytest.approx(500)
    assert point.spread == pytest.approx(4 / 2.4)


def test_workers_beyond_the_devices_are_left_out_of_the_fit_and_of_the_recommendation() -> None:
    points = [*amdahl_points(8.0, 0.02, [1, 2]), SpeedupPoint(workers=4, seconds=7.9, physical=False)]

    fit = laws.fit_study(points)

    assert fit.fits
    assert fit.serial_fraction == pytest.approx(0.02)
    assert fit.recommended == 2


def test_two_points_fit_but_the_verdict_says_that_nothing_tests_the_law() -> None:
    fit = laws.fit_study(amdahl_points(8.0, 0.1, [1, 2]))

    assert fit.fits
    assert "two points" in fit.verdict
    assert "10.0%" in fit.verdict


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ({1: 1.0, 2: 1.5, 4: 2.0}, "are slower"),
        ({1: 8.0, 2: 1.0, 4: 0.5}, "better than ideal"),
        ({1: 8.0, 2: 4.0, 4: 3.9, 8: 1.0}, "misses a point"),
    ],
)
def test_a_law_that_does_not_fit_is_said_in_plain_words(times: dict[int, float], said: str) -> None:
    fit = laws.fit_study([SpeedupPoint(workers=n, seconds=time) for n, time in times.items()])

    assert not fit.fits
    assert said in fit.verdict


def test_one_point_makes_no_law_but_still_a_recommendation() -> None:
    fit = laws.fit_study([SpeedupPoint(workers=2, seconds=1.0)])

    assert fit.amdahl is None
    assert not fit.fits
    assert fit.recommended == 2


def test_the_recommended_number_is_the_largest_that_still_pays() -> None:
    times = {1: 8.0, 2: 4.2, 4: 2.4, 8: 2.3}

    recommended, why = laws.recommend([SpeedupPoint(workers=n, seconds=time) for n, time in times.items()])

    assert recommended == 4
    assert "70%" in why


@given(times=lists(seconds, min_size=1, max_size=6))
def test_the_recommended_number_was_measured_and_no_fewer_workers_were_faster(times: list[float]) -> None:
    points = [SpeedupPoint(workers=n + 1, seconds=time) for n, time in enumerate(times)]

    recommended, _ = laws.recommend(points)

    assert 1 <= recommended <= len(points)
    assert all(times[recommended - 1] <= earlier for earlier in times[: recommended - 1])


@given(values=lists(floats(-1e6, 1e6), min_size=1, max_size=50), percent=floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    assert laws.percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-9, abs=1e-6)


def test_amdahls_limit_is_the_inverse_of_the_serial_fraction() -> None:
    assert laws.AmdahlFit(one_worker_s=1, serial_fraction=0.05, largest_miss=0, r_squared=None).speedup_limit == pytest.approx(20)
    assert laws.AmdahlFit(one_worker_s=1, serial_fraction=0.0, largest_miss=0, r_squared=None).speedup_limit == math.inf


@pytest.mark.parametrize(("workers", "time"), [(0, 1.0), (1, 0.0), (1, -1.0), (1, math.nan), (1, math.inf)])
def test_what_is_no_measurement_cannot_become_a_point(workers: int, time: float) -> None:
    with pytest.raises(InvalidSpec, match="no measurement"):
        SpeedupPoint(workers=workers, seconds=time)


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_percentile_outside_0_to_100_is_refused(percent: float) -> None:
    with pytest.raises(InvalidSpec, match="between 0 and 100"):
        laws.percentile([1.0], percent)
