"""One attempt, as files: its folder, its commands, where it goes on from, what is left of it.

Owns the layout below jobs/<id>/ and the translation between records and `jobs` values.
When an attempt starts or ends is decided in `jobs.machine`.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from aiaas_magics.backend.folders import checkpoint_folder
from aiaas_magics.backend.folders.checkpoint_folder import TrainingPosition
from aiaas_magics.backend.folders.small_files import NotPlainFile, open_plain
from aiaas_magics.backend.jobs.actions import StartAttempt
from aiaas_magics.backend.jobs.placement import DeviceRequest, Seats
from aiaas_magics.backend.jobs.states import Blame, JobStatus, Verdict
from aiaas_magics.backend.server.devices import Machine
from aiaas_magics.backend.server.storage.blob_store import BlobStore
from aiaas_magics.backend.server.storage.records import JobRecord
from aiaas_magics.backend.server.storage.state_folder import StateFolder
from aiaas_magics.backend.workers import opened_files
from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder
from aiaas_magics.backend.workers.pool import WorkerCommand, WorkerPool
from aiaas_magics.core import wire
from aiaas_magics.core.engines import ONE_PROCESS
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.events import Crashed, Entry, Finished, WorkerLost
from aiaas_magics.core.spec import CheckpointView, FitSpec, TensorSpec

ATTEMPT: Final = re.compile(r"attempt-(\d+)", re.ASCII)
KEPT_JOBS: Final = 8  # guess: who wants to go on from a job that ended badly does so soon
FILES_SHOWN: Final = 10_000  # guess: more files than that are no result that a kernel wants back


@dataclass(frozen=True, slots=True)
class AttemptPlan:
    """What an attempt starts with, and from where on it trains."""

    folder: AttemptFolder
    commands: tuple[WorkerCommand, ...]
    begin: TrainingPosition


def plan(record: JobRecord, seats: Seats, *, state: StateFolder, blobs: BlobStore, machine: Machine) -> AttemptPlan:
    """Make the folders of the job's present attempt, and the commands of its ranks."""
    job, spec = record.job, record.spec
    folder = AttemptFolder(state.attempt(job.id, job.attempt))
    for needed in (folder.path, state.job(job.id) / "files", state.job(job.id) / "checkpoints"):
        needed.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = state.job(job.id) / "checkpoints"
    checkpoint = checkpoint_folder.newest_whole(own)
    if checkpoint is None and spec.resume_job:
        checkpoint_folder.adopt(kept_checkpoint(state, spec.resume_job)[1], own)
        checkpoint = checkpoint_folder.newest_whole(own)
    execution = machine.execution_of(spec)
    checks = tuple(blobs.check_of(sha) for sha in (spec.payload, *spec.arrays))
    reduce_name = f"aiaas-{secrets.token_hex(6)}"
    commands = tuple(
        WorkerCommand(
            job=job.id,
            attempt=job.attempt,
            rank=rank,
            ranks=len(seats.ranks),
            attempt_dir=str(folder.path),
            job_dir=str(state.job(job.id)),
            payload=str(blobs.get_path(spec.payload)),
            arrays=tuple(str(blobs.get_path(sha)) for sha in spec.arrays),
            checks=checks,
            seed=spec.seed,
            cores=machine.cores_of(positions),
            gpus=machine.gpus_of(positions),
            devices=len(positions) if execution.strategy in ONE_PROCESS else 1,
            execution=execution,
            resume_from=str(checkpoint[1]) if checkpoint else None,
            measure=spec.measure,
            reduce_name=reduce_name,
            folders=spec.folders,
            sets_environment=spec.sets_environment,
            choices=str(state.path / "choices"),
        )
        for rank, positions in enumerate(seats.ranks)
    )
    return AttemptPlan(folder, commands, checkpoint[0] if checkpoint else TrainingPosition(spec.shape.initial_epoch))


def ask_of(job: str, spec: FitSpec, machine: Machine) -> DeviceRequest:
    """What the job wants of this machine."""
    return DeviceRequest(
        job=job,
        workers=spec.workers,
        oversubscribe=spec.oversubscribe,
        alone=spec.measure is not None,
        together=machine.execution_of(spec).strategy in ONE_PROCESS,
    )


def why(action: StartAttempt, begin: TrainingPosition) -> str:
    """What the user reads when a job is tried again; nothing for a first attempt."""
    if not action.why:
        return ""
    reason = action.why[0].upper() + action.why[1:]
    return f"{reason}. Attempt {action.attempt} {'starts from the beginning' if begin == TrainingPosition(0) else f'goes on from {begin}'}."


