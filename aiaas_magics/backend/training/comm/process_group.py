"""Process group: the ranks of an attempt as they communicate.

Owns the protocol, and the values that pass through it. How ranks on one machine meet is `shared_memory_group`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ALIGN: Final = 64  # EIGEN_MAX_ALIGN_BYTES with AVX-512: TensorFlow takes aligned arrays without a copy
MEET_S: Final = 120.0  # guess: the slowest fork and unpacking against the fastest


class RankMissing(RuntimeError):
    """Another rank is gone or does not come. Whose fault that is, the server finds out."""

    def __init__(self, rank: int, how: str) -> None:
        super().__init__(rank, how)
        self.rank, self.how = rank, how

    def __str__(self) -> str:
        return f"worker {self.rank} {self.how}; this worker cannot go on without it"


@dataclass(frozen=True, slots=True)
class ExchangeTimes:
    """What a rank gave to exchanges: the time it summed, and waited with nothing computed meanwhile, and what it brought."""

    seconds: float = 0.0
    bytes: int = 0
    exchanges: int = 0

    def __add__(self, other: ExchangeTimes) -> ExchangeTimes:
        return ExchangeTimes(self.seconds + other.seconds, self.bytes + other.bytes, self.exchanges + other.exchanges)

    def __sub__(self, other: ExchangeTimes) -> ExchangeTimes:
        return ExchangeTimes(self.seconds - other.seconds, self.bytes - other.bytes, self.exchanges - other.exchanges)


@dataclass(frozen=True, slots=True)
class Piece:
    """Items `start` up to `stop` of the flat array number `array`."""

    array: int
    start: int
    stop: int


@functools.lru_cache(maxsize=256)  # asked of every rank at every step
def pieces(sizes: tuple[int, ...], dtype: np.dtype[Any], *, rank: int, ranks: int) -> tuple[Piece, ...]:
    """What `rank`'s shard has of arrays of these sizes: an equal part of all of them together, in order."""
    offsets, items = layout(sizes, dtype.itemsize)
    step = max(1, ALIGN // dtype.itemsize)
    low, high = (items // step * share // ranks * step for share in (rank, rank + 1))
    cut = [
        Piece(place, max(0, low - offset), min(size, high - offset))
        for place, (offset, size) in enumerate(zip(offsets, sizes, strict=True))
    ]
    return tuple(piece for piece in cut if piece.start < piece.stop)


@functools.lru_cache(maxsize=256)
def layout(sizes: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], int]:
    """Where arrays of these sizes start, in items, each on an aligned address; and the items of all together."""
    offsets, step, end = [], max(1, ALIGN // itemsize), 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // step) * step
    return tuple(offsets), end


class ProcessGroup(Protocol):
    """Rank `rank` of `ranks`. Use as a context: leaving it tells the others, so that they do not wait.

    Promises, tested in tests/backend/training/comm/test_shared_memory_group.py:

    * Every rank calls the same operations in the same order. Ranks that lost step raise; they never mix up numbers.
    * Sums run over rank 0, 1, ..., n-1 on every rank, so all get the same bits.
    * No operation waits without end: it raises `RankMissing` when another rank is gone, or does not come in time.
    * `site` names the place in the program. It is the same on every rank.
    """

    rank: int
    ranks: int
    spent: ExchangeTimes

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None: ...

    def all_reduce(self, arrays: Sequence[Array], weight: float, *, site: str, beside: bool = False) -> list[Array]:
        """Over all ranks, the sum of `weight * array`, for arrays of one floating dtype and the same shapes everywhere.

        The answer is fresh memory of the caller's own, aligned for TensorFlow.

        Args:
            beside: The call runs beside computing, so that waiting in it is no time spent.
        """

    def reduce_scatter(self, arrays: Sequence[Array], weight: float, *, site: str, beside: bool = False) -> list[Array]:
        """What the other ranks add to this rank's shard (see `pieces`): the pieces of `weight * array`, rank by rank.

        The caller sums them. They stand until this rank comes to `site` again.
        """

    def all_gather_shards(self, own: Sequence[Array], shapes: Sequence[tuple[int, ...]], *, site: str) -> list[Array]:
        """The whole arrays, of which each rank brings the pieces of its shard."""

    def all_gather(self, array: Array, *, site: str) -> Array:
        """Every rank's `array` (same shape and dtype everywhere), stacked by rank. For small ones."""

    def concatenate(self, array: Array, *, site: str) -> Array:
        """The rows of all ranks, by rank. Ranks may have different numbers of rows, also none."""

    def sum(self, array: Array, *, site: str) -> Array:
        """The sum over all ranks. For small arrays."""

    def any(self, flag: bool, *, site: str) -> bool:
        """Whether any rank says so."""

    def broadcast(self, value: float, *, site: str) -> float:
        """Rank 0's `value`, on every rank."""

    def mean_of_different(self, array: Array, *, site: str) -> Array:
        """The mean over ranks where they differ; exactly `array` where they do not. For small arrays."""

    def barrier(self) -> None:
        """Return when every rank has come here. Whatever a rank wrote before is seen by all afterwards."""

    def missing(self, *, within_s: float) -> RankMissing | None:
        """A rank that is gone, or goes within so many seconds."""

    def lost(self, other: int) -> RankMissing | None:
        """That rank `other` is gone, if it is."""
