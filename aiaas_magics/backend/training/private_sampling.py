"""Poisson sampling: which rows each private step takes.

Owns the draws and the partition that stands for them, as pure arithmetic. Reading the rows belongs to `rank_rows` and `jax_batches`,
the secret that the draws come from to `private_fit`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

import numpy as np

from aiaas_magics.backend.training.batch_partition import BatchPartition, Indices, Pass, RankPart, part_of

NOBODY: Final = -1  # the position of a place that no row was drawn for
OVERFLOW: Final = 1e-15  # probability that any draw of a million steps is larger than its place: then all are drawn again
STEPS: Final = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoissonPartition(BatchPartition):
    """As `BatchPartition`, for batches that are drawn: `batch` rows are expected, and there are places for `width`.

    A pass is an array `[batches, width]` of positions: those drawn come first, and `NOBODY` fills the rest. Ranks take every
    n-th place, so that each has as many rows as the others, give or take one.
    """

    width: int
    chunk: int  # `width` is a multiple of it

    @property
    def full_batches(self) -> int:
        return self.batches

    @property
    def tail_rows(self) -> int:
        return 0

    @property
    def has_batch_alone(self) -> bool:
        return False

    @property
    def full(self) -> RankPart:
        return part_of(self.rank, rows=self.width, ranks=self.ranks)

    def cut(self, order: Indices, *, skip: int = 0) -> Pass:
        lines = self.lines(order)[skip:, self.rank :: self.ranks]
        return Pass(full=np.ascontiguousarray(lines), tail=np.zeros(0, dtype=np.int64))

    def lines(self, order: Indices) -> Indices:
        lines: Indices = order.reshape(self.batches, self.width)
        return lines

    def rows_at(self, order: Indices, step: int) -> Indices:
        line = self.lines(order)[step]
        chunks = max(1, -(-int((line != NOBODY).sum()) // self.chunk))
        drawn: Indices = line[: chunks * self.chunk]
        return drawn


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoissonSampling:
    """The draws of one fit, as a function of (secret, pass). Rows are read `chunk` at a time by each rank."""

    secret: int = dataclasses.field(repr=False)
    chunk: int

    def partition(self, plan: BatchPartition) -> PoissonPartition:
        chunk = self.chunk * plan.ranks
        width = -(-most_drawn(plan.rows, plan.batch) // chunk) * chunk
        return PoissonPartition(rows=plan.rows, batch=plan.batch, rank=plan.rank, ranks=plan.ranks, width=width, chunk=chunk)

    def order(self, number: int, plan: PoissonPartition) -> Indices:
        """The draws of pass `number`, flat."""
        random = np.random.default_rng([self.secret, number])
        chance = min(1.0, plan.batch / plan.rows)
        lines = np.full((plan.batches, plan.width), NOBODY, dtype=np.int64)
        for line in lines:
            # As one coin per row, and quicker: how many heads there are, then which rows have them.
            count = random.binomial(plan.rows, chance)
            while count > plan.width:
                count = random.binomial(plan.rows, chance)
            line[:count] = random.choice(plan.rows, count, replace=False, shuffle=False)
        return lines.reshape(-1)


def most_drawn(rows: int, batch: int) -> int:
    """A number of rows that a draw exceeds with a probability below `OVERFLOW / STEPS`, by Chernoff's bound for the binomial."""
    chance, need = min(1.0, batch / rows), math.log(STEPS / OVERFLOW)

    def is_enough(count: int) -> bool:
        share = count / rows
        divergence = share * math.log(share / chance) + ((1 - share) * math.log((1 - share) / (1 - chance)) if share < 1 else 0.0)
        return rows * divergence >= need

    low, high = math.ceil(rows * chance), rows
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if middle > rows * chance and is_enough(middle) else (middle + 1, high)
    return high
