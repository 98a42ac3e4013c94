"""Card sections: what is known of a model, as sections of its card.

Owns the order of the sections, their words and the command that fills each. Every number comes from a record; what nobody measured
stays empty. The form belongs to `core.model_card`, collecting to `card_making`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from aiaas_magics.core.group_report import GroupReport
from aiaas_magics.core.model_card import CardSection, CardTable
from aiaas_magics.core.row_order import described
from aiaas_magics.core.scaling.load_report import LoadReport
from aiaas_magics.core.spec import TensorSpec, VersionView
from aiaas_magics.core.story import EpochRow
from aiaas_magics.plots import group_text, text_twins

if TYPE_CHECKING:
    from aiaas_magics.client.card.card_records import ModelTraining
    from aiaas_magics.packing.export.accuracy_impact import PrecisionChange
    from aiaas_magics.packing.live.model_summary import ModelSummary
    from aiaas_magics.plots.text_twins import StudyReport

WITHIN: Final = ", sent within the model"  # of the manifest: small arrays are no blobs
LAYERS: Final = 40  # guess: the rest is counted
EXPLAINED_LINES: Final = 20  # guess: a card is no appendix
EPOCHS: Final = 20  # guess: longer curves are thinned evenly
EPSILON: Final = "privacy_epsilon"  # the name under which private training reports its budget in `History`

# key -> title, and what to do while the section is empty. {name} is what the magics call the model.
SECTIONS: Final[dict[str, tuple[str, str]]] = {
    "model": ("Model", "Deploy or card the live Keras model: `%aiaas_card MODEL`."),
    "use": ("Intended use", "What is the model for, and who is it not for? Answer with `%aiaas_card {name} --use '...'`."),
    "limits": ("Limits", "Where does the model fail, and what was it not tested on? Answer with `%aiaas_card {name} --limits '...'`."),
    "license": ("License", "Under which license may others use the model? Answer with `%aiaas_card {name} --license apache-2.0`."),
    "data": ("Training data", "Train with `%%aiaas_train`: the record then holds shapes and SHA-256 of the arrays."),
    "training": ("Training", "Train with `%%aiaas_train`: job, epochs, metrics and versions are recorded."),
    "study": ("Scaling study", "Compare numbers of workers with `%%aiaas_train --workers 1,2`."),
    "evaluation": ("Evaluation", "Measure with `%aiaas_card {name} --rows x_test --truth y_test`."),
    "groups": ("Metrics by group", "Measure with `%aiaas_card {name} --rows x_test --truth y_test --by COLUMN`."),
    "serving": ("Export and serving", "Serve with `%aiaas_deploy MODEL`: the export is compared with Keras."),
    "precision": ("Accuracy impact of fewer bits", "Measure with `%aiaas_deploy MODEL --precision int8 --validate x_val,y_val`."),
    "bench": ("Load test", "Measure with `%aiaas_bench ENDPOINT`."),
    "explanations": ("Explanations", "Explain with `%aiaas_explain {name} --rows x_test`."),
    "privacy": ("Privacy", "Train with `%%aiaas_train --private epsilon=2,delta=1e-5` for differential privacy."),
    "attacks": ("Attacks", "Measure with `%aiaas_attack {name} --members x_train,y_train --others x_test,y_test`."),
    "integrity": ("Integrity", "Deploy the model; `%aiaas_deploy MODEL --sign KEY` also signs it."),
}


def empty(key: str, name: str) -> CardSection:
    """The section while nothing is known: it says what fills it."""
    title, fill = SECTIONS[key]
    return CardSection(key=key, title=title, fill=fill.replace("{name}", name))


def filled(key: str, sentences: Sequence[str] = (), tables: Sequence[CardTable] = ()) -> CardSection:
    """The section with what is known."""
    return CardSection(key=key, title=SECTIONS[key][0], sentences=tuple(filter(None, sentences)), tables=tuple(tables))


# --------------------------------------------------------------------------- model, data, training


def model_section(summary: ModelSummary) -> CardSection:
    more = len(summary.layers) - LAYERS
    layers = CardTable(
        caption="Layers",
        header=("layer", "type", "output", "parameters"),
        rows=tuple((layer.name, layer.kind, layer.output, f"{layer.parameters:,}") for layer in summary.layers[:LAYERS]),
    )
    sentences = (
        f"{summary.kind} {summary.name!r}: {len(summary.layers)} layers, {summary.parameters:,} parameters, "
        f"{summary.trainable:,} of them trainable.",
        f"Inputs: {'; '.join(summary.inputs)}." if summary.inputs else "",
        f"Outputs: {'; '.join(summary.outputs)}." if summary.outputs else "",
        f"Optimizer: {summary.optimizer}." if summary.optimizer else "",
        f"Loss: {summary.loss}." if summary.loss else "",
        f"Metrics: {', '.join(summary.metrics)}." if summary.metrics else "",
        f"The table leaves out {more} more layers." if more > 0 else "",
    )
    return filled("model", sentences, [layers] if summary.layers else [])


def data_section(record: ModelTraining) -> CardSection:
    """Shapes and SHA-256 of what was sent; data that yields batches has no fingerprint."""
    spec = record.view.spec
    shape = spec.shape
    rows = f"{shape.rows:,} training rows." if shape.rows else "The number of rows was not known before the run."
    items = [] if record.manifest is None else list(record.manifest)
    arrays = [item for item in items if item.kind == "array"]
    apart = [item for item in arrays if not item.sha256 and not item.detail.endswith(WITHIN)]
    names = iter(spec.arrays if len(apart) == len(spec.arrays) else [""] * len(apart))
    lines = [
        (item.name, item.detail.removesuffix(WITHIN), text_twins.size(item.bytes), next(names) if item in apart else item.sha256)
        for item in arrays
    ]
    sources = [item for item in items if item.kind == "dataset"]
    lines += [(item.name, item.detail, "", "none: data that yields batches") for item in sources]
    tables = [CardTable(header=("data", "dtype and shape", "size", "SHA-256"), rows=tuple(lines))] if lines else []
    if not tables and spec.arrays:
        tables = [CardTable(header=("array", "SHA-256"), rows=tuple((str(place), sha) for place, sha in enumerate(spec.arrays, start=1)))]
    note = "SHA-256 is of each array as np.save writes it, so anybody who has the data can compare it." if tables else ""
    return filled("data", [rows, note], tables)


def training_section(record: ModelTraining, *, steps: int | None = None) -> CardSection:
    """The job, its versions and its metrics by epoch. `steps` are the optimizer's updates now; None where nobody knows."""
    view, story = record.view, record.story
    spec, shape = view.spec, view.spec.shape
    batch = f"global batch {shape.global_batch:,}" if shape.global_batch else "batches set by the data"
    workers = "all devices as one worker" if spec.workers is None else text_twins.workers(spec.workers)
    plan = story.plan
    how = ", ".join(filter(None, (plan.engine, plan.strategy, f"steps per call: {plan.fused}"))) if plan else ""
    versions = ", ".join(
        f"{name} {version}"
        for name, version in (
            ("Python", spec.versions.python),
            ("Keras", spec.versions.keras),
            *((name, version) for name, version in spec.versions.engines.items()),
            ("aiaas_magics", spec.versions.aiaas_magics),
        )
        if version
    )
    sentences = (
        f"Job {view.id} ({spec.name}): {story.epochs_done} epochs, {batch}, {workers}, {text_twins.seconds(story.training_s)} of training.",
        f"Ended {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(view.ended_s))}." if view.ended_s else "",
        f"Row order: {described(spec.seed)}.",
        f"Plan: {how}." if how else "",
        f"Precision: {spec.execution.precision}." if spec.execution.precision else "",
        f"{story.attempt} attempts: lost workers were replaced." if story.attempt > 1 else "",
        f"Hardware: {record.hardware}." if record.hardware else "",
        f"Versions: {versions}.",
        *spec.notes,
        f"The model was trained on outside of this job: its optimizer has made {steps:,} steps, {record.steps:,} when the job ended."
        if steps is not None and steps != record.steps
        else "",
    )
    names = text_twins.metric_names(story.rows)
    shown = thinned(story.rows, EPOCHS)
    curves = CardTable(
        caption="Metrics by epoch" + (f", {len(shown)} of {len(story.rows)} epochs" if len(shown) < len(story.rows) else ""),
        header=("epoch", "seconds", *names),
        rows=tuple(
            (str(row.epoch + 1), f"{row.seconds:.4g}", *(text_twins.number(row.logs[name]) if name in row.logs else "" for name in names))
            for row in shown
        ),
    )
    return filled("training", sentences, [curves] if shown else [])


