"""Epochs: the batches that each one of `fit` gets, for Keras' iterators that hand out arrays themselves.

Owns following the passes over the data: where an epoch starts in its pass, and when the next pass
begins. The order of rows in a pass is `batch_partition`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from aiaas_magics.backend.folders.checkpoint_folder import TrainingPosition
from aiaas_magics.backend.training.batch_partition import BatchPartition, Indices, Shuffle, order_of, place_of
from aiaas_magics.backend.training.private_sampling import PoissonPartition, PoissonSampling
from aiaas_magics.core.row_order import whole_executions

Steps = Iterator[tuple[int, int, Any]]  # the first step of a call, the last, and the data


class LoopLengthPolicy(Protocol):
    """Says how many steps the next call makes, and hears how long it took."""

    def __call__(self) -> int: ...
    def took(self, steps: int, seconds: float) -> None: ...


@dataclasses.dataclass(slots=True, kw_only=True)
class Reading:
    """What the batches of one `fit` go by. `plan` is known once `fit` has looked at its arrays."""

    seed: int
    first_epoch: int = 0  # the user's initial_epoch
    start: TrainingPosition  # where this attempt starts
    plan: BatchPartition | None = None
    pace: LoopLengthPolicy | None = None  # how many steps a call makes; None: Keras' `steps_per_execution`
    test_pace: LoopLengthPolicy | None = None
    kernel_order: Callable[..., Indices] | None = None  # of a pass, by rows, batch and shuffle: that of plain `fit`
    execution: int = 1  # the user's `steps_per_execution`: an epoch has whole ones of these
    is_watched: bool = False  # callbacks look at batches, so that each call is one execution
    batch_alone: bool = False  # some batch, of training or validation, has fewer rows than ranks
    uneven: bool = False  # as if passes ended in a part of a batch, also where they do not: that is another program
    sampling: PoissonSampling | None = None  # draws the batches of training; None: each pass has every row once
    too_large: Callable[[], None] = lambda: None  # told where the data of training turn out not to fit on the devices

    def partition(self, plan: BatchPartition) -> BatchPartition:
        """`plan`, or what stands for it where the batches of training are drawn."""
        return plan if self.sampling is None else self.sampling.partition(plan)


class Passes:
    """Positions in the data, batch by batch, pass after pass."""

    def __init__(self, reading: Reading, plan: BatchPartition, *, shuffle: Shuffle, steps_per_epoch: int | None) -> None:
        self._reading, self._plan, self._shuffle = reading, plan, shuffle
        if steps_per_epoch is not None:
            steps_per_epoch = whole_executions(steps_per_epoch, reading.execution)
        number, skip = place_of(reading.start.epoch, first_epoch=reading.first_epoch, batches=plan.batches, steps_per_epoch=steps_per_epoch)
        self._place = number, skip + reading.start.step
        self._first_step = reading.start.step

    def first_step(self) -> int:
        """The step that the epoch begins with: not the first where an earlier attempt has made some."""
        first, self._first_step = self._first_step, 0
        return first

    def begin(self) -> tuple[int, Indices]:
        """The next pass: how many of its batches an earlier attempt has used up, and the order of all its rows."""
        number, skip = self._place
        self._place = number + 1, 0
        plan, sampling = self._plan, self._reading.sampling
        if sampling is not None and isinstance(plan, PoissonPartition):
            return skip, sampling.order(number, plan)
        if self._shuffle and self._reading.kernel_order is not None:
            return skip, self._reading.kernel_order(rows=plan.rows, batch=plan.batch, shuffle=self._shuffle)
        return skip, order_of(number, rows=plan.rows, batch=plan.batch, shuffle=self._shuffle, seed=self._reading.seed)


def steps_of_epoch(
    iterator: Any,
    *,
    first: int,
    execution: int = 1,
    is_watched: bool = False,
    begin_pass: Callable[[], None],
    call: Callable[[int, int], tuple[int, Any]],
    took: Callable[[int, float], None] = lambda steps, seconds: None,
) -> Steps:
    """As Keras' `EpochIterator._enumerate_iterator`, but a pass is begun when its first batch is asked for, and a call may make many steps.

    Args:
        first: the step that the epoch begins with.
        execution: Keras' `steps_per_execution`: the epoch is rounded up to whole ones, as far as the pass has batches.
        is_watched: each call is one execution. Its last step has the number that Keras tells callbacks, also where the pass ends before.
        call: given the place in the pass and the most steps, how many the next call makes, and the data for them.
        took: told how many seconds those steps took, with what callbacks did after them.
    """
    iterator.data_adapter.on_epoch_begin()
    batches = iterator.data_adapter.num_batches
    if iterator._current_iterator is None or iterator.steps_per_epoch is None:
        begin_pass()
    step, epoch_steps = first, iterator.steps_per_epoch or batches
    most = whole_executions(epoch_steps, execution)
    while step < most:
        if iterator._steps_seen >= batches:
            if iterator.steps_per_epoch and whole_executions(step, execution) < epoch_steps:
                iterator._interrupted_warning()
            break
        steps, data = call(iterator._steps_seen, most - step)
        iterator._steps_seen += steps
        began = time.perf_counter()
        yield step, step + (execution if is_watched else steps) - 1, data
        took(steps, time.perf_counter() - began)
        step += steps
    if iterator._steps_seen >= batches:
        iterator._current_iterator = None
    iterator.data_adapter.on_epoch_end()
