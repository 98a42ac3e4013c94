"""Text twins: the numbers of the figures in words, for terminals, logs and screen readers.

Owns text tables and the formatting of quantities. No matplotlib here, so a terminal
session that never draws does not load it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aiaas_magics.core.scaling.endpoint_samples import EndpointWatch, Sample
from aiaas_magics.core.scaling.laws import ScalingRow, SpeedupPoint, StudyFit, percentile, scaling
from aiaas_magics.core.scaling.load_report import ONE_IN, Answers, LoadReport
from aiaas_magics.core.scaling.projection import ProjectedRow, Projection
from aiaas_magics.core.story import EpochRow, epochs_of

LOAD_HEADER: Final = ("connections", "form", "requests", "requests/s", "rows/s", "p50", "p90", "p99", "p99.9", "max", "errors")
WATCHED_HEADER: Final = ("", "requests/s", "rows/s", "p50", "p99", "wait", "rows/batch", "failed/s", "refused/s")
ROUNDING: Final = 1e-5  # of a variable's norm: what is promised in float32 (docs/equivalence.md)
ENLARGED: Final = 1e-2  # what adaptive optimizers make of it; measured: up to 6e-4 in plain TensorFlow, a batch whole and in halves
RATE_HEADER: Final = ("offered/s", "answered/s", "p50", "p90", "p99", "p99.9", "max", "errors")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyReport:
    """A study's numbers, as its figure and its twin in words take them.

    Args:
        points: one per number of workers; times per epoch, or with `weak` per step, since n workers do n times the work in it.
        reference: plain `fit` on all cores.
        batch: rows of the global batch; with `weak` of each worker's.
        parity: a sentence on whether all n computed the same.
        announced: what was said before the run.
    """

    points: tuple[SpeedupPoint, ...]
    fit: StudyFit
    hardware: str
    title: str = "Study"
    weak: bool = False
    reference: SpeedupPoint | None = None
    projection: Projection | None = None
    batch: int | None = None
    parity: str = ""
    announced: tuple[str, ...] = ()
    simulated: bool = False

    @property
    def rows(self) -> tuple[ScalingRow, ...]:
        return scaling(self.points, weak=self.weak)

    @property
    def projected(self) -> tuple[ProjectedRow, ...]:
        return self.projection.rows if self.projection else ()

    @property
    def work(self) -> str:
        """What each time is measured for."""
        return "step" if self.weak else "epoch"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns in line: numbers to the right, words to the left."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    right = right_columns(rows, len(header))

    def line(cells: Sequence[str]) -> str:
        placed = (cell.rjust(width) if right[n] else cell.ljust(width) for n, (cell, width) in enumerate(zip(cells, widths, strict=True)))
        return "  ".join(placed).rstrip()

    return "\n".join((line(header), "  ".join("-" * width for width in widths), *map(line, rows)))


def right_columns(rows: Sequence[Sequence[str]], columns: int) -> list[bool]:
    """Which columns hold numbers; the first names the row and stays to the left."""
    return [n > 0 and bool(rows) and all(not row[n] or row[n].lstrip("±-")[:1].isdigit() for row in rows) for n in range(columns)]


def seconds(value: float | None) -> str:
    """A duration as people say it.

    >>> seconds(0.00042), seconds(0.0672), seconds(0.25), seconds(12.34), seconds(3725)
    ('0.42 ms', '67.2 ms', '250 ms', '12.3 s', '1 h 02 min')
    """
    if value is None or not math.isfinite(value):
        return "?"
    if value < 1e-2:
        return f"{value * 1e3:.2f} ms"
    if value < 0.9995:
        return f"{value * 1e3:.0f} ms" if value >= 0.09995 else f"{value * 1e3:.1f} ms"
    if value < 9.995:
        return f"{value:.2f} s"
    if value < 99.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(value: float) -> str:
    """A number of things: three digits are enough below a thousand, separators above.

    >>> count(0.5), count(41.25), count(336776)
    ('0.5', '41.2', '336,776')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def size(value: float) -> str:
    """Bytes in decimal units.

    >>> size(512), size(1_200_000)
    ('512 B', '1.2 MB')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def number(value: float) -> str:
    """A loss or a metric: four significant digits, and what is not a number says so."""
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def parity_text(parity: float | None, *, steps: int, weak: bool = False, announced: bool = False, adaptive: str = "") -> str:
    """Whether all n computed the same, as a sentence; `adaptive` names the optimizer where it divides gradients by their size."""
    if weak:
        return "Parity is not checked: each n has a different global batch, so its weights differ by design."
    if parity is None:
        return ""
    if not math.isfinite(parity):
        return f"Parity: after {steps} steps a variable is NaN or infinite, so the weights cannot be compared."
    sentence = f"Parity: after {steps} steps no variable differs between any two n by more than {parity:.1e} of its norm"
    if parity <= ROUNDING:
        return f"{sentence}."
    why = "no announced effect explains the difference"
    if announced:
        why = "the effects announced below explain the difference"
    elif adaptive and parity <= ENLARGED:
        why = f"{adaptive} divides each gradient by its magnitude, which amplifies rounding near zero"
    return f"{sentence}, which exceeds rounding ({ROUNDING:.0e}): {why}."


# --------------------------------------------------------------------------- twins


def study_text(report: StudyReport) -> str:
    """`study_figure` in words."""
    header, rows = study_table(report)
    law = "Gustafson" if report.weak else "Amdahl"
    lines = [
        f"{report.title}: time per {report.work}",
        table(header, rows),
        f"{law}: {report.fit.verdict}.",
        _usl_text(report.fit),
        *study_notes(report),
        study_caption(report),
    ]
    return "\n".join(line for line in lines if line)


def study_table(report: StudyReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: what was measured beside its ideal, then what is projected, by that word."""
    header = (
        "workers",
        f"time/{report.work}",
        "ideal T(1)" if report.weak else "ideal N/n",
        "rows/s",
        "ideal n*p",
        "scaled speedup" if report.weak else "speedup",
        "efficiency",
        "spread",
    )
    measured = [
        (f"{row.workers}{'' if row.physical else ' (shared devices)'}", *_scaling_cells(row), f"±{row.spread:.1%}") for row in report.rows
    ]
    projected = [
        (f"{row.workers} (projected)", *_scaling_cells(row), f"{seconds(row.low_s)} to {seconds(row.high_s)}") for row in report.projected
    ]
    return header, [*measured, *projected]


