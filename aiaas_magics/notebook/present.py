"""Static outputs: MIME bundles of a job, a study, an endpoint, a backend and a preflight.

Owns the static outputs: for each thing a table as HTML and the same in words, and a figure
as PNG with its numbers as text. Every bundle's `text/plain` is complete by itself. A table
and a picture never share a bundle, since nbconvert prefers the HTML and drops the picture.
"""

from __future__ import annotations

import base64
import itertools
import textwrap
import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final

from aiaas_magics.core.accounts import WhoAmI
from aiaas_magics.core.engines import ONE_PROCESS
from aiaas_magics.core.events import Candidate, Planned
from aiaas_magics.core.routing import description
from aiaas_magics.core.row_order import described
from aiaas_magics.core.scaling.endpoint_samples import EndpointWatch
from aiaas_magics.core.scaling.load_report import LoadReport
from aiaas_magics.core.spec import About, EndpointView, Freed, JobState, JobView, StorageView, TensorSpec, VersionView
from aiaas_magics.core.story import JobStory
from aiaas_magics.notebook.views.job_picture import error_line, status_line
from aiaas_magics.plots import text_twins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from aiaas_magics.client.serving.endpoint import Endpoint
    from aiaas_magics.client.training.job import Job
    from aiaas_magics.client.training.planning import FitPlan
    from aiaas_magics.client.training.study import Study
    from aiaas_magics.client.training.submission import Preflight
    from aiaas_magics.packing.export.accuracy_impact import PrecisionChange

Bundle = dict[str, Any]

LAST_JOBS: Final = 20  # in a status; the rest is counted
SHOWN_ROWS: Final = 12
MANIFEST_ROWS: Final = 40


# --------------------------------------------------------------------------- pieces


