"""Attempt order: a job's record and its devices as the work of its next attempt.

Owns the translation between records and the values of `jobs` and `workers`. When an attempt starts or ends is decided in `jobs.machine`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from aiaas_magics.backend.folders import checkpoint_folder
from aiaas_magics.backend.folders.checkpoint_folder import TrainingPosition
from aiaas_magics.backend.jobs.actions import StartAttempt
from aiaas_magics.backend.jobs.placement import DeviceRequest, Slots
from aiaas_magics.backend.jobs.states import Blame, JobStatus, Verdict
from aiaas_magics.backend.server import job_files
from aiaas_magics.backend.server.devices import Machine
from aiaas_magics.backend.server.storage.blob_store import BlobStore
from aiaas_magics.backend.server.storage.records import JobRecord
from aiaas_magics.backend.server.storage.state_folder import StateFolder
from aiaas_magics.backend.workers.attempt import AttemptOrder, RankDevices
from aiaas_magics.core import wire
from aiaas_magics.core.engines import ONE_PROCESS
from aiaas_magics.core.events import Crashed, Entry, Finished, WorkerLost
from aiaas_magics.core.spec import FitSpec


@dataclass(frozen=True, slots=True)
class AttemptPlan:
    """What an attempt is to do, and from where on it trains."""

    order: AttemptOrder
    begin: TrainingPosition


def plan(record: JobRecord, slots: Slots, *, state: StateFolder, blobs: BlobStore, machine: Machine) -> AttemptPlan:
    """Make the job's folders, find its checkpoint, and write the order of its present attempt.

    Raises:
        UnknownName: a blob is gone.
        InvalidSpec: the job that this one resumes left no checkpoint.
    """
    spec, folder = record.spec, state.job(record.job.id)
    for needed in (folder.files, folder.checkpoints):
        needed.mkdir(mode=0o700, parents=True, exist_ok=True)
    checkpoint = checkpoint_folder.newest_whole(folder.checkpoints)
    if checkpoint is None and spec.resume_job:
        checkpoint_folder.adopt(job_files.kept_checkpoint(state, spec.resume_job)[1], folder.checkpoints)
        checkpoint = checkpoint_folder.newest_whole(folder.checkpoints)
    execution = machine.execution_of(spec)
    is_one_process = execution.strategy in ONE_PROCESS
    order = AttemptOrder(
        ranks=tuple(
            RankDevices(cores=machine.cores_of(positions), gpus=machine.gpus_of(positions), devices=len(positions) if is_one_process else 1)
            for positions in slots.ranks
        ),
        payload=blobs.get_path(spec.payload),
        arrays=tuple(blobs.get_path(sha) for sha in spec.arrays),
        checks=tuple(blobs.check_of(sha) for sha in (spec.payload, *spec.arrays)),
        seed=spec.seed,
        execution=execution,
        resume_from=checkpoint[1] if checkpoint else None,
        explain=spec.explain,
        measure=spec.measure,
        folders=spec.folders,
        sets_environment=spec.sets_environment,
        owner=record.owner,
    )
    return AttemptPlan(order, checkpoint[0] if checkpoint else TrainingPosition(spec.shape.initial_epoch))


def ask_of(job: str, spec: FitSpec, machine: Machine, *, owner: str = "") -> DeviceRequest:
    """What the job wants of this machine."""
    return DeviceRequest(
        job=job,
        workers=spec.workers,
        oversubscribe=spec.oversubscribe,
        alone=spec.measure is not None,
        together=machine.execution_of(spec).strategy in ONE_PROCESS,
        owner=owner,
        memory_share=min(1.0, (spec.workers or 1) * spec.memory_bytes / machine.memory_bytes) if machine.memory_bytes else 0.0,
    )


def why(action: StartAttempt, begin: TrainingPosition, *, explains: bool = False) -> str:
    """What the user reads when a job is tried again; nothing for a first attempt."""
    if not action.why:
        return ""
    reason = action.why[0].upper() + action.why[1:]
    if explains:
        return f"{reason}. Attempt {action.attempt} explains the rows that are left."
    return f"{reason}. Attempt {action.attempt} {'starts from the beginning' if begin == TrainingPosition(0) else f'goes on from {begin}'}."


def restored(job: JobStatus, log: Sequence[Entry]) -> JobStatus:
    """`job` with what the log of its present attempt tells; how its processes ended is seen again by watching."""
    finished = frozenset(entry.rank for entry in log if isinstance(entry.event, Finished) and entry.rank is not None)
    verdict: Verdict | None = None
    for entry in log:
        if verdict is None and isinstance(entry.event, Crashed):
            report = entry.event.report
            verdict = Verdict(Blame.CRASHED, f"{report.type}: {report.message}"[:500])
        elif verdict is None and isinstance(entry.event, WorkerLost):
            blame = Blame.OUT_OF_MEMORY if entry.event.out_of_memory else Blame.LOST
            verdict = Verdict(blame, f"worker {entry.rank} {entry.event.how}")
    return replace(job, finished=finished, verdict=verdict, ended=frozenset())


class _SlotsBody(msgspec.Struct):
    held: list[int]
    ranks: list[list[int]]


def encode_slots(slots: Slots) -> bytes:
    return wire.encode(_SlotsBody(sorted(slots.held), [list(devices) for devices in slots.ranks]))


def decode_slots(data: bytes | None, *, ranks: int) -> Slots:
    if data is None:
        return Slots(frozenset(), ((),) * ranks)
    slots = wire.decode(data, _SlotsBody)
    return Slots(frozenset(slots.held), tuple(tuple(devices) for devices in slots.ranks))
