"""The figure of a load run: latency percentiles and throughput by concurrency.

Owns the drawing. The load generator is `client.load`; the same numbers in words come from `plots.text`.
"""

from __future__ import annotations

from typing import Final

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aiaas_magics.latency import LoadReport
from aiaas_magics.laws import ideal_capacity
from aiaas_magics.plots import style, text

WIDTH: Final = 8.8
HEIGHT: Final = 2.5
PERCENTILES: Final = (("p50", "p50_ms"), ("p90", "p90_ms"), ("p99", "p99_ms"), ("p99.9", "p999_ms"))


def latency_figure(report: LoadReport, hardware: str = "") -> Figure:
    """Latency on a logarithmic axis, throughput beside it against P = n*p from the smallest concurrency."""
    figure, (latency, rate) = style.new_figure(
        2,
        title=f"Endpoint {report.endpoint} under load",
        subtitle=text.latency_headline(report),
        caption=text.latency_caption(report, hardware),
        width=WIDTH,
        height=HEIGHT,
    )
    answered = [point for point in report.points if point.requests]
    style.label(latency, title="Latency, milliseconds", x="connections at once")
    style.label(rate, title="Throughput", x="connections at once", y="rows a second" if report.rows > 1 else "requests a second")
    if answered:
        _latency_panel(latency, report)
        _rate_panel(rate, report)
    return figure


def _latency_panel(axes: Axes, report: LoadReport) -> None:
    points = [point for point in report.points if point.requests]
    counts = [point.concurrency for point in points]
    for index, (name, field) in enumerate(PERCENTILES):
        axes.plot(
            counts,
            [getattr(point, field) for point in points],
            label=name,
            color=style.SERIES[index],
            marker=style.MARKERS[index],
            linestyle=style.DASHES[index],
            linewidth=1.6,
            markersize=6,
        )
    axes.set_yscale("log")
    values = [getattr(point, field) for point in points for _, field in PERCENTILES if getattr(point, field) > 0]
    axes.set_ylim(min(values) / 1.5, max(values) * 2.2)
    axes.yaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    style.count_axis(axes, counts)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=style.INK, ncols=4, loc="upper left", handlelength=1.8, columnspacing=1.0)


def _rate_panel(axes: Axes, report: LoadReport) -> None:
    points = [point for point in report.points if point.requests]
    counts = [point.concurrency for point in points]
    rates = [point.rows_per_s if report.rows > 1 else point.requests_per_s for point in points]
    one = rates[0] / counts[0]
    fine = [counts[0] + (counts[-1] - counts[0]) * step / 40 for step in range(41)]
    axes.plot(fine, [one * count for count in fine], color=style.INK, linestyle=(0, (5, 3)), linewidth=1.2, label="ideal  P = n·p")
    axes.plot(counts, rates, color=style.BLUE, marker="o", markersize=7, linewidth=1.6, label="measured")
    top = 1.18 * max(*rates, min(ideal_capacity(one, workers=counts[-1]), 2.5 * max(rates)))
    for name, limit, dashes in (
        ("model alone, M", report.model_per_s, (1, 1)),
        ("interface alone, m", report.interface_per_s, (4, 1, 1, 1)),
    ):
        if 0 < limit * report.rows < 4 * top:  # one that is far away would press everything else together
            axes.axhline(limit * report.rows, color=style.MUTED, linestyle=(0, dashes), linewidth=1.2, label=name)
            top = max(top, 1.55 * limit * report.rows)  # the legend stands above it
    axes.set_ylim(0, top)
    axes.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    style.count_axis(axes, counts)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=style.INK, loc="upper left", handlelength=1.8)
