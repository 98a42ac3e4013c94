"""What a forked process of this suite does: one rank of one way, or plain `fit`, over many cases one after the other.

Owns the process' side. Starting and collecting belongs to `forked`.
"""

from __future__ import annotations

import os
import pickle
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from msgspec.structs import replace

from aiaas_magics.backend.training.run import run
from aiaas_magics.backend.training.tensorflow import tensorflow_engine
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.backend.workers import worker_main
from aiaas_magics.core.events import Planned
from tests.backend.training import ranks
from tests.backend.training.fit_cases import Case, Watcher
from tests.equivalence.table import PLAIN, Way, case_of


@dataclass(frozen=True)
class Task:
    """What one rank is told. `folder` takes one file a case."""

    cases: tuple[str, ...]
    way: Way
    rank: int
    name: str  # of the shared memory
    folder: Path
    deterministic: bool = False


@dataclass(frozen=True)
class Outcome:
    variables: list[Any]
    history: dict[str, list[float]]
    epoch: list[int]
    batches: list[float]  # what a callback saw of single batches
    notes: tuple[str, ...] = ()
    fused: str = ""
    error: str = ""


class Told:
    """A channel that keeps how the steps were carried out."""

    fused = "off"

    def send(self, event: Any) -> None:
        if isinstance(event, Planned):
            self.fused = event.fused


def main(path: str) -> int:
    task: Task = pickle.loads(Path(path).read_bytes())
    worker_main.prepare_process(command(task))
    if task.deterministic:
        tf.config.experimental.enable_op_determinism()
    for place, name in enumerate(task.cases):
        try:
            with floats(case_of(name)):
                outcome = plain(case_of(name)) if task.way == PLAIN else ours(case_of(name), task, place)
        except Exception:  # noqa: BLE001 - border: what a case raises is its outcome; the other ranks end with this one
            outcome = Outcome([], {}, [], [], error=traceback.format_exc())
        keep(outcome, task, place)
        if outcome.error:
            return 1
        keras.backend.clear_session()
    return 0


def keep(outcome: Outcome, task: Task, place: int) -> None:
    if task.rank == 0:
        part = task.folder / f"{place}.part"
        part.write_bytes(pickle.dumps(outcome))
        part.rename(part.with_suffix(".pickle"))
    elif outcome.error:
        print(outcome.error, flush=True)


def command(task: Task) -> WorkerCommand:
    way = task.way
    return WorkerCommand(
        job="test",
        attempt=1,
        rank=task.rank,
        ranks=way.processes,
        devices=way.ranks // way.processes,
        attempt_dir=str(task.folder),
        job_dir=str(task.folder),
        payload="",
        arrays=(),
        seed=7,
        cores=tuple(range(os.cpu_count() or 1)) if way.strategy == "mirrored" else (),
        execution=Way("auto", "off", 1).execution if way == PLAIN else way.execution,
        reduce_name=task.name,
    )


def ours(case: Case, task: Task, place: int) -> Outcome:
    folder = task.folder / f"{place}-{task.rank}"
    sent = ranks.send(folder, case.model(), workers=task.way.ranks, execution=task.way.execution, **case.arguments())
    packed, told = sent.packed, Told()
    given = replace(command(task), payload=str(sent.payload), arrays=tuple(map(str, sent.arrays)))
    call = tensorflow_engine.ENGINE.unpack(given)
    history = run(tensorflow_engine.ENGINE, given, call, told)
    return outcome_of(call.model, history, call.callbacks, notes=packed.notes, fused=told.fused)


def plain(case: Case) -> Outcome:
    model, arguments = case.model(), case.arguments()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your input ran out of data")  # of a pass that ends within an epoch of steps_per_epoch
        history = model.fit(**arguments, verbose=0)
    return outcome_of(model, history, arguments.get("callbacks") or ())


def outcome_of(model: Any, history: Any, callbacks: Any, **more: Any) -> Outcome:
    variables = [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]
    batches = [value for callback in callbacks if isinstance(callback, Watcher) for value in callback.batches]
    return Outcome(variables, history.history, history.epoch, batches, **more)


@contextmanager
def floats(case: Case) -> Iterator[None]:
    """Keras' default type, for the time of a case."""
    before = keras.config.floatx()
    set_floats(case.floatx)
    try:
        yield
    finally:
        set_floats(before)


def set_floats(floatx: str) -> None:
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)  # it is kept once somebody has asked for it
