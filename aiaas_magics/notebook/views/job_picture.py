"""Job picture: a job's story as plain strings and numbers that any view can draw.

Owns the words; pure. Drawing belongs to `job_panel` and `static/job.js`. Nothing is escaped here: whoever makes markup escapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from aiaas_magics.core.events import Phase
from aiaas_magics.core.spec import JobState
from aiaas_magics.core.story import JobStory, Lane
from aiaas_magics.notebook.views.panel import Curve, PanelPicture
from aiaas_magics.plots import text_twins

SERIES_POINTS: Final = 300  # a line 300 pixels wide cannot show more
LANES: Final = 16  # more do not fit a screen; the rest is counted
NOTICES: Final = 8
CURVES: Final = 4
ENDLESS: Final = 1_000_000  # what a measuring job counts up to


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseBox:
    name: str
    seconds: float
    detail: str
    running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneBox:
    name: str
    device: str
    state: str
    detail: str
    fraction: float | None  # of its epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStop:
    """One point of a study."""

    label: str
    state: str  # done | running | waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPicture(PanelPicture):
    """`curves` are losses by epochs done."""

    phases: tuple[PhaseBox, ...] = ()
    lanes: tuple[LaneBox, ...] = ()
    lanes_left_out: int = 0
    curves: tuple[Curve, ...] = ()
    stops: tuple[StudyStop, ...] = ()


def job_picture(
    story: JobStory, *, title: str, now_s: float, hint: str = "", stops: Sequence[StudyStop] = (), measuring: bool = False
) -> JobPicture:
    """The story as it stands at `now_s`, unix time by the clock of this machine.

    The backend's clock may differ: a running phase never counts less than its log says.
    A job that measures has no last epoch: with `stops`, progress is counted in those.
    """
    shown = story.lanes[:LANES]
    phases = _phases(story, now_s)
    return JobPicture(
        title=title,
        state=str(story.state),
        status=_measuring(story) if measuring else status_line(story),
        fraction=round(_stops_done(stops, story) if stops else 0.0 if measuring else story.fraction_done(), 4),
        phases=phases,
        lanes=tuple(_lane(lane, story) for lane in shown),
        lanes_left_out=len(story.lanes) - len(shown),
        curves=_curves(story),
        stops=tuple(stops),
        notices=story.notices[-NOTICES:],
        error="" if story.state is JobState.FAILED else error_line(story),  # then the status says it
        hint="" if story.state.final else hint,
        final=story.state.final and not any(phase.running for phase in phases),
    )


def status_line(story: JobStory) -> str:
    """Where the job is, in one line that can stand alone."""
    match story.state:
        case JobState.SUCCEEDED:
            return _ended(story)
        case JobState.FAILED:
            return f"failed: {error_line(story) or _first_line(story.reason) or 'no reason was recorded'}"
        case JobState.CANCELLED:
            return f"cancelled after {_epochs(story.epochs_done)}" if story.rows else "cancelled"
        case JobState.STOPPING:
            return "stopping"
        case _:
            return _underway(story)


def _measuring(story: JobStory) -> str:
    """For a study's point: epochs mean nothing there, the pace does."""
    if story.state.final or not story.step:
        return status_line(replace(story, epochs=0, step=0, rows=()))
    return f"measuring: {text_twins.count(story.rows_per_s)} rows/s"


def _stops_done(stops: Sequence[StudyStop], story: JobStory) -> float:
    done = sum(stop.state == "done" for stop in stops)
    within = story.fraction_done() if 0 < story.epochs < ENDLESS else 0.0
    return min(1.0, (done + within) / len(stops))


def error_line(story: JobStory) -> str:
    if story.error is None:
        return ""
    return f"{story.error.type}: {_first_line(story.error.message)} (on {story.error.where()})"


def metrics_line(logs: dict[str, float], *, most: int = 6) -> str:
    return ", ".join(f"{name} {text_twins.number(value)}" for name, value in list(logs.items())[:most])


def _ended(story: JobStory) -> str:
    if (explained := story.explained) is not None:
        rows = explained.of - explained.rows_before
        again = f" ({explained.rows_before:,} more by an earlier attempt)" if explained.rows_before else ""
        pace = f"; {text_twins.count(rows / explained.seconds)} rows/s" if explained.seconds > 0 else ""
        workers = text_twins.workers(story.ranks)
        return f"succeeded: {_rows(rows)} explained{again} in {text_twins.seconds(explained.seconds)} on {workers}{pace}"
    if not story.rows:
        return "succeeded"
    return f"succeeded: {_epochs(story.epochs_done)} in {text_twins.seconds(story.training_s)}; {metrics_line(story.rows[-1].logs)}"


