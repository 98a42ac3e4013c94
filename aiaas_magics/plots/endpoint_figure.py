"""Endpoint figure: rate and latency over time.

Owns the drawing; the same numbers in words come from `text_twins`.
"""

from __future__ import annotations

from typing import Final

from matplotlib import ticker
from matplotlib.figure import Figure

from aiaas_magics.core.scaling.endpoint_samples import EndpointWatch, versions_of
from aiaas_magics.plots import figure_style, text_twins

WIDTH: Final = 8.8
HEIGHT: Final = 2.1


def watched_figure(watched: EndpointWatch) -> Figure:
    """Requests/s as stacked areas, one per version; latency beside it on a logarithmic axis."""
    figure, (rate, latency) = figure_style.new_figure(
        2,
        title=f"Endpoint {watched.endpoint}",
        subtitle=text_twins.sample_line(watched.answered[-1]) if watched.answered else "no request was answered",
        caption=" ".join(text_twins.watched_notes(watched)),
        width=WIDTH,
        height=HEIGHT,
    )
    figure_style.label(rate, title="Requests/s", x="seconds")
    figure_style.label(latency, title="Server latency (ms)", x="seconds")
    if not watched.samples:
        return figure_style.plain(figure)
    began_s = watched.samples[0].at_s - watched.samples[0].seconds
    versions = versions_of(watched.samples)
    rate.stackplot(
        [sample.at_s - began_s for sample in watched.samples],
        [[sample.by_version.get(version, 0.0) for sample in watched.samples] for version in versions] or [[0.0] * len(watched.samples)],
        labels=[f"version {version}" for version in versions],
        colors=figure_style.SERIES,
        alpha=0.75,
    )
    rate.set_ylim(0, 1.25 * max(1.0, *(sample.requests_per_s for sample in watched.samples)))
    rate.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    if versions:
        rate.legend(frameon=False, fontsize=8.5, labelcolor=figure_style.INK, loc="upper left", ncols=4)
    for index, (name, field) in enumerate((("p50", "p50_ms"), ("p99", "p99_ms"))):
        latency.plot(
            [sample.at_s - began_s for sample in watched.answered],
            [getattr(sample, field) for sample in watched.answered],
            label=name,
            color=figure_style.SERIES[index],
            marker=figure_style.MARKERS[index],
            linestyle=figure_style.DASHES[index],
            linewidth=1.6,
            markersize=4,
        )
    if watched.answered:
        figure_style.log_axis(latency, [value for sample in watched.answered for value in (sample.p50_ms, sample.p99_ms)])
        latency.legend(frameon=False, fontsize=8.5, labelcolor=figure_style.INK, loc="upper left", ncols=2)
    return figure_style.plain(figure)
