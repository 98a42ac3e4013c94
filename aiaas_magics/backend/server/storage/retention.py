"""Retention: decides which results are old enough to delete.

Owns the rule only: values in, names out. Removing them belongs to `usage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

DAY_S: Final = 24 * 3600.0
NEWEST: Final = 100  # guess: nobody goes further back than that
DAYS: Final = 30  # guess: nor longer
SPARED_S: Final = DAY_S  # guess: whoever handed the job in comes for its result within a day, however full the disk is


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A job that is over and has something to give back: its result, its callbacks' files, its log."""

    job: str
    ended_s: float
    bytes: int


def expired(ended: Sequence[Ended], *, now_s: float, missing_bytes: int = 0) -> list[str]:
    """The jobs whose results go, oldest first: those of no use by age, and more of them until `missing_bytes` are found.

    >>> jobs = [Ended(job=str(n), ended_s=n * DAY_S, bytes=10) for n in range(5)]
    >>> expired(jobs, now_s=4 * DAY_S, missing_bytes=15)
    ['0', '1']
    """
    oldest_first = sorted(ended, key=lambda job: job.ended_s)
    old_jobs: list[str] = []
    for place, job in enumerate(oldest_first):
        age_s = now_s - job.ended_s
        is_old = age_s > DAYS * DAY_S and place < len(oldest_first) - NEWEST
        if is_old or (missing_bytes > 0 and age_s > SPARED_S):
            old_jobs.append(job.job)
            missing_bytes -= job.bytes
    return old_jobs