def _scaling_cells(row: ScalingRow | ProjectedRow) -> tuple[str, ...]:
    return (
        seconds(row.seconds),
        seconds(row.ideal_s),
        count(row.rows_per_s),
        count(row.ideal_rows_per_s),
        f"{row.speedup:.2f}x",
        f"{row.efficiency:.0%}",
    )


def study_notes(report: StudyReport) -> list[str]:
    """The sentences below the table."""
    plain = report.reference
    batch = f", batch {report.batch:,}" if report.weak and report.batch else ""
    return [
        recommendation(report.fit),
        projected_recommendation(report.projection),
        f"Plain fit on all cores{batch}: {seconds(plain.seconds)} per {report.work}, {count(plain.rows_per_s)} rows/s." if plain else "",
        report.parity,
        *report.announced,
        report.projection.says if report.projection else "",
    ]


def recommendation(fit: StudyFit) -> str:
    return f"Recommended: {workers(fit.recommended)} ({fit.why_recommended})."


def projected_recommendation(projection: Projection | None) -> str:
    if projection is None or projection.recommended is None or projection.recommended_range is None:
        return ""
    low, high = projection.recommended_range
    band = f"{low} to {high} within the band" if low < high else "the same across the band"
    if projection.recommended == projection.rows[-1].workers:
        band = f"the end of the projection; {band}"
    return f"Recommended with projected points: {workers(projection.recommended)} ({band})."


def workers(n: int) -> str:
    return f"{n} worker" if n == 1 else f"{n} workers"


def study_caption(report: StudyReport) -> str:
    """What a reader must know to believe a study's figure."""
    parts = [f"Measured on {report.hardware}."]
    if report.weak:
        rows = f"batch {report.batch:,} rows per worker" if report.batch else "a fixed batch per worker"
        parts.append(f"Weak scaling: {rows}. The work per step grows with n, so its ideal time is constant.")
    elif report.batch:
        parts.append(f"Strong scaling. Global batch {report.batch:,} rows, the same for every n.")
    parts.append("Points are medians of repeated steady-state steps; bars show the range. Compile time is excluded.")
    if report.simulated:
        parts.append("These are simulated devices, not physical ones.")
    shared = sorted(point.workers for point in report.points if not point.physical)
    if shared:
        named = ", ".join(f"n={n}" for n in shared)
        parts.append(f"Gray: {named} exceeds the number of physical devices. Those workers share devices and are not part of the fit.")
    return " ".join(parts)


def _usl_text(fit: StudyFit) -> str:
    if fit.usl is None:
        return ""
    best = fit.usl.best_workers
    turn = f", fastest near n={best:.0f}" if best < 10_000 else ""
    return f"USL: contention {fit.usl.contention:.2%}, coherency {fit.usl.coherency:.3%}{turn}."


def latency_text(report: LoadReport, hardware: str = "") -> str:
    """`latency_figure` in words."""
    parts = [f"Endpoint {report.endpoint} under load", table(LOAD_HEADER, load_rows(report))]
    if report.rates:
        parts += ["", table(RATE_HEADER, rate_rows(report))]
    return "\n".join((*parts, *load_notes(report, hardware)))


