"""Batch partition: the rows of a rank in each batch of each pass, as pure arithmetic.

Owns the order of an epoch, the batches it is cut into, the part of each batch that is a
rank's, and where in the data an epoch starts. Reading the rows belongs to `rank_rows` and `jax_batches`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from aiaas_magics.core.row_order import rows_of

Indices = npt.NDArray[np.int64]
Shuffle = bool | Literal["batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPart:
    """What a rank has of one global batch.

    `share` weighs the rank's mean in the batch's mean; the shares of all ranks add up to 1.
    `alone` is true of a batch with fewer rows than ranks: every rank has the whole of it.
    """

    rows: int
    share: float
    alone: bool

    @property
    def whole(self) -> bool:
        """Whether nobody else has rows of the batch."""
        return self.share == 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """The positions that a rank reads in one pass over the data: one line a full batch, then the rest."""

    full: Indices
    tail: Indices


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPartition:
    """How `rows` rows, in global batches of `batch`, fall to `rank` of `ranks`."""

    rows: int
    batch: int
    rank: int = 0
    ranks: int = 1

    @property
    def batches(self) -> int:
        """Steps of one pass over the data."""
        return -(-self.rows // self.batch)

    @property
    def full_batches(self) -> int:
        return self.rows // self.batch

    @property
    def tail_rows(self) -> int:
        """Rows of the last batch where that is not a full one, else 0."""
        return self.rows % self.batch

    @property
    def index_dtype(self) -> type[np.signedinteger[Any]]:
        """The narrowest of TensorFlow's and JAX's index types that names every row."""
        return np.int32 if self.rows < 2**31 else np.int64

    @property
    def has_batch_alone(self) -> bool:
        """Whether some batch has fewer rows than there are ranks."""
        return self.ranks > 1 and (0 < self.tail_rows < self.ranks or (self.full_batches > 0 and self.batch < self.ranks))

    @property
    def full(self) -> RankPart:
        return part_of(self.rank, rows=self.batch, ranks=self.ranks)

    @property
    def tail(self) -> RankPart:
        return part_of(self.rank, rows=self.tail_rows, ranks=self.ranks)

    def part(self, step: int) -> RankPart:
        """What the rank has of the batch at `step` of a pass, counted from 0."""
        return self.full if step < self.full_batches else self.tail

    def lines(self, order: Indices) -> Indices:
        """The rows of every full batch of a pass, one line a batch."""
        return order[: self.full_batches * self.batch].reshape(self.full_batches, self.batch)

    def rows_at(self, order: Indices, step: int) -> Indices:
        """The rows of the batch at `step` of a pass."""
        return order[step * self.batch : (step + 1) * self.batch]

    def cut(self, order: Indices, *, skip: int = 0) -> Pass:
        """`order` cut into this rank's part of each batch, without the first `skip` batches."""
        edge = self.full_batches * self.batch
        full = self.lines(order)[skip:]
        tail = order[edge:] if skip < self.batches else order[:0]
        own_rows = rows_of(self.rank, rows=self.batch, ranks=self.ranks)
        mine_of_tail = rows_of(self.rank, rows=self.tail_rows, ranks=self.ranks)
        return Pass(
            full=np.ascontiguousarray(full[:, own_rows.start : own_rows.stop]),
            tail=np.ascontiguousarray(tail[mine_of_tail.start : mine_of_tail.stop]),
        )


def part_of(rank: int, *, rows: int, ranks: int) -> RankPart:
    """What `rank` has of one global batch of `rows` rows."""
    if rows < ranks:
        return RankPart(rows=rows, share=1.0 / ranks, alone=True)
    own_rows = len(rows_of(rank, rows=rows, ranks=ranks))
    return RankPart(rows=own_rows, share=own_rows / rows, alone=False)


def order_of(epoch: int, *, rows: int, batch: int, shuffle: Shuffle, seed: int) -> Indices:
    """The order in which all ranks together go through the rows: a function of (seed, epoch), not of the ranks.

    `shuffle="batch"` mixes the rows within each batch, as the stock `fit` does.
    """
    order = np.arange(rows, dtype=np.int64)
    if not shuffle:
        return order
    random = np.random.default_rng([seed & 0xFFFF_FFFF_FFFF_FFFF, epoch])
    if shuffle == "batch":
        for start in range(0, rows, batch):
            random.shuffle(order[start : start + batch])
    else:
        random.shuffle(order)
    return order


def place_of(epoch: int, *, first_epoch: int, batches: int, steps_per_epoch: int | None) -> tuple[int, int]:
    """Where `epoch` starts in the data: which pass over it (counted like epochs), and after how many batches.

    An epoch is one pass, unless `steps_per_epoch` cuts passes into several; an epoch ends early where its pass does.
    """
    if steps_per_epoch is None:
        return epoch, 0
    epochs_per_pass = -(-batches // steps_per_epoch)
    passes, within = divmod(epoch - first_epoch, epochs_per_pass)
    return first_epoch + passes, within * steps_per_epoch


def steps_of(epoch: int, *, first_epoch: int, batches: int, steps_per_epoch: int) -> int:
    """How many steps `epoch` has: as many as are wanted, or what is left of its pass."""
    _, before = place_of(epoch, first_epoch=first_epoch, batches=batches, steps_per_epoch=steps_per_epoch)
    return min(steps_per_epoch, batches - before)
