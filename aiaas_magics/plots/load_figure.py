"""Load figure: latency and throughput by connections, latency by offered rate.

Owns the drawing. The load generator is `load_generator`; the same numbers in words come from `text_twins`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aiaas_magics.core.scaling.laws import ideal_capacity
from aiaas_magics.core.scaling.load_report import Answers, LoadPoint, LoadReport, RatePoint
from aiaas_magics.plots import figure_style, text_twins

PANEL: Final = 4.2  # inches
HEIGHT: Final = 2.6
PERCENTILES: Final = (("p50", "p50_ms"), ("p90", "p90_ms"), ("p99", "p99_ms"), ("p99.9", "p999_ms"))
FORM_COLOURS: Final = (figure_style.BLUE, figure_style.GREEN)


def latency_figure(report: LoadReport, hardware: str = "") -> Figure:
    """Latency, throughput against P = n*p from the smallest concurrency, and, where rates were asked, latency by rate."""
    panels = 3 if report.rates else 2
    figure, axes = figure_style.new_figure(
        panels,
        title=f"Endpoint {report.endpoint} under load",
        subtitle=" ".join(line for line in (text_twins.latency_headline(report), text_twins.rate_line(report)) if line),
        caption=text_twins.latency_caption(report, hardware),
        width=PANEL * panels,
        height=HEIGHT,
    )
    latency, rate = axes[:2]
    figure_style.label(latency, title=f"Latency (ms){_as(report)}", x="concurrent connections")
    figure_style.label(rate, title="Throughput", x="concurrent connections", y="rows/s" if report.rows > 1 else "requests/s")
    first = report.points_of(report.forms[0]) if report.forms else ()
    if first:
        _latency_panel(latency, first)
        _rate_panel(rate, report)
    if report.rates:
        figure_style.label(axes[2], title=f"Open-loop latency (ms){_as(report)}", x="offered requests/s")
        _schedule_panel(axes[2], report)
    return figure_style.plain(figure)


def _as(report: LoadReport) -> str:
    return f", {report.forms[0]}" if len(report.forms) > 1 else ""


def _latency_panel(axes: Axes, points: Sequence[LoadPoint]) -> None:
    counts = [point.concurrency for point in points]
    _percentile_lines(axes, counts, points, PERCENTILES)
    figure_style.count_axis(axes, counts)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=figure_style.INK, ncols=4, loc="upper left", handlelength=1.8, columnspacing=1.0)


def _percentile_lines(axes: Axes, at: Sequence[float], points: Sequence[Answers], percentiles: Sequence[tuple[str, str]]) -> None:
    for index, (name, field) in enumerate(percentiles):
        axes.plot(
            at,
            [point.known_ms(field) for point in points],
            label=name,
            color=figure_style.SERIES[index],
            marker=figure_style.MARKERS[index],
            linestyle=figure_style.DASHES[index],
            linewidth=1.6,
            markersize=6,
        )
    figure_style.log_axis(axes, [point.known_ms(field) for point in points for _, field in percentiles])


def _rate_panel(axes: Axes, report: LoadReport) -> None:
    def rates(points: Sequence[LoadPoint]) -> list[float]:
        return [point.rows_per_s if report.rows > 1 else point.requests_per_s for point in points]

    first = report.points_of(report.forms[0])
    counts = [point.concurrency for point in first]
    one_rate = rates(first)[0] / counts[0]
    fine = [counts[0] + (counts[-1] - counts[0]) * step / 40 for step in range(41)]
    axes.plot(
        fine, [one_rate * count for count in fine], color=figure_style.INK, linestyle=(0, (5, 3)), linewidth=1.2, label="ideal  P = n·p"
    )
    highest = 0.0
    for index, form in enumerate(report.forms):
        points = report.points_of(form)
        axes.plot(
            [point.concurrency for point in points],
            rates(points),
            color=FORM_COLOURS[index],
            marker=figure_style.MARKERS[index],
            markersize=7,
            linewidth=1.6,
            label=f"measured, {form}" if len(report.forms) > 1 else "measured",
        )
        highest = max([highest, *rates(points)])
    top = 1.18 * max(highest, min(ideal_capacity(one_rate, workers=counts[-1]), 2.5 * highest))
    for name, limit, dashes in _limits(report):
        if 0 < limit < 4 * top:  # one that is far away would press everything else together
            axes.axhline(limit, color=figure_style.MUTED, linestyle=(0, dashes), linewidth=1.2, label=name)
            top = max(top, 1.12 * limit)
    axes.set_ylim(0, top * (1.25 + 0.08 * len(report.forms)))  # the legend stands above it
    axes.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    figure_style.count_axis(axes, counts)
    axes.legend(frameon=False, fontsize=8, labelcolor=figure_style.INK, loc="upper left", handlelength=1.8, ncols=2, columnspacing=1.0)


def _limits(report: LoadReport) -> list[tuple[str, float, tuple[int, ...]]]:
    if not report.sides:
        return []
    side = report.sides[0]
    return [
        ("model alone, M", side.model_per_s * report.rows, (1, 1)),
        ("interface alone, m", side.interface_per_s * report.rows, (4, 1, 1, 1)),
    ]


def _schedule_panel(axes: Axes, report: LoadReport) -> None:
    points: list[RatePoint] = [point for point in report.rates if point.requests]
    if not points:
        return
    at = [point.offered_per_s for point in points]
    _percentile_lines(axes, at, points, PERCENTILES)
    behind = [point for point in points if not point.keeps_up]
    if behind:
        axes.axvspan(
            (max((point.offered_per_s for point in points if point.keeps_up), default=at[0]) + behind[0].offered_per_s) / 2,
            1.06 * at[-1],
            color=figure_style.GRID,
            linewidth=0,
            label="falls behind",
        )
    knee = report.knee
    if knee is not None:
        axes.axvline(
            knee.offered_per_s,
            color=figure_style.INK,
            linestyle=(0, (5, 3)),
            linewidth=1.2,
            label=f"knee, {text_twins.count(knee.offered_per_s)} requests/s",
        )
    axes.set_xlim(0, 1.06 * at[-1])
    axes.set_ylim(axes.get_ylim()[0], axes.get_ylim()[1] * 2.5)
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    key = axes.legend(fontsize=8, labelcolor=figure_style.INK, ncols=3, loc="upper left", handlelength=1.8, columnspacing=1.0)
    key.get_frame().set(edgecolor="none", alpha=1.0)
