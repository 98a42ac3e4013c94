"""Job magics: attach, wait, cancel and logs.

Owns their options and requests. Jobs are found by `session`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiaas_magics.core.printout import counted
from aiaas_magics.notebook import present, present_explanations, tracebacks
from aiaas_magics.notebook.border import Family, magic
from aiaas_magics.notebook.cell_fits import with_note
from aiaas_magics.notebook.option_values import positive_seconds, whole_number
from aiaas_magics.notebook.options import JOB, OUT, UI, option
from aiaas_magics.notebook.views.job_panel import LiveJob


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """For the magics that name a job; what one of them does not take keeps its default."""

    job: str | None
    help: bool
    out: str | None = None
    ui: str | None = None
    timeout: float | None = None
    lines: int = 200


class JobMagics(Family):
    """Jobs that were submitted."""

    @magic(JobRequest, JOB, OUT, UI)
    def aiaas_attach(self, request: JobRequest) -> None:
        """Show a job from its start and follow it live. An interrupt leaves the job running.

        For a job of another kernel, `job.apply_to(model)` loads its weights (-o assigns the Job to a variable).
        """
        job = self.session.find_job(request.job)
        self._put(request.out, job)
        self._follow(job, self._ui(request.ui))

    @magic(JobRequest, JOB, option("--timeout", type=positive_seconds, metavar="S", help="Stop waiting after S seconds."), OUT, UI)
    def aiaas_wait(self, request: JobRequest) -> None:
        """Wait for a job. If this kernel submitted it, its model gets the trained weights.

        If the job failed, this raises its error.
        """
        job = self.session.find_job(request.job)
        self._put(request.out, job)
        is_own = job is self.session.find_own(job.id)
        try:
            if is_own:
                job.result(request.timeout)
            else:
                job.wait(request.timeout)
        except KeyboardInterrupt:
            raise tracebacks.Interrupted(f"Stopped waiting; job {job.id} continues. %aiaas_cancel {job.id} stops it.") from None
        finally:
            self.session.settle(job)
        if not is_own and job.state != "succeeded":
            raise job.failure()
        if job.view().spec.explain is not None:
            print(f"Job {job.id} {job.state}. job.result() is its explanation.")
            return
        print(f"Job {job.id} {job.state}." + (" The model has its weights." if is_own else " job.apply_to(model) loads its weights."))

    @magic(JobRequest, JOB)
    def aiaas_cancel(self, request: JobRequest) -> None:
        """Stop a job. The model in the kernel stays as it is."""
        job = self.session.find_job(request.job)
        over = job.view().state.final
        state = job.cancel()
        self.session.settle(job)
        print(f"Job {job.id} had already ended: {state}." if over else f"Job {job.id} {state}.")

    @magic(
        JobRequest,
        JOB,
        option(
            "-n",
            "--lines",
            type=whole_number(1, 100_000, "A number of lines"),
            default=200,
            metavar="N",
            help="Print the last N lines (default 200).",
        ),
    )
    def aiaas_logs(self, request: JobRequest) -> None:
        """Print the output of the job's workers. If there are several, each line begins with the worker's rank."""
        job = self.session.find_job(request.job)
        lines = job.logs().splitlines()
        if len(lines) > request.lines:
            print(f"({len(lines) - request.lines} earlier lines; --lines shows more)")
        print("\n".join(lines[-request.lines :]) or f"The workers of job {job.id} printed nothing.")

    def _follow(self, job: Any, ui: str) -> None:
        view = job.view()
        hint = "" if view.state.final else f"Interrupt the kernel (■) to leave. %aiaas_cancel {job.id} stops the job."
        with LiveJob(ui, title=present.job_title(view), hint=hint) as shown:
            try:
                measuring = view.spec.measure is not None
                story = job.follow(lambda newest: shown.tell(newest, measuring=measuring))
            except KeyboardInterrupt:
                raise tracebacks.Interrupted(f"Left job {job.id}, which continues. %aiaas_attach {job.id} shows it again.") from None
            hardware = self.session.backend.about().hardware
            story = with_note(story, counted(job.printout, job.id))
            shown.freeze(present_explanations.job_bundles(job.view(), story, hardware, figures=shown.shows_figures))
