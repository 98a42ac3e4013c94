"""What is projected, against a simulated cluster that knows none of its laws."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis.strategies import booleans, floats, integers, lists, sampled_from, tuples

from aiaas_magics.backend.training.comm import shared_memory_group
from aiaas_magics.core.scaling import laws, projection
from aiaas_magics.core.scaling.projection import RING, SHARED_MEMORY, ReductionScheme, StepPoint, project
from aiaas_magics.testing.cluster_simulator import Cluster, ring

COLLECTIVES = {"ring": RING, "shared memory": SHARED_MEMORY}
MLP = Cluster(serial_s=2e-3, parallel_s=60e-3, latency_s=5e-6, byte_s=0.2e-9, exchange_bytes=20_000_000)


def measured(cluster: Cluster, workers: int, **how: Any) -> StepPoint:
    """The point that a study makes of what the cluster says."""
    found = cluster.measure(workers, **how)
    step = laws.point_of(found.seconds, workers=workers, rows=found.rows_per_step, scale=1 / found.steps)
    return StepPoint(
        workers=workers,
        rows=found.rows_per_step,
        seconds=step.seconds,
        spread=step.spread,
        exchange_s=found.exchange_s,
        exchanges=found.exchanges,
        exchange_bytes=found.exchange_bytes,
        latency_s=found.latency_s,
        transfer_s=found.transfer_s,
    )


def points(cluster: Cluster, *counts: int, **how: Any) -> list[StepPoint]:
    return [measured(cluster, workers, **how) for workers in counts]


def untimed(found: list[StepPoint]) -> list[StepPoint]:
    """The same without what the workers timed of their exchanges."""
    return [replace(point, exchange_s=0.0, latency_s=0.0, transfer_s=0.0) for point in found]


@settings(max_examples=40, phases=[Phase.explicit, Phase.generate])  # to shrink numbers takes minutes
@given(
    serial_s=floats(1e-4, 1e-1),
    parallel_s=floats(1e-3, 1.0),
    latency_s=floats(1e-7, 1e-3),
    byte_s=floats(1e-11, 1e-8),
    collective=sampled_from(sorted(COLLECTIVES)),
    weak=booleans(),
)
def test_one_and_two_workers_that_timed_their_exchange_give_every_parameter(
    serial_s: float, parallel_s: float, latency_s: float, byte_s: float, collective: str, weak: bool
) -> None:
    cluster = Cluster(
        serial_s=serial_s,
        parallel_s=parallel_s,
        latency_s=latency_s,
        byte_s=byte_s,
        exchange_bytes=4_000_000,
        collective=collective,
    )

    law = project(points(cluster, 1, 2, weak=weak, steps=2), weak=weak, collective=COLLECTIVES[collective]).law

    assert law is not None
    assert (law.serial_s, law.parallel_s) == pytest.approx((serial_s + parallel_s, 0) if weak else (serial_s, parallel_s), rel=1e-6)
    assert law.meeting_s == pytest.approx(latency_s, rel=1e-4)
    assert law.bytes_s == pytest.approx(4_000_000 * byte_s, rel=1e-4)
    assert law.jitter == pytest.approx(0, abs=1e-6)
    for workers in (3, 4, 24, 64):
        assert law.seconds(workers) == pytest.approx(measured(cluster, workers, weak=weak, steps=1).seconds, rel=1e-6)


@pytest.mark.parametrize("weak", [False, True], ids=["strong", "weak"])
@pytest.mark.parametrize("collective", sorted(COLLECTIVES))
def test_what_is_projected_comes_true_on_up_to_1024_simulated_devices(collective: str, weak: bool) -> None:
    cluster = replace(MLP, jitter=0.03, collective=collective)

    found = project(points(cluster, 1, 2, 4, weak=weak, steps=60), weak=weak, collective=COLLECTIVES[collective], up_to=1024)

    assert found.law is not None
    assert found.law.jitter == pytest.approx(0.03, rel=0.2)
    assert [row.workers for row in found.rows] == [8, 16, 32, 64, 128, 256, 512, 1024]
    for row in found.rows[::3] + found.rows[-1:]:
        came = measured(cluster, row.workers, weak=weak, steps=6, repeats=1, seed=9)
        assert row.seconds == pytest.approx(came.seconds, rel=0.03)
        assert row.low_s <= came.seconds <= row.high_s
        assert row.rows_per_s == pytest.approx(came.rows / came.seconds, rel=0.03)


def test_nine_bands_of_ten_hold_what_comes_even_from_two_numbers_of_workers() -> None:
    cluster = replace(MLP, jitter=0.1)
    came_s = measured(cluster, 64, steps=60, seed=99).seconds
    held = 0
    for seed in range(20):
        last = project(points(cluster, 1, 2, steps=30, seed=seed), collective=RING).rows[-1]
        held += last.low_s <= came_s <= last.high_s

    assert held >= 16, "of twenty, two or so may miss"


def test_a_band_widens_with_the_number_of_workers_and_with_the_spread_of_the_repeats() -> None:
    found = points(replace(MLP, jitter=0.03), 1, 2)
    calm = project(found, collective=RING).rows
    rough = project([replace(point, spread=0.08) for point in found], collective=RING).rows

    widths = [row.high_s / row.low_s for row in calm]

    assert widths == sorted(widths)
    assert all(wide.high_s / wide.low_s > row.high_s / row.low_s for wide, row in zip(rough, calm, strict=True))


def test_times_alone_give_the_universal_law_from_three_numbers_of_workers() -> None:
    found = project(untimed(points(MLP, 1, 2, 4)))

    assert "Universal Scalability Law" in found.says
    assert "the model is untested" in found.says
    for row in found.rows:
        assert row.seconds == pytest.approx(measured(MLP, row.workers, steps=1).seconds, rel=1e-6)


@pytest.mark.parametrize("weak", [False, True], ids=["strong", "weak"])
def test_times_alone_of_two_numbers_of_workers_project_nothing_and_say_why(weak: bool) -> None:
    found = project(untimed(points(MLP, 1, 2, weak=weak)), weak=weak)

    assert (found.law, found.rows, found.recommended) == (None, (), None)
    assert "Measure a third number" in found.says


STALLING = replace(MLP, jitter=0.03, stalls=0.02, stall_times=30.0)
KNEE = replace(MLP, jitter=0.03, knee=4)


@pytest.mark.parametrize(
    ("cluster", "counts", "why"),
    [
        (STALLING, (1, 2), "long to be jitter"),
        (STALLING, (1, 2, 4, 8), "does not fit"),
        (KNEE, (1, 2, 4, 8), "does not fit"),
        (MLP, (2,), "two numbers of workers"),
    ],
    ids=["stalls, n=1,2", "stalls", "bandwidth knee", "one number"],
)
def test_what_breaks_the_assumptions_is_said_and_nothing_is_projected(cluster: Cluster, counts: tuple[int, ...], why: str) -> None:
    found = project(points(cluster, *counts, steps=300), collective=RING)

    assert found.rows == ()
    assert found.says.startswith("No projection: ")
    assert why in found.says


@pytest.mark.parametrize(("weak", "two_s"), [(False, 0.3), (True, 1.3)], ids=["faster than ideal", "weak, computing grows"])
def test_computing_that_no_law_describes_is_not_projected(weak: bool, two_s: float) -> None:
    found = [
        StepPoint(workers=1, rows=64, seconds=1.0),
        StepPoint(workers=2, rows=64, seconds=two_s, exchange_s=0.01, exchanges=1, latency_s=0.001, transfer_s=0.01),
    ]

    assert "does not fit" in project(found, weak=weak).says


def test_the_same_points_are_always_projected_the_same_way() -> None:
    found = points(replace(MLP, jitter=0.03), 1, 2)

    assert project(found) == project(found[::-1])


def test_the_recommendation_goes_over_measured_and_projected_and_says_how_sure_it_is() -> None:
    light = replace(MLP, exchange_bytes=1000, serial_s=1e-3)

    found = project(points(light, 1, 2, steps=2), collective=RING)

    assert found.recommended == 16
    assert found.recommended_range is not None
    low, high = found.recommended_range
    assert low <= 16 <= high


@settings(max_examples=60)
@given(
    times=lists(floats(1e-4, 1e2), min_size=1, max_size=4),
    exchange=tuples(floats(0, 1e2), integers(0, 5), floats(0, 1), floats(0, 1)),
    spread=floats(0, 3),
    weak=booleans(),
)
def test_whatever_was_measured_is_projected_within_its_band_or_refused_in_words(
    times: list[float], exchange: tuple[float, int, float, float], spread: float, weak: bool
) -> None:
    exchange_s, exchanges, latency_s, transfer_s = exchange
    timed = {"exchange_s": exchange_s, "exchanges": exchanges, "latency_s": latency_s, "transfer_s": transfer_s}
    found = project(
        [StepPoint(workers=2**n, rows=64, seconds=t, spread=spread, **(timed if n else {})) for n, t in enumerate(times)], weak=weak
    )

    assert bool(found.rows) == (found.law is not None) == found.says.startswith("Projected from")
    assert all(0 < row.low_s <= row.seconds <= row.high_s < math.inf for row in found.rows)


@given(workers=integers(1, 1024), collective=sampled_from([RING, SHARED_MEMORY]))
def test_no_collective_moves_less_than_nothing_and_one_worker_moves_nothing(workers: int, collective: ReductionScheme) -> None:
    assert collective.latency(1) == collective.traffic(1) == 0
    assert collective.latency(workers + 1) >= collective.latency(workers)
    assert collective.traffic(workers) >= 0


def test_the_sum_in_shared_memory_is_the_one_that_the_workers_take() -> None:
    assert projection.SLICED_FROM == shared_memory_group.SLICED_FROM


def test_the_slowest_of_n_is_expected_where_the_tables_of_order_statistics_have_it() -> None:
    for workers, expected in ((1, 0.0), (2, 0.5642), (4, 1.0294), (64, 2.3437)):
        assert projection.largest_of(workers) == pytest.approx(expected, abs=0.03)


# --------------------------------------------------------------------------- the simulator itself


def test_a_simulated_ring_takes_what_its_messages_take_and_everyone_waits_for_a_late_device() -> None:

    messages_s = 2 * 7 * (5e-6 + 20_000_000 / 8 * 0.2e-9)
    late = np.array([0, 0, 0, 1.0, 0, 0, 0, 0])

    assert ring(MLP, np.zeros(8), 20_000_000) == pytest.approx(messages_s)
    assert ring(MLP, late, 20_000_000) == pytest.approx(1.0 + messages_s)


def test_a_simulated_cluster_says_the_same_for_the_same_seed() -> None:
    cluster = replace(MLP, jitter=0.1, stalls=0.1)

    assert cluster.measure(16, seed=4) == cluster.measure(16, seed=4)
    assert cluster.measure(16, seed=4) != cluster.measure(16, seed=5)