def thinned(rows: Sequence[EpochRow], most: int) -> list[EpochRow]:
    """At most `most` of the rows, evenly, with the first and the last."""
    if len(rows) <= most:
        return list(rows)
    places = sorted({round(index * (len(rows) - 1) / (most - 1)) for index in range(most)})
    return [rows[place] for place in places]


def privacy_section(record: ModelTraining, name: str) -> CardSection:
    spent = [row.logs[EPSILON] for row in record.story.rows if EPSILON in row.logs]
    if not spent:
        return empty("privacy", name)
    return filled("privacy", [f"Differentially private training: epsilon {spent[-1]:.4g} spent after {record.story.epochs_done} epochs."])


def study_section(report: StudyReport) -> CardSection:
    header, rows = text_twins.study_table(report)
    verdict = f"{report.fit.verdict[0].upper()}{report.fit.verdict[1:]}."
    sentences = (verdict, *text_twins.study_notes(report), text_twins.study_caption(report))
    return filled("study", sentences, [CardTable(header=header, rows=tuple(rows))])


# --------------------------------------------------------------------------- evaluation


def evaluation_section(metrics: Sequence[tuple[str, float]], *, rows: int, data: str) -> CardSection:
    table = CardTable(header=("metric", "value"), rows=tuple((name, text_twins.number(value)) for name, value in metrics))
    return filled("evaluation", [f"Measured on {rows:,} rows of {data}."], [table])


