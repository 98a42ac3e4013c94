"""Explain submission: checks, packs and sends an explain call to the backend.

Owns the order of things: choose the method, pack, send, submit. What a packed call is belongs to `packing`, following the job to
`explain_job`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aiaas_magics.client.explain.explain_job import ExplainJob
from aiaas_magics.client.training.submission import default_name
from aiaas_magics.core import settings as own
from aiaas_magics.core.contract import check_versions
from aiaas_magics.core.engines import HOME
from aiaas_magics.core.errors import InvalidSpec, NotEnoughDevices
from aiaas_magics.core.events import Phase
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.explain_settings import AUTO, METHODS, ExplainSettings
from aiaas_magics.core.spec import FitSpec, JobView, checked_job_name
from aiaas_magics.core.story import JobStory

if TYPE_CHECKING:
    from aiaas_magics.client.open_backend import OpenBackend
    from aiaas_magics.packing.fitcall.explain_call import ExplainCall

MOST_BACKGROUND_ROWS: Final = 1000  # guess: their mean is that of all
MOST_ROWS: Final = 100_000  # guess: more explanations than anybody looks at; their beeswarm is that of a sample


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainOptions:
    """How rows are explained on workers. `workers` of None: one worker with every device."""

    name: str | None = None
    workers: int | None = None
    oversubscribe: bool = False
    retries: int = 3
    environment: tuple[str, ...] | None = ()
    settings: ExplainSettings = field(default_factory=ExplainSettings)
    columns: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


def submit_explanation(
    backend: OpenBackend,
    model: Any,
    rows: Any,
    background: Any,
    options: ExplainOptions,
    *,
    on_change: Callable[[JobStory], None] = lambda _: None,
) -> ExplainJob:
    """Have workers explain the outputs of `model` for `rows`. The model stays as it is, and need not be compiled.

    Raises:
        UsageError: rows, background, method and model do not fit together; nothing was sent.
        NotEnoughDevices: more workers than devices, without `oversubscribe`.
    """
    from aiaas_magics.packing.fitcall import explain_call

    if options.name is not None:
        checked_job_name(options.name)
    story = JobStory().with_phase(Phase.PACKING, at_s=time.time())
    on_change(story)
    about, versions = backend.about(), own.versions()
    check_versions(versions, about.versions)
    devices = len(about.devices)
    workers = options.workers or 1
    if workers > devices and not options.oversubscribe:
        raise NotEnoughDevices(workers, devices, about.backend)
    request = explain_request(model, rows, background, options)
    packed = explain_call.pack(request.call, workers=workers, environment=options.environment)
    uploads = backend.blobs.look_up(packed.arrays)
    send_bytes = len(packed.payload) + sum(upload.array.nbytes for upload in uploads if not upload.is_there)
    story = story.with_phase(Phase.SENDING, at_s=time.time(), detail=f"{send_bytes:,} bytes")
    on_change(story)
    notes = (*packed.notes, *filter(None, (request.why,)))
    spec = FitSpec(
        name=options.name or default_name(packed.shape.model),
        payload=backend.blobs.send_bytes(packed.payload),
        arrays=backend.blobs.send_arrays(uploads),
        shape=packed.shape,
        versions=versions,
        seed=0,
        workers=options.workers,
        oversubscribe=options.oversubscribe,
        retries=options.retries,
        # One process per worker, on GPUs too: rows are explained apart.
        execution=Execution(engine=HOME.name, strategy="collective", checkpoint_epochs=0),
        explain=request.settings,
        notes=notes,
        memory_bytes=packed.memory_bytes,
        sets_environment=packed.sets_environment,
    )
    view = backend.transport.post("/v1/jobs", spec, JobView, key=secrets.token_hex(16))
    return ExplainJob(backend.transport, view, story=replace(story, notices=notes))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainRequest:
    """An explain call, the settings with the method that is carried out, and why that was chosen; "" where it was named."""

    call: ExplainCall
    settings: ExplainSettings
    why: str


def explain_request(model: Any, rows: Any, background: Any, options: ExplainOptions) -> ExplainRequest:
    """Read rows and background for `model`, and choose the method.

    Raises:
        DataMismatch, InvalidSpec, UnknownName: they do not fit together.
    """
    from aiaas_magics.explain import black_box, method_choice, model_inputs, model_predict, model_structure, players
    from aiaas_magics.packing.fitcall.explain_call import ExplainCall

    data = model_inputs.model_rows(model, rows, columns=options.columns)
    black_box.check_rows(data.arrays)
    if len(data.arrays[0]) > MOST_ROWS:
        raise InvalidSpec(f"{len(data.arrays[0]):,} rows are more than the {MOST_ROWS:,} that one job explains. Give a sample of them.")
    behind = None if background is None else model_inputs.model_rows(model, background, columns=options.columns).arrays
    if behind is not None:
        players.check_background(data.arrays, behind)
        behind = thinned(behind)
    if hasattr(model, "output"):  # a subclassed model says in a worker only which outputs it has
        model_structure.choose_output(model, model.output, options.settings.output)
    asks = options.settings.method == AUTO
    has_gradients = asks and model_predict.has_gradients(model, [array[:1] for array in data.arrays], options.settings.output)
    choice = method_choice.choose_method(data.arrays, behind, options.settings, has_gradients=has_gradients)
    settings = options.settings.with_method(choice.method)
    facts = {
        "inputs": list(data.inputs),
        "columns": list(map(list, data.columns)),
        "classes": list(options.class_names),
        "model": str(model.name),
        "why": choice.why,
    }
    compiles_each = METHODS[settings.method].family != "black_box"
    call = ExplainCall(model=model, rows=data.arrays, background=behind, facts=facts, compiles_each=compiles_each)
    return ExplainRequest(call=call, settings=settings, why=choice.why)


def thinned(background: Sequence[np.ndarray]) -> list[np.ndarray]:
    """At most `MOST_BACKGROUND_ROWS` of the background, evenly chosen: methods use fewer, and gradients start from their mean."""
    count = len(background[0])
    if count <= MOST_BACKGROUND_ROWS:
        return list(background)
    chosen = np.unique(np.linspace(0, count - 1, MOST_BACKGROUND_ROWS).astype(int))
    return [array[chosen] for array in background]
