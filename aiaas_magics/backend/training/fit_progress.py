"""Progress callback: sends events of what `fit` is doing.

Owns the callback that looks on: phases, steps (at most four a second), epochs, and the word that
is due when a loss is not a number any more. It changes nothing in the training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final

import keras

from aiaas_magics.backend.training.batch_partition import BatchPartition
from aiaas_magics.backend.training.event_channel import EventChannel
from aiaas_magics.core.events import Compiled, EpochEnded, Notice, Phase, PhaseEntered, StepsDone
from aiaas_magics.core.training_logs import logs_of

TELL_S: Final = 0.25  # four a second: what an eye can follow, and what a log can keep
EPOCHS_TOLD: Final = 500  # each one of so many; of the others those that an eye can follow, and the last (guess)


class Progress(keras.callbacks.Callback):  # type: ignore[misc]
    """Sends events of one `fit`. `plan` is asked once `fit` has looked at its data; None where nobody knows it.

    Rows and seconds of the first epoch begin after the first step, which traces and compiles. An epoch of a small model
    takes a millisecond, and there may be a million of them: not all are told then. `History` has them all.
    """

    def __init__(
        self,
        channel: EventChannel,
        *,
        plan: Callable[[], BatchPartition | None],
        notices: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._channel, self._plan, self._clock = channel, plan, clock
        self._notices = notices
        self._compiled = False
        self._skipped_rows = 0
        self._epoch = 0
        self._began = self._last_told_s = self._epoch_told = 0.0
        self._epochs_told = 0

    def on_train_begin(self, logs: Any = None) -> None:
        self._began = self._clock()
        self._channel.send(PhaseEntered(phase=Phase.COMPILING))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch
        if self._compiled:
            self._began, self._skipped_rows = self._clock(), 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        now = self._clock()
        step = min(batch + 1, int(self.params.get("steps") or batch + 1))  # Keras counts a last execution as a whole one
        if not self._compiled:
            self._compiled = True
            self._channel.send(Compiled(seconds=now - self._began))
            self._channel.send(PhaseEntered(phase=Phase.TRAINING))
            self._began, self._skipped_rows = now, self._rows(step)
        loss = (logs or {}).get("loss")
        if self._notices and isinstance(loss, float) and not math.isfinite(loss):
            self._notices = False
            self._channel.send(Notice(text=not_a_number(loss, self._epoch, step)))
        if now - self._last_told_s >= TELL_S:
            self._last_told_s = now
            self._channel.send(
                StepsDone(
                    epoch=self._epoch,
                    step=step,
                    steps=int(self.params.get("steps") or 0),
                    rows=self._rows(step) - self._skipped_rows,
                    seconds=now - self._began,
                    logs=logs_of(logs or {}),
                )
            )
        self._last_step = step

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        now = self._clock()
        last = epoch + 1 == self.params.get("epochs") or self.model.stop_training
        if self._epochs_told >= EPOCHS_TOLD and now - self._epoch_told < TELL_S and not last:
            return
        self._epochs_told, self._epoch_told = self._epochs_told + 1, now
        seconds = now - self._began
        rows = self._rows(getattr(self, "_last_step", 0)) - self._skipped_rows
        self._channel.send(
            EpochEnded(epoch=epoch, epochs=int(self.params.get("epochs") or 0), rows=rows, seconds=seconds, logs=logs_of(logs or {}))
        )

    def _rows(self, steps: int) -> int:
        plan = self._plan()
        return 0 if plan is None else min(steps * plan.batch, plan.rows)


def not_a_number(loss: float, epoch: int, step: int) -> str:
    description = "infinite" if math.isinf(loss) else "not a number (NaN)"
    return (
        f"The loss is {description} since epoch {epoch + 1}, step {step}; training goes on as Keras does. Try a smaller learning rate, "
        "clipnorm=1.0 in the optimizer, or look for NaN in the data; keras.callbacks.TerminateOnNaN() ends the run at that point."
    )
