"""Reproduction: trains a job again from what the backend kept of it, and says how near the two results are.

Owns what can be trained again, the order of things, and the result. Comparing belongs to `result_comparison`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from aiaas_magics.client.training import job_record
from aiaas_magics.client.training.job import Job
from aiaas_magics.core import wire
from aiaas_magics.core.contract import BlobQuery, MissingBlobs
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.spec import FitSpec, JobState, JobView
from aiaas_magics.core.story import JobStory
from aiaas_magics.core.training_record import RecordDifference, TrainingRecord, environment_differences

if TYPE_CHECKING:
    from aiaas_magics.client.open_backend import OpenBackend
    from aiaas_magics.packing.fitcall.result_comparison import LayerDifference

NAME_CHARACTERS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """A job that was trained a second time.

    Args:
        job: the id of the first run.
        again: the id of the second run.
        layers: how far the trained state is apart: one for each layer, and one for optimizer, metrics and seeds.
        same_history: whether every number of `History` is the same.
        environment: what is another one now.
        notes: sentences on how the second run was carried out.
    """

    job: str
    again: str
    layers: tuple[LayerDifference, ...]
    same_history: bool
    environment: tuple[RecordDifference, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether every weight has the same bits, and all other trained state too."""
        return all(layer.is_equal for layer in self.layers)

    @property
    def sentence(self) -> str:
        """Whether the second run gave the same, and else how far it is apart."""
        if self.is_equal:
            values = sum(layer.values for layer in self.layers)
            return f"Job {self.again} reproduced job {self.job}: all {values:,} numbers of the trained state are bit-equal."
        worst = max(self.layers, key=lambda layer: layer.relative)
        differing, values = sum(layer.differing for layer in self.layers), sum(layer.values for layer in self.layers)
        return (
            f"Job {self.again} did not reproduce job {self.job} bit for bit: {differing:,} of {values:,} numbers differ, by at most "
            f"{max(layer.largest for layer in self.layers):.2g}; relative to the largest value of its variable by at most "
            f"{worst.relative:.1g} (layer {worst.layer})."
        )

    def __str__(self) -> str:
        lines = [self.sentence, "The history is the same." if self.same_history else "The history differs."]
        lines += [str(difference) for difference in self.environment] or ["The environment is the same."]
        return "\n".join((*lines, *self.notes))


def reproduce(backend: OpenBackend, job: Job, *, on_change: Callable[[JobStory], None] = lambda _: None) -> Reproduction:
    """Train `job` again from its packed fit call, in the same way and with the same row order, and compare.

    Raises:
        InvalidSpec: it cannot be trained again; nothing was submitted.
        ResultRemoved: its result is not kept any more.
        AiaasError: as `Job.result`, if the second run did not succeed.
    """
    from aiaas_magics.packing.fitcall import fit_call, result_comparison

    view, record = job.view(), job.record()
    check_possible(view, record)
    before = job.result_bytes()
    missing = backend.transport.post("/v1/blobs/missing", BlobQuery([view.spec.payload, *view.spec.arrays]), MissingBlobs, key=None)
    if missing.missing:
        raise InvalidSpec(
            f"The backend does not keep the data of job {job.id} any more, which it does for a day after the last use. "
            "Run the cell again; job.record() has its code and the fingerprints of its data."
        )
    now = replace(record, created_s=time.time(), where=job_record.environment_of(backend.about()))
    spec, notes = spec_again(view.spec, job.story(), record_blob=backend.blobs.send_bytes(wire.encode(now)))
    second = Job(backend.transport, backend.transport.post("/v1/jobs", spec, JobView, key=secrets.token_hex(16)))
    second.follow(on_change)
    results = (fit_call.read_result(before), fit_call.read_result(second.result_bytes()))
    return Reproduction(
        job=job.id,
        again=second.id,
        layers=result_comparison.compare_results(*results),
        same_history=result_comparison.same_history(*results),
        environment=environment_differences(record.where, now.where),
        notes=notes,
    )


def check_possible(view: JobView, record: TrainingRecord) -> None:
    """Raises `InvalidSpec` for a job that nothing can train again."""
    job, spec = view.id, view.spec
    if not view.state.final:
        raise InvalidSpec(f"Job {job} is {view.state}. Wait until it ends: %aiaas_wait {job}.")
    if view.state is not JobState.SUCCEEDED:
        raise InvalidSpec(f"Job {job} has {view.state}, so there is no result to compare with. Run its cell again.")
    if spec.measure is not None:
        raise InvalidSpec(f"Job {job} measured steps for a study and trained nothing. Give the job of a training.")
    if spec.resume_job:
        raise InvalidSpec(f"Job {job} resumed from a checkpoint of job {spec.resume_job}, which is not kept. Give a job that began anew.")
    if record.is_streamed:
        raise InvalidSpec(f"Job {job} was fed batch by batch from its kernel, and nobody keeps those. Run its cell again.")


def spec_again(spec: FitSpec, story: JobStory, *, record_blob: str) -> tuple[FitSpec, tuple[str, ...]]:
    """The same fit, carried out in the form that the first run chose, and what there is to say of it."""
    name = f"{spec.name} again"[:NAME_CHARACTERS]
    execution, notes = as_planned(spec.execution, story)
    return replace(spec, name=name, execution=execution, record=record_blob, notes=(), study=None), notes


def as_planned(execution: Execution, story: JobStory) -> tuple[Execution, tuple[str, ...]]:
    """The execution with the form of steps that the first run's plan chose: measured again, it may be another one now."""
    plan = story.plan
    if plan is None or execution.runs_on.ported or execution.fused != "auto":
        return execution, ()
    return replace(execution, fused=plan.fused), (f"Steps are carried out as in the first run (--fused {plan.fused}).",)