def load_rows(report: LoadReport) -> list[tuple[str, ...]]:
    """The points of a load run under `LOAD_HEADER`."""
    return [
        (
            str(point.concurrency),
            point.form,
            f"{point.requests:,}",
            count(point.requests_per_s),
            count(point.rows_per_s),
            *_latencies(point),
            load_errors(point.errors) or "0",
        )
        for point in report.points
    ]


def rate_rows(report: LoadReport) -> list[tuple[str, ...]]:
    """The rates of a load run under `RATE_HEADER`."""
    return [
        (count(point.offered_per_s), count(point.requests_per_s), *_latencies(point), load_errors(point.errors) or "0")
        for point in report.rates
    ]


def _latencies(point: Answers) -> tuple[str, ...]:
    values = map(point.known_ms, ONE_IN)
    return *("" if math.isnan(value) else milliseconds(value) for value in values), milliseconds(point.max_ms)


def _worst(point: Answers) -> str:
    """The p99, or the slowest answer where there were too few of them."""
    p99_ms = point.known_ms("p99_ms")
    return f"slowest {milliseconds(point.max_ms)}" if math.isnan(p99_ms) else f"p99 {milliseconds(p99_ms)}"


def load_notes(report: LoadReport, hardware: str = "") -> list[str]:
    """What a load run says, in sentences."""
    sentences = (latency_headline(report), response_line(report), form_line(report), rate_line(report), latency_caption(report, hardware))
    return [line for line in sentences if line]


def latency_headline(report: LoadReport) -> str:
    """The two numbers that people ask for first: the lowest median, the highest throughput."""
    answered = [point for form in report.forms for point in report.points_of(form)]
    if not answered:
        return "No request was answered."
    quick = min(answered, key=lambda point: point.p50_ms)
    most = max(answered, key=lambda point: point.requests_per_s)
    return (
        f"Lowest median: {milliseconds(quick.p50_ms)} with {connections(quick.concurrency)} ({quick.form}). "
        f"Highest throughput: {count(most.requests_per_s)} requests/s with {connections(most.concurrency)} ({most.form}), "
        f"{_worst(most)}."
    )


def response_line(report: LoadReport) -> str:
    """R = M / m in a sentence; empty where it is not known."""
    if not report.response:
        return ""
    first = report.sides[0]
    side = "the interface" if report.response > 1 else "the model"
    return (
        f"R = M/m = {report.response:.2g}: the model alone could answer M = {count(first.model_per_s)} requests/s, "
        f"the interface alone m = {count(first.interface_per_s)} ({first.form}); {side} is the bottleneck."
    )


def form_line(report: LoadReport) -> str:
    """What another form of the tensors changes, at the most connections; empty where one form was measured."""
    compared = [(form, report.points_of(form)[-1]) for form in report.forms if report.points_of(form)]
    if len(compared) < 2:
        return ""
    (first, base), (second, other) = compared[:2]
    return (
        f"{second} reaches {times(other.requests_per_s / base.requests_per_s)} the throughput of {first} with "
        f"{connections(base.concurrency)} (median {milliseconds(other.p50_ms)} vs {milliseconds(base.p50_ms)})."
    )


def rate_line(report: LoadReport) -> str:
    """Which rate can be promised; empty where no rate was measured."""
    points = [point for point in report.rates if point.keeps_up]
    if not points:
        return "Answers fell behind at every offered rate." if report.rates else ""
    most, knee = points[-1], report.knee
    if len(points) == len(report.rates):
        sentence = f"Open loop: answers kept up with every offered rate, up to {count(most.offered_per_s)} requests/s ({_worst(most)})."
    else:
        sentence = f"Open loop: answers kept up with at most {count(most.offered_per_s)} requests/s ({_worst(most)})."
    if knee is not None and knee is not most:
        sentence += (
            f" The knee is at {count(knee.requests_per_s)} requests/s ({_worst(knee)}): beyond it, latency grows faster than throughput."
        )
    return sentence


def latency_caption(report: LoadReport, hardware: str = "") -> str:
    failed = sum(sum(point.errors.values()) for point in report.points)
    seconds_each = max((point.seconds for point in report.points), default=0.0)
    sentences = (
        f"Measured on {hardware or report.hardware}, with client and server on the same machine unless stated otherwise. "
        f"Closed loop: {report.rows} {'row' if report.rows == 1 else 'rows'} per request, {seconds_each:.1f} s per point, "
        f"latency of answered requests, {failed} errors."
    )
    if report.rates:
        sentences += f" Open loop: random arrivals, {report.rates[0].form}; latency counts from when a request was due."
    if any(point.late_ms > point.p99_ms / 2 for point in report.rates) or any(point.generator_busy > 0.95 for point in report.points):
        sentences += " The load generator reached its own limit; the endpoint can do more."
    return sentences


