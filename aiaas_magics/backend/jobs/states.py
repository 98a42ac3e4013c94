"""Job states: a job as the machine sees it, and the legal moves between states.

Owns the values; what happens to them is decided in `machine`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from aiaas_magics.core.errors import AiaasBug
from aiaas_magics.core.spec import JobState

# What may follow what. RUNNING goes back to QUEUED when a worker was lost, or when the server ends in good order.
MOVES: Final[Mapping[JobState, frozenset[JobState]]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.STOPPING, JobState.QUEUED, JobState.FAILED}),
    JobState.STOPPING: frozenset({JobState.CANCELLED, JobState.SUCCEEDED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.FAILED: frozenset(),
}


class Blame(StrEnum):
    """Why an attempt cannot end well."""

    CRASHED = "crashed"  # the user's code raised: no retry
    OUT_OF_MEMORY = "out_of_memory"  # it would need as much again: no retry
    LOST = "lost"  # a worker went away: the next attempt goes on from the last checkpoint
    POSTPONED = "postponed"  # the server ends in good order: goes on when it is back, costs nothing


@dataclass(frozen=True, slots=True)
class Verdict:
    """The first thing that spoiled an attempt; what follows from it (killed ranks) says nothing new."""

    blame: Blame
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """A job and its present attempt. `finished` and `ended` are ranks of that attempt."""

    id: str
    retries: int
    state: JobState = JobState.QUEUED
    reason: str = ""
    attempt: int = 0  # the number of the latest one, 0 before the first
    lost: int = 0  # attempts that a lost worker ended
    ranks: int = 0
    finished: frozenset[int] = frozenset()
    ended: frozenset[int] = frozenset()
    verdict: Verdict | None = None

    @property
    def all_ended(self) -> bool:
        return self.ranks > 0 and len(self.ended) == self.ranks


def check_move(job: JobStatus, state: JobState) -> None:
    """Raises `AiaasBug`, with the job that led there, when `state` may not follow."""
    if state not in MOVES[job.state]:
        raise AiaasBug(f"{job} cannot become {state}")