def files_of(folder: Path) -> tuple[str, ...]:
    """Relative paths of the plain files below `folder`, at most `FILES_SHOWN`.

    Links of either kind are neither listed nor followed, and names that are no text are left out: they cannot travel.
    """
    shown: list[str] = []
    for root, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not os.path.islink(os.path.join(root, name)))
        for name in sorted(names):
            path = Path(root, name)
            with contextlib.suppress(OSError, NotPlainFile, UnicodeEncodeError):
                path.relative_to(folder).as_posix().encode()
                open_plain(path).close()
                shown.append(path.relative_to(folder).as_posix())
            if len(shown) == FILES_SHOWN:
                return tuple(shown)
    return tuple(shown)


def clear_job(folder: Path, *, resumable: bool) -> None:
    """Remove what a job that is over needs no more: everything but the files of its callbacks, and its last checkpoint if `resumable`."""
    shutil.rmtree(folder / "feed", ignore_errors=True)
    if resumable:
        checkpoint_folder.keep_newest(folder / "checkpoints")
    else:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    # Folders that were made for callbacks and got no file: from the innermost out.
    empty = sorted((path for path in (folder / "files").rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True)
    for path in (*empty, folder / "checkpoints", folder / "files", folder):
        try:
            path.rmdir()
        except OSError:  # there are files in it, or it never was
            continue
    if not (folder / "files").exists():
        (folder / opened_files.RECORD).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def kept_checkpoint(state: StateFolder, job: str) -> tuple[TrainingPosition, Path]:
    """The last checkpoint of a job that has ended.

    Raises:
        InvalidSpec: it left none.
    """
    found = checkpoint_folder.newest_whole(state.job(job) / "checkpoints")
    if found is None:
        raise InvalidSpec(
            f"Job {job} left no checkpoint to go on from: it ended before its first, or {KEPT_JOBS} jobs have ended badly since. "
            "Leave --resume out to train from the beginning."
        )
    return found


def checkpoint_view(state: StateFolder, job: str) -> CheckpointView:
    """Raises `InvalidSpec` when the job left none."""
    place, path = kept_checkpoint(state, job)
    try:
        kept = checkpoint_folder.state_in(path)["variables"]
        variables = tuple(msgspec.convert(kept, list[TensorSpec]))
    except (OSError, NotPlainFile, ValueError, TypeError, LookupError, RecursionError, msgspec.ValidationError) as error:
        raise InvalidSpec(
            f"The checkpoint that job {job} left is not understood. Leave --resume out to train from the beginning."
        ) from error
    return CheckpointView(job=job, epoch=place.epoch, step=place.step, variables=variables)


def forget_checkpoints(state: StateFolder, ended: Sequence[str], *, needed: Collection[str]) -> None:
    """Of the jobs that have `ended`, oldest first, only the newest few keep a checkpoint, besides those that are `needed`."""
    having = [job for job in ended if (state.job(job) / "checkpoints").is_dir()]
    for job in having[:-KEPT_JOBS]:
        if job not in needed:
            clear_job(state.job(job), resumable=False)


async def end_leftovers(state: StateFolder, pool: WorkerPool, job: str, *, living: int | None) -> None:
    """End the processes, and remove the folders, of the job's attempts other than `living`."""
    folder = state.job(job)
    for path in sorted(folder.glob("attempt-*")) if folder.is_dir() else ():
        match = ATTEMPT.fullmatch(path.name)
        if match is None or int(match[1]) == living:
            continue
        left = AttemptFolder(path)
        ranks = len(list(path.glob("command-*.json")))
        await pool.stop(left, ranks=ranks, grace_s=0.0)
        await pool.clear(left)


def restored(job: JobStatus, said: Sequence[Entry]) -> JobStatus:
    """`job` with what the log of its present attempt tells; how its processes ended is seen again by watching."""
    finished = frozenset(entry.rank for entry in said if isinstance(entry.event, Finished) and entry.rank is not None)
    verdict: Verdict | None = None
    for entry in said:
        if verdict is None and isinstance(entry.event, Crashed):
            report = entry.event.report
            verdict = Verdict(Blame.CRASHED, f"{report.type}: {report.message}"[:500])
        elif verdict is None and isinstance(entry.event, WorkerLost):
            blame = Blame.OUT_OF_MEMORY if entry.event.out_of_memory else Blame.LOST
            verdict = Verdict(blame, f"worker {entry.rank} {entry.event.how}")
    return replace(job, finished=finished, verdict=verdict, ended=frozenset())


class _Seats(msgspec.Struct):
    held: list[int]
    ranks: list[list[int]]


def encode_seats(seats: Seats) -> bytes:
    return wire.encode(_Seats(sorted(seats.held), [list(seat) for seat in seats.ranks]))


def decode_seats(data: bytes | None, *, ranks: int) -> Seats:
    if data is None:
        return Seats(frozenset(), ((),) * ranks)
    told = wire.decode(data, _Seats)
    return Seats(frozenset(told.held), tuple(tuple(seat) for seat in told.ranks))
