"""Cell fits: runs the fit calls of one %%aiaas_train cell.

Owns the choice (train, hand in, study, plan only) and the view beside it. Catching the
calls belongs to `capture`, carrying them out to `backend`, outputs to `present`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from aiaas_magics.core.errors import AiaasError, InvalidSpec, UsageError
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.printout import counted
from aiaas_magics.core.spec import JobState
from aiaas_magics.notebook import present, tracked_cell
from aiaas_magics.notebook.option_values import Workers
from aiaas_magics.notebook.session import Session
from aiaas_magics.notebook.tracebacks import Interrupted
from aiaas_magics.notebook.views import live
from aiaas_magics.notebook.views.job_panel import LiveJob
from aiaas_magics.notebook.views.job_picture import JobPicture, StudyStop
from aiaas_magics.notebook.views.lines import FULL_FITS, LinesPainter
from aiaas_magics.notebook.views.printed import CellLines

if TYPE_CHECKING:
    from aiaas_magics.client.training.job import Job
    from aiaas_magics.client.training.planning import PlanProgress
    from aiaas_magics.client.training.study import StudyProgress
    from aiaas_magics.client.training.submission import TrainOptions
    from aiaas_magics.core.spec import JobView
    from aiaas_magics.core.story import JobStory
    from aiaas_magics.packing.fitcall.fit_call import FitCall

SETTLE_S: Final = 5.0  # guess: the last events of a job that has ended are there at once


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRequest:
    """What each fit of a cell is to become: a job, a job in the background, a study, or a plan only.

    `environment` names variables to send beside those set in this kernel; None sends none.
    """

    execution: Execution
    environment: tuple[str, ...] | None = ()
    workers: Workers | None = None
    weak: bool = False
    name: str | None = None
    background: bool = False
    dry_run: bool = False
    seed: int | None = None
    oversubscribe: bool = False
    retries: int = 3
    resume: str | None = None
    local_fallback: bool = False
    code: str = ""  # of the cell, for the record of each job
    track: str | None = None


class EndOfCell(BaseException):
    """Ends a --dry-run cell at its first fit; no `except Exception` of the cell's holds it up."""


