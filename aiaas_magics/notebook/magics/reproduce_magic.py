"""%aiaas_reproduce: trains a job again and says whether the weights are the same.

Owns its options, its request and its output. Training again and comparing belong to `client`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiaas_magics.notebook import tracebacks
from aiaas_magics.notebook.border import Family, magic
from aiaas_magics.notebook.options import JOB, OUT, UI, option
from aiaas_magics.notebook.views.job_panel import LiveJob


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproduceRequest:
    job: str | None
    record: bool
    out: str | None
    ui: str | None
    help: bool


class ReproduceMagic(Family):
    """Jobs that are trained again."""

    @magic(
        ReproduceRequest,
        JOB,
        option("--record", action="store_true", help="Only show what the job was trained from; train nothing."),
        OUT,
        UI,
    )
    def aiaas_reproduce(self, request: ReproduceRequest) -> Any:
        """Train a job again from its record, and compare every weight with the first run's.

        Says whether the trained state is bit-equal, else how far each layer is apart, and what of the environment
        has changed. The model in the kernel is not touched. Returns a Reproduction.

            %aiaas_reproduce 7
            %aiaas_reproduce 7 --record
        """
        job = self.session.find_job(request.job)
        if request.record:
            record = job.record()
            self._put(request.out, record)
            return record
        with LiveJob(self._ui(request.ui), title=f"Job {job.id} again", hint="Interrupt the kernel (■) to stop waiting.") as view:
            try:
                reproduction = self.session.backend.reproduce(job.id, on_change=view.tell)
            except KeyboardInterrupt:
                raise tracebacks.Interrupted("Stopped waiting; the second run goes on. %aiaas_status lists it.") from None
            finally:
                view.freeze([])
        self._put(request.out, reproduction)
        return reproduction
