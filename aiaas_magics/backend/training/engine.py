"""Training engine: the seam between a job and the library that computes it.

Owns the protocol, and the values that pass through it. What is the same for all engines is `run`; which engines there are
is the table in `core.engines`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from aiaas_magics.backend.folders.checkpoint_folder import TrainingPosition
from aiaas_magics.backend.training.comm.process_group import ProcessGroup
from aiaas_magics.backend.training.epochs import LoopLengthPolicy, Reading
from aiaas_magics.backend.training.private_fit import PrivateFit
from aiaas_magics.backend.training.unpacked_fit import Unpacked
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.core.engines import EngineInfo
from aiaas_magics.core.events import Candidate, Planned

if TYPE_CHECKING:
    from aiaas_magics.packing.fitcall.fit_call import UnpackedFitCall
    from aiaas_magics.packing.portable.portable_call import PortedFitCall


class StepPolicy(Protocol):
    """Decides the form of the steps of one job, and remembers what was decided from one measured `fit` to the next."""

    def concluded(self, candidates: Sequence[Candidate]) -> Planned:
        """The plan that follows from the forms that were measured or ruled out."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitRun:
    """One `fit` for an engine to carry out.

    Args:
        arguments: of Keras' `fit`, without callbacks.
        reading: which rows each step gets, as `TrainingEngine.reading` made it.
        is_watched: callbacks look at single batches.
        on_plan: told how the steps are carried out, once that is decided, and again where it changes.
        private: the steps are those of DP-SGD; `reading` draws its batches then, and each comes with the mask of what was drawn.
    """

    command: WorkerCommand
    call: Unpacked
    arguments: Mapping[str, Any]
    reading: Reading
    policy: StepPolicy
    on_plan: Callable[[Planned], None]
    group: ProcessGroup | None = None
    is_watched: bool = False
    private: PrivateFit | None = None

    @property
    def is_plain(self) -> bool:
        """Whether this is the reference of a study: the stock `fit` on the arrays themselves, nothing of ours in between."""
        return self.command.measure is not None and self.command.measure.plain


class OpenedFit(Protocol):
    """A `fit` whose rows and exchanges are in place."""

    @property
    def callbacks(self) -> Sequence[Any]:
        """The engine's own: last in a training, first before a clock."""

    def before_checkpoint(self) -> None:
        """Bring what the devices hold for themselves to where a checkpoint finds it. Every rank calls it."""

    def fit(self, callbacks: Sequence[Any], *, pace: LoopLengthPolicy, test_pace: LoopLengthPolicy) -> Any:
        """Keras' stock `fit`, with as many steps per call as `pace` says. Returns its `History`."""


class TrainingEngine(Protocol):
    """The library that computes, in one worker process.

    Promises, tested for every engine of the table in tests/contracts/test_engine.py:

    * Importing its module touches no device: `assert_fork_safe` returns, and a process may fork. After a device was
      touched it raises.
    * `prepare` comes before everything else in a process, `unpack` before `opened`.
    * `unpack` runs the user's code. Where the model cannot be made, or computes something else, it raises `NotOnEngine`.
    * A `fit` computes what plain Keras computes on the same library, to float rounding, whatever the form of its steps.
    * A private `fit` clips the gradient of each row, and adds the noise once, however many devices there are.
    * Its plans and candidates name the engine, and a strategy and a form of its row in the table.
    * Inside `opened` nothing but this `fit` of this model is changed; afterwards all is as before.
    * It imports no other engine's library.
    """

    info: EngineInfo

    def assert_fork_safe(self) -> None:
        """Raises `RuntimeError` when this process has touched a device: nothing may fork after that."""

    def prepare(self, command: WorkerCommand) -> None:
        """Devices, threads and seeds, before anything touches a device."""

    def make_ready(self, cores: Sequence[int]) -> None:
        """What any training on these cores begins with, before there is a command. Called only where `info.has_spares`.

        Keras is left as it is: no name is used up, no random number drawn.
        """

    def unpack(self, command: WorkerCommand) -> UnpackedFitCall | PortedFitCall:
        """The fit call that `command` names, on its devices.

        Raises:
            NotOnEngine: it cannot be made here, or computes something else.
            BlobDamaged: its bytes are not those that were sent.
        """

    def joined(self, command: WorkerCommand) -> AbstractContextManager[ProcessGroup | None]:
        """The process group of the attempt; None where it has one rank."""

    def strategy(self, command: WorkerCommand) -> str:
        """The strategy that the devices of `command` act by."""

    def reading(self, command: WorkerCommand, call: Unpacked, start: TrainingPosition) -> Reading:
        """Which rows a `fit` that begins at `start` gets."""

    def policy(self, command: WorkerCommand, call: Unpacked) -> StepPolicy:
        """The policy of one job."""

    def opened(self, fit: FitRun) -> AbstractContextManager[OpenedFit]:
        """Inside, the rows and the exchanges of `fit` are in place."""

    def memory_bytes(self) -> int:
        """The most that this process has held: of a device's memory, or of its own where there is no GPU."""


def load(info: EngineInfo) -> TrainingEngine:
    """The engine of a row. This imports its library, and binds Keras to its backend for the life of the process."""
    engine: TrainingEngine = importlib.import_module(info.module).ENGINE
    return engine
