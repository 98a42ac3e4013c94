"""Step timer: one point of a study, steady steps of the stock `fit`.

Owns the clock and the arguments of a measured `fit`: full batches only, no validation and no
callbacks of the user's, so that every number of workers does the same work a step.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import keras
import msgspec
import numpy as np

from aiaas_magics.backend.training.comm.process_group import ExchangeTimes, ProcessGroup
from aiaas_magics.core.events import Measured
from aiaas_magics.core.internals.keras_internals import tree
from aiaas_magics.core.spec import MeasureSpec

FEWEST_STEPS: Final = 3  # a repeat of a study is at least this long, whatever the budget
CALIBRATING: Final = 200  # steps at most that a budget is made from (guess: a few calls of small steps)
MOST_EPOCHS: Final = 30  # of a whole point: what lies between epochs is not in the time, but it is waited for (guess)
PROBE_S: Final = 0.2  # for the exchanges that are timed alone; guess
PROBES: Final = (3, 50)  # at least, at most
PROBE_BYTES: Final = 64 * 2**20  # more would not fit some machine's memory once more; beyond, time is proportional to bytes
EPOCHS: Final = 1_000_000  # the timer stops, not the count
LEFT_OUT: Final = ("validation_data", "validation_split", "validation_steps", "validation_batch_size", "validation_freq", "callbacks")


def steady(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `fit`, with as many rows as make full batches and nothing beside the steps."""
    timed_arguments = {name: value for name, value in arguments.items() if name not in LEFT_OUT and name != "steps_per_epoch"}
    if (sizes := _rows_and_batch(arguments)) is not None:
        rows, batch = sizes
        whole = rows // batch * batch if rows >= batch else rows
        for name in ("x", "y", "sample_weight"):
            if timed_arguments.get(name) is not None:
                timed_arguments[name] = tree.map_structure(
                    lambda array: array[:whole] if array is not None else None, timed_arguments[name]
                )
        timed_arguments["batch_size"] = batch
    first = int(arguments.get("initial_epoch") or 0)
    return timed_arguments | {"initial_epoch": first, "epochs": first + EPOCHS}


def leaves_rows(arguments: dict[str, Any]) -> bool:
    """Whether a pass of the whole `fit` ends in a part of a batch, which makes it another program: batches of unknown length."""
    sizes = _rows_and_batch(arguments)
    return sizes is not None and sizes[0] % sizes[1] > 0


def _rows_and_batch(arguments: dict[str, Any]) -> tuple[int, int] | None:
    """The rows that are trained on, and those of a batch; None where nobody knows."""
    rows = _rows(arguments.get("x"))
    if rows is None:
        return None
    if arguments.get("validation_data") is None and (split := arguments.get("validation_split") or 0.0):
        rows = math.floor(rows * (1.0 - split))
    steps = arguments.get("steps_per_epoch")
    return rows, int(arguments.get("batch_size") or (math.ceil(rows / steps) if steps else 32))


def _rows(x: Any) -> int | None:
    leaves = [leaf for leaf in tree.flatten(x) if leaf is not None]
    shape = getattr(leaves[0], "shape", None) if leaves else None
    return int(shape[0]) if shape is not None and len(shape) else None


