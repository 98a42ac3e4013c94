"""Endpoint panel: the live view of %aiaas_monitor.

Owns the picture of an endpoint that is watched, its HTML and its words; `static/endpoint.js` draws the same in a browser.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from aiaas_magics.core.scaling.endpoint_samples import Sample
from aiaas_magics.notebook.views.panel import DIM, STATIC, Curve, PanelPicture, new_notes, panel_html, panel_words, small_table
from aiaas_magics.plots import text_twins

SHOWN_SAMPLES: Final = 300  # a chart 300 pixels wide cannot show more
SPARK_WIDTH: Final = 300
SPARK_HEIGHT: Final = 40
NO_ANSWER: Final = "the endpoint does not answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    label: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionShare:
    name: str
    share: float  # of the answers
    rate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointPicture(PanelPicture):
    """`rates` and `latencies` are curves over the seconds since the watch began; `elapsed` says how far the watch is."""

    elapsed: str = ""
    samples: int = 0
    tiles: tuple[Tile, ...] = ()
    rates: tuple[Curve, ...] = ()
    latencies: tuple[Curve, ...] = ()
    versions: tuple[VersionShare, ...] = ()


def endpoint_picture(name: str, samples: Sequence[Sample | None], *, total: int, every_s: float, hint: str = "") -> EndpointPicture:
    """An endpoint as its samples say, None for one without an answer; `total` samples end the watch."""
    last = samples[-1] if samples else None
    state = "starting" if not samples else "unreachable" if last is None else "answering" if last.requests_per_s else "idle"
    status = "waiting for the first sample" if not samples else NO_ANSWER if last is None else text_twins.sample_line(last)
    return EndpointPicture(
        title=f"Endpoint {name}",
        state=state,
        status=status,
        fraction=min(1.0, len(samples) / total),
        hint=hint,
        final=len(samples) >= total,
        elapsed=f"{text_twins.seconds(len(samples) * every_s)} of {text_twins.seconds(total * every_s)}",
        samples=len(samples),
        tiles=() if last is None else _tiles(last),
        rates=_curves(samples, ("requests/s", "requests_per_s", "")),
        latencies=_curves(
            [sample for sample in samples if sample and sample.requests_per_s], ("p50", "p50_ms", "ms"), ("p99", "p99_ms", "ms")
        ),
        versions=() if last is None else _shares(last),
    )


class EndpointPanel:
    """A `View` of an `EndpointPicture`."""

    esm = STATIC / "endpoint.js"

    def html(self, picture: EndpointPicture) -> str:
        charts = "".join(
            f'<span style="display:inline-block;margin-right:2em">{escape(curve.name)}<br>{sparkline(curve)}</span>'
            for curve in (*picture.rates, *picture.latencies)
            if len(curve.points) > 1
        )
        versions = [(version.name, f"{version.share:.0%}", version.rate) for version in picture.versions]
        elapsed = f'<div style="{DIM}">{escape(picture.elapsed)}</div>'
        return panel_html(picture, elapsed, charts, small_table(versions) if len(versions) > 1 else "")

    def words(self, picture: EndpointPicture) -> str:
        return panel_words(picture, picture.elapsed)

    def news(self, picture: EndpointPicture, before: EndpointPicture | None) -> list[str]:
        """A line for each sample."""
        is_new = picture.samples > (before.samples if before else 0)
        return [*([f"{picture.title}: {picture.status}"] if is_new else []), *new_notes(picture, before)]


def sparkline(curve: Curve) -> str:
    """A small chart from 0 to the largest value, as SVG."""
    times, values = zip(*curve.points, strict=True)
    top, left, span = max(*values, 1e-9), times[0], max(times[-1] - times[0], 1e-9)
    points = " ".join(
        f"{(time - left) / span * SPARK_WIDTH:.1f},{SPARK_HEIGHT - 1 - (SPARK_HEIGHT - 2) * value / top:.1f}"
        for time, value in curve.points
    )
    label = f"{curve.name} {text_twins.number(values[-1])} {curve.unit}".rstrip()
    return (
        f'<svg width="{SPARK_WIDTH}" height="{SPARK_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'<polyline points="{points}" fill="none" stroke="#0072b2" stroke-width="1.5"/></svg>'
    )


def _tiles(sample: Sample) -> tuple[Tile, ...]:
    tiles = [Tile(label="requests/s", value=text_twins.count(sample.requests_per_s))]
    if sample.requests_per_s:
        tiles += [
            Tile(label="p50", value=text_twins.milliseconds(sample.p50_ms)),
            Tile(label="p99", value=text_twins.milliseconds(sample.p99_ms)),
            Tile(label="wait", value=text_twins.milliseconds(sample.wait_ms)),
            Tile(label="rows/batch", value=f"{sample.batch_rows:.3g}"),
        ]
    wrong = (("failed/s", sample.failed_per_s), ("refused/s", sample.refused_per_s))
    return (*tiles, *(Tile(label=label, value=f"{rate:.3g}") for label, rate in wrong if rate))


def _curves(samples: Sequence[Sample | None], *fields: tuple[str, str, str]) -> tuple[Curve, ...]:
    """A curve for each (name, field, unit); samples without an answer leave a gap that the line crosses."""
    recent = [sample for sample in samples if sample is not None][-SHOWN_SAMPLES:]
    if not recent:
        return ()
    began_s = recent[0].at_s
    return tuple(
        Curve(name=name, unit=unit, points=tuple((round(sample.at_s - began_s, 2), getattr(sample, field)) for sample in recent))
        for name, field, unit in fields
    )


def _shares(sample: Sample) -> tuple[VersionShare, ...]:
    return tuple(
        VersionShare(name=f"version {number}", share=rate / sample.requests_per_s, rate=f"{text_twins.count(rate)} requests/s")
        for number, rate in sample.by_version.items()
        if sample.requests_per_s
    )
