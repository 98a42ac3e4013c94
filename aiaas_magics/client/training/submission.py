"""Submission: checks, packs and sends a fit call to the backend.

Owns the order of things: check, pack, show what will be sent, send, submit. What a packed
call is belongs to `packing`; following the job belongs to `job`.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from aiaas_magics.client.training import job_record, private_training
from aiaas_magics.client.training.dataset_feed import Feed
from aiaas_magics.client.training.engine_timings import quicker_for
from aiaas_magics.client.training.job import Job
from aiaas_magics.core import row_order, settings, wire
from aiaas_magics.core.contract import check_versions
from aiaas_magics.core.engines import ONE_PROCESS
from aiaas_magics.core.errors import CannotTravel, InvalidSpec, NotEnoughDevices, NotOnEngine
from aiaas_magics.core.events import Phase
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.plain_text import visible
from aiaas_magics.core.spec import About, CheckpointView, FitShape, FitSpec, JobView, MeasureSpec, Versions, checked_job_name
from aiaas_magics.core.story import JobStory

if TYPE_CHECKING:
    from aiaas_magics.client.open_backend import OpenBackend
    from aiaas_magics.client.uploads import ArrayUpload
    from aiaas_magics.packing.fitcall.fit_call import FitCall, PackedFitCall
    from aiaas_magics.packing.fitcall.manifest import Manifest


NAME_CHARACTERS: Final = 100  # of a job's name, as `FitSpec` has it
STRIDE: Final = 0x9E3779B1  # 2**32 over the golden ratio: seeds of a few steps more lie far apart


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How a fit call is to be carried out. `workers` of None: one worker with every device.

    `retries` is how many attempts a lost worker may cost beyond the first.
    """

    name: str | None = None
    workers: int | None = None
    seed: int | None = None
    oversubscribe: bool = False
    retries: int = 3
    resume: str | None = None  # an ended job whose last checkpoint is gone on from
    execution: Execution = field(default_factory=Execution)
    environment: tuple[str, ...] | None = ()  # variables sent beside those set in this kernel; None: none at all
    code: str = ""  # of the cell, for the job's record


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What will happen, before anything is sent."""

    manifest: Manifest
    known_bytes: int  # of the arrays, those that the backend has already
    send_bytes: int
    notes: tuple[str, ...]
    here: Versions
    there: Versions
    memory_bytes: int  # one worker, beyond the libraries
    workers: int
    devices: int
    hardware: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A packed call, checked against the backend; nothing was sent yet."""

    backend: OpenBackend
    packed: PackedFitCall
    uploads: tuple[ArrayUpload, ...]  # of the packed call's arrays
    options: TrainOptions
    preflight: Preflight
    about: About  # the backend, as it was asked
    seed: int
    story: JobStory = field(default_factory=JobStory)


def prepare(
    backend: OpenBackend, call: FitCall, options: TrainOptions, *, on_change: Callable[[JobStory], None] = lambda _: None
) -> Prepared:
    """Pack `call` and check it against `backend`; nothing is sent.

    Raises:
        UsageError: what cannot travel, does not fit together, or has versions that differ.
        NotEnoughDevices: more workers than devices, without `oversubscribe`.
        NotOnEngine: an engine was asked for by name, and cannot run it.
    """
    from aiaas_magics.packing.fitcall import fit_call

    if options.name is not None:
        checked_job_name(options.name)
    began = time.monotonic()
    story = JobStory().with_phase(Phase.PACKING, at_s=time.time())
    on_change(story)
    about, kernel_versions = backend.about(), settings.versions()
    check_versions(kernel_versions, about.versions)
    resumed = None if options.resume is None else backend.job(options.resume).view().spec
    if options.execution.private is not None:
        execution = private_training.on_engine(options.execution, installed=about.versions.engines, resumed=resumed)
        options = replace(options, execution=execution)
    engine = options.execution.runs_on
    if engine.name not in about.versions.engines:
        raise NotOnEngine(engine.title, f"{about.backend} has no {engine.title} installed (pip install 'aiaas_magics[{engine.name}]')")
    devices = len(about.devices)
    if (options.workers or 1) > devices and not options.oversubscribe:
        raise NotEnoughDevices(options.workers or 1, devices, about.backend)
    workers = options.workers or (devices if about.gpus or options.execution.strategy in ONE_PROCESS else 1)
    draft = fit_call.draft(call, workers=workers, execution=options.execution, gpus=about.gpus, environment=options.environment)
    # What yields batches, or goes on from a checkpoint, stays where it was.
    stays = draft.in_batches or options.resume is not None
    quicker = None if stays else quicker_for(draft, about, execution=options.execution, workers=options.workers)
    execution = private_training.calibrated(options.execution, call.model, draft.shape, resumed=resumed)
    packed = draft.finish(execution if quicker is None else quicker.execution(execution))
    if quicker is not None and packed.execution.runs_on.ported:
        packed = replace(packed, notes=(quicker.note, *packed.notes))
    if options.execution.strategy == "mirrored" and not about.gpus and workers > 1:
        packed = replace(packed, notes=(*packed.notes, simulated(workers)))
    uploads = backend.blobs.look_up(packed.arrays)
    known_bytes = sum(upload.array.nbytes for upload in uploads if upload.is_there)
    all_bytes = sum(array.nbytes for array in packed.arrays) + len(packed.payload)
    notes = (
        *packed.environment_notes,
        *private_training.totals(packed.execution, call.model, packed.shape, resumed=bool(resumed)),
        *packed.notes,
    )
    if resumed is not None:
        notes = (*notes, check_resume(backend, options.resume or "", resumed.shape, packed))
    preflight = Preflight(
        manifest=packed.manifest,
        known_bytes=known_bytes,
        send_bytes=all_bytes - known_bytes,
        notes=notes,
        here=kernel_versions,
        there=about.versions,
        memory_bytes=packed.memory_bytes,
        workers=workers,
        devices=devices,
        hardware=about.hardware,
        seconds=time.monotonic() - began,
    )
    seed = options.seed
    if seed is None:
        seed = seed_of(call, as_in_plain_fit=not packed.execution.runs_on.ported)
    if resumed is not None:
        seed = resumed.seed  # the order of rows goes on too
    return Prepared(
        backend=backend, packed=packed, uploads=uploads, options=options, preflight=preflight, about=about, seed=seed, story=story
    )


