"""Explain job: an explanation that workers of a backend compute, for a notebook or a script.

Owns taking its result back. Following it is what every job has in common (`training.job`); submitting belongs to `explain_submission`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiaas_magics.client.training.job import Job
from aiaas_magics.client.transport import Transport
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.spec import JobState, JobView
from aiaas_magics.core.story import JobStory
from aiaas_magics.explain.attribution_bytes import read_explain_result

if TYPE_CHECKING:
    from aiaas_magics.explain.explanation import Explanation


class ExplainJob(Job):
    """One explanation that the backend computes. `Backend.explain` makes it, and `Backend.job` for one of another kernel.

    The job lives on the backend: losing this object, the kernel or the connection does not stop it.
    `await job` and `job.result()` return the `Explanation`, in any kernel.
    """

    def result(self, timeout_s: float | None = None) -> Explanation:
        """Wait until the job has ended.

        Args:
            timeout_s: seconds to wait; None waits without end.

        Returns:
            The explanation of all rows.

        Raises:
            RemoteTrainingError: your model's code raised in a worker.
            UsageError: the rows, the background, the method or the target do not fit the model.
            WorkersLost: workers died more often than `retries` allows.
            OutOfMemory: the machine ended a worker for its memory.
            JobCancelled: the job was stopped.
            ResultRemoved: the result was removed to make room on the backend's disk.
            BackendTooSlow: `timeout_s` has passed.
        """
        explanation: Explanation = super().result(timeout_s)
        return explanation

    def apply_to(self, model: Any) -> Any:
        """An explanation trains nothing, so there is nothing to put into a model.

        Raises:
            InvalidSpec: always.
        """
        raise InvalidSpec(f"Job {self.id} explains rows and trains nothing. Get its explanation with job.result().")

    @property
    def seconds(self) -> float:
        """How long the workers took to explain the rows, without starting: the slowest worker's time. 0 before the first row."""
        explained = self.story().explained
        return 0.0 if explained is None else explained.seconds

    def _take(self, story: JobStory) -> Any:
        if self._fetched is None:
            if self._view.state is not JobState.SUCCEEDED:
                raise self.failure()
            explained = story.explained
            seconds = 0.0 if explained is None else explained.seconds
            self._fetched = explanation_of(self.result_bytes(), seconds=seconds, workers=max(1, story.ranks))
        return self._fetched


def explanation_of(data: bytes, *, seconds: float, workers: int) -> Explanation:
    """The explanation in a job's result, which so many workers needed so long for.

    Raises:
        AiaasBug: the bytes are no such result.
    """
    from aiaas_magics.explain.explanation import Explanation

    explained = read_explain_result(data)
    facts = explained.facts
    return Explanation(
        attributions=explained.attributions,
        inputs=explained.inputs,
        input_names=tuple(facts["inputs"]),
        columns=tuple(map(tuple, facts["columns"])),
        class_names=tuple(facts["classes"]),
        model=facts["model"],
        why=facts["why"],
        seconds=seconds,
        workers=workers,
        faithfulness=explained.faithfulness,
    )


def job_of(transport: Transport, view: JobView) -> Job:
    """The job of a record, as what it computes."""
    return Job(transport, view) if view.spec.explain is None else ExplainJob(transport, view)
