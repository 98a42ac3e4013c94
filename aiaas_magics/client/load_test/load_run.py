"""Load run: builds a load test's plan, runs the generator's process, and makes the report.

Owns the plan and starting the process. Making the load belongs to `load_generator`, drawing it to `plots`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from aiaas_magics.client.load_test.load_plan import ANSWER_S, MARK, BodyForm, LoadOutcome, LoadPlan
from aiaas_magics.client.serving import tensor_protocol
from aiaas_magics.core import snippets, wire
from aiaas_magics.core.errors import BackendNotProven, BackendRefused, BackendTooSlow, BackendUnreachable, InvalidSpec
from aiaas_magics.core.host import cpu_name, usable_cores
from aiaas_magics.core.plain_text import visible
from aiaas_magics.core.scaling.load_report import LoadProgress, LoadReport, Sides
from aiaas_magics.core.spec import EndpointView, TensorSpec

START_S: Final = 30.0  # guess: a fresh interpreter on a busy machine
BODIES: Final = 16  # guess: enough that no cache of one body is measured
FORMS: Final = ("json", "binary")


def run_load(
    view: EndpointView,
    *,
    fingerprint: str = "",
    concurrency: Sequence[int] = (1, 2, 4),
    duration_s: float = 1.0,
    rows: int = 1,
    x: Any = None,
    rates: Sequence[float] | None = None,
    forms: Sequence[str] = FORMS,
    on_progress: Callable[[LoadProgress], None] | None = None,
) -> LoadReport:
    """Load the endpoint from a process of its own and report what was seen.

    Args:
        fingerprint: SHA-256 of the certificate that was accepted for it; "" for one that an authority signed.
        concurrency: Numbers of connections, measured one after the other.
        duration_s: Seconds each.
        rows: Rows in a request.
        x: Rows to send, in the form that `Endpoint.predict` takes; without it, rows that fit
            the interface are made up, or of texts and of what has any size the example of the sample.
        rates: Requests a second on a schedule, with the first of `forms`; left out, up from a quarter of what
            the connections reached until answers stay behind; none where it is empty.
        forms: How tensors travel: "json" (TensorFlow Serving), "binary" (Open Inference Protocol v2).
        on_progress: Called before each measurement, with what was measured so far.

    Raises:
        InvalidSpec: a number that cannot be.
        BackendRefused: every request was refused; the text is the server's own.
    """
    plan = LoadPlan(
        url=view.url,
        token=view.token,
        forms=forms_of(view.name, view.inputs, forms, rows=rows, x=_example_of(view) if x is None else x),
        concurrency=tuple(concurrency),
        duration_s=duration_s,
        rows=rows,
        rates=None if rates is None else tuple(rates),
        model=view.name,
        fingerprint=fingerprint,
        authority=os.environ.get("AIAAS_CA", ""),
    )
    outcome = carry_out(plan, on_progress)
    return LoadReport(
        endpoint=view.name,
        rows=rows,
        hardware=hardware(),
        points=outcome.points,
        rates=outcome.rates,
        sides=tuple(
            Sides(form=side.form, model_per_s=side.model_per_s * view.replicas, interface_per_s=side.interface_per_s)
            for side in outcome.sides
        ),
    )


def carry_out(plan: LoadPlan, on_progress: Callable[[LoadProgress], None] | None = None) -> LoadOutcome:
    """Run `plan` in a process of its own.

    Raises:
        BackendUnreachable, BackendNotProven, BackendRefused, BackendTooSlow: nothing could be measured.
    """
    limit_s = START_S + plan.measurements * (2 * plan.duration_s + plan.warm_up_s + ANSWER_S)
    command = [sys.executable, "-P", "-m", "aiaas_magics.client.load_test.load_generator"]
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints) as process,
    ):
        watch = threading.Timer(limit_s, process.kill)
        watch.start()
        try:
            last = _talk(process, plan, on_progress)
        finally:  # an interrupt ends it as well
            is_late = not watch.is_alive()
            watch.cancel()
            process.kill()
        complaints.seek(0)
        lines = complaints.read().decode(errors="replace").strip().splitlines()
    if is_late:
        raise BackendTooSlow(plan.url, limit_s)
    try:
        outcome = wire.decode(last, LoadOutcome)
    except wire.Malformed as error:
        raise BackendRefused(
            0, f"The load generator failed: {lines[-1] if lines else error}. Run it again, or report this to us."
        ) from error
    if outcome.unproven:
        raise BackendNotProven(plan.url)
    if outcome.unreachable:
        raise BackendUnreachable(plan.url)
    if outcome.refused:
        raise BackendRefused(outcome.status, visible(outcome.refused))
    return outcome


def _talk(process: subprocess.Popen[bytes], plan: LoadPlan, on_progress: Callable[[LoadProgress], None] | None) -> bytes:
    """Give the plan, hear what is done, return the last line."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(wire.encode(plan))
        process.stdin.close()
    except BrokenPipeError:
        pass  # it died; what it said tells why
    last = b""
    for line in process.stdout:
        if line.startswith(MARK.encode()):
            if on_progress is not None:
                on_progress(wire.decode(line.removeprefix(MARK.encode()), LoadProgress))
        else:
            last = line
    process.wait()
    return last