def seed_of(call: FitCall, *, as_in_plain_fit: bool = True) -> int:
    """The seed for the order of rows: that of plain `fit` where the notebook has set TensorFlow's seed, as `set_random_seed` does.

    Without one, or where Keras runs on JAX, a function of Python's random state, which stays as it is, and of the steps made before.
    Keras' initializers draw from it, so a draw of ours would give the notebook's next model other weights than it has after plain `fit`.
    """
    from aiaas_magics.packing.checks import randomness

    kernel_seed = randomness.kernel_seed() if as_in_plain_fit else None
    if kernel_seed is not None:
        return row_order.as_in_plain_fit(kernel_seed)
    generator = random.Random()
    generator.setstate(random.getstate())
    return (generator.getrandbits(31) + STRIDE * call.steps_before) % 2**31


def submit(
    prepared: Prepared,
    *,
    measure: MeasureSpec | None = None,
    study: str | None = None,
    on_change: Callable[[JobStory], None] = lambda _: None,
    released: Callable[[], None] = lambda: None,
) -> Job:
    """Send what the backend has not got, and hand in the job."""
    from aiaas_magics.packing.fitcall import working_folder

    backend, packed, options = prepared.backend, prepared.packed, prepared.options
    if measure is not None and packed.in_batches:
        raise CannotTravel("x", "a study measures steps on arrays, not on what yields batches", "Give arrays, or train without a study.")
    story = prepared.story.with_phase(Phase.SENDING, at_s=time.time(), detail=f"{prepared.preflight.send_bytes:,} bytes")
    on_change(story)
    spec = FitSpec(
        name=checked_job_name(options.name) if options.name else default_name(packed.shape.model),
        payload=backend.blobs.send_bytes(packed.payload),
        arrays=backend.blobs.send_arrays(prepared.uploads),
        shape=packed.shape,
        versions=prepared.preflight.here,
        seed=prepared.seed,
        workers=options.workers,
        oversubscribe=options.oversubscribe,
        retries=0 if packed.streams else options.retries,  # what was read of a stream is gone
        resume_job=options.resume or "",
        execution=packed.execution,
        measure=measure,
        study=study,
        notes=prepared.preflight.notes,
        memory_bytes=packed.memory_bytes,
        sets_environment=packed.sets_environment,
        folders=working_folder.folders(Path.cwd(), payload=packed.payload) if packed.callbacks else (),
    )
    if measure is None:
        record = job_record.record_of(spec, packed, prepared.about, code=options.code)
        spec = msgspec.structs.replace(spec, record=backend.blobs.send_bytes(wire.encode(record)))
    view = backend.transport.post("/v1/jobs", spec, JobView, key=secrets.token_hex(16))
    story = replace(story, epochs=packed.shape.epochs, steps=packed.shape.steps_per_epoch, notices=prepared.preflight.notes)
    feed = Feed(backend.transport, view.id, packed.streams) if packed.streams else None
    hardware = prepared.preflight.hardware
    return Job(backend.transport, view, packed=packed, story=story, released=released, feed=feed, hardware=hardware)


def default_name(model: str) -> str:
    """A job's name from its model's, which may be any text."""
    return " ".join(visible(model).split())[:NAME_CHARACTERS] or "model"


def check_resume(backend: OpenBackend, job: str, shape: FitShape, packed: PackedFitCall) -> str:
    """The sentence that says where `packed` goes on.

    Raises:
        UnknownName, InvalidSpec: there is nothing to go on from, or it does not fit; nothing was sent.
    """
    from aiaas_magics.packing.live.model_variables import check_kept

    checkpoint = backend.transport.get(f"/v1/jobs/{job}/checkpoint", CheckpointView)
    check_kept(packed.paths, packed.variables, checkpoint.variables)
    own_shape = packed.shape
    if checkpoint.step and (own_shape.rows, own_shape.global_batch, own_shape.initial_epoch) != (
        shape.rows,
        shape.global_batch,
        shape.initial_epoch,
    ):
        raise InvalidSpec(
            f"Job {job} ended within an epoch of {shape.rows:,} rows in batches of {shape.global_batch}; "
            f"this fit has {own_shape.rows:,} in batches of {own_shape.global_batch}. Give fit the same data and batch_size."
        )
    where = f"epoch {checkpoint.epoch + 1}" + (f", step {checkpoint.step + 1}" if checkpoint.step else "")
    place = f"the last checkpoint of job {job}: {where} of {own_shape.epochs} epochs"
    return f"Goes on from {place}. What the model holds in the kernel is not used."


def simulated(devices: int) -> str:
    return (
        f"There is no GPU: strategy mirrored runs on {devices} simulated devices, which share the cores of one process. "
        "Results are those of real ones, times are not; collective is the strategy for cores."
    )
