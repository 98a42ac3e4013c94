"""Shared-memory group: the process group of ranks on one machine.

Owns the meeting of the ranks: who is there, waiting for one another within a finite time, and adding up arrays in shared
memory. What is promised is in `process_group`; what is added up, and why, belongs to the engines and `reductions`.

Each operation is named by its bytes, so that ranks which lost step are told apart from ranks which are slow.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from aiaas_magics.backend.training.comm.process_group import (
    ALIGN,
    MEET_S,
    Array,
    ExchangeTimes,
    Piece,
    RankMissing,
    layout,
    pieces,
)
from aiaas_magics.backend.training.comm.shared_memory import Segment, create_segment, find_segment
from aiaas_magics.core import process_id
from aiaas_magics.core.errors import AiaasBug

CONTROL_BYTES: Final = 64 * 1024
LINE: Final = 8  # int64s a rank: one cache line each, so that ranks do not slow one another by writing
ARRIVED, PID, STARTED, STATE, TAG = range(5)  # two tags, for even and odd meetings
HERE, LEFT = 1, 2
SPIN_LOOKS: Final = 2000  # about 0.2 ms of looking before the first sleep; measured: peers of a 1 ms step come within it
SLEEP_S: Final = (20e-6, 1e-3)  # the shortest and the longest sleep between two looks
SLEEP_SHARE: Final = 0.05  # of the wait so far: what is overslept on top
LOOK_S: Final = 0.2  # how often a waiting rank asks whether the others live
WAIT_S: Final = 600.0  # guess: a callback of one rank may save a large model meanwhile
SLICED_FROM: Final = 4  # ranks from which each sums a slice only; below, one pass fewer over memory wins


class SharedMemoryGroup:
    """See `ProcessGroup`. This one is in the memory of one machine.

    No operation waits longer than `wait_s`, and at most about `LOOK_S` for a rank whose process is gone. No name of the
    shared memory is left once all ranks have met there.
    """

    def __init__(
        self, *, rank: int, ranks: int, name: str, folder: Path, spin: bool = True, meet_s: float = MEET_S, wait_s: float = WAIT_S
    ) -> None:
        self.rank, self.ranks = rank, ranks
        self.spent = ExchangeTimes()
        self._waited_s = 0.0
        self._name, self._folder = name, folder
        self._spin = SPIN_LOOKS if spin else 0
        self._wait_s = wait_s
        self._segments = 0
        self._sites: dict[str, _Site] = {}
        self._table = memoryview(bytes(ranks * LINE * 8)).cast("q")  # nobody has come, as far as can be known before there is one
        self._control = self._open(CONTROL_BYTES, meet_s)
        self._table = self._control.view[: ranks * LINE * 8].cast("q")
        self._other_ranks = [other for other in range(ranks) if other != rank]
        self._fence = threading.Lock()
        self._meet(meet_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._put(STATE, LEFT)

    # ------------------------------------------------------------------ operations

    def all_reduce(self, arrays: Sequence[Array], weight: float, *, site: str, beside: bool = False) -> list[Array]:
        dtype = arrays[0].dtype
        offsets, items = layout(tuple(array.size for array in arrays), dtype.itemsize)
        with self._exchanging(items * dtype.itemsize, beside=beside):
            slots = self._site(site, items * dtype.itemsize).turn(dtype, items)
            own_slot, factor = slots[self.rank], dtype.type(weight)
            for offset, array in zip(offsets, arrays, strict=True):
                np.multiply(array.reshape(-1), factor, out=own_slot[offset : offset + array.size])
            self.barrier(tag=items * dtype.itemsize)
            out = _aligned_empty(items, dtype)
            if self.ranks < SLICED_FROM:
                _sum_into(out, slots, slice(None))
            else:
                self._sum_sliced(out, slots)
        return [out[offset : offset + array.size].reshape(array.shape) for offset, array in zip(offsets, arrays, strict=True)]

    def reduce_scatter(self, arrays: Sequence[Array], weight: float, *, site: str, beside: bool = False) -> list[Array]:
        """Nothing is copied: what is returned is the group's own memory."""
        dtype, sizes = arrays[0].dtype, tuple(array.size for array in arrays)
        offsets, items = layout(sizes, dtype.itemsize)

        def cut(rank: int) -> Iterator[tuple[Piece, slice]]:
            for piece in pieces(sizes, dtype, rank=rank, ranks=self.ranks):
                yield piece, slice(offsets[piece.array] + piece.start, offsets[piece.array] + piece.stop)

        with self._exchanging(items * dtype.itemsize, beside=beside):
            slots = self._site(site, items * dtype.itemsize).turn(dtype, items)
            for other in self._other_ranks:
                for piece, place in cut(other):
                    np.multiply(arrays[piece.array].reshape(-1)[piece.start : piece.stop], dtype.type(weight), out=slots[self.rank][place])
            self.barrier(tag=items * dtype.itemsize)
            return [slots[other][place] for other in self._other_ranks for _, place in cut(self.rank)]

    def all_gather_shards(self, own: Sequence[Array], shapes: Sequence[tuple[int, ...]], *, site: str) -> list[Array]:
        dtype, sizes = own[0].dtype if own else np.dtype(np.float32), tuple(int(np.prod(shape, dtype=np.int64)) for shape in shapes)
        cut = [pieces(sizes, dtype, rank=rank, ranks=self.ranks) for rank in range(self.ranks)]
        items = max(sum(piece.stop - piece.start for piece in rank_pieces) for rank_pieces in cut)
        with self._exchanging(items * dtype.itemsize):
            slots = self._site(site, items * dtype.itemsize).turn(dtype, items)
            at = 0
            for piece in own:
                slots[self.rank][at : at + piece.size] = piece.reshape(-1)
                at += piece.size
            self.barrier(tag=items * dtype.itemsize)
            whole = [_aligned_empty(size, dtype) for size in sizes]
            for theirs, slot in zip(cut, slots, strict=True):
                at = 0
                for part in theirs:
                    whole[part.array][part.start : part.stop] = slot[at : at + part.stop - part.start]
                    at += part.stop - part.start
        return [array.reshape(shape) for array, shape in zip(whole, shapes, strict=True)]

    def _sum_sliced(self, out: Array, slots: list[Array]) -> None:
        """Each rank sums its slice, into its own slot; then all read all slices."""
        cuts = [len(out) * rank // self.ranks for rank in range(self.ranks + 1)]
        slices = [slice(low, high) for low, high in itertools.pairwise(cuts)]
        own_slice = slices[self.rank]
        _sum_into(out, slots, own_slice)
        slots[self.rank][own_slice] = out[own_slice]
        self.barrier(tag=-out.nbytes)
        for other in self._other_ranks:
            out[slices[other]] = slots[other][slices[other]]

    def all_gather(self, array: Array, *, site: str) -> Array:
        with self._exchanging(array.nbytes):
            slots = self._site(site, array.nbytes).turn(array.dtype, array.size)
            slots[self.rank][:] = array.reshape(-1)
            self.barrier(tag=array.nbytes)
        return np.stack(slots).reshape(self.ranks, *array.shape)

    def concatenate(self, array: Array, *, site: str) -> Array:
        counts = self.all_gather(np.array([len(array)]), site=f"{site}-rows").reshape(-1)
        row = array.shape[1:]
        items = int(np.prod(row, dtype=np.int64))
        # Doubled capacities: numbers of rows change from step to step, and a new segment is dear.
        capacity = 1 << (max(1, int(counts.max()) * items * array.dtype.itemsize) - 1).bit_length()
        with self._exchanging(array.nbytes):
            slots = self._site(site, capacity).turn(array.dtype, capacity // array.dtype.itemsize)
            slots[self.rank][: array.size] = array.reshape(-1)
            self.barrier(tag=capacity)
        parts = [slot[: count * items].reshape(count, *row) for slot, count in zip(slots, counts, strict=True)]
        return np.concatenate(parts)

    def sum(self, array: Array, *, site: str) -> Array:
        total: Array = self.all_gather(array, site=site).sum(axis=0, dtype=array.dtype)
        return total

    def any(self, flag: bool, *, site: str) -> bool:
        return bool(self.sum(np.array([flag], dtype=np.int64), site=site)[0])

    def broadcast(self, value: float, *, site: str) -> float:
        return float(self.all_gather(np.array([value], np.float64), site=site)[0, 0])

    def mean_of_different(self, array: Array, *, site: str) -> Array:
        everyone = self.all_gather(array, site=site)
        mean = everyone.mean(axis=0, dtype=np.float64).astype(array.dtype)
        return np.where((everyone == everyone[0]).all(axis=0), array, mean)

    @contextlib.contextmanager
    def _exchanging(self, nbytes: int, *, beside: bool = False) -> Iterator[None]:
        began, waited_s = time.perf_counter(), self._waited_s
        yield
        hidden_s = self._waited_s - waited_s if beside else 0.0
        self.spent += ExchangeTimes(time.perf_counter() - began - hidden_s, nbytes, 1)

    # ------------------------------------------------------------------ waiting

    def barrier(self, *, tag: int = 0) -> None:
        began = time.perf_counter()
        arrived = self._table[self.rank * LINE + ARRIVED] + 1
        # Nobody is more than one meeting ahead, so a tag stands until everyone has read it.
        field = TAG + arrived % 2
        self._put(field, tag)
        self._put(ARRIVED, arrived)
        for other in self._other_ranks:
            place = other * LINE + ARRIVED
            self._until(lambda place=place: self._table[place] >= arrived, other, self._wait_s)  # type: ignore[misc]
            if (other_tag := self._table[other * LINE + field]) != tag:
                raise AiaasBug(f"worker {self.rank} exchanges {tag} bytes while worker {other} exchanges {other_tag}")
        with self._fence:
            pass
        self._waited_s += time.perf_counter() - began

    def _until(self, is_there: Callable[[], bool], other: int, limit_s: float) -> None:
        for _ in range(self._spin):
            if is_there():
                return
        shortest_s, longest_s = SLEEP_S
        began = looked = now = time.monotonic()
        while not is_there():
            time.sleep(min(max(shortest_s, (now - began) * SLEEP_SHARE), longest_s))
            now = time.monotonic()
            if now - looked > LOOK_S:
                looked = now
                how = self._why_missing(other)
                if how and not is_there():
                    raise RankMissing(other, how)
            if now - began > limit_s:
                raise RankMissing(other, f"did not come within {limit_s:g} s")

    def missing(self, *, within_s: float) -> RankMissing | None:
        deadline = time.monotonic() + within_s
        while True:
            for other in self._other_ranks:
                if (lost := self.lost(other)) is not None:
                    return lost
            if time.monotonic() > deadline:
                return None
            time.sleep(SLEEP_S[-1])

    def lost(self, other: int) -> RankMissing | None:
        how = self._why_missing(other)
        return RankMissing(other, how) if how else None

    def _why_missing(self, other: int) -> str:
        line = other * LINE
        if self._table[line + STATE] == LEFT:
            return "has left"
        pid = self._table[line + PID]
        if not pid:
            return ""  # not come yet; the time limit speaks
        return "" if process_id.is_alive(pid, started=self._table[line + STARTED]) else "is gone (its process ended)"

    def _put(self, field: int, value: int) -> None:
        # Taking a lock orders this write after the data before it, also where the processor may swap stores (ARM).
        with self._fence:
            self._table[self.rank * LINE + field] = value

    # ------------------------------------------------------------------ memory

    def _meet(self, meet_s: float) -> None:
        self._put(STARTED, process_id.start_mark(os.getpid()))
        self._put(PID, os.getpid())
        self._put(STATE, HERE)
        try:
            for other in self._other_ranks:
                self._until(lambda other=other: self._table[other * LINE + STATE] != 0, other, meet_s)  # type: ignore[misc]
        finally:
            if self.rank == 0:
                self._control.forget()

    def _open(self, nbytes: int, limit_s: float) -> Segment:
        """The next segment of this group: rank 0 makes it, the others find it."""
        name = f"{self._name}-{self._segments}"
        self._segments += 1
        if self.rank == 0:
            return create_segment(name, nbytes, fallback=self._folder)
        segments: list[Segment] = []

        def is_there() -> bool:
            if not segments and (segment := find_segment(name, nbytes, fallback=self._folder)) is not None:
                segments.append(segment)
            return bool(segments)

        self._until(is_there, 0, limit_s)
        return segments[0]

    def _site(self, name: str, nbytes: int) -> _Site:
        site = self._sites.get(name)
        if site is None or site.nbytes < nbytes:
            slot = -(-nbytes // 4096) * 4096
            segment = self._open(2 * self.ranks * slot, self._wait_s)
            try:
                self.barrier(tag=slot)
            finally:
                if self.rank == 0:
                    segment.forget()
            self._sites[name] = site = _Site(segment, self.ranks, slot)
        return site


class _Site:
    """The memory of one place in the program: a slot a rank, twice, so that one meeting a sum is enough.

    A rank that is two turns ahead has met all others in between, so nobody reads what it writes.
    """

    def __init__(self, segment: Segment, ranks: int, nbytes: int) -> None:
        self._segment, self._ranks, self.nbytes = segment, ranks, nbytes
        self._half = 0

    def turn(self, dtype: np.dtype[Any], items: int) -> list[Array]:
        """One slot a rank, of the half that is free now."""
        self._half ^= 1
        base = self._half * self._ranks * self.nbytes
        return [
            np.frombuffer(self._segment.view, dtype=dtype, count=items, offset=base + rank * self.nbytes) for rank in range(self._ranks)
        ]


def _aligned_empty(items: int, dtype: np.dtype[Any]) -> Array:
    raw = np.empty(items * dtype.itemsize + ALIGN, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start : start + items * dtype.itemsize].view(dtype)


def _sum_into(out: Array, slots: Sequence[Array], part: slice) -> None:
    if len(slots) == 1:
        np.copyto(out[part], slots[0][part])
        return
    np.add(slots[0][part], slots[1][part], out=out[part])
    for slot in slots[2:]:
        np.add(out[part], slot[part], out=out[part])
