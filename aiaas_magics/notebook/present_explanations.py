"""Static outputs of explanations: the table of a job that explains, its comparison by workers, and an explanation with its figures.

Owns these bundles. Figures and their twins in words belong to `plots`; tables and bundles in general to `present`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiaas_magics.core.explain_settings import METHODS
from aiaas_magics.core.spec import JobState, JobView
from aiaas_magics.core.story import JobStory
from aiaas_magics.notebook import present
from aiaas_magics.notebook.present import Bundle
from aiaas_magics.notebook.views.job_picture import error_line, status_line
from aiaas_magics.plots import text_twins

if TYPE_CHECKING:
    from aiaas_magics.client.explain.explain_job import ExplainJob
    from aiaas_magics.explain.explanation import Explanation

LANES_HEADER: Final = ("worker", "device", "rows", "time", "rows/s", "evaluations")
TIMES_HEADER: Final = ("workers", "time", "rows/s", "speedup", "ideal")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainTime:
    """How long so many workers took for the same rows, without starting."""

    workers: int
    rows: int
    seconds: float


def job_bundles(view: JobView, story: JobStory, hardware: str = "", *, figures: bool = True) -> list[Bundle]:
    """What stays of following a job, whichever kind of work it does."""
    if view.spec.explain is None:
        return present.job_bundles(view, story, hardware, figures=figures)
    return [explained_table(view, story, hardware=hardware)]


def explain_job_bundle(job: ExplainJob) -> Bundle:
    """For an `ExplainJob` as the last expression of a cell. Asks the backend what is new."""
    return explained_table(job.view(), job.story())


def explained_table(view: JobView, story: JobStory, *, hardware: str = "") -> Bundle:
    """A job that explains rows: what each worker did."""
    rows = [
        (
            str(lane.rank),
            lane.device,
            f"{lane.explained.rows:,}",
            text_twins.seconds(lane.explained.seconds),
            text_twins.count(lane.rows_per_s),
            f"{lane.explained.evaluations:,}",
        )
        for lane in story.lanes
        if lane.explained is not None
    ]
    settings = view.spec.explain
    method = "" if settings is None else f"{METHODS[settings.resolved_method].title}, "
    where = f" on {hardware}" if hardware else ""
    notes = [
        status_line(story),
        present.phases_line(story),
        error_line(story) if story.state is not JobState.FAILED else "",  # the first line says it
        *story.notices,
        f"{method}{view.spec.shape.parameters:,} parameters{where}. Times are those of explaining, without starting and compiling.",
    ]
    return present.table_bundle(LANES_HEADER, rows, caption=present.job_title(view), notes=notes)


def times_table(times: Sequence[ExplainTime], *, difference: float, hardware: str) -> Bundle:
    """The same rows on several numbers of workers: measured times beside T = N/n.

    Args:
        difference: the largest absolute difference between any attribution on any number of workers and on the smallest.
    """
    first = min(times, key=lambda time: time.workers)
    rows = [
        (
            str(time.workers),
            text_twins.seconds(time.seconds),
            text_twins.count(time.rows / time.seconds if time.seconds > 0 else 0.0),
            f"{first.seconds / time.seconds:.2f}x" if time.seconds > 0 else "",
            f"{time.workers / first.workers:.2f}x",
        )
        for time in sorted(times, key=lambda time: time.workers)
    ]
    same = "equal bit for bit" if difference == 0 else f"equal to {difference:.1g}"
    notes = [
        f"The attributions are {same} on every number of workers.",
        f"Measured on {hardware}. Ideal is T = N/n: each row is explained alone.",
    ]
    return present.table_bundle(TIMES_HEADER, rows, caption=f"Explaining {first.rows:,} rows", notes=notes)


def largest_difference(explanations: Sequence[Explanation]) -> float:
    """The largest absolute difference of any attribution between the first explanation and the others; NaN counts as equal to NaN."""
    first, *other_explanations = explanations
    pairs = [
        (own, values)
        for other in other_explanations
        for own, values in zip(first.attributions.values, other.attributions.values, strict=True)
    ]
    return max((float(abs(own - values)[own == own].max(initial=0.0)) for own, values in pairs), default=0.0)
