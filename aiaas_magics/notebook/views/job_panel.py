"""Job panel: the live view of a job, of a study and of a dry run.

Owns its HTML, its words and `LiveJob`. What they say belongs to `job_picture`; `static/job.js` draws the same in a browser.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from aiaas_magics.core.spec import FINAL_STATES
from aiaas_magics.core.story import JobStory
from aiaas_magics.notebook.views.job_picture import JobPicture, StudyStop, job_picture
from aiaas_magics.notebook.views.live import LiveView, Painter
from aiaas_magics.notebook.views.panel import DIM, STATIC, new_notes, panel_html, panel_words, small_table
from aiaas_magics.plots import text_twins

STOP_MARKS: Final = {"done": "&check; ", "running": "&#9654; "}


class JobPanel:
    """A `View` of a `JobPicture`."""

    esm = STATIC / "job.js"

    def html(self, picture: JobPicture) -> str:
        return panel_html(picture, _phases(picture), _stops(picture), _lanes(picture))

    def words(self, picture: JobPicture) -> str:
        stops = ", ".join(f"{stop.label} ({stop.state})" for stop in picture.stops)
        phases = " > ".join(f"{phase.name} {text_twins.seconds(phase.seconds)}" for phase in picture.phases)
        lanes = ("  ".join(filter(None, (lane.name, lane.device, lane.state, lane.detail))) for lane in picture.lanes)
        more = f"and {picture.lanes_left_out} more workers" if picture.lanes_left_out else ""
        return panel_words(picture, stops, phases, *lanes, more)

    def news(self, picture: JobPicture, before: JobPicture | None) -> list[str]:
        """A line for a new state, phase or stop, an epoch's end, a notice."""
        is_new = before is None or _place(picture) != _place(before)
        return [*([f"{picture.title}: {picture.status}"] if is_new else []), *new_notes(picture, before)]


class LiveJob(LiveView[JobPicture]):
    """The live view of a job, bounded by `with`. What stays of a block that fails before the backend has answered is nothing."""

    def __init__(self, kind: str, *, title: str, hint: str = "", paint: Painter[JobPicture] | None = None) -> None:
        self._title, self._hint = title, hint
        self.story = JobStory()  # the newest
        super().__init__(kind, JobPanel(), self._picture_of(self.story), paint=paint)

    def tell(self, story: JobStory, *, title: str | None = None, stops: Sequence[StudyStop] = (), measuring: bool = False) -> None:
        """The newest state of things."""
        self._title, self.story = title or self._title, story
        self.draw(self._picture_of(story, stops=tuple(stops), measuring=measuring), keep=bool(story.last_seq))

    def _picture_of(self, story: JobStory, *, stops: tuple[StudyStop, ...] = (), measuring: bool = False) -> Callable[[], JobPicture]:
        title, hint = self._title, self._hint
        return lambda: job_picture(story, title=title, now_s=time.time(), hint=hint, stops=stops, measuring=measuring)


def _phases(picture: JobPicture) -> str:
    if not picture.phases:
        return ""
    spans = [
        f"<b>{escape(phase.name)} {escape(text_twins.seconds(phase.seconds))}</b>"
        if phase.running
        else f"{escape(phase.name)} {escape(text_twins.seconds(phase.seconds))}"
        for phase in picture.phases
    ]
    return f'<div style="{DIM};font-size:.92em">{" &rsaquo; ".join(spans)}</div>'


def _stops(picture: JobPicture) -> str:
    if not picture.stops:
        return ""
    spans = [f"{STOP_MARKS.get(stop.state, '')}{escape(stop.label)}" for stop in picture.stops]
    return f"<div>{' &nbsp; '.join(spans)}</div>"


def _lanes(picture: JobPicture) -> str:
    rows = [(lane.name, lane.device, lane.state, lane.detail) for lane in picture.lanes]
    more = [(f"and {picture.lanes_left_out} more",)] if picture.lanes_left_out else []
    return small_table([*rows, *more]) if rows else ""


def _place(picture: JobPicture) -> tuple[object, ...]:
    """What makes a new line of a log when it changes."""
    is_over = picture.state in FINAL_STATES
    running = "" if is_over else next((phase.name for phase in picture.phases if phase.running), "")
    epochs = max((int(curve.points[-1][0]) for curve in picture.curves if curve.points), default=0)
    stop = next((stop.label for stop in picture.stops if stop.state == "running"), "")
    return picture.state, running, epochs, stop
