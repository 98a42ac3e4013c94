"""Checkpoint callback: writes checkpoints of an attempt, and lets the next attempt go on from one.

Owns the callback that keeps and puts back. What state that is belongs to `training_state`, its form on disk
to `checkpoint_contents`; which one to go on from is the server's choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import keras

from aiaas_magics.backend.folders.checkpoint_folder import TrainingPosition
from aiaas_magics.backend.training.batch_partition import steps_of
from aiaas_magics.backend.training.checkpoint import checkpoint_contents, training_state
from aiaas_magics.backend.training.checkpoint.checkpoint_contents import CallbackState, Checkpoint
from aiaas_magics.backend.training.comm.process_group import ProcessGroup
from aiaas_magics.backend.training.epochs import LoopLengthPolicy, Reading
from aiaas_magics.backend.training.event_channel import EventChannel
from aiaas_magics.backend.training.unpacked_fit import Unpacked
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.core.events import Checkpointed, Notice
from aiaas_magics.core.row_order import whole_executions
from aiaas_magics.packing.live import plain_json

NOT_STATE: Final = frozenset({"model", "_model", "params", "validation_data", "history"})
SAVING_SHARE: Final = 0.05  # of the time at most goes into checkpoints, the first aside (guess)
SMALL_SHARE: Final = 0.02  # and no more than this where that leaves `SOON_MADE_S` to be made again at most (guess)
SOON_MADE_S: Final = 1.0  # guess: a second of training that is lost with a worker is less than it takes to notice


class CheckpointCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps checkpoints, and puts back what an earlier attempt kept. Comes last in the list of callbacks.

    On several ranks rank 0's clock decides, and all meet to hear of it: at the end of each epoch and, where
    checkpoints come by the second, after steps that they have agreed on (see `paced`). Ranks that are `alike` hold the
    same in everything: one keeps it for all.
    """

    def __init__(
        self,
        command: WorkerCommand,
        call: Unpacked,
        channel: EventChannel,
        *,
        group: ProcessGroup | None,
        alike: bool = False,
        history: Any,
        resumed: Checkpoint | None,
        reading: Reading,
        before_keeping: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._command, self._call, self._channel, self._clock = command, call, channel, clock
        self._group, self._alike, self._history, self._resumed = group, alike, history, resumed
        self._reading, self._before_keeping = reading, before_keeping
        self._folder = Path(command.job_dir) / "checkpoints"
        self._every_epochs, self._every_s = command.execution.checkpoint_epochs, command.execution.checkpoint_s
        self._epoch = self._step = self._meet_at = 0
        self._began_s = self._next_s = 0.0
        self._unkept = False  # the last checkpoint that was due could not be written

    def on_train_begin(self, logs: Any = None) -> None:
        # Here and not before `fit`: callbacks reset themselves, and variables, in their own on_train_begin, which came first.
        self._began_s = self._clock()
        if self._resumed is None:
            return
        self._history.epoch = list(self._resumed.epochs_done)
        self._history.history = {name: list(values) for name, values in self._resumed.history.items()}
        self._put_back(self._resumed)
        if self._command.rank == 0 and (text := left_behind(self._call.callbacks, self._resumed.callbacks)):
            self._channel.send(Notice(text=text))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch, self._step, self._meet_at = epoch, 0, 0
        if self._resumed is not None and self._resumed.place.step and epoch == self._resumed.place.epoch:
            self._step = self._resumed.place.step
            self._put_back(self._resumed)  # the epoch had begun before: its metrics were reset just now, and callbacks began anew

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        steps = self._steps()
        self._step = batch + 1 if steps is None else min(batch + 1, steps)  # Keras counts a last execution as a whole one
        if not self._every_s or self._step < self._meet_at or self._step == steps:
            return  # an epoch's last step is the epoch's end in a moment
        if self._agreed(self._is_time() and not self.model.stop_training):
            self._keep(TrainingPosition(self._epoch, self._step))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not (self._every_epochs or self._every_s):
            return
        due = self._every_epochs > 0 and (epoch + 1) % self._every_epochs == 0
        cheap = self._clock() >= self._next_s or self.model.stop_training
        if self._agreed((due and cheap) or (self._every_s > 0 and self._is_time())):
            self._keep(TrainingPosition(epoch + 1))

    def paced(self, pace: LoopLengthPolicy) -> LoopLengthPolicy:
        """`pace`, but where ranks have to meet within an epoch no call makes steps beyond their next meeting.

        Each rank makes as many steps a call as it finds right; which step they meet after, rank 0 says at the one before.
        """
        return _Together(pace, self) if self._group is not None and self._every_s else pace

    def steps_to_meeting(self, steps: int) -> int:
        assert self._group is not None
        if self._step >= self._meet_at:
            self._meet_at = self._step + int(self._group.broadcast(steps, site="checkpoint-meeting"))
        return self._meet_at - self._step

    def _steps(self) -> int | None:
        """How many steps the present epoch has, as far as anybody knows."""
        steps, plan = int(self.params.get("steps") or 0), self._reading.plan
        if plan is None or not steps:
            return steps or None
        first = int(self._call.arguments.get("initial_epoch") or 0)
        whole = whole_executions(steps, self._reading.execution)
        return steps_of(self._epoch, first_epoch=first, batches=plan.batches, steps_per_epoch=whole)

    def _is_time(self) -> bool:
        return self._clock() >= max(self._next_s, self._began_s + self._every_s)

    def _agreed(self, due: bool) -> bool:
        return due if self._group is None else bool(self._group.broadcast(due, site="checkpoint-due"))

    def _keep(self, place: TrainingPosition) -> None:
        began = self._clock()
        self._before_keeping()
        variables, ranks = training_state.take(self._call, None if self._alike else self._group)
        if self._command.rank:
            return
        checkpoint = Checkpoint(
            place=place,
            variables=variables,
            paths=self._call.paths,
            history=self._history.history,
            epochs_done=self._history.epoch,
            callbacks=[state_of(callback) for callback in self._call.callbacks],
            ranks=ranks,
            stopped=bool(self.model.stop_training),
        )
        try:
            checkpoint_contents.write(self._folder, checkpoint)
        except OSError as error:  # a full disk is no reason to lose the training itself
            if not self._unkept:
                why = error.strerror or str(error)
                self._channel.send(
                    Notice(text=f"Checkpoints are left out since {place} ({why}): a lost worker costs everything since the last one.")
                )
            self._unkept = True
        else:
            if self._unkept:
                self._channel.send(Notice(text=f"Checkpoints are written again, from {place} on."))
            self._unkept = False
            self._channel.send(Checkpointed(epoch=place.epoch, step=place.step))
        ended = self._began_s = self._clock()
        self._next_s = ended + pause_s(ended - began)

    def _put_back(self, checkpoint: Checkpoint) -> None:
        for callback, state in matching(self._call.callbacks, checkpoint.callbacks):
            plain_json.put_back(callback, state.attributes)
        rank, ranks = (0, 1) if self._alike else (self._command.rank, self._command.ranks)
        training_state.put_back(self._call, checkpoint.variables, checkpoint.ranks, rank=rank, ranks=ranks)


def pause_s(took_s: float) -> float:
    """How long to train before the next checkpoint, if the last one took `took_s`.

    A fiftieth of the time goes into checkpoints where at most a second of work is at stake by that, a twentieth where it is more.

    >>> [round(pause_s(took_s), 2) for took_s in (0.003, 0.05, 2.0)]
    [0.15, 1.0, 38.0]
    """
    return min(took_s * (1 / SMALL_SHARE - 1), max(took_s * (1 / SAVING_SHARE - 1), SOON_MADE_S))


class _Together:
    def __init__(self, pace: LoopLengthPolicy, keeper: CheckpointCallback) -> None:
        self._pace, self._keeper = pace, keeper

    def __call__(self) -> int:
        steps = self._pace()
        return min(steps, self._keeper.steps_to_meeting(steps))

    def took(self, steps: int, seconds: float) -> None:
        self._pace.took(steps, seconds)


def resumed_from(command: WorkerCommand, call: Unpacked, channel: EventChannel) -> Checkpoint | None:
    """The checkpoint that `command` names.

    Raises:
        InvalidSpec: it is of another model.
    """
    if command.resume_from is None:
        return None
    checkpoint = checkpoint_contents.load(Path(command.resume_from))
    if checkpoint is not None:
        training_state.check_fits(call, checkpoint.variables)
    elif command.rank == 0:
        channel.send(Notice(text="The checkpoint to go on from is damaged: the training starts from its beginning."))
    return checkpoint


def state_of(callback: Any) -> CallbackState:
    attributes = checkpoint_contents.plain_attributes(callback, leave_out=NOT_STATE)
    return CallbackState(kind=type(callback).__qualname__, attributes=attributes, left=_not_plain(callback, attributes))


def _not_plain(callback: Any, state: Any) -> list[str]:
    """Attributes of a user's callback that a checkpoint cannot keep and that may change: functions and the model do not."""
    if type(callback).__module__.partition(".")[0] == "keras":
        return []
    return [
        f"{type(callback).__name__}.{name}"
        for name, value in vars(callback).items()
        if name not in state and name not in NOT_STATE and not callable(value)
    ]


def left_behind(callbacks: Sequence[Any], states: Sequence[CallbackState]) -> str:
    """What does not go on where it was, as a sentence; empty when everything does."""
    names = [name for _, state in matching(callbacks, states) for name in state.left]
    return f"Not part of a checkpoint, so they begin anew: {', '.join(names)}. Numbers, texts, lists and arrays are kept." if names else ""


def matching(callbacks: Sequence[Any], states: Sequence[CallbackState]) -> list[tuple[Any, CallbackState]]:
    """Callbacks with their states: of equal classes the first has the first. Another job's fit may have others, or fewer."""
    pairs, unmatched = [], list(states)
    for callback in callbacks:
        place = next((place for place, state in enumerate(unmatched) if state.kind == type(callback).__qualname__), None)
        if place is not None:
            pairs.append((callback, unmatched.pop(place)))
    return pairs