def groups_section(reports: Sequence[GroupReport]) -> CardSection:
    tables = [CardTable(header=group_text.group_header(report), rows=tuple(group_text.group_rows(report))) for report in reports]
    notes = [note for report in reports for note in group_text.group_notes(report)]
    return filled("groups", ["Brackets are 95 % intervals.", *notes], tables)


class ExplanationSummary(Protocol):
    """What the card is told of an explanation. `text` is its figure in words, `verdict` whether it was found faithful."""

    @property
    def method(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def verdict(self) -> str: ...


def explanations_section(explanation: ExplanationSummary) -> CardSection:
    """The last explanation: method, rows, its words up to 20 lines, and how faithful it was found."""
    lines = [line.strip() for line in explanation.text.splitlines() if line.strip()]
    first = f"Method {explanation.method}, {explanation.rows:,} rows."
    return filled("explanations", [first, *lines[:EXPLAINED_LINES], explanation.verdict])


# --------------------------------------------------------------------------- serving


def serving_section(
    version: VersionView, *, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], origin: str, notes: Sequence[str] = ()
) -> CardSection:
    against = f"the {version.precision} model in the kernel" if version.precision.name else origin
    sentences = (
        f"Version {version.version}, served by {version.engine}.",
        f"Parity check: the largest difference from {against} on the sample rows is {version.proof:.3g}.",
        f"Weights: {version.precision}" + (f"; {version.precision.change}." if version.precision.change else "."),
        *notes,
    )
    lines = [
        (side, spec.name, spec.dtype, f"({', '.join(spec.dimensions)})")
        for side, specs in (("input", inputs), ("output", outputs))
        for spec in specs
    ]
    return filled("serving", sentences, [CardTable(header=("side", "name", "dtype", "shape"), rows=tuple(lines))])


def precision_section(change: PrecisionChange) -> CardSection:
    lines = [("size", text_twins.size(change.bytes_before), text_twins.size(change.bytes_after))]
    lines += [
        (line.measure, "" if line.before is None else text_twins.number(line.before), text_twins.number(line.after))
        for line in change.lines
    ]
    sentences = (
        f"Measured on {change.rows:,} rows of {change.of}.",
        f"Criterion: {change.judged}, change {change.by:.3g}, limit {change.limit:g}.",
        change.note,
    )
    return filled("precision", sentences, [CardTable(header=("", "as trained", change.precision), rows=tuple(lines))])


def bench_section(report: LoadReport) -> CardSection:
    tables = [CardTable(caption="Closed loop", header=text_twins.LOAD_HEADER, rows=tuple(text_twins.load_rows(report)))]
    if report.rates:
        tables.append(CardTable(caption="Open loop", header=text_twins.RATE_HEADER, rows=tuple(text_twins.rate_rows(report))))
    return filled("bench", text_twins.load_notes(report), tables)


def integrity_section(version: VersionView) -> CardSection:
    signed = (
        f"Signed with the key {version.signer} at {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(version.signed_s))}."
        if version.signer
        else "Not signed. %aiaas_deploy MODEL --sign KEY signs."
    )
    return filled("integrity", [f"SHA-256 of the served artifact: {version.artefact}.", signed])
