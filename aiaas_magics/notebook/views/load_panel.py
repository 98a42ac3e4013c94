"""Load panel: the live view of %aiaas_bench.

Owns the picture of a load run, its HTML and its words; `static/load.js` draws the same in a browser.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

from aiaas_magics.core.scaling.load_report import Answers, LoadPoint, LoadProgress, RatePoint
from aiaas_magics.notebook.views.panel import STATIC, Curve, PanelPicture, new_notes, panel_html, panel_words, small_table
from aiaas_magics.plots import text_twins

HEAD: Final = ("load", "requests/s", "p50", "p99", "errors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A row of the table; `cells` follow `HEAD` after its first column, empty while it runs or waits."""

    label: str
    state: str  # done | running | waiting
    cells: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPicture(PanelPicture):
    """`throughput` is requests/s by connections, `latencies` milliseconds by requests/s."""

    head: tuple[str, ...] = HEAD
    measurements: tuple[Measurement, ...] = ()
    throughput: tuple[Curve, ...] = ()
    latencies: tuple[Curve, ...] = ()

    def at_end(self) -> Self:
        """A run that did not come to its report: what it has measured."""
        done = tuple(row for row in self.measurements if row.state == "done")
        return replace(self, hint="", state="ended early", status=f"ended early ({self.status})", measurements=done)


def load_picture(name: str, progress: LoadProgress | None, *, hint: str = "") -> LoadPicture:
    """A load run on the endpoint `name`; None where it has not begun."""
    title = f"Endpoint {name} under load"
    if progress is None:
        return LoadPicture(title=title, state="starting", status="starting the load generator", fraction=0.0, hint=hint)
    return LoadPicture(
        title=title,
        state="measuring",
        status=f"measuring: {progress.label}",
        fraction=min(1.0, progress.number / progress.total),
        hint=hint,
        measurements=(
            *(_done(point_label(point), point) for point in (*progress.points, *progress.rates)),
            Measurement(label=progress.label, state="running"),
            *(Measurement(label=label, state="waiting") for label in progress.waiting),
        ),
        throughput=_throughput(progress.points),
        latencies=_latencies(progress.rates),
    )


def point_label(point: Answers) -> str:
    match point:
        case LoadPoint():
            return f"{text_twins.connections(point.concurrency)}, {point.form}"
        case RatePoint():
            return f"{point.offered_per_s:,.0f}/s offered, {point.form}"
        case _:
            raise TypeError(f"{type(point).__name__} is no point of a load run")


class LoadPanel:
    """A `View` of a `LoadPicture`."""

    esm = STATIC / "load.js"

    def html(self, picture: LoadPicture) -> str:
        rows = [(_marked(row), *row.cells, *[""] * (len(HEAD) - 1 - len(row.cells))) for row in picture.measurements]
        return panel_html(picture, small_table(rows, head=HEAD) if rows else "")

    def words(self, picture: LoadPicture) -> str:
        return panel_words(picture, *(_line(row) for row in picture.measurements))

    def news(self, picture: LoadPicture, before: LoadPicture | None) -> list[str]:
        """A line for each measurement: when it begins, and its numbers when it is done."""
        earlier = {_line(row) for row in before.measurements if row.state == "done"} if before else set()
        done = [line for row in picture.measurements if row.state == "done" and (line := _line(row)) not in earlier]
        is_new = before is None or picture.status != before.status
        status = [f"{picture.title}: {picture.status}"] if is_new else []
        return [*(f"  {line}" for line in done), *status, *new_notes(picture, before)]


def _done(label: str, point: Answers) -> Measurement:
    p99_ms = point.known_ms("p99_ms")
    cells = (
        text_twins.count(point.requests_per_s),
        text_twins.milliseconds(point.p50_ms),
        "" if p99_ms != p99_ms else text_twins.milliseconds(p99_ms),  # too few answers to know it
        text_twins.load_errors(point.errors) or "0",
    )
    return Measurement(label=label, state="done", cells=cells)


def _marked(row: Measurement) -> str:
    return f"{ {'done': '✓ ', 'running': '▶ '}.get(row.state, '') }{row.label}"


def _line(row: Measurement) -> str:
    if not row.cells:
        return f"{row.label} ({row.state})"
    return f"{row.label}: " + ", ".join(f"{name} {cell}" for name, cell in zip(HEAD[1:], row.cells, strict=True) if cell)


def _throughput(points: Sequence[LoadPoint]) -> tuple[Curve, ...]:
    forms = dict.fromkeys(point.form for point in points)
    return tuple(
        Curve(name=form, points=tuple((float(point.concurrency), point.requests_per_s) for point in points if point.form == form))
        for form in forms
    )


def _latencies(points: Sequence[RatePoint]) -> tuple[Curve, ...]:
    answered = [point for point in points if point.requests]
    fields = (("p50", "p50_ms"), ("p99", "p99_ms"))
    curves = (
        Curve(name=name, unit="ms", points=tuple((point.offered_per_s, getattr(point, field)) for point in answered))
        for name, field in fields
    )
    return tuple(curves) if answered else ()
