"""Which rows a rank sees: rules that hold for all sizes."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import booleans, integers, just, one_of

from aiaas_magics.backend.training.batch_partition import BatchPartition, order_of, part_of, place_of, steps_of
from aiaas_magics.core.row_order import rows_of

RANKS = integers(1, 9)
BATCHES = integers(1, 40)
SHUFFLES = one_of(booleans(), just("batch"))


@given(rows=integers(0, 500), ranks=RANKS)
def test_every_row_of_a_batch_belongs_to_one_rank_or_to_all(rows: int, ranks: int) -> None:
    shards = [rows_of(rank, rows=rows, ranks=ranks) for rank in range(ranks)]

    if rows < ranks:
        assert all(list(shard) == list(range(rows)) for shard in shards)
    else:
        assert sorted(chain.from_iterable(shards)) == list(range(rows))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


@given(rows=integers(0, 500), ranks=RANKS, classes=integers(2, 4))
def test_rows_in_turn_of_their_classes_give_no_rank_one_class_alone(rows: int, ranks: int, classes: int) -> None:
    labels = np.arange(rows) % classes

    for rank in range(ranks):
        part = rows_of(rank, rows=rows, ranks=ranks)
        assert len(set(labels[part.start : part.stop])) == min(classes, len(part))
        assert list(part) == list(range(part.start, part.stop))


@given(rows=integers(1, 500), ranks=RANKS)
def test_shares_add_up_to_one(rows: int, ranks: int) -> None:
    parts = [part_of(rank, rows=rows, ranks=ranks) for rank in range(ranks)]

    assert sum(part.share for part in parts) == pytest.approx(1.0)
    assert all(part.alone == (rows < ranks) for part in parts)


@given(rows=integers(1, 400), batch=BATCHES, epoch=integers(0, 9), shuffle=SHUFFLES, seed=integers(-(2**70), 2**70))
def test_an_epoch_goes_through_every_row_once(rows: int, batch: int, epoch: int, shuffle: bool, seed: int) -> None:
    order = order_of(epoch, rows=rows, batch=batch, shuffle=shuffle, seed=seed)

    assert sorted(order) == list(range(rows))
    assert np.array_equal(order, order_of(epoch, rows=rows, batch=batch, shuffle=shuffle, seed=seed))


@given(rows=integers(1, 400), batch=BATCHES, ranks=RANKS, skip=integers(0, 5))
def test_the_parts_of_all_ranks_are_the_batches_of_one(rows: int, batch: int, ranks: int, skip: int) -> None:
    order = order_of(3, rows=rows, batch=batch, shuffle=True, seed=1)
    whole = [set(order[start : start + batch]) for start in range(0, rows, batch)][skip:]

    cuts = [BatchPartition(rows=rows, batch=batch, rank=rank, ranks=ranks).cut(order, skip=skip) for rank in range(ranks)]

    for step, expected in enumerate(whole):
        full = cuts[0].full.shape[0]
        seen = [cut.full[step] if step < full else cut.tail for cut in cuts]
        assert set(np.concatenate(seen)) == expected
        if len(expected) < ranks:
            assert all(set(part) == expected for part in seen)
        else:
            assert sum(map(len, seen)) == len(expected)


def test_shuffling_by_batch_keeps_the_batches_together() -> None:
    order = order_of(0, rows=10, batch=4, shuffle="batch", seed=2)

    assert [sorted(order[:4]), sorted(order[4:8]), sorted(order[8:])] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(order) != list(range(10))


def test_another_epoch_and_another_seed_are_other_orders() -> None:
    orders = {tuple(order_of(epoch, rows=50, batch=8, shuffle=True, seed=seed)) for epoch in range(3) for seed in range(3)}

    assert len(orders) == 9


def test_an_epoch_is_a_pass_unless_steps_cut_it() -> None:
    assert place_of(7, first_epoch=2, batches=5, steps_per_epoch=None) == (7, 0)
    assert [place_of(epoch, first_epoch=2, batches=5, steps_per_epoch=2) for epoch in range(2, 7)] == [
        (2, 0),
        (2, 2),
        (2, 4),
        (3, 0),
        (3, 2),
    ]


@given(batches=integers(1, 20), steps=integers(1, 25), epochs=integers(1, 12))
def test_every_pass_begins_at_its_first_batch_and_ends_at_its_last(batches: int, steps: int, epochs: int) -> None:
    """As Keras counts: an epoch ends after its steps, or where its pass ends; the next pass is the next epoch's."""
    passed, within = 0, 0
    for epoch in range(epochs):
        assert place_of(epoch, first_epoch=0, batches=batches, steps_per_epoch=steps) == (passed, within)
        assert steps_of(epoch, first_epoch=0, batches=batches, steps_per_epoch=steps) == min(steps, batches - within)
        within += min(steps, batches - within)
        if within == batches:
            passed, within = passed + 1, 0
