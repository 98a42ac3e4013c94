"""A study's numbers, from measurements of a simulated cluster: its frame, what is shown of it, and its projection."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aiaas_magics.client.training.study import Point, Study, cuts_up, largest_difference
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.spec import FitShape
from aiaas_magics.notebook import present
from aiaas_magics.packing.fitcall.fit_result import FitResult
from aiaas_magics.testing.cluster_simulator import Cluster

CLUSTER = Cluster(
    serial_s=1e-3, parallel_s=60e-3, latency_s=20e-6, byte_s=5e-11, exchange_bytes=20_000_000, jitter=0.05, collective="shared memory"
)
SHAPE = FitShape(rows=25_600, global_batch=256, steps_per_epoch=100, initial_epoch=0, epochs=3, parameters=5_000_000, model="cnn")


def study(*counts: int, weak: bool = False, devices: int = 64, cluster: Cluster = CLUSTER, **more: Any) -> Study:
    def point(workers: int) -> Point:
        return Point(workers=workers, measured=cluster.measure(workers, weak=weak, rows=256), physical=workers <= devices)

    return Study(
        name="cnn",
        shape=SHAPE,
        hardware="2 cores, Xeon",
        simulated=True,
        steps=20,
        points=tuple(map(point, counts)),
        reference=point(1),
        parity_steps=3,
        weak=weak,
        **{"parity": None if weak else 3e-7, **more},
    )


def test_the_frame_tells_what_was_measured_from_what_is_projected() -> None:
    found = study(1, 2)

    frame = found.to_frame()

    assert list(frame.columns) == ["workers", "seconds", "rows_per_second", "speedup", "efficiency", "spread", "projected"]
    assert list(frame.workers) == [1, 2, 4, 8, 16, 32, 64]
    assert list(frame.projected) == [False] * 2 + [True] * 5
    assert frame.seconds[0] == pytest.approx(100 * 61e-3, rel=0.03), "of an epoch, which has 100 steps"
    assert frame.seconds[6] == pytest.approx(100 * CLUSTER.measure(64).seconds[0] / 20, rel=0.15)
    assert frame.rows_per_second[6] == pytest.approx(25_600 / frame.seconds[6])
    assert found.recommended == 2, "of what was measured"


def test_a_weak_study_counts_steps_and_keeps_its_ideal_constant() -> None:
    frame = study(1, 2, weak=True).to_frame()

    assert frame.seconds[0] == pytest.approx(61e-3, rel=0.03), "of a step"
    assert list(frame.rows_per_second * frame.seconds) == pytest.approx([256.0 * n for n in (1, 2, 4, 8, 16, 32, 64)])
    assert list(frame.speedup) == pytest.approx(list(frame.efficiency * frame.workers))


def test_a_recommendation_at_the_end_of_what_is_projected_says_that_it_is_the_end() -> None:
    words = present.study_table(study(1, 2, weak=True))["text/plain"]

    assert "Recommended: 2 workers" in words
    assert "Recommended with projected points: 64 workers (the end of the projection; " in words


@pytest.mark.parametrize("weak", [False, True], ids=["strong", "weak"])
def test_everything_shown_says_the_kind_of_scaling_its_ideal_and_what_is_projected(weak: bool) -> None:
    table, figure = present.study_bundles(study(1, 2, weak=weak))

    said: tuple[str, ...] = ("Strong scaling", "ideal N/n", "Parity: after")
    if weak:
        said = ("Weak scaling", "ideal T(1)", "scaled speedup", "Parity is not checked")
    for words in (table["text/plain"], figure["text/plain"]):
        for expected in (*said, "64 (projected)", "Projected from n = 1, 2", "the same interconnect"):
            assert expected in words
    assert "64 (projected)" in table["text/html"]
    assert figure["image/png"]


@pytest.mark.parametrize(
    ("announced", "adaptive", "parity", "said"),
    [
        (("Statistics are each worker's own.",), "Adam", 4e-3, "the effects announced below explain"),
        ((), "Adam", 4e-3, "Adam divides each gradient by its magnitude"),
        ((), "Adam", 4e-2, "no announced effect explains"),
        ((), "", 4e-3, "no announced effect explains"),
    ],
)
def test_a_parity_beyond_rounding_says_what_is_known_of_its_reason(
    announced: tuple[str, ...], adaptive: str, parity: float, said: str
) -> None:
    words = present.study_table(study(1, 2, parity=parity, announced=announced, adaptive=adaptive))["text/plain"]

    assert f"by more than {parity:.1e} of its norm, which exceeds rounding (1e-05): {said}" in words
    assert all(note in words for note in announced)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_leaves_nothing_to_compare(place: int, lost: float) -> None:
    holed = [np.ones(2) for _ in range(3)]
    holed[place][1] = lost
    whole, other = result(*[np.ones(2)] * 3), result(*holed)

    found = [largest_difference(results) for results in ((whole, other), (other, whole), (other, other), (whole, other, whole))]

    assert found == [float("inf")] * 4
    assert "a variable is NaN or infinite" in present.study_table(study(1, 2, parity=found[0]))["text/plain"]
    assert largest_difference((whole, result(*[np.full(2, 1.5)] * 3))) == pytest.approx(0.5)


def result(*weights: np.ndarray) -> FitResult:
    return FitResult(
        variables=weights,
        paths=("",) * len(weights),
        roles={"weights": tuple(range(len(weights)))},
        history={},
        epoch=[],
        params={},
        callbacks=(),
        stop_training=False,
        batch=(None, None, None),
    )


@pytest.mark.parametrize(
    ("execution", "gpus", "expected"),
    [
        (Execution(strategy="spmd"), False, True),
        (Execution(strategy="spmd"), True, False),
        (Execution(engine="jax"), False, True),
        (Execution(strategy="mirrored"), False, True),
        (Execution(engine="tensorflow"), False, False),
    ],
)
def test_devices_are_simulated_where_one_process_makes_them_of_cores(execution: Execution, gpus: bool, expected: bool) -> None:
    assert cuts_up(execution, devices=2, gpus=gpus) is expected


def test_a_study_that_cannot_be_projected_says_so_in_its_table_and_figure() -> None:
    stalling = study(1, 2, 4, cluster=replace(CLUSTER, stalls=0.05))

    table, figure = present.study_bundles(stalling)

    for words in (table["text/plain"], figure["text/plain"]):
        assert "No projection: " in words
        assert "(projected)" not in words
    assert not stalling.to_frame().projected.any()


def test_workers_that_share_devices_are_no_ground_for_a_projection() -> None:
    found = study(1, 2, 4, devices=2)

    assert "from n = 1, 2 by" in found.projection.says
    assert [row.workers for row in found.projection.rows][:2] == [4, 8]
