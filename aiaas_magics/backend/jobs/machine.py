"""Job machine: decides what happens to a job next. Events in, actions out.

Owns every decision about a job's life. It opens nothing, waits for nothing and knows no
time, so it is tested with lists. Finding devices belongs to `placement`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, assert_never

from aiaas_magics.backend.jobs.actions import Action, ClearAttempt, ClearJob, KeepResult, Record, StartAttempt, StopAttempt
from aiaas_magics.backend.jobs.machine_events import (
    CancelAsked,
    CannotBePlaced,
    Event,
    Placed,
    RankCrashed,
    RankEnded,
    RankFinished,
    RankStuck,
    ResultKept,
    ResultMissing,
    ServerEnds,
    StartFailed,
)
from aiaas_magics.backend.jobs.states import Blame, JobStatus, Verdict, check_move
from aiaas_magics.core.events import StateChanged, WorkerLost
from aiaas_magics.core.spec import JobState

# Ranks run the same code, so an exception in one is mostly raised by all within milliseconds; those that wait
# for the one that raised never end by themselves. Guess.
CRASH_PATIENCE_S: Final = 1.0
CANCEL_GRACE_S: Final = 3.0  # guess: user code that catches SIGTERM gets to close its files
FINISH_PATIENCE_S: Final = 5.0  # guess: a rank that has finished has nothing left to do but exit
BLAME_PATIENCE_S: Final = 1.0  # guess: the end of a process is seen within a tenth of that
SILENT: Final = "did not answer the other workers any more"
FEWER_RANKS: Final = "its workers lost each other"

Step = tuple[JobStatus, tuple[Action, ...]]


def handle(job: JobStatus, event: Event) -> Step:  # noqa: C901 - one case an event
    """The job after `event`, and what is to be done.

    A job that is over, and an event of an attempt that is over, change nothing.
    """
    if job.state.final or is_late(job, event):
        return job, ()
    match event:
        case Placed(ranks=ranks):
            return _placed(job, ranks)
        case CannotBePlaced(why=why):
            return _end(job, JobState.FAILED, why) if job.state is JobState.QUEUED else (job, ())
        case CancelAsked():
            return _cancel(job)
        case ServerEnds():
            return _postpone(job)
        case StartFailed(why=why):
            return _start_failed(job, why)
        case RankFinished(rank=rank):
            return _finished(replace(job, finished=job.finished | {rank}))
        case RankCrashed(rank=rank, what=what):
            return _crashed(job, rank, what)
        case RankEnded():
            return _ended(job, event)
        case RankStuck(rank=rank, how=how):
            return _stuck(job, rank, how)
        case ResultKept(attempt=attempt):
            job, actions = _end(job, JobState.SUCCEEDED, "")
            return job, (ClearAttempt(attempt), *actions)
        case ResultMissing(attempt=attempt, why=why):
            return _conclude_badly(replace(job, verdict=Verdict(Blame.LOST, why)))
        case _:
            assert_never(event)


def is_late(job: JobStatus, event: Event) -> bool:
    """Whether the event tells of an attempt that is not the present one, or not running."""
    attempt = getattr(event, "attempt", None)
    return attempt is not None and (attempt != job.attempt or job.state not in {JobState.RUNNING, JobState.STOPPING})


def _placed(job: JobStatus, ranks: int) -> Step:
    if job.state is not JobState.QUEUED:
        return job, ()
    why, number = job.reason, job.attempt + 1
    job = replace(job, attempt=number, ranks=ranks, finished=frozenset(), ended=frozenset(), verdict=None)
    job, record = _move(job, JobState.RUNNING, "")
    return job, (record, StartAttempt(number, why))


def _cancel(job: JobStatus) -> Step:
    if job.state is JobState.QUEUED:
        return _end(job, JobState.CANCELLED, "cancelled before it started")
    if job.state is JobState.STOPPING:
        return job, ()
    job, record = _move(job, JobState.STOPPING, "cancelled")
    return job, (record, StopAttempt(attempt=job.attempt, grace_s=CANCEL_GRACE_S))


def _postpone(job: JobStatus) -> Step:
    if job.state is JobState.QUEUED:
        return job, ()
    job = replace(job, verdict=job.verdict or Verdict(Blame.POSTPONED, "the server was stopped; the job goes on where it left off"))
    return job, (StopAttempt(attempt=job.attempt, grace_s=1.0),)


def _start_failed(job: JobStatus, why: str) -> Step:
    job = replace(job, verdict=job.verdict or Verdict(Blame.LOST, why))
    return job, (StopAttempt(attempt=job.attempt),)


def _finished(job: JobStatus) -> Step:
    if len(job.finished) < job.ranks:
        return job, ()
    return job, (StopAttempt(attempt=job.attempt, patience_s=FINISH_PATIENCE_S),)


def _crashed(job: JobStatus, rank: int, reason: str) -> Step:
    if job.verdict is not None or job.state is JobState.STOPPING:
        return job, ()
    job = replace(job, verdict=Verdict(Blame.CRASHED, reason))
    return job, (StopAttempt(attempt=job.attempt, patience_s=CRASH_PATIENCE_S),)


def _ended(job: JobStatus, event: RankEnded) -> Step:
    """A rank's process is gone. Only the first that went unasked is worth a word."""
    if event.rank in job.ended:
        return job, ()
    job = replace(job, ended=job.ended | {event.rank})
    actions: tuple[Action, ...] = ()
    unasked = job.verdict is None and job.state is JobState.RUNNING and event.rank not in job.finished
    if unasked and event.alone:
        # The rank it missed is the one to blame: dead, and seen in a moment, or hung, and ended by us after that.
        actions = (StopAttempt(attempt=job.attempt, patience_s=BLAME_PATIENCE_S),)
    elif unasked:
        how = SILENT if event.by_stop else event.how
        blame = Blame.OUT_OF_MEMORY if event.out_of_memory else Blame.LOST
        job = replace(job, verdict=Verdict(blame, f"worker {event.rank} {how}"))
        actions = (Record(WorkerLost(how=how, out_of_memory=event.out_of_memory), event.rank), StopAttempt(attempt=job.attempt))
    if not job.all_ended:
        return job, actions
    job, last = _conclude(job)
    return job, actions + last