def table_html(header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", notes: Sequence[str] = ()) -> str:
    """A table that inherits the notebook's own look; every cell is escaped."""
    sides = ["right" if right else "left" for right in text_twins.right_columns(rows, len(header))]
    head = "".join(f'<th scope="col" style="text-align:{side}">{escape(name)}</th>' for side, name in zip(sides, header, strict=True))
    # Numbers with their units stay in one line; where a window is too narrow for that, the table is pushed sideways.
    styles = ["text-align:right;white-space:nowrap" if side == "right" else "text-align:left" for side in sides]
    cells = ("".join(f'<td style="{style}">{escape(cell)}</td>' for style, cell in zip(styles, row, strict=True)) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    title = f'<caption style="text-align:left"><b>{escape(caption)}</b></caption>' if caption else ""
    below = "".join(f"<div>{escape(note)}</div>" for note in notes if note)
    table = f'<div style="overflow-x:auto"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>' if rows else ""
    return f"<div>{table or (f'<b>{escape(caption)}</b>' if caption else '')}{below}</div>"


def table_bundle(header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", notes: Sequence[str] = ()) -> Bundle:
    words = [caption, text_twins.table(header, rows) if rows else "", *notes]
    return {
        "text/html": table_html(header, rows, caption=caption, notes=notes),
        "text/plain": "\n".join(line for line in words if line),
    }


def figure_bundle(figure: Figure, words: str) -> Bundle:
    return {"image/png": base64.b64encode(figure_png(figure)).decode("ascii"), "text/plain": words}


def figure_png(figure: Figure) -> bytes:
    """For a figure as the last expression of a cell."""
    from aiaas_magics.plots.figure_style import as_png

    return as_png(figure)


# --------------------------------------------------------------------------- jobs


def job_title(view: JobView) -> str:
    n = view.spec.workers
    where = "all devices" if n is None else text_twins.workers(n)
    return f"Job {view.id} · {view.spec.name} · {where}"


def job_bundles(view: JobView, story: JobStory, hardware: str = "", *, figures: bool = True) -> list[Bundle]:
    """The table of a job and, from the second epoch on, its curves."""
    caption = job_caption(view, story, hardware)
    bundles = [job_table(view, story, caption=caption)]
    if figures and len(story.rows) > 1:
        from aiaas_magics.plots.history_figure import history_figure

        figure = history_figure(story.rows, job_title(view), caption=caption)
        bundles.append(figure_bundle(figure, f"{text_twins.history_text(story.rows, job_title(view))}\n{caption}"))
    return bundles


def fit_line(view: JobView, story: JobStory, *, fit: int, notes: Sequence[str]) -> Bundle:
    """What stays of the `fit`-th fit of a cell that has many; `notes` are those that none before had."""
    return {"text/plain": "\n".join([f"Fit {fit} · {job_title(view)}: {status_line(story)}", *(f"  note: {note}" for note in notes)])}


def job_caption(view: JobView, story: JobStory, hardware: str) -> str:
    shape = view.spec.shape
    where = f" on {hardware}" if hardware else ""
    attempts = f" {story.attempt} attempts." if story.attempt > 1 else ""
    # Data that yields batches does not tell before the run.
    rows = f"{shape.rows:,} rows" if shape.rows else "number of rows unknown before the run"
    batch = f"global batch {shape.global_batch:,}" if shape.global_batch else "batches set by the data"
    order = described(view.spec.seed)
    return f"{rows}, {batch}, {shape.parameters:,} parameters, {order}{where}.{attempts} Times cover epochs only."


def job_table(view: JobView, story: JobStory, *, caption: str = "") -> Bundle:
    names = text_twins.metric_names(story.rows)
    shown = story.rows if len(story.rows) <= SHOWN_ROWS else (*story.rows[:2], *story.rows[-(SHOWN_ROWS - 2) :])
    rows = [
        (
            str(row.epoch + 1),
            text_twins.seconds(row.seconds),
            text_twins.count(row.rows_per_s),
            *(text_twins.number(row.logs[name]) if name in row.logs else "" for name in names),
        )
        for row in shown
    ]
    left_out = story.epochs_done - len(shown)
    notes = [
        status_line(story),
        f"{left_out:,} epochs in between are not shown; the returned History has them all." if left_out else "",
        steps_line(view, story),
        phases_line(story),
        error_line(story) if story.state is not JobState.FAILED else "",  # the first line says it
        *story.notices,
        caption,
    ]
    return table_bundle(("epoch", "time", "rows/s", *names), rows, caption=job_title(view), notes=notes)


def phases_line(story: JobStory) -> str:
    spent = story.phase_seconds()
    return "Time: " + ", ".join(f"{phase} {text_twins.seconds(seconds)}" for phase, seconds in spent.items()) if spent else ""


def job_bundle(job: Job) -> Bundle:
    """For `job` as the last expression of a cell. Asks the backend what is new."""
    return job_table(job.view(), job.story())


# --------------------------------------------------------------------------- studies


def study_bundles(study: Study, *, figures: bool = True) -> list[Bundle]:
    """The table of a study and its figure."""
    return [study_table(study), *([figure_bundle(study.plot(), text_twins.study_text(study.report()))] if figures else [])]


def study_table(study: Study) -> Bundle:
    report = study.report()
    header, rows = text_twins.study_table(report)
    compiled = [text_twins.seconds(seconds) for seconds in study_compile_s(study)]
    rows = [(*row, cell) for row, cell in itertools.zip_longest(rows, compiled, fillvalue="")]
    notes = [f"{report.fit.verdict[0].upper()}{report.fit.verdict[1:]}.", *text_twins.study_notes(report)]
    bundle = table_bundle((*header, "compile (excluded)"), rows, caption=report.title, notes=notes)
    bundle["text/plain"] += f"\n{text_twins.study_caption(report)}"
    return bundle


def study_compile_s(study: Study) -> list[float]:
    ordered = sorted(study.points, key=lambda point: point.workers)
    return [point.measured.compile_s for point in ordered]


# --------------------------------------------------------------------------- preflight


def preflight_bundle(preflight: Preflight) -> Bundle:
    """The items that go to the backend, and what is known before the run."""
    items = list(preflight.manifest)
    rows = [(str(item.kind), str(item.name), text_twins.size(item.bytes), str(item.detail)) for item in items[:MANIFEST_ROWS]]
    kernel, backend = preflight.here, preflight.there
    versions = ", ".join(
        f"{library} {getattr(kernel, library)}/{getattr(backend, library)}" for library in ("python", "keras", "tensorflow", "aiaas_magics")
    )
    notes = [
        f"and {len(items) - MANIFEST_ROWS} more items" if len(items) > MANIFEST_ROWS else "",
        f"To send: {text_twins.size(preflight.send_bytes)}. Already on the backend: {text_twins.size(preflight.known_bytes)}.",
        f"Workers: {preflight.workers}, on {preflight.devices} devices ({preflight.hardware}).",
        f"Memory: about {text_twins.size(preflight.memory_bytes)} per worker, without the libraries.",
        f"Versions (kernel/backend): {versions}.",
        *(f"Note: {note}" for note in preflight.notes),
        f"Packing and checking took {text_twins.seconds(preflight.seconds)}.",
    ]
    return table_bundle(("kind", "name", "size", "detail"), rows, caption="What fit sends", notes=notes)


STEPS_OF_A_CALL: Final = {"off": "one", "graph": "many", "xla": "many, with XLA", "auto": ""}
PLAN_HEADER: Final = ("engine", "strategy", "steps/call", "steps/s", "rows/s", "first step", "this fit", "memory", "")


def plan_bundles(plan: FitPlan) -> list[Bundle]:
    """A dry run: what fit sends, and every way to run it."""
    return [preflight_bundle(plan.preflight), plan_table(plan)]


def plan_table(plan: FitPlan) -> Bundle:
    rows = [
        (
            *_way(plan, candidate),
            text_twins.count(1 / candidate.step_s),
            text_twins.count(plan.shape.global_batch / candidate.step_s),
            text_twins.seconds(candidate.compile_s),
            text_twins.seconds(plan.fit_s(candidate)),
            text_twins.size(candidate.memory_bytes),
            "the plan" if plan.is_chosen(candidate) else "",
        )
        for candidate in plan.measured
    ]
    rows += [(*_way(plan, candidate), "", "", "", "", "", f"ruled out: {candidate.why}") for candidate in plan.ruled_out]
    quicker = plan.quicker_engine
    notes = [
        plan_line(plan.choice),
        plan.unmeasured,
        *([MEASURED_ALONE] if plan.measured else []),
        f"--engine {quicker.engine} would take {text_twins.seconds(plan.fit_s(quicker))}; its results were checked to be the same."
        if quicker
        else "",
        "The model in the kernel is unchanged." + ("" if plan.unmeasured else " The fit will not send the same data again."),
    ]
    return table_bundle(
        PLAN_HEADER,
        rows,
        caption=f"Ways to run the {plan.steps:,} steps of this fit" if plan.steps else "Ways to run this fit",
        notes=notes,
    )


MEASURED_ALONE: Final = (
    "Times are extrapolated from a few measured steps, without validation, callbacks or checkpoints. The first step includes tracing "
    "and compiling. Memory is that of the first worker's process without shared libraries, or a GPU's peak."
)


def plan_line(plan: Planned | None) -> str:
    """How steps are carried out, and why not otherwise, as a sentence."""
    if plan is None:
        return ""
    calls = {"off": "one step per call", "graph": "many steps per call", "xla": "many steps per call, compiled by XLA"}[plan.fused]
    why = f" ({'; '.join(plan.why)})" if plan.why else ""
    return f"Plan: {' '.join(filter(None, (plan.engine, plan.strategy)))}, {calls}{why}."


WORTH_S: Final = 60.0  # guess: below, no other plan gains what a reader of its reasons spends


def steps_line(view: JobView, story: JobStory) -> str:
    """How the steps were carried out, where a reader can act on it: after long training, or if another form was asked for."""
    plan, form = story.plan, view.spec.execution.fused
    if plan is not None and (story.training_s >= WORTH_S or form not in ("auto", plan.fused)):
        return plan_line(plan)
    steps = view.spec.shape.steps_per_epoch * story.epochs_done
    return f"Ran in {steps:,} step{'' if steps == 1 else 's'}." if steps and story.state is JobState.SUCCEEDED else ""


def _way(plan: FitPlan, candidate: Candidate) -> tuple[str, str, str]:
    simulated = ", simulated devices" if plan.simulated and candidate.strategy in ONE_PROCESS else ""
    return candidate.engine, f"{candidate.strategy}{simulated}", STEPS_OF_A_CALL.get(candidate.fused, candidate.fused)


# --------------------------------------------------------------------------- endpoints


def endpoint_bundle(endpoint: Endpoint) -> Bundle:
    """How to call it. The token is never part of an output, since notebooks are saved and shared."""
    view = endpoint.view()
    version = _live_version(view)
    facts = [
        ("URL", endpoint.predict_url),
        ("version", f"{version.version} ({version.shown_state}, {version.engine})" if version else "none"),
        ("versions", _versions(view)),
        *([("precision", f"{version.precision}: {version.precision.change}")] if version and version.precision.name else []),
        ("parity check", _proof_words(version, view.origin) if version else ""),
        *([("signed by", version.signer)] if version and version.signer else []),
        *([("fault", version.fault)] if version and version.fault else []),
        ("replicas", str(view.replicas)),
        *([("recording", f"{view.recording}; %aiaas_record {view.name} off ends it")] if view.recording.is_on else []),
        ("inputs", _interface(view.inputs)),
        ("outputs", _interface(view.outputs)),
        *(("note", note) for note in endpoint.notes),
        ("token", "in .token of this object; in a shell, first run export AIAAS_ENDPOINT_TOKEN=..."),
    ]
    table = table_html(("endpoint", endpoint.name), facts)
    curl, snippet = endpoint.curl(), endpoint.snippet()
    plain = "\n".join((text_twins.table(("endpoint", endpoint.name), facts), "", curl, "", snippet))
    return {"text/html": f"<div>{table}<pre>{escape(curl)}</pre><pre>{escape(snippet)}</pre></div>", "text/plain": plain}


def _proof_words(version: VersionView, origin: str) -> str:
    against = f"the {version.precision} model in the kernel" if version.precision.name else origin
    return f"largest difference from {against} on the samples: {version.proof:.2g}"


ON_SAMPLES: Final = (
    "Measured on only {rows} rows of {of}, which says little about accuracy. Pass your own data with --validate x_val,y_val; "
    "they stay in the kernel."
)


def change_table(change: PrecisionChange) -> Bundle:
    """The accuracy impact of a quantization, before the model goes live."""
    rows = [
        (
            "size",
            text_twins.size(change.bytes_before),
            text_twins.size(change.bytes_after),
            f"{change.bytes_after / change.bytes_before:.0%}",
        ),
        *(
            (
                line.measure,
                "" if line.before is None else text_twins.number(line.before),
                text_twins.number(line.after),
                "" if line.before is None else f"{line.after - line.before:+.2g}",
            )
            for line in change.lines
        ),
    ]
    verdict = "" if change.is_within else "The model does not go live."
    notes = [
        change.note,
        "" if change.validated else ON_SAMPLES.format(rows=change.rows, of=change.of),
        f"Criterion: {change.judged}, change {change.by:.3g}, limit {change.limit:g} (--max-change). {verdict}".rstrip(),
    ]
    caption = f"Accuracy impact of {change.precision}, measured on {change.rows:,} rows of {change.of}"
    return table_bundle(("", "as trained", change.precision, "change"), rows, caption=caption, notes=notes)


def _interface(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(
        f"{spec.name}{f' ({spec.original!r} in Keras)' if spec.original else ''}: {spec.dtype} [{', '.join(spec.dimensions)}]"
        for spec in specs
    )


def load_bundles(report: LoadReport, *, figures: bool = True) -> list[Bundle]:
    """The tables of a load run and its figure."""
    bundles = [
        table_bundle(
            text_twins.LOAD_HEADER,
            text_twins.load_rows(report),
            caption=f"Endpoint {report.endpoint} under load",
            notes=text_twins.load_notes(report),
        )
    ]
    if report.rates:
        bundles.append(table_bundle(text_twins.RATE_HEADER, text_twins.rate_rows(report), caption="Open loop: offered rates"))
    if not figures:
        return bundles
    from aiaas_magics.plots.load_figure import latency_figure

    return [*bundles, figure_bundle(latency_figure(report), text_twins.latency_text(report))]


def watched_bundles(watched: EndpointWatch, *, figures: bool = True) -> list[Bundle]:
    """What stays of looking at an endpoint: its median and worst, and the figure."""
    rows = text_twins.watched_rows(watched)
    notes = text_twins.watched_notes(watched) if rows else ["No request was answered.", *text_twins.watched_notes(watched)]
    bundles = [table_bundle(text_twins.WATCHED_HEADER, rows, caption=f"Endpoint {watched.endpoint}", notes=notes)]
    if not figures or not watched.answered:
        return bundles
    from aiaas_magics.plots.endpoint_figure import watched_figure

    return [*bundles, figure_bundle(watched_figure(watched), text_twins.watched_text(watched))]


# --------------------------------------------------------------------------- status


def connected_as(who: WhoAmI | None) -> str:
    """ ", as ada (user)"; nothing for the server's own account."""
    return f", as {who.user} ({who.role})" if who is not None and who.user else ""


def status_bundle(
    about: About,
    url: str,
    jobs: Sequence[JobView],
    endpoints: Sequence[EndpointView],
    *,
    who: WhoAmI | None = None,
    now_s: float | None = None,
) -> Bundle:
    """The backend, as whom one is connected, its jobs (newest first) and its endpoints."""
    now_s = time.time() if now_s is None else now_s
    where = f"Backend {about.backend} at {url}{connected_as(who)}"
    title = f"{where}: {about.hardware}, {len(about.devices)} devices, version {about.versions.aiaas_magics}"
    shown = sorted(jobs, key=lambda view: view.created_s, reverse=True)[:LAST_JOBS]
    job_rows = [_job_row(view, now_s) for view in shown]
    endpoint_rows = [(view.name, _live(view), str(view.replicas), view.predict_url, view.model) for view in endpoints]
    older = len(jobs) - len(shown)
    more = f"and {older} older job{'' if older == 1 else 's'}" if older else "" if job_rows else "No jobs yet."
    return joined(
        [
            table_bundle(("job", "name", "workers", "state", "created", "took", "reason"), job_rows, caption=title, notes=[more]),
            table_bundle(("endpoint", "version", "replicas", "URL", "model"), endpoint_rows, caption="Endpoints" if endpoint_rows else ""),
        ]
    )


def storage_bundle(view: StorageView, freed: Freed | None = None) -> Bundle:
    """What a state folder holds, largest first."""
    rows = [
        (part.contents, f"{part.bytes / 1e6:,.1f}", str(part.count or ""), f"{part.freeable_bytes / 1e6:,.1f}")
        for part in sorted(view.parts, key=lambda part: -part.bytes)
        if part.bytes
    ]
    notes = [f"Free disk space: {view.free_bytes / 1e9:,.1f} GB, of which {view.keep_free_bytes / 1e9:,.2g} GB stay reserved."]
    if freed is not None:
        notes.insert(0, f"Freed {freed.bytes / 1e6:,.1f} MB: {freed.blobs} arrays and models, and the results of {freed.results} jobs.")
    elif any(part.freeable_bytes for part in view.parts):
        notes.append("%aiaas_storage --free deletes what is no longer needed.")
    return table_bundle(("kind", "MB", "items", "freeable MB"), rows, caption=view.folder, notes=notes)


def joined(parts: Sequence[Mapping[str, str]]) -> Bundle:
    """Several tables as one output."""
    return {
        "text/html": "".join(part["text/html"] for part in parts if part["text/plain"]),
        "text/plain": "\n\n".join(part["text/plain"] for part in parts if part["text/plain"]),
    }


def _job_row(view: JobView, now_s: float) -> tuple[str, ...]:
    n = view.spec.workers
    took = (view.ended_s or now_s) - view.started_s if view.started_s else None
    return (
        view.id,
        view.spec.name,
        "all" if n is None else str(n),
        str(view.state),
        time.strftime("%H:%M:%S", time.localtime(view.created_s)),
        text_twins.seconds(took) if took is not None else "",
        "" if view.reason == view.state else textwrap.shorten(view.reason, 80, placeholder=" …"),
    )


def routing_text(endpoint: Endpoint) -> str:
    """Who answers now, after a promotion or a rollback."""
    return f"Endpoint {endpoint.name}: {_versions(endpoint.view())}."


def _versions(view: EndpointView) -> str:
    """The versions that may answer, with what they are to the endpoint: "3 (live), 2 (previous)"."""
    ready = [version.version for version in view.versions if version.state == "AVAILABLE"]
    if view.routing is None:
        return ", ".join(map(str, ready))
    bits = {version.version: f", {version.precision}" if version.precision.name else "" for version in view.versions}
    return ", ".join(f"{number} ({description(view.routing, number)}{bits[number]})" for number in ready)


def _live_version(view: EndpointView) -> VersionView | None:
    """The version that answers callers who ask for none, or else the newest."""
    live = None if view.routing is None else view.routing.live
    ordered = sorted(view.versions, key=lambda version: (version.version == live, version.version))
    return ordered[-1] if ordered else None


def _live(view: EndpointView) -> str:
    if any(version.state == "AVAILABLE" for version in view.versions):
        return f"{_versions(view)}; withdrawn, not served" if view.withdrawn else _versions(view)
    newest = _live_version(view)
    return newest.state if newest else "none"
