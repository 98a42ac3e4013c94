"""Poisson sampling: who is drawn, into which places, and which rank reads them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import integers

from aiaas_magics.backend.training.batch_partition import BatchPartition
from aiaas_magics.backend.training.private_fit import chunk_rows
from aiaas_magics.backend.training.private_sampling import NOBODY, PoissonSampling, most_drawn

SAMPLING = PoissonSampling(secret=7, chunk=16)


@given(rows=integers(1, 500), batch=integers(1, 120), ranks=integers(1, 4), secret=integers(0, 2**140))
def test_ranks_share_out_every_row_that_was_drawn(rows: int, batch: int, ranks: int, secret: int) -> None:
    sampling = PoissonSampling(secret=secret, chunk=4)
    plans = [sampling.partition(BatchPartition(rows=rows, batch=min(batch, rows), rank=rank, ranks=ranks)) for rank in range(ranks)]
    order = sampling.order(3, plans[0])

    cuts = [plan.cut(order).full for plan in plans]

    for step, line in enumerate(plans[0].lines(order)):
        drawn = line[line != NOBODY]
        assert len(set(drawn.tolist())) == len(drawn), "no row twice in a step"
        shared = np.concatenate([cut[step] for cut in cuts])
        assert sorted(shared[shared != NOBODY].tolist()) == sorted(drawn.tolist())
        counts = [int((cut[step] != NOBODY).sum()) for cut in cuts]
        assert max(counts) - min(counts) <= 1, "ranks have alike much to do"
    assert {cut.shape[1] for cut in cuts} == {plans[0].full.rows}
    assert sum(plan.full.share for plan in plans) == pytest.approx(1.0)


def test_each_row_is_drawn_by_its_own_coin() -> None:
    """Counts per step and per row are binomial: means and variances within four deviations."""
    plan = SAMPLING.partition(BatchPartition(rows=400, batch=40))
    lines = np.concatenate([plan.lines(SAMPLING.order(number, plan)) for number in range(200)])
    drawn = np.zeros((len(lines), 400), bool)
    step, place = np.nonzero(lines != NOBODY)
    drawn[step, lines[step, place]] = True
    steps = len(lines)

    assert abs(drawn.sum(axis=1).mean() - 40) < 4 * np.sqrt(36 / steps)
    assert 36 * 0.85 < drawn.sum(axis=1).var() < 36 * 1.15, "a shuffled batch would have no variance"
    per_row = drawn.sum(axis=0)
    assert np.abs(per_row - steps * 0.1).max() < 5 * np.sqrt(steps * 0.09)
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 4 / np.sqrt(steps)
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 4 / np.sqrt(steps), "steps do not know of one another"


def test_draws_follow_from_the_secret_and_the_pass_alone() -> None:
    plan = SAMPLING.partition(BatchPartition(rows=100, batch=10))

    assert np.array_equal(SAMPLING.order(2, plan), SAMPLING.order(2, plan))
    assert not np.array_equal(SAMPLING.order(2, plan), SAMPLING.order(3, plan))
    assert not np.array_equal(SAMPLING.order(2, plan), PoissonSampling(secret=8, chunk=16).order(2, plan))


def test_a_batch_of_all_rows_draws_each() -> None:
    plan = SAMPLING.partition(BatchPartition(rows=30, batch=30))

    (line,) = plan.lines(SAMPLING.order(0, plan))

    assert sorted(line[line != NOBODY].tolist()) == list(range(30))


@pytest.mark.parametrize(("rows", "batch"), [(60_000, 256), (1000, 32), (100, 99), (10, 1)])
def test_there_are_places_for_more_than_ever_comes(rows: int, batch: int) -> None:
    most = most_drawn(rows, batch)

    assert batch + 8 * np.sqrt(batch * (1 - batch / rows)) < most + 1 or most == rows, "eight deviations at least"
    assert most <= rows
    assert most < batch + 12 * np.sqrt(batch) + 60, "and not many more"


def test_only_chunks_with_rows_are_read() -> None:
    plan = SAMPLING.partition(BatchPartition(rows=1000, batch=50))
    order = SAMPLING.order(0, plan)

    rows = plan.rows_at(order, 1)

    assert len(rows) % 16 == 0
    assert len(rows) - 16 < (plan.lines(order)[1] != NOBODY).sum() <= len(rows) < plan.width


def test_gradients_of_a_chunk_fit_into_memory() -> None:
    assert chunk_rows(256, parameters=10_000_000) == 1
    assert chunk_rows(256, parameters=1_000_000) == 16
    assert chunk_rows(256, parameters=1000) == 64
    assert chunk_rows(256, parameters=1000, devices=3) == 66
    assert chunk_rows(20, parameters=1000) == 16


def test_who_prints_the_sampling_does_not_print_its_secret() -> None:
    assert "secret" not in repr(SAMPLING)