class CellFits:
    """Carries out the fit calls of one cell as its request says; `count` says how many there were."""

    def __init__(self, shell: Any, session: Session, request: FitRequest, *, ui: str, put: Callable[[Any], None]) -> None:
        self._shell, self._session, self._request, self._ui, self._put = shell, session, request, ui, put
        self.count = 0
        self._lines = CellLines()
        self._panel: LinesPainter | None = None  # of all fits after the first ones
        self._noted: set[str] = set()

    def capturing(self) -> AbstractContextManager[Any]:
        from aiaas_magics.notebook import capture

        return capture.capturing(self.carry_out, local_fallback=self._request.local_fallback)

    def carry_out(self, call: FitCall) -> Any:
        """What `fit` returns to the cell: a `History`, or with --async a `Job`."""
        self.count += 1
        if self._request.dry_run:
            self._show_plan(call)
            raise EndOfCell
        if self._request.workers is not None and self._request.workers.is_study:
            if self._request.resume is not None:
                raise InvalidSpec(
                    "A study starts from the cell's weights, so it cannot resume a job. Leave out --resume, or give one number of workers."
                )
            return self._study(call, self._request.workers.points)
        if self._request.background:
            return self._hand_in(call)
        return self._train(call)

    def options(self) -> TrainOptions:
        from aiaas_magics.client.training.submission import TrainOptions

        request = self._request
        return TrainOptions(
            name=request.name,
            workers=self._workers(),
            seed=request.seed,
            oversubscribe=request.oversubscribe,
            retries=request.retries,
            resume=None if request.resume is None else self._session.find_job(request.resume).id,
            execution=request.execution,
            environment=request.environment,
            code=request.code,
        )

    def _workers(self) -> int | None:
        workers = self._request.workers
        if workers is None:
            return None
        return len(self._session.backend.about().devices) if workers.most else workers.points[-1]

    # ---- one fit, waited for

    def _train(self, call: FitCall) -> Any:
        from aiaas_magics.client.training.submission import prepare, submit

        backend, job = self._session.backend, None
        handed_in: JobView | None = None
        tracked = tracked_cell.TrackedFit(self._request.track, name=self._request.name)
        with LiveJob(self._ui, title=self._title(), hint=live.HINT, paint=self._painter()) as view:
            try:
                prepared = prepare(backend, call, self.options(), on_change=view.tell)
                job = self._session.remember(submit(prepared, on_change=view.tell))
                handed_in = job.view()
                tracked.begin(job)
                history = job.take(tracked.told(self._shown_in(view, job, present.job_title(handed_in))))
            except AiaasError as error:  # first: one that a callback raised in a worker may be a KeyboardInterrupt too
                if job is not None:
                    self._put(job)
                view.freeze(self._fallback_notice(error))
                raise
            except KeyboardInterrupt:
                sentence = self._cancelled(job, view)
                raise Interrupted(sentence) from None
            finally:
                if job is not None and handed_in is not None:
                    self._lines.end(job.printout, job.id, job.figure, succeeded=view.story.state is JobState.SUCCEEDED)
                    hardware = prepared.preflight.hardware
                    view.freeze(self._what_stays(handed_in, view.story, hardware, figures=view.shows_figures))
                tracked.end(job, call.model)
        self._put(history)
        return history

    def _painter(self) -> live.Painter[JobPicture] | None:
        """From the third fit of a cell on: one line each. None leaves it to the kind of view."""
        if self.count <= FULL_FITS or self._ui == "none":
            return None
        self._panel = self._panel or LinesPainter(draws=self._ui in {"widget", "html"})
        return self._panel

    def _what_stays(self, view: JobView, story: JobStory, hardware: str, *, figures: bool) -> list[present.Bundle]:
        new = [note for note in story.notices if note not in self._noted]
        self._noted.update(new)
        if self._panel is not None:
            return [present.fit_line(view, story, fit=self.count, notes=new)]
        return present.job_bundles(view, story, hardware, figures=figures)

    def _shown_in(self, view: LiveJob, job: Job, title: str) -> Callable[[JobStory], None]:
        """Draws what changes in `job`, and prints what its workers print."""

        def on_change(story: JobStory) -> None:
            view.tell(story, title=title)
            self._lines.show(job.printout, job.id, job.figure)

        return on_change

    def _fallback_notice(self, error: AiaasError) -> list[present.Bundle]:
        """What a view leaves behind when nothing was handed in."""
        if not (self._request.local_fallback and isinstance(error, UsageError)):
            return []
        return [{"text/plain": f"This fit runs in the kernel (--local-fallback), because it cannot be sent: {error}"}]

    def _cancelled(self, job: Job | None, view: LiveJob) -> str:
        """Cancel `job` and say so in one line. A second interrupt leaves it to the backend."""
        if job is None:
            view.freeze([])
            return "Interrupted before the job was submitted; nothing runs on the backend."
        self._put(job)
        try:
            state = job.cancel()
            view.tell(job.story())
        except KeyboardInterrupt:
            return f"Interrupted again: job {job.id} is stopping; %aiaas_status shows its state."
        except AiaasError as error:
            return f"Interrupted, but job {job.id} could not be cancelled: {error} %aiaas_cancel {job.id} tries again."
        return f"Interrupted: job {job.id} is {state}; the model in the kernel is unchanged."

    # ---- one fit, handed in

    def _hand_in(self, call: FitCall) -> Any:
        from aiaas_magics.client.training.submission import prepare, submit
        from aiaas_magics.notebook.capture import guard

        backend = self._session.backend
        stack = ExitStack()
        # Lines of a thread would come up between the user's own, in whatever cell runs then.
        kind = "none" if self._ui == "text" else self._ui
        view = stack.enter_context(LiveJob(kind, title=self._title()))
        with stack:
            prepared = prepare(backend, call, self.options(), on_change=view.tell)
            job = submit(prepared, on_change=view.tell, released=lambda: guard.release(call.model))
            guard.hold(call.model, job.id)
            settle = self._follow_in_background(job, view, stack.pop_all())
            self._session.remember(job, settle)
        self._put(job)
        if self._ui == "text":
            print(f"{present.job_title(job.view())} was submitted. %aiaas_wait {job.id} waits for it; %aiaas_attach {job.id} shows it.")
        return job

    def _follow_in_background(self, job: Job, view: LiveJob, stack: ExitStack) -> Callable[[], None]:
        """Draw the job while the kernel is free; returns how to wait for the view's end.

        It reads the log through a `Job` of its own, since `job` belongs to the caller's thread.
        """
        title = present.job_title(job.view())
        watched = self._session.backend.job(job.id)

        def follow() -> None:
            with stack:
                story = watched.follow(lambda story: view.tell(story, title=title))
                view.freeze([present.job_table(watched.view(), with_note(story, counted(watched.printout, job.id)))])

        thread = threading.Thread(target=follow, name=f"aiaas-follow-{job.id}", daemon=True)
        thread.start()
        return lambda: thread.join(SETTLE_S)

    # ---- one fit, measured on several numbers of workers

    def _study(self, call: FitCall, points: tuple[int, ...]) -> Any:
        from aiaas_magics.client.training import study

        if self.count > 1:
            raise InvalidSpec("A study measures one fit, and this cell calls a second one. Move it to a cell of its own.")
        options = replace(self.options(), workers=max(points))
        kind = "Weak study" if self._request.weak else "Study"
        with LiveJob(self._ui, title=f"{kind} on {', '.join(map(str, points))} workers", hint=live.HINT) as view:
            try:
                result = study.run(
                    self._session.backend,
                    call,
                    points=points,
                    options=options,
                    weak=self._request.weak,
                    on_progress=lambda at: tell_study(view, at),
                )
            except KeyboardInterrupt:
                raise Interrupted("Interrupted: the study's job was cancelled; the model in the kernel is unchanged.") from None
            view.freeze(present.study_bundles(result, figures=view.shows_figures))
            if result.job is not None:
                self._session.last_job = self._session.backend.job(result.job)
        if self._request.track is not None and self._session.last_job is not None:
            tracked_cell.track_study(self._request.track, self._session.last_job, result, call.model, name=self._request.name or "")
        self._put(result)
        return result.history

    # ---- nothing trained

    def _show_plan(self, call: FitCall) -> None:
        from aiaas_magics.client.training import planning

        with LiveJob(self._ui, title="Plan", hint=live.HINT) as view:
            view.freeze([])
            try:
                plan = planning.plan(self._session.backend, call, self.options(), on_progress=lambda at: tell_plan(view, at))
            except KeyboardInterrupt:
                raise Interrupted("Interrupted: the measuring job was cancelled; the model in the kernel is unchanged.") from None
            view.freeze(present.plan_bundles(plan))
        self._put(plan)
        if self._ui == "none":  # no progress was asked for; what was found out is the cell's answer
            live.show(self._shell, present.plan_bundles(plan))

    def _title(self) -> str:
        return f"Job {self._request.name}" if self._request.name else "Job"


def with_note(story: JobStory, note: str) -> JobStory:
    return replace(story, notices=(*story.notices, note)) if note else story


def tell_plan(view: LiveJob, at: PlanProgress) -> None:
    """A dry run's progress as the measuring job's, with the ways that are measured as stops."""
    stops = (
        *(StudyStop(label=label, state="done") for label in at.done),
        StudyStop(label=at.label, state="running"),
        *(StudyStop(label=label, state="waiting") for label in at.waiting),
    )
    view.tell(at.story, stops=stops, measuring=True)


def tell_study(view: LiveJob, at: StudyProgress) -> None:
    """A study's progress as the running job's, with the study's points as stops."""
    stops = (
        *(StudyStop(label=label, state="done") for label in at.done),
        StudyStop(label=at.label, state="running"),
        *(StudyStop(label=label, state="waiting") for label in at.waiting),
        *([StudyStop(label="training", state="waiting")] if at.measuring else []),
    )
    view.tell(at.story, stops=stops, measuring=at.measuring)
