"""Callbacks of a rank: which of the user's run there, and what else `fit` is given.

Owns the choice; no backend of Keras' is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import keras

from aiaas_magics.backend.training.comm.process_group import ProcessGroup
from aiaas_magics.backend.training.event_channel import EventChannel
from aiaas_magics.core.events import Notice
from aiaas_magics.core.internals.keras_internals import python_utils

# Callbacks that only write files: rank 0 writes them, the others would write the same ones again.
WRITERS: Final = ("ModelCheckpoint", "CSVLogger", "TensorBoard", "RemoteMonitor")
BATCH_HOOKS: Final = ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end")
TEST_HOOKS: Final = ("on_test_batch_begin", "on_test_batch_end")


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `fit` without callbacks, and silent: our progress takes the place of Keras' bar."""
    return {name: value for name, value in arguments.items() if name not in ("callbacks", "verbose")} | {"verbose": 0}


def callbacks_of_rank(callbacks: Sequence[Any], *, rank: int, channel: EventChannel) -> list[Any]:
    """The user's callbacks that run on this rank: all, except those that a worker must not have."""
    rank_callbacks = []
    for callback in callbacks:
        names = kinds(callback)
        if rank == 0 and "BackupAndRestore" in names:
            channel.send(Notice(text="BackupAndRestore is left out: the backend keeps a checkpoint of each epoch itself."))
        if not (is_left_out(callback) or (rank and names & set(WRITERS))):
            rank_callbacks.append(callback)
    return rank_callbacks


class EpochLines(keras.callbacks.ProgbarLogger):  # type: ignore[misc]
    """Prints Keras' line of each epoch, as `fit(verbose=2)` does, in a `fit` that is silent otherwise."""

    def set_params(self, params: Mapping[str, Any]) -> None:
        super().set_params({**params, "verbose": 2})


def epoch_lines(arguments: Mapping[str, Any], *, rank: int) -> list[Any]:
    """What prints the lines that the user's own `verbose` asks for. Our view takes the place of a bar (1, "auto")."""
    return [EpochLines()] if rank == 0 and arguments.get("verbose") == 2 else []


def is_left_out(callback: Any) -> bool:
    """Whether no worker runs it: each does that itself. What a user made of Keras' History runs, like any callback of his."""
    return "BackupAndRestore" in kinds(callback) or type(callback) in (keras.callbacks.History, keras.callbacks.ProgbarLogger)


def kinds(callback: Any) -> set[str]:
    """The names of Keras' classes that it is one of."""
    return {cls.__name__ for cls in type(callback).__mro__ if cls.__module__.startswith("keras.")}


def most_steps_a_call(model: Any, callbacks: Sequence[Any]) -> int | None:
    """How many steps somebody wants to look at in between; None where nobody looks at batches."""
    return int(model.steps_per_execution or 1) if any(reads_batches(callback) for callback in callbacks) else None


def reads_batches(callback: Any) -> bool:
    """Whether a callback may look at the logs of single batches. Keras' ModelCheckpoint does only with a number as `save_freq`."""
    if is_left_out(callback):
        return False
    if type(callback) is keras.callbacks.ModelCheckpoint:
        return bool(callback.save_freq != "epoch")
    return any(not python_utils.is_default(getattr(callback, hook)) for hook in (*BATCH_HOOKS, *TEST_HOOKS))


def agreement(group: ProcessGroup, *, each_batch: bool) -> Any:
    """A callback after which all ranks have the same `stop_training`: one that stops, stops all."""

    class CallbackAgreement(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.stop_training = group.any(bool(self.model.stop_training), site="stop")

        if each_batch:

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                self.model.stop_training = group.any(bool(self.model.stop_training), site="stop")

    return CallbackAgreement()
