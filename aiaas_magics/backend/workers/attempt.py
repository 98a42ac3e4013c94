"""Attempt: the handle of one try at a job, whichever pool runs it.

Owns the Protocol and its values: the order that a server gives, the news and the endings that it gets.
A pool's way to move and to keep them is the pool's own business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from aiaas_magics.backend.training.worker_command import WorkerCommand, WorkerLine
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.explain_settings import ExplainSettings
from aiaas_magics.core.spec import MeasureSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RankDevices:
    """The devices of one rank: cores to pin to (empty: do not pin), the only GPUs to see, and how many devices it drives."""

    cores: tuple[int, ...] = ()
    gpus: tuple[int, ...] = ()
    devices: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptOrder:
    """The work of an attempt. Paths are of the server's machine; a pool elsewhere carries the files over.

    `payload` and `arrays` are blobs, `checks` their XXH3 in the same order ("" where it is not known), `resume_from` is a checkpoint.
    """

    ranks: tuple[RankDevices, ...]
    payload: Path
    arrays: tuple[Path, ...] = ()
    checks: tuple[str, ...] = ()
    seed: int
    execution: Execution
    resume_from: Path | None = None
    explain: ExplainSettings | None = None
    measure: MeasureSpec | None = None
    folders: tuple[str, ...] = ()  # to make in the working directory
    sets_environment: bool = True  # the payload sets environment variables that count when TensorFlow starts
    owner: str = ""  # whose job it is: what it leaves for later fits is for that user's

    def commands(
        self, *, job: str, attempt: int, attempt_dir: Path, job_dir: Path, reduce_name: str, choices: Path
    ) -> Iterator[WorkerCommand]:
        """The command of each rank, for workers that find these folders on their machine."""
        for rank, devices in enumerate(self.ranks):
            yield WorkerCommand(
                job=job,
                attempt=attempt,
                rank=rank,
                ranks=len(self.ranks),
                attempt_dir=str(attempt_dir),
                job_dir=str(job_dir),
                payload=str(self.payload),
                arrays=tuple(map(str, self.arrays)),
                checks=self.checks,
                seed=self.seed,
                cores=devices.cores,
                gpus=devices.gpus,
                devices=devices.devices,
                execution=self.execution,
                resume_from=str(self.resume_from) if self.resume_from else None,
                explain=self.explain,
                measure=self.measure,
                reduce_name=reduce_name,
                folders=self.folders,
                sets_environment=self.sets_environment,
                choices=str(choices),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The end of a rank's process. `how` is a clause with the worker as its subject: "was killed by signal 9".

    `alone`: it gave up because another rank was gone. `by_stop`: `Attempt.stop` ended it, politely.
    """

    how: str
    out_of_memory: bool = False
    alone: bool = False
    by_stop: bool = False


@dataclass(slots=True)
class AttemptNews:
    """What happened since the last news, each with its rank, and the offsets to keep together with it."""

    began: list[tuple[int, int]] = field(default_factory=list)  # processes that began: their pids, on whichever machine
    lines: list[tuple[int, WorkerLine]] = field(default_factory=list)
    notices: list[tuple[int, str]] = field(default_factory=list)  # sentences of the pool for the user
    stuck: list[tuple[int, str]] = field(default_factory=list)  # ranks that do nothing any more: a clause each
    ended: list[tuple[int, Ending]] = field(default_factory=list)
    offsets: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.began or self.lines or self.notices or self.stuck or self.ended or self.offsets)


class Attempt(Protocol):
    """One try at a job, from its order to its end.

    Promises, tested for every pool in tests/contracts/test_worker_pool.py:

    * `start` returns when a process exists for each rank, not when it is ready; when it raises,
      `stop` still ends what was started.
    * `news` waits until something has happened. It brings each line of a worker once for the offsets
      that are kept with it, and the end of a rank after everything that the rank wrote, once.
    * What an event speaks of lies in the job's folder when the event comes: a checkpoint, a figure;
      the files of callbacks do when their rank has ended.
    * `stop` may be called twice, at the same time, and for processes that are dead already. When it
      returns, no process of the attempt lives, and none will start; ranks that never had one end as well.
    * `clear` removes what an ended attempt left outside the job's folder.
    """

    job: str
    number: int

    @property
    def is_started(self) -> bool:
        """Whether each rank has, or had, a process."""

    @property
    def is_over(self) -> bool:
        """Whether the end of each rank was told."""

    async def start(self, order: AttemptOrder, /) -> None:
        """Raises OSError, RuntimeError or TimeoutError when the processes could not be started."""

    async def news(self) -> AttemptNews:
        """Empty only when the attempt is over."""

    async def stop(self, *, patience_s: float = 0.0, grace_s: float = 1.0) -> None:
        """Wait `patience_s` for the ranks to end by themselves, tell them to end, and kill them after `grace_s`."""

    async def result(self) -> Path:
        """The file that rank 0 left, on this machine, until `clear`. User code can write there: it may be missing, or no plain file."""

    async def clear(self) -> None: ...