def times(ratio: float) -> str:
    """
    >>> times(1.944), times(0.5)
    ('1.94x', '0.5x')
    """
    return f"{ratio:.3g}x"


def load_errors(errors: dict[str, int]) -> str:
    """
    >>> load_errors({"not answered in time": 404, "http 503": 7})
    'not answered in time: 404, HTTP 503: 7'
    """
    return ", ".join(f"{kind.replace('http', 'HTTP')}: {number}" for kind, number in errors.items() if number)


def connections(n: int) -> str:
    return f"{n} connection" if n == 1 else f"{n} connections"


def samples(n: int) -> str:
    return f"{n} sample" if n == 1 else f"{n} samples"


def milliseconds(value: float) -> str:
    """
    >>> milliseconds(0.0123), milliseconds(0.71), milliseconds(123.4)
    ('0.0123 ms', '0.71 ms', '123 ms')
    """
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def sample_line(sample: Sample) -> str:
    """What an endpoint did in a moment, in a line."""
    wrong = [(sample.failed_per_s, "failed"), (sample.refused_per_s, "refused")]
    if not sample.requests_per_s:
        parts = ["no answers" if any(rate for rate, _ in wrong) else f"no requests in the last {seconds(sample.seconds)}"]
    else:
        parts = [
            f"{count(sample.requests_per_s)} requests/s",
            f"p50 {milliseconds(sample.p50_ms)}, p99 {milliseconds(sample.p99_ms)}",
            f"{sample.batch_rows:.3g} rows/batch",
            f"wait {milliseconds(sample.wait_ms)}",
        ]
    parts += [f"{rate:.3g} {label}/s" for rate, label in wrong if rate]
    if len(sample.by_version) > 1:
        parts.append(", ".join(f"version {number}: {rate / sample.requests_per_s:.0%}" for number, rate in sample.by_version.items()))
    return "; ".join(parts)


def watched_rows(watched: EndpointWatch) -> list[tuple[str, ...]]:
    """The median and the worst of an endpoint's samples, under `WATCHED_HEADER`."""
    answered = watched.answered
    if not answered:
        return []

    def row(name: str, percent: float) -> tuple[str, ...]:
        def of(field: str) -> float:
            return percentile([getattr(sample, field) for sample in answered], percent)

        times = (milliseconds(of(field)) for field in ("p50_ms", "p99_ms", "wait_ms"))
        wrong = (f"{of(field):.3g}" for field in ("failed_per_s", "refused_per_s"))
        return name, count(of("requests_per_s")), count(of("rows_per_s")), *times, f"{of('batch_rows'):.3g}", *wrong

    return [row("median", 50), row("max", 100)]


def watched_notes(watched: EndpointWatch) -> list[str]:
    seconds_seen = sum(sample.seconds for sample in watched.samples)
    requested = [sample for sample in watched.samples if sample.requests_per_s or sample.failed_per_s or sample.refused_per_s]
    answers = f"{len(watched.answered)} with answers" if requested else "no requests"
    period = f"Watched for {seconds(seconds_seen)}: {samples(len(watched.samples))}, {answers}."
    lost = f"{samples(watched.unanswered)} got no answer." if watched.unanswered else ""
    return [line for line in (f"{period} Percentiles come from the server's latency histogram.", lost, watched.ended) if line]


def watched_text(watched: EndpointWatch) -> str:
    """`watched_figure` in words."""
    rows = watched_rows(watched)
    parts = [f"Endpoint {watched.endpoint}", *([table(WATCHED_HEADER, rows)] if rows else ["No request was answered."])]
    return "\n".join((*parts, *watched_notes(watched)))


def history_text(epochs: Sequence[EpochRow], title: str = "Training") -> str:
    """`history_figure` in words: the first, the best and the last epochs of a long run, all of a short one."""
    names = metric_names(epochs)
    shown = list(epochs) if len(epochs) <= 12 else [*epochs[:3], *epochs[-8:]]
    rows = [
        (str(row.epoch + 1), seconds(row.seconds), count(row.rows_per_s), *(_cell(row.logs.get(name)) for name in names)) for row in shown
    ]
    left_out = epochs_of(epochs) - len(shown)
    note = f"\n({left_out:,} epochs in between are not shown)" if left_out else ""
    return f"{title}\n{table(('epoch', 'time', 'rows/s', *names), rows)}{note}"


def metric_names(epochs: Sequence[EpochRow]) -> list[str]:
    """Every name that any epoch logged, in the order in which they came up."""
    return list(dict.fromkeys(name for row in epochs for name in row.logs))


def _cell(value: float | None) -> str:
    return "" if value is None else number(value)