def _stuck(job: JobStatus, rank: int, how: str) -> Step:
    """The others wait for it, so that none of them would end by itself."""
    if job.verdict is not None or job.state is JobState.STOPPING or rank in job.finished:
        return job, ()
    job = replace(job, verdict=Verdict(Blame.LOST, f"worker {rank} {how}"))
    return job, (Record(WorkerLost(how=how), rank), StopAttempt(attempt=job.attempt))


def _conclude(job: JobStatus) -> Step:
    """Every process is gone: what became of the attempt?

    Rank 0 says that it finished only when the whole result stands on disk, so a result is never thrown away
    for a worker that went missing afterwards.
    """
    crashed = job.verdict is not None and job.verdict.blame is Blame.CRASHED
    if 0 in job.finished and not crashed:
        return job, (KeepResult(job.attempt),)
    return _conclude_badly(job)


def _conclude_badly(job: JobStatus) -> Step:
    clear = ClearAttempt(job.attempt)
    if job.state is JobState.STOPPING:
        job, actions = _end(job, JobState.CANCELLED, "cancelled")
        return job, (clear, *actions)
    verdict = job.verdict or Verdict(Blame.LOST, FEWER_RANKS)
    match verdict.blame:
        case Blame.CRASHED | Blame.OUT_OF_MEMORY:
            job, actions = _end(job, JobState.FAILED, verdict.why)
            return job, (clear, *actions)
        case Blame.POSTPONED:
            job, record = _move(job, JobState.QUEUED, verdict.why)
            return job, (clear, record)
        case Blame.LOST:
            return _retry_or_fail(replace(job, lost=job.lost + 1), verdict.why)
        case _:
            assert_never(verdict.blame)


def _retry_or_fail(job: JobStatus, why: str) -> Step:
    clear = ClearAttempt(job.attempt)
    if job.lost > job.retries:
        job, actions = _end(job, JobState.FAILED, why)
        return job, (clear, *actions)
    job, record = _move(job, JobState.QUEUED, why)
    return job, (clear, record)


def _end(job: JobStatus, state: JobState, reason: str) -> Step:
    job, record = _move(job, state, reason)
    return job, (record, ClearJob(resumable=state is not JobState.SUCCEEDED))


def _move(job: JobStatus, state: JobState, reason: str) -> tuple[JobStatus, Record]:
    check_move(job, state)
    return replace(job, state=state, reason=reason), Record(StateChanged(state=state, reason=reason))