class StepTimer(keras.callbacks.Callback):  # type: ignore[misc]
    """Times `repeats` runs of equally many steps after some to warm up, then stops the training.

    It also says how many steps are made at once where calls make many: never more than are left of a stretch, nor than `most_steps`.
    What lies between epochs is left out of the time. With several workers all take rank 0's number of steps.
    In the end the model has the weights that it had when it was warm: after so few steps they tell whether all n compute
    the same, while after hundreds float32 rounding, which training amplifies, would drown the answer.
    """

    def __init__(
        self,
        spec: MeasureSpec,
        *,
        group: ProcessGroup | None = None,
        most_steps: int | None = None,
        memory: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__()
        self._spec, self._group, self._most_steps, self._memory, self._clock = spec, group, most_steps, memory, clock
        self._steps = spec.steps
        self._calibrating = 0
        self._last = -1  # step of the epoch that was the last to be made
        self._steps_seen = 0  # of the present stretch: warming up, calibrating, or one repeat
        self._warm = False
        self._spent = 0.0
        self._calibrated: list[float] = []
        self._weights: list[Any] = []
        self._before = self._exchanged = ExchangeTimes()
        self._exchanges: list[ExchangeTimes] = []  # of each repeat
        self.seconds: list[float] = []
        self.compile_s = 0.0
        self.memory_bytes = 0

    def __call__(self) -> int:
        """How many steps the next call may make."""
        if not self._warm:
            return 1
        remaining = (self._steps or self._calibrating) - self._steps_seen
        return max(1, min(remaining, self._most_steps or remaining))

    def took(self, steps: int, seconds: float) -> None:
        """What `on_train_batch_end` counts is enough."""

    @property
    def steps(self) -> int:
        return self._steps

    @property
    def step_s(self) -> float:
        """Of the median repeat."""
        return statistics.median(self.seconds) / self._steps

    def measured(self, rows_per_step: int) -> Measured:
        point = Measured(steps=self._steps, rows_per_step=rows_per_step, seconds=tuple(self.seconds), compile_s=self.compile_s)
        return self._with_exchange(point, self._group) if self._group else point

    def _with_exchange(self, point: Measured, group: ProcessGroup) -> Measured:
        # As the step's own time: the median repeat, so that one that something disturbed does not count.
        typical = sorted(self._exchanges, key=lambda spent: spent.seconds)[len(self._exchanges) // 2]
        nbytes = int(group.broadcast(typical.bytes / self._steps, site="bytes"))
        return msgspec.structs.replace(
            point,
            exchange_s=typical.seconds / self._steps,
            exchanges=round(typical.exchanges / self._steps),
            exchange_bytes=nbytes,
            latency_s=exchange_s(group, 1),
            transfer_s=exchange_s(group, nbytes),
        )

    def on_train_begin(self, logs: Any = None) -> None:
        self._began = self._clock()

    def on_train_end(self, logs: Any = None) -> None:
        self.memory_bytes = self._memory()
        if self._weights:
            self.model.set_weights(self._weights)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._last = -1

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._group:
            self._before = self._group.spent
        if self.compile_s:
            self._began = self._clock()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        spent, steps = self._clock() - self._began, batch - self._last
        self._last = batch
        self._steps_seen += steps
        if not self.compile_s:
            self.compile_s = spent
        elif not self._warm:
            self._calibrated.append(spent)
        if not self._warm:
            self._warm_up()
            return
        self._spent += spent
        if not self._steps:
            self._calibrate()
            return
        if self._group:
            self._exchanged += self._group.spent - self._before
        if self._steps_seen >= self._steps:
            self.seconds.append(self._spent)
            self._exchanges.append(self._exchanged)
            self._steps_seen, self._spent, self._exchanged = 0, 0.0, ExchangeTimes()
            if len(self.seconds) >= self._spec.repeats:
                self.model.stop_training = True

    def _warm_up(self) -> None:
        if self._steps_seen < max(1, self._spec.warmup_steps):
            return
        self._warm, self._steps_seen = True, 0
        self._weights = self.model.get_weights()
        if not self._steps:
            seconds_per_step = min(self._calibrated, default=self.compile_s)
            self._calibrating = self._agreed(min(CALIBRATING, self._most(), self._spec.budget_s / 4 / max(seconds_per_step, 1e-6)), least=1)

    def _calibrate(self) -> None:
        """Find the number of steps that fills the budget: one at a time took longer than many in one call do."""
        if self._steps_seen < self._calibrating:
            return
        seconds_per_step = min(self._spent / self._steps_seen, *self._calibrated) if self._calibrated else self._spent / self._steps_seen
        fewest = 1 if self._spec.compare else FEWEST_STEPS
        self._steps = self._agreed(min(self._most(), self._spec.budget_s / max(seconds_per_step, 1e-6)), least=fewest)
        self._steps_seen, self._spent = 0, 0.0

    def _most(self) -> float:
        return MOST_EPOCHS * float(self.params.get("steps") or math.inf) / self._spec.repeats

    def _agreed(self, own_steps: float, *, least: int) -> int:
        steps = float(max(least, round(own_steps)))
        return int(self._group.broadcast(steps, site="steps") if self._group else steps)


def exchange_s(group: ProcessGroup, nbytes: int) -> float:
    """Seconds of one sum of `nbytes` over the ranks, all arriving together; 0 for no bytes. Every rank must ask."""
    if not nbytes:
        return 0.0
    array = np.ones(-(-min(nbytes, PROBE_BYTES) // 4), np.float32)
    site = f"probe-{array.nbytes}"

    def once() -> float:
        group.barrier()
        began = time.perf_counter()
        group.all_reduce([array], 1.0, site=site)
        return time.perf_counter() - began

    once()  # the first makes the memory
    least, most = PROBES
    times = int(group.broadcast(min(most, max(least, PROBE_S / once())), site="probes"))
    return statistics.median(once() for _ in range(times)) * max(1.0, nbytes / PROBE_BYTES)
