"""When a checkpoint of an attempt is written, and how the next attempt goes on from it.

Owns the callback that keeps and puts back. A checkpoint's form on disk is `checkpoints`; which
one to go on from is the server's choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import keras

from aiaas_magics.backend.training import checkpoints
from aiaas_magics.backend.training.channel import Channel
from aiaas_magics.backend.training.checkpoints import Checkpoint
from aiaas_magics.backend.training.command import WorkerCommand
from aiaas_magics.backend.training.unpacked import Unpacked
from aiaas_magics.packing import plain
from aiaas_magics.spec import Checkpointed, Notice

NOT_STATE: Final = frozenset({"model", "_model", "params", "validation_data", "history"})
SAVING_SHARE: Final = 0.1  # of the time at most goes into checkpoints, the first aside (guess)


class Keeper(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps a checkpoint of epochs, and puts back what an earlier attempt kept. Comes last in the list of callbacks."""

    def __init__(
        self,
        command: WorkerCommand,
        call: Unpacked,
        channel: Channel,
        *,
        history: Any,
        resumed: Checkpoint | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._command, self._call, self._channel, self._clock = command, call, channel, clock
        self._history, self._resumed = history, resumed
        self._folder = Path(command.job_dir) / "checkpoints"
        self._next_s = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        # Here and not before `fit`: callbacks reset themselves in their own on_train_begin, which came first.
        if self._resumed is None:
            return
        self._history.epoch = list(self._resumed.epochs_done)
        self._history.history = {name: list(values) for name, values in self._resumed.history.items()}
        for callback, state in zip(self._call.callbacks, self._resumed.callbacks, strict=True):
            plain.put_back(callback, state)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        every = self._command.execution.checkpoint_epochs
        due = every > 0 and (epoch + 1) % every == 0
        if self._command.rank or not due or (self._clock() < self._next_s and not self.model.stop_training):
            return
        began = self._clock()
        checkpoints.save(
            self._folder,
            Checkpoint(
                epoch=epoch + 1,
                variables=[variable.numpy() for variable in self._call.variables],
                history={name: [float(value) for value in values] for name, values in self._history.history.items()},
                epochs_done=self._history.epoch,
                callbacks=[checkpoints.plain_attributes(callback, leave_out=NOT_STATE) for callback in self._call.callbacks],
                stopped=bool(self.model.stop_training),
            ),
        )
        ended = self._clock()
        self._next_s = ended + (ended - began) * (1 / SAVING_SHARE - 1)
        self._channel.send(Checkpointed(epoch=epoch + 1))


def resumed_from(command: WorkerCommand, call: Unpacked, channel: Channel) -> Checkpoint | None:
    if command.resume_from is None:
        return None
    found = checkpoints.load(Path(command.resume_from))
    if found is None:
        if command.rank == 0:
            channel.send(Notice(text="The checkpoint to go on from is damaged: the training starts from its beginning."))
        return None
    for variable, value in zip(call.variables, found.variables, strict=True):
        variable.assign(value)
    return found
