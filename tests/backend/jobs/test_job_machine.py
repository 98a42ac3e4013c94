"""What becomes of a job: events in, actions out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas_magics.backend.jobs.actions import Action, ClearAttempt, ClearJob, KeepResult, Record, StartAttempt, StopAttempt
from aiaas_magics.backend.jobs.machine import handle
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
from aiaas_magics.backend.jobs.states import MOVES, JobStatus, check_move
from aiaas_magics.core.errors import AiaasBug
from aiaas_magics.core.events import StateChanged, WorkerLost
from aiaas_magics.core.spec import JobState


def running(*, ranks: int = 2, retries: int = 3) -> JobStatus:
    job, _ = handle(JobStatus(id="7", retries=retries), Placed(ranks))
    return job


def after(job: JobStatus, *events: Event) -> tuple[JobStatus, list[Action]]:
    actions: list[Action] = []
    for event in events:
        job, new = handle(job, event)
        actions += new
    return job, actions


def lost(rank: int, *, attempt: int = 1, how: str = "was killed by signal 9", out_of_memory: bool = False) -> RankEnded:
    return RankEnded(attempt=attempt, rank=rank, how=how, out_of_memory=out_of_memory)


def test_a_placed_job_starts_its_first_attempt() -> None:
    job, actions = handle(JobStatus(id="7", retries=3), Placed(2))

    assert (job.state, job.attempt, job.ranks) == (JobState.RUNNING, 1, 2)
    assert actions == (Record(StateChanged(state=JobState.RUNNING)), StartAttempt(1))


def test_all_ranks_finished_and_gone_means_that_the_result_is_kept_before_success() -> None:
    job, actions = after(running(), RankFinished(1, 0), RankFinished(1, 1), lost(0), lost(1))
    assert job.state is JobState.RUNNING
    assert actions[-1] == KeepResult(1)

    job, actions = after(job, ResultKept(1))

    assert job.state is JobState.SUCCEEDED
    assert actions == [ClearAttempt(1), Record(StateChanged(state=JobState.SUCCEEDED)), ClearJob()]


def test_losing_a_worker_stops_the_whole_attempt_and_the_next_says_why() -> None:
    job, actions = after(running(), lost(1))
    assert actions == [Record(WorkerLost(how="was killed by signal 9"), 1), StopAttempt(attempt=1)]

    job, actions = after(job, lost(0, how="was killed by signal 15"))
    assert job.state is JobState.QUEUED
    assert actions == [ClearAttempt(1), Record(StateChanged(state=JobState.QUEUED, reason="worker 1 was killed by signal 9"))]

    job, actions = after(job, Placed(2))
    assert actions[-1] == StartAttempt(2, "worker 1 was killed by signal 9")


def test_a_job_is_tried_again_as_often_as_it_may_and_not_once_more() -> None:
    job = running(ranks=1, retries=2)
    for attempt in (1, 2):
        job, _ = after(job, lost(0, attempt=attempt))
        assert job.state is JobState.QUEUED
        job, _ = after(job, Placed(1))

    job, actions = after(job, lost(0, attempt=3))

    assert (job.state, job.reason) == (JobState.FAILED, "worker 0 was killed by signal 9")
    assert actions[-1] == ClearJob(resumable=True)


def test_an_exception_of_the_user_fails_the_job_without_another_attempt() -> None:
    job, actions = after(running(), RankCrashed(1, 1, "ValueError: no"))
    assert isinstance(actions[0], StopAttempt)
    assert actions[0].patience_s > 0  # the other ranks get to say the same

    job, _ = after(job, RankCrashed(1, 0, "KeyError: later"), lost(0), lost(1))

    assert (job.state, job.reason) == (JobState.FAILED, "ValueError: no")


def test_a_worker_that_ran_out_of_memory_is_not_tried_again() -> None:
    job, actions = after(running(ranks=1), lost(0, how="was killed", out_of_memory=True))

    assert job.state is JobState.FAILED
    assert Record(WorkerLost(how="was killed", out_of_memory=True), 0) in actions


def test_a_rank_that_was_left_alone_is_not_the_one_to_blame() -> None:
    alone = RankEnded(attempt=1, rank=0, how="exited with code 4", alone=True)
    job, actions = after(running(), alone)
    assert job.verdict is None
    assert isinstance(actions[0], StopAttempt)
    assert actions[0].patience_s > 0

    dead, _ = after(job, lost(1))
    hung, _ = after(job, RankEnded(attempt=1, rank=1, how="was killed by signal 15", by_stop=True))

    assert dead.reason == "worker 1 was killed by signal 9"
    assert hung.reason == "worker 1 did not answer the other workers any more"


def test_a_worker_that_does_nothing_any_more_ends_the_attempt_like_a_lost_one() -> None:
    job, actions = after(running(), RankStuck(1, 1, "was stopped (SIGSTOP)"))
    assert actions == [Record(WorkerLost(how="was stopped (SIGSTOP)"), 1), StopAttempt(attempt=1)]

    job, _ = after(job, lost(0, how="was killed by signal 15"), lost(1))

    assert (job.state, job.reason, job.lost) == (JobState.QUEUED, "worker 1 was stopped (SIGSTOP)", 1)


def test_a_result_that_rank_0_finished_is_kept_though_another_worker_is_lost() -> None:
    _, actions = after(running(), RankFinished(1, 0), lost(1), lost(0))

    assert actions[-1] == KeepResult(1)


def test_a_result_that_cannot_be_kept_costs_an_attempt() -> None:
    job, _ = after(running(ranks=1), RankFinished(1, 0), lost(0), ResultMissing(1, "the disk is full"))

    assert (job.state, job.lost, job.reason) == (JobState.QUEUED, 1, "the disk is full")


def test_cancelling_a_waiting_job_ends_it_at_once() -> None:
    job, actions = after(JobStatus(id="7", retries=3), CancelAsked())

    assert job.state is JobState.CANCELLED
    assert StopAttempt not in map(type, actions)


def test_cancelling_a_running_job_ends_it_when_its_workers_are_gone() -> None:
    job, actions = after(running(), CancelAsked(), CancelAsked())
    assert job.state is JobState.STOPPING
    assert [type(action) for action in actions] == [Record, StopAttempt]

    job, actions = after(job, lost(0), lost(1))

    assert job.state is JobState.CANCELLED
    assert not any(isinstance(action, Record) and isinstance(action.event, WorkerLost) for action in actions)


def test_a_job_that_finished_before_it_could_be_cancelled_has_succeeded() -> None:
    job, _ = after(running(ranks=1), CancelAsked(), RankFinished(1, 0), lost(0), ResultKept(1))

    assert job.state is JobState.SUCCEEDED


def test_the_end_of_the_server_costs_no_attempt() -> None:
    job, actions = after(running(ranks=1, retries=0), ServerEnds())
    assert actions == [StopAttempt(attempt=1)]

    job, _ = after(job, lost(0))

    assert (job.state, job.lost) == (JobState.QUEUED, 0)


def test_an_attempt_that_could_not_be_started_is_a_lost_one() -> None:
    job, actions = after(running(ranks=1, retries=0), StartFailed(1, "no launcher"))
    assert actions == [StopAttempt(attempt=1)]

    job, _ = after(job, lost(0, how="was not started"))

    assert (job.state, job.reason) == (JobState.FAILED, "no launcher")


def test_a_job_whose_devices_are_gone_fails_with_the_reason() -> None:
    job, _ = after(JobStatus(id="7", retries=3), CannotBePlaced("there are only 2"))

    assert (job.state, job.reason) == (JobState.FAILED, "there are only 2")


def test_news_of_an_older_attempt_change_nothing() -> None:
    job, _ = after(running(ranks=1), lost(0), Placed(1))

    assert after(job, RankFinished(1, 0), RankCrashed(1, 0, "late"), lost(0, attempt=1)) == (job, [])


def test_a_move_that_is_not_in_the_table_is_a_bug_with_the_job_in_its_text() -> None:
    with pytest.raises(AiaasBug, match="cannot become running"):
        check_move(replace(running(), state=JobState.STOPPING), JobState.RUNNING)


ranks = st.integers(0, 2)
attempts = st.integers(1, 3)
events: st.SearchStrategy[Event] = st.one_of(
    st.just(Placed(3)),
    st.just(CancelAsked()),
    st.just(ServerEnds()),
    st.just(CannotBePlaced("gone")),
    st.builds(StartFailed, attempts, st.just("why")),
    st.builds(RankFinished, attempts, ranks),
    st.builds(RankCrashed, attempts, ranks, st.just("what")),
    st.builds(
        RankEnded, attempt=attempts, rank=ranks, how=st.just("how"), out_of_memory=st.booleans(), alone=st.booleans(), by_stop=st.booleans()
    ),
    st.builds(RankStuck, attempts, ranks, st.just("how")),
    st.builds(ResultKept, attempts),
    st.builds(ResultMissing, attempts, st.just("why")),
)


@given(st.lists(events, max_size=40), st.integers(0, 2))
def test_whatever_happens_every_move_is_legal_and_the_log_tells_all_of_them(happened: list[Event], retries: int) -> None:
    job = JobStatus(id="7", retries=retries)
    states = [job.state]
    for event in happened:
        before = job
        job, actions = handle(job, event)
        told = [action.event.state for action in actions if isinstance(action, Record) and isinstance(action.event, StateChanged)]
        assert told == ([job.state] if job.state is not before.state else [])
        assert job.state is before.state or job.state in MOVES[before.state]
        assert any(isinstance(action, ClearJob) for action in actions) == (job.state.final and not before.state.final)
        states.append(job.state)
    assert job.attempt == sum(b is JobState.RUNNING and a is JobState.QUEUED for a, b in pairwise(states))
    assert job.lost <= retries + 1


@given(st.lists(events, max_size=40))
def test_no_attempt_is_started_before_the_one_before_it_was_cleared(happened: list[Event]) -> None:
    job, open_attempts = JobStatus(id="7", retries=2), 0
    for event in happened:
        job, actions = handle(job, event)
        for action in actions:
            open_attempts += isinstance(action, StartAttempt)
            open_attempts -= isinstance(action, ClearAttempt)
            assert open_attempts in (0, 1)
    assert open_attempts == (job.state in {JobState.RUNNING, JobState.STOPPING})


@given(st.lists(events, max_size=30))
def test_a_job_always_ends_once_its_processes_do(happened: list[Event]) -> None:
    """No event sequence leaves a job that waits for something that cannot come."""
    job, _ = after(JobStatus(id="7", retries=2), *happened)

    for _ in range(5):
        job, _ = after(job, Placed(3))
        job, _ = after(job, *(RankEnded(attempt=job.attempt, rank=rank, how="how") for rank in range(3)))
        job, _ = after(job, ResultKept(job.attempt))

    assert job.state.final
