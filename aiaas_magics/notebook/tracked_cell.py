"""Tracked cell: a cell's fit as a run of an MLflow server, beside its live view.

Owns when what is logged, and that a tracker that fails is a warning. What a run holds belongs to `client.training.tracking`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from aiaas_magics.core.spec import JobState
from aiaas_magics.core.story import JobStory

if TYPE_CHECKING:
    from aiaas_magics.client.training.job import Job
    from aiaas_magics.client.training.study import Study
    from aiaas_magics.client.training.tracking import TrackedRun, Tracker


class TrackedFit:
    """One fit's run; without a URI it does nothing."""

    def __init__(self, uri: str | None, *, name: str | None) -> None:
        self._stack, self._name = ExitStack(), name
        self._tracker: Tracker | None = None
        if uri is not None:
            from aiaas_magics.client.training.tracking import Tracker

            self._tracker = Tracker(uri)  # raises where there is no mlflow, before anything is sent

    def begin(self, job: Job) -> None:
        """Create the run of a job that was just submitted."""
        if self._tracker is not None:
            with never_fatal():
                self._stack.enter_context(self._tracker)
                self._tracker.begin(job.view(), hardware=job.hardware)

    def told(self, on_change: Callable[[JobStory], None]) -> Callable[[JobStory], None]:
        """`on_change`, which also logs the epochs that ended."""
        tracker = self._tracker
        if tracker is None:
            return on_change

        def on_both(story: JobStory) -> None:
            tracker.tell(story)
            on_change(story)

        return on_both

    def end(self, job: Job | None, model: Any) -> None:
        """Log what the job left, close the run, and say what is there. A job that did not succeed leaves its metrics."""
        if self._tracker is None or job is None:
            return
        from aiaas_magics.client.training.tracking import log_results

        tracker = self._tracker
        with never_fatal(), self._stack:
            view, story = job.view(), job.story()
            trained = model if view.state is JobState.SUCCEEDED else None
            log_results(tracker, view, story, trained, name=self._name or "", hardware=job.hardware)
            show(tracker.end(view.state))


@contextmanager
def never_fatal() -> Iterator[None]:
    """What goes wrong while results are logged is a warning: the model is trained, and that must not be lost."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - border: drawing, disk and backend may fail, and none of it is worth a training
        warnings.warn(f"The training is complete, but was not logged to MLflow: {type(error).__name__}: {error}", stacklevel=3)


def track_study(uri: str, job: Job, study: Study, model: Any, *, name: str) -> None:
    """The training after a study as a run, with the study's table and figure."""
    from aiaas_magics.client.training.tracking import Tracker, log_results
    from aiaas_magics.plots import text_twins
    from aiaas_magics.plots.figure_style import as_png

    with never_fatal(), Tracker(uri) as tracker:
        story = job.follow()
        tracker.begin(job.view(), hardware=study.hardware)
        tracker.log_bytes("study.png", as_png(study.plot()))
        tracker.log_text("study.txt", text_twins.study_text(study.report()))
        log_results(tracker, job.view(), story, model, name=name, hardware=study.hardware)
        show(tracker.end(story.state))


def show(run: TrackedRun) -> None:
    """One line on what was logged; a warning on what was not."""
    if run.sentence:
        print(run.sentence)
    if run.warning:
        warnings.warn(run.warning, stacklevel=2)