def _rows(count: int) -> str:
    return f"{count:,} row" + ("" if count == 1 else "s")


def _epochs(count: int) -> str:
    return f"{count:,} epoch" + ("" if count == 1 else "s")


def _underway(story: JobStory) -> str:
    phase = story.phase
    if (explained := story.explained) is not None:
        done = f"explaining: {explained.rows_before + explained.rows:,} of {_rows(explained.of)}"
        pace = f"{text_twins.count(explained.rows / explained.seconds)} rows/s" if explained.rows and explained.seconds > 0 else ""
        seconds_left = story.seconds_left()
        left = f"{text_twins.seconds(seconds_left)} left" if seconds_left else ""
        return " · ".join(filter(None, (done, pace, left)))
    if phase is not None and phase.phase is not Phase.TRAINING:
        return f"{phase.phase}: {phase.detail}" if phase.detail else str(phase.phase)
    if not story.epochs and not story.step:
        return f"{story.state}: {story.reason}" if story.reason else str(story.state)
    parts = []
    all_done = 0 < story.epochs <= story.epoch
    if story.epochs:
        parts.append(f"{_epochs(story.epochs)} done" if all_done else f"epoch {story.epoch + 1} of {story.epochs}")
    if story.step:
        parts.append(f"step {story.step:,} of {story.steps:,}" if story.steps else f"step {story.step:,}")
    if story.logs:
        parts.append(metrics_line(story.logs))
    if story.rows_per_s:
        parts.append(f"{text_twins.count(story.rows_per_s)} rows/s")
    if not all_done and (seconds_left := story.seconds_left()) is not None:
        parts.append(f"{text_twins.seconds(seconds_left)} left")
    return " · ".join(parts)


def _phases(story: JobStory, now_s: float) -> tuple[PhaseBox, ...]:
    """Each phase once, in the order in which it was entered first; repeats add up."""
    boxes: dict[Phase, PhaseBox] = {}
    for index, span in enumerate(story.phases):
        fetching = span.phase is Phase.FETCHING  # the one phase that comes after the job's end
        running = index == len(story.phases) - 1 and span.end_s is None and (fetching or not story.state.final)
        spent = span.seconds(max(now_s, story.at_s) if running else story.at_s)
        before = boxes[span.phase].seconds if span.phase in boxes else 0.0
        boxes[span.phase] = PhaseBox(name=str(span.phase), seconds=round(before + spent, 2), detail=span.detail, running=running)
    return tuple(boxes.values())


def _lane(lane: Lane, story: JobStory) -> LaneBox:
    detail = lane.detail
    if not detail and lane.state == "training":
        detail = f"epoch {min(lane.epoch + 1, story.epochs or lane.epoch + 1)}" + (f", step {lane.step:,}" if lane.step else "")
    if lane.state == "explaining" and lane.explained is not None:
        share = story.ranks * lane.explained.rows / max(1, lane.explained.of - lane.explained.rows_before)
        detail = detail or _rows(lane.explained.rows)
        return LaneBox(name=f"worker {lane.rank}", device=lane.device, state=lane.state, detail=detail, fraction=min(1.0, share))
    fraction = min(1.0, lane.step / story.steps) if story.steps and lane.state == "training" else None
    return LaneBox(name=f"worker {lane.rank}", device=lane.device, state=lane.state, detail=detail, fraction=fraction)


def _curves(story: JobStory) -> tuple[Curve, ...]:
    """Losses by epochs done, the running epoch's newest value last."""
    names = [name for name in dict.fromkeys(key for row in story.rows for key in row.logs) if name.endswith("loss")]
    names = names or [name for name in story.logs if name.endswith("loss")]
    curves = []
    for name in names[:CURVES]:
        points = [(row.epoch + 1.0, row.logs[name]) for row in story.rows if math.isfinite(row.logs.get(name, math.nan))]
        now = story.logs.get(name, math.nan)
        if story.step and story.steps and math.isfinite(now):
            points.append((story.epoch + story.step / story.steps, now))
        if points:
            curves.append(Curve(name=name, points=tuple(_thinned(points))))
    return tuple(curves)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `SERIES_POINTS` of them, the last one always."""
    every = -(-len(points) // SERIES_POINTS)
    return [*points[:-1:every], points[-1]]


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0][:300] if message.strip() else ""