# --------------------------------------------------------------------------- what is sent


def forms_of(name: str, inputs: Sequence[TensorSpec], forms: Sequence[str], *, rows: int, x: Any = None) -> tuple[BodyForm, ...]:
    """Requests of `rows` rows each to the endpoint `name`, in each of `forms`.

    Raises:
        InvalidSpec: an unknown form, or no row.
    """
    unknown = set(forms) - set(FORMS)
    if unknown or not forms:
        raise InvalidSpec(f"forms={list(forms)}: tensors travel as {' or '.join(FORMS)}. Leave it out for both to start with.")
    makers = {"json": json_form, "binary": binary_form}
    batches = _batches(inputs, rows=rows, x=x)
    return tuple(makers[form](name, inputs, batches) for form in dict.fromkeys(forms))


def json_form(name: str, inputs: Sequence[TensorSpec], batches: Sequence[dict[str, np.ndarray]]) -> BodyForm:
    """TensorFlow Serving's row format."""
    bodies = []
    for batch in batches:
        picked = {column: values.tolist() for column, values in batch.items()}
        instances = (
            next(iter(picked.values()))
            if len(picked) == 1
            else [dict(zip(picked, row, strict=True)) for row in zip(*picked.values(), strict=True)]
        )
        bodies.append(json.dumps({"instances": instances}, separators=(",", ":"), default=snippets.text_of).encode())
    return BodyForm(
        name="json",
        path=f"/v1/models/{name}:predict",
        headers=(("Content-Type", "application/json"),),
        bodies=tuple(dict.fromkeys(bodies)),
    )


def binary_form(name: str, inputs: Sequence[TensorSpec], batches: Sequence[dict[str, np.ndarray]]) -> BodyForm:
    """The Open Inference Protocol v2 with binary tensors."""
    encoded = [tensor_protocol.encode(_typed(batch, inputs), tuple(inputs)) for batch in batches]
    longest = max(len(body) for body, _ in encoded)
    headers = next(headers for body, headers in encoded if len(body) == longest)
    # The header says how long the JSON is, so only bodies that agree in it go together.
    bodies = tuple(dict.fromkeys(body for body, values in encoded if values == headers))
    return BodyForm(name="binary", path=f"/v2/models/{name}/infer", headers=tuple(headers.items()), bodies=bodies)


def _typed(batch: dict[str, np.ndarray], inputs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    return {spec.name: batch[spec.name].astype(tensor_protocol.dtype_of(spec.dtype)) for spec in inputs}


def _batches(inputs: Sequence[TensorSpec], *, rows: int, x: Any) -> list[dict[str, np.ndarray]]:
    if rows < 1:
        raise InvalidSpec(f"rows={rows}: a request has at least one row. Use --rows 1 to start with.")
    columns = _given_columns(inputs, x) if x is not None else {spec.name: _made_up(spec, rows * BODIES) for spec in inputs}
    have = min(len(column) for column in columns.values())
    if have < 1:
        raise InvalidSpec("There is no row to send. Pass at least one.")
    return [{name: column[(np.arange(rows) + body * rows) % have] for name, column in columns.items()} for body in range(BODIES)]


def _given_columns(inputs: Sequence[TensorSpec], x: Any) -> dict[str, np.ndarray]:
    if isinstance(x, dict):
        columns = x
    elif len(inputs) > 1:
        columns = {spec.name: values for spec, values in zip(inputs, x, strict=True)}
    else:
        columns = {inputs[0].name: x}
    return {spec.name: np.asarray(columns[spec.name]) for spec in inputs}


def _example_of(view: EndpointView) -> dict[str, np.ndarray] | None:
    """A row of the sample, where one that is made up may be none: a text may have to be an image, and a free size more than one."""
    if not view.example or not any(spec.dtype == "string" or -1 in spec.shape[1:] for spec in view.inputs):
        return None
    row = snippets.arrays_of(view.example, view.inputs)
    return {name: array[np.newaxis] for name, array in row.items()}


def _made_up(spec: TensorSpec, rows: int) -> np.ndarray:
    """Rows that fit the interface, with as many digits as people write. Whole numbers are 0: any other may be no row of an Embedding."""
    shape = (rows, *(1 if size < 0 else size for size in spec.shape[1:]))
    if spec.dtype == "string":
        return np.full(shape, "a", dtype=object)
    dtype = tensor_protocol.dtype_of(spec.dtype)
    if dtype.kind == "f":
        return np.random.default_rng(0).normal(size=shape).round(6)
    return np.zeros(shape, dtype)


def hardware() -> str:
    """This machine in one line, for captions: the load and a local server share it."""
    cores = len(usable_cores())
    return f"{cores} core{'' if cores == 1 else 's'}, {cpu_name()}"
