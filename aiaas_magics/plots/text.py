"""The twins of the figures in words: the same numbers, for terminals, logs and screen readers.

Owns text tables and the formatting of quantities. No matplotlib here, so a terminal
session that never draws does not load it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aiaas_magics.latency import LoadReport
from aiaas_magics.laws import SpeedupPoint, StudyFit, scaling
from aiaas_magics.story import EpochRow


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

    >>> seconds(0.00042), seconds(0.25), seconds(12.34), seconds(3725)
    ('0.42 ms', '250 ms', '12.3 s', '1 h 02 min')
    """
    if value is None or not math.isfinite(value):
        return "?"
    if value < 1e-2:
        return f"{value * 1e3:.2f} ms"
    if value < 0.9995:
        return f"{value * 1e3:.0f} ms"
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


def parity_text(parity: float | None, *, steps: int) -> str:
    """Whether all n computed the same, as a sentence."""
    if parity is None or not math.isfinite(parity):
        return ""
    return f"Parity: after {steps} steps no variable differs between any two n by more than {parity:.1e} of its norm."


# --------------------------------------------------------------------------- twins


def study_text(
    points: Sequence[SpeedupPoint],
    fit: StudyFit,
    reference: SpeedupPoint | None,
    hardware: str,
    title: str = "Study",
    *,
    work: str = "one epoch",
    batch: int | None = None,
    parity: str = "",
    simulated: bool = False,
) -> str:
    """`study_figure` in words."""
    header = ("workers", "seconds", "ideal N/n", "rows/s", "ideal n*p", "speedup", "efficiency", "spread")
    rows = [
        (
            f"{row.workers}{'' if row.physical else ' (shared devices)'}",
            seconds(row.seconds),
            seconds(row.ideal_s),
            count(row.rows_per_s),
            count(row.ideal_rows_per_s),
            f"{row.speedup:.2f}x",
            f"{row.efficiency:.0%}",
            f"±{row.spread:.1%}",
        )
        for row in scaling(points)
    ]
    lines = [f"{title}: time for {work}", table(header, rows), f"Amdahl: {fit.verdict}.", _usl_text(fit), recommendation(fit)]
    if reference is not None:
        lines.append(f"Plain fit on all cores: {seconds(reference.seconds)}, {count(reference.rows_per_s)} rows/s.")
    if parity:
        lines.append(parity)
    lines.append(study_caption(points, hardware, batch=batch, simulated=simulated))
    return "\n".join(line for line in lines if line)


def recommendation(fit: StudyFit) -> str:
    return f"Recommended: {workers(fit.recommended)} ({fit.why_recommended})."


def workers(n: int) -> str:
    return f"{n} worker" if n == 1 else f"{n} workers"


def study_caption(points: Sequence[SpeedupPoint], hardware: str, *, batch: int | None, simulated: bool) -> str:
    """What a reader must know to believe a study's figure."""
    parts = [f"Measured on {hardware}."]
    if batch:
        parts.append(f"Global batch {batch:,} rows, the same for every n.")
    parts.append("Median of repeats of steady steps, bars show their range; compile time is not in it.")
    if simulated:
        parts.append("The devices are simulated devices.")
    shared = sorted(point.workers for point in points if not point.physical)
    if shared:
        named = ", ".join(f"n={n}" for n in shared)
        parts.append(f"Grey: {named} is more than the physical devices, workers share them; not part of the fit.")
    return " ".join(parts)


def _usl_text(fit: StudyFit) -> str:
    if fit.usl is None:
        return ""
    best = fit.usl.best_workers
    turn = f", fastest near n={best:.0f}" if best < 10_000 else ""
    return f"USL: contention {fit.usl.contention:.2%}, coherency {fit.usl.coherency:.3%}{turn}."


def latency_text(report: LoadReport, hardware: str = "") -> str:
    """`latency_figure` in words."""
    header = ("connections", "requests", "requests/s", "rows/s", "p50", "p90", "p99", "p99.9", "max", "errors")
    rows = [
        (
            str(point.concurrency),
            f"{point.requests:,}",
            count(point.requests_per_s),
            count(point.rows_per_s),
            *(milliseconds(value) for value in (point.p50_ms, point.p90_ms, point.p99_ms, point.p999_ms, point.max_ms)),
            load_errors(point.errors) or "0",
        )
        for point in report.points
    ]
    title = f"Endpoint {report.endpoint} under load"
    return "\n".join((title, table(header, rows), latency_headline(report), latency_caption(report, hardware)))


def latency_headline(report: LoadReport) -> str:
    """The two numbers that people ask for first: the lowest median, the highest throughput."""
    answered = [point for point in report.points if point.requests]
    if not answered:
        return "No request was answered."
    quick = min(answered, key=lambda point: point.p50_ms)
    most = max(answered, key=lambda point: point.requests_per_s)
    return (
        f"Median {milliseconds(quick.p50_ms)} with {connections(quick.concurrency)}; "
        f"at most {count(most.requests_per_s)} requests/s with {connections(most.concurrency)}, p99 {milliseconds(most.p99_ms)}."
    )


def latency_caption(report: LoadReport, hardware: str = "") -> str:
    failed = sum(sum(point.errors.values()) for point in report.points)
    seconds_each = max((point.seconds for point in report.points), default=0.0)
    return (
        f"Measured on {hardware or report.hardware}, client and server on the same machine unless it says otherwise. "
        f"Closed loop, {report.rows} {'row' if report.rows == 1 else 'rows'} a request, {seconds_each:.1f} s a point; "
        f"latency of answered requests, {failed} errors."
    )


def load_errors(errors: dict[str, int]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in errors.items() if number)


def connections(n: int) -> str:
    return f"{n} connection" if n == 1 else f"{n} connections"


def milliseconds(value: float) -> str:
    """
    >>> milliseconds(0.0123), milliseconds(0.71), milliseconds(123.4)
    ('0.0123 ms', '0.71 ms', '123 ms')
    """
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def history_text(epochs: Sequence[EpochRow], title: str = "Training") -> str:
    """`history_figure` in words: the first, the best and the last epochs of a long run, all of a short one."""
    names = metric_names(epochs)
    shown = list(epochs) if len(epochs) <= 12 else [*epochs[:3], *epochs[-8:]]
    rows = [
        (str(row.epoch + 1), seconds(row.seconds), count(row.rows_per_s), *(_cell(row.logs.get(name)) for name in names)) for row in shown
    ]
    left_out = len(epochs) - len(shown)
    note = f"\n({left_out} epochs between are left out)" if left_out else ""
    return f"{title}\n{table(('epoch', 'time', 'rows/s', *names), rows)}{note}"


def metric_names(epochs: Sequence[EpochRow]) -> list[str]:
    """Every name that any epoch logged, in the order in which they came up."""
    return list(dict.fromkeys(name for row in epochs for name in row.logs))


def _cell(value: float | None) -> str:
    return "" if value is None else number(value)
