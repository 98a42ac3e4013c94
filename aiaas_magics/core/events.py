"""Job events: values for what happens to a job, in the order in which it happens.

Owns the events of a job's log. Folding them into a picture belongs to `story`, what they speak of to `spec`, turning them into
bytes to `wire`. What the server decides by has events of its own (`backend/jobs/events`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from aiaas_magics.core.remote_error import ErrorReport
from aiaas_magics.core.spec import JobState
from aiaas_magics.core.training_logs import Logs
from aiaas_magics.core.value import Value


class Phase(StrEnum):
    PACKING = "packing"
    SENDING = "sending"
    WAITING = "waiting"
    STARTING = "starting"
    COMPILING = "compiling"
    TRAINING = "training"
    EXPLAINING = "explaining"
    FETCHING = "fetching"


class Event(msgspec.Struct, frozen=True, tag_field="kind"):
    """Something that happened to a job. Subclasses are the closed set."""


class StateChanged(Event, frozen=True, kw_only=True, tag="state"):
    """The job's state is another one now."""

    state: JobState
    reason: str = ""


class PhaseEntered(Event, frozen=True, kw_only=True, tag="phase"):
    """The attempt has reached another phase. `detail` may say why: "waiting for 2 cores held by job 7"."""

    phase: Phase
    detail: str = ""


class AttemptStarted(Event, frozen=True, kw_only=True, tag="attempt"):
    """An attempt starts on `ranks` workers, at this epoch (from 0) and step."""

    ranks: int
    from_epoch: int
    from_step: int = 0  # of that epoch
    why: str = ""


class WorkerStarted(Event, frozen=True, kw_only=True, tag="worker_started"):
    """A worker process runs on this device."""

    pid: int
    device: str


class WorkerLost(Event, frozen=True, kw_only=True, tag="worker_lost"):
    """A worker died or stopped answering. `how` is a clause: "killed by signal 9"."""

    how: str
    out_of_memory: bool = False


class Compiled(Event, frozen=True, kw_only=True, tag="compiled"):
    """The first step is done; compiling it took `seconds`."""

    seconds: float


class Planned(Event, frozen=True, kw_only=True, tag="plan"):
    """How the steps are carried out ("xla", "graph", "off"; on which engine, by which strategy), and why not otherwise."""

    fused: str
    why: tuple[str, ...] = ()
    engine: str = ""
    strategy: str = ""


class Candidate(Event, frozen=True, kw_only=True, tag="candidate"):
    """One way to carry out the steps, in the words of `Planned`: measured on a few of them, or ruled out."""

    engine: str
    strategy: str
    fused: str
    step_s: float = 0.0
    compile_s: float = 0.0  # to the end of the first step
    memory_bytes: int = 0  # a GPU's peak, or what the process of rank 0 holds for itself
    why: str = ""  # it was ruled out


class StepsDone(Event, frozen=True, kw_only=True, tag="steps"):
    """Progress within an epoch. `step` counts from 1; rows and seconds since the epoch's first step."""

    epoch: int
    step: int
    steps: int
    rows: int
    seconds: float
    logs: Logs


class EpochEnded(Event, frozen=True, kw_only=True, tag="epoch"):
    """An epoch is done. `epoch` counts from 0 as in Keras; `logs` are those of `History`."""

    epoch: int
    epochs: int
    rows: int
    seconds: float
    logs: Logs


class RowsExplained(Event, frozen=True, kw_only=True, tag="explained"):
    """This rank has explained `rows` rows in `seconds`, by `evaluations` rows that it had the model compute; `of` is the rows of all ranks.

    `rows_before` are those that an earlier attempt had finished.
    """

    rows: int
    of: int
    seconds: float
    evaluations: int
    rows_before: int = 0


class Checkpointed(Event, frozen=True, kw_only=True, tag="checkpoint"):
    """A checkpoint is complete; a resumed attempt starts with this epoch (from 0) and step."""

    epoch: int  # the epoch that a resumed attempt starts with
    step: int = 0  # and the step of it


class Measured(Event, frozen=True, kw_only=True, tag="measured"):
    """A study's point: one entry of `seconds` a repeat, each over `steps` steps of `rows_per_step`.

    What ranks exchange is rank 0's, and 0 where nothing was exchanged or the strategy cannot tell: of a step of the
    median repeat the seconds it only exchanged (waited for others and summed), in how many exchanges, of how many bytes;
    and, with all ranks arriving together, an exchange of next to nothing (`latency_s`) and one of `exchange_bytes` (`transfer_s`).
    """

    steps: int
    rows_per_step: int
    seconds: tuple[float, ...]
    compile_s: float
    exchange_s: float = 0.0
    exchanges: int = 0
    exchange_bytes: int = 0
    latency_s: float = 0.0
    transfer_s: float = 0.0


class Notice(Event, frozen=True, kw_only=True, tag="notice"):
    """One sentence that the user should read."""

    text: str


class Output(Event, frozen=True, kw_only=True, tag="output"):
    """What the user's code printed, in lines, bounded."""

    text: str


MOST_FIGURE_BYTES: Final = 5_000_000  # guess: a page with some of that size is slow


class FigureShown(Event, frozen=True, kw_only=True, tag="figure"):
    """The user's code showed a figure: the backend has it as a PNG file, by this number from 1 on, until the job's files are removed."""

    number: int


class Crashed(Event, frozen=True, kw_only=True, tag="crashed"):
    """The user's code raised in the worker."""

    report: ErrorReport


class Finished(Event, frozen=True, kw_only=True, tag="finished"):
    """The rank is done; from rank 0 also: the result stands in the attempt's folder."""


AnyEvent = (
    StateChanged
    | PhaseEntered
    | AttemptStarted
    | WorkerStarted
    | WorkerLost
    | Compiled
    | Planned
    | Candidate
    | StepsDone
    | EpochEnded
    | RowsExplained
    | Checkpointed
    | Measured
    | Notice
    | Output
    | FigureShown
    | Crashed
    | Finished
)


class Entry(Value, frozen=True, kw_only=True):
    """One line of a job's log. `seq` starts at 1 and has no gaps while the job lives; a long log is thinned afterwards.

    `rank` is None for the server's own.
    """

    seq: int
    at_s: float  # unix time
    attempt: int
    rank: int | None
    event: AnyEvent
