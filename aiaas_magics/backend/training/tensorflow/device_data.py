"""Device data: the rows that a call of many steps reads, all on the device or the next ones read ahead.

Owns the memory that data may take, and reading ahead. Which rows a step reads is `batch_partition`, the call `multi_step`.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Protocol

import numpy as np
import psutil
import tensorflow as tf

from aiaas_magics.backend.training.batch_partition import BatchPartition, Indices, Pass
from aiaas_magics.backend.training.tensorflow.multi_step import StepChunk
from aiaas_magics.core.internals.keras_internals import tree
from aiaas_magics.core.internals.tensorflow_internals import device_lib

MEMORY_SHARE: Final = 0.2  # of what is free when training begins; validation may take as much again (guess)
STREAMED_BYTES: Final = 256 * 1024**2  # read ahead at a time, where the whole does not fit (guess)


class DeviceData(Protocol):
    """The arrays of one `fit`, read pass by pass."""

    def begin(self, plan: BatchPartition, cut: Pass, *, uneven: bool) -> None:
        """The next pass reads these positions. `uneven`: see `StepChunk`."""

    def chunk(self, start: int, steps: int) -> StepChunk:
        """Steps of this pass from `start`, at most `steps`, at least one. Full batches only."""

    def tail(self) -> StepChunk:
        """The rest of this pass, where the last batch is not a full one."""


def device_data_of(arrays: Any, *, ranks: int = 1, budget: int | None = None) -> DeviceData:
    """`arrays` on the device where they fit into `budget` bytes (by default a share of it for each of `ranks`), else read ahead."""
    nbytes = sum(int(np.prod(x.shape, dtype=np.int64)) * itemsize(x) for x in tree.flatten(arrays) if x is not None)
    most = MEMORY_SHARE * free_bytes() / ranks if budget is None else budget
    return Resident(arrays) if nbytes <= most else Streamed(arrays, min(STREAMED_BYTES, int(most)))


class _Cut:
    """What both kinds have of a pass."""

    def __init__(self, arrays: Any) -> None:
        self._arrays = arrays

    def begin(self, plan: BatchPartition, cut: Pass, *, uneven: bool) -> None:
        self._plan, self._cut, self._uneven = plan, cut, uneven
        # Small numbers are quicker to index with.
        self._index = plan.index_dtype

    def _rest(self, arrays: Any) -> StepChunk:
        return StepChunk(arrays, self._constant(self._cut.tail[None]), 0, 1, self._plan.tail, uneven=True, rest=self._plan.full_batches > 0)

    def _constant(self, positions: Indices) -> Any:
        return tf.constant(positions.astype(self._index))


class Resident(_Cut):
    def __init__(self, arrays: Any) -> None:
        super().__init__(tree.map_structure(lambda x: None if x is None else tf.convert_to_tensor(x), arrays))

    def begin(self, plan: BatchPartition, cut: Pass, *, uneven: bool) -> None:
        super().begin(plan, cut, uneven=uneven)
        self._positions = self._constant(cut.full)

    def chunk(self, start: int, steps: int) -> StepChunk:
        return StepChunk(self._arrays, self._positions, start, min(start + steps, self._plan.full_batches), self._plan.full, self._uneven)

    def tail(self) -> StepChunk:
        return self._rest(self._arrays)


class Streamed(_Cut):
    """Segments of equally many steps; one is computed with while a thread reads the next."""

    def __init__(self, arrays: Any, nbytes: int) -> None:
        super().__init__(arrays)
        self._bytes = nbytes
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="aiaas-rows")
        self._row = sum(int(np.prod(x.shape[1:], dtype=np.int64)) * itemsize(x) for x in tree.flatten(arrays) if x is not None)

    def begin(self, plan: BatchPartition, cut: Pass, *, uneven: bool) -> None:
        super().begin(plan, cut, uneven=uneven)
        rows = max(1, cut.full.shape[1])
        self._steps = max(1, min(len(cut.full), self._bytes // (2 * max(1, self._row) * rows)))
        self._positions = self._constant(np.arange(self._steps * rows).reshape(self._steps, rows))
        self._coming: tuple[int, Future[Any]] | None = None
        self._here: tuple[int, Any] | None = None

    def chunk(self, start: int, steps: int) -> StepChunk:
        segment, first = divmod(start, self._steps)
        if self._here is None or self._here[0] != segment:
            self._here = (segment, self._wait_for(segment))
            self._read_ahead(segment + 1)
        last = min(first + steps, self._steps, self._plan.full_batches - segment * self._steps)
        return StepChunk(self._here[1], self._positions, first, last, self._plan.full, self._uneven, of=self._plan.full_batches)

    def tail(self) -> StepChunk:
        rows = self._cut.tail
        return StepChunk(
            self._read(rows),
            self._constant(np.arange(len(rows))[None]),
            0,
            1,
            self._plan.tail,
            uneven=True,
            rest=self._plan.full_batches > 0,
        )

    def _wait_for(self, segment: int) -> Any:
        if self._coming is None or self._coming[0] != segment:
            self._coming = (segment, self._reader.submit(self._segment, self._cut, segment))
        return self._coming[1].result()

    def _read_ahead(self, segment: int) -> None:
        if segment * self._steps < self._plan.full_batches:
            self._coming = (segment, self._reader.submit(self._segment, self._cut, segment))

    def _segment(self, cut: Pass, segment: int) -> Any:
        rows = cut.full[segment * self._steps : (segment + 1) * self._steps].reshape(-1)
        # The last one is filled up: another length would be traced and compiled again.
        return self._read(np.resize(rows, self._steps * cut.full.shape[1]))

    def _read(self, rows: Indices) -> Any:
        return tree.map_structure(
            lambda x: None if x is None else tf.gather(x, rows) if tf.is_tensor(x) else tf.convert_to_tensor(np.take(x, rows, axis=0)),
            self._arrays,
        )


def free_bytes() -> int:
    """Of the memory that this process computes in: its smallest GPU's, or the machine's."""
    if not tf.config.list_physical_devices("GPU"):
        return int(psutil.virtual_memory().available)
    return min(int(device.memory_limit) for device in device_lib.list_local_devices() if device.device_type == "GPU")


def itemsize(x: Any) -> int:
    return int(x.dtype.size or 16) if tf.is_tensor(x) else int(x.dtype.itemsize)
