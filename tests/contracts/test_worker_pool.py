"""What every pool promises: one suite over all of them, with workers that play scripts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aiaas_magics.backend.folders.job_folder import JobFolder
from aiaas_magics.backend.workers.attempt import Attempt, AttemptNews, AttemptOrder, Ending, RankDevices
from aiaas_magics.backend.workers.pool import PoolFactory, PoolSetting, WorkerPool
from aiaas_magics.backend.workers.pools import POOLS
from aiaas_magics.core.events import AnyEvent, Checkpointed, Crashed, EpochEnded, Finished, Output
from aiaas_magics.core.execution import Execution
from aiaas_magics.testing.scripted_server import SCRIPTED
from aiaas_magics.testing.stub_pool import StubPool
from tests.conftest import processes_of

WAIT_S = 20.0
LONG = {"do": "wait", "seconds": 600}
FACTORIES: dict[str, PoolFactory] = {**POOLS, "stub": StubPool}


@dataclass
class Place:
    """A state folder, and pools on it."""

    kind: str
    state: Path

    def pool(self) -> WorkerPool:
        return FACTORIES[self.kind](PoolSetting(state=self.state, launcher_options=SCRIPTED))

    def order(self, *steps: dict[str, Any], ranks: int = 1) -> AttemptOrder:
        payload = self.state / "payload"
        payload.write_text(json.dumps(steps))
        job = JobFolder(self.state / "jobs" / "1")
        job.checkpoints.mkdir(parents=True, exist_ok=True)
        return AttemptOrder(ranks=(RankDevices(),) * ranks, payload=payload, seed=1, execution=Execution())


@dataclass
class Seen:
    """All news of an attempt so far."""

    began: list[int] = field(default_factory=list)
    said: list[tuple[int, AnyEvent]] = field(default_factory=list)
    ended: dict[int, Ending] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)

    def take(self, news: AttemptNews) -> None:
        self.began += [rank for rank, _ in news.began]
        for rank, line in news.lines:
            assert rank not in self.ended, "a rank spoke after its end"
            self.said.append((rank, line.event))
        for rank, ending in news.ended:
            assert rank not in self.ended, "a rank ended twice"
            self.ended[rank] = ending
        self.offsets |= news.offsets

    def of(self, kind: type[AnyEvent]) -> list[Any]:
        return [event for _, event in self.said if isinstance(event, kind)]


async def to_the_end(attempt: Attempt, seen: Seen | None = None) -> Seen:
    seen = seen or Seen()
    async with asyncio.timeout(WAIT_S):
        while not attempt.is_over:
            seen.take(await attempt.news())
    return seen


async def until_said(attempt: Attempt, text: str) -> Seen:
    seen = Seen()
    async with asyncio.timeout(WAIT_S):
        while Output(text=text) not in seen.of(Output):
            assert not attempt.is_over, seen
            seen.take(await attempt.news())
    return seen


@pytest.fixture(params=["stub", pytest.param("local", marks=pytest.mark.process)])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request.param, tmp_path)


@pytest.fixture
async def workers(place: Place) -> AsyncIterator[WorkerPool]:
    """The pool; when it is closed nothing may be left."""
    pool = place.pool()
    yield pool
    await pool.close()
    assert processes_of(place.state) == []
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("stub rank")] == []


async def test_each_rank_runs_to_its_end_and_rank_0_leaves_a_result(workers: WorkerPool, place: Place) -> None:
    attempt = await workers.attempt("1", 1, ranks=2)

    await attempt.start(place.order({"do": "say", "text": "hello\n", "ranks": [1]}, ranks=2))
    seen = await to_the_end(attempt)

    assert sorted(seen.began) == [0, 1]
    assert [rank for rank, event in seen.said if event == Output(text="hello")] == [1]
    assert len(seen.of(Finished)) == 2
    assert sorted(seen.ended) == [0, 1]
    assert (await attempt.result()).read_bytes() == b"result of attempt 1"


async def test_when_start_returns_each_rank_has_a_process(workers: WorkerPool, place: Place) -> None:
    attempt = await workers.attempt("1", 1, ranks=2)
    assert not attempt.is_started

    await attempt.start(place.order(LONG, ranks=2))

    assert attempt.is_started
    assert not attempt.is_over


async def test_every_event_comes_once_and_in_order_and_what_it_speaks_of_is_there(workers: WorkerPool, place: Place) -> None:
    attempt = await workers.attempt("1", 1, ranks=1)

    await attempt.start(place.order({"do": "epochs", "count": 3}))
    seen = Seen()
    while not attempt.is_over:
        news = await attempt.news()
        seen.take(news)
        if any(isinstance(line.event, Checkpointed) for _, line in news.lines):
            assert list(JobFolder(place.state / "jobs" / "1").checkpoints.glob("epoch-*"))

    assert [event.epoch for event in seen.of(EpochEnded)] == [0, 1, 2]
    assert isinstance(seen.said[-1][1], Finished)


async def test_a_crash_is_told_before_the_end_of_its_rank(workers: WorkerPool, place: Place) -> None:
    attempt = await workers.attempt("1", 1, ranks=2)

    await attempt.start(place.order({"do": "crash", "message": "no such layer", "ranks": [1]}, LONG, ranks=2))
    seen = Seen()
    while 1 not in seen.ended:
        seen.take(await attempt.news())

    assert [event.report.message for event in seen.of(Crashed)] == ["no such layer"]
    assert 0 not in seen.ended
    assert not attempt.is_over


@pytest.mark.parametrize(
    ("step", "how"),
    [
        ({"do": "kill"}, "was killed by signal 9"),
        ({"do": "exit", "code": 5}, "exited with code 5 before it was done"),
    ],
    ids=["killed", "exited"],
)
async def test_an_ending_says_how(workers: WorkerPool, place: Place, step: dict[str, Any], how: str) -> None:
    attempt = await workers.attempt("1", 1, ranks=1)

    await attempt.start(place.order(step))
    seen = await to_the_end(attempt)

    assert seen.ended == {0: Ending(how=how)}


async def test_stop_ends_a_rank_by_asking_it(workers: WorkerPool, place: Place) -> None:
    attempt = await workers.attempt("1", 1, ranks=1)
    await attempt.start(place.order({"do": "say", "text": "here\n"}, LONG))
    seen = await until_said(attempt, "here")

    await attempt.stop(grace_s=10.0)

    assert (await to_the_end(attempt, seen)).ended == {0: Ending(how="was killed by signal 15", by_stop=True)}


async def test_stop_ends_even_a_rank_that_does_not_listen_and_may_be_called_again_and_at_once(workers: WorkerPool, place: Place) -> None:
    attempt = await workers.attempt("1", 1, ranks=1)
    await attempt.start(place.order({"do": "stubborn"}, {"do": "say", "text": "deaf\n"}, LONG))
    seen = await until_said(attempt, "deaf")

    await asyncio.gather(attempt.stop(grace_s=0.1), attempt.stop(grace_s=0.1))
    await attempt.stop()

    assert (await to_the_end(attempt, seen)).ended == {0: Ending(how="was killed by signal 9")}


async def test_a_patient_stop_lets_a_rank_end_by_itself(workers: WorkerPool, place: Place) -> None:
    attempt = await workers.attempt("1", 1, ranks=1)
    await attempt.start(place.order({"do": "wait", "seconds": 0.2}))

    await attempt.stop(patience_s=WAIT_S)

    assert len((await to_the_end(attempt)).of(Finished)) == 1


async def test_nothing_starts_in_an_attempt_that_was_stopped_and_it_comes_to_an_end(workers: WorkerPool, place: Place) -> None:
    attempt = await workers.attempt("1", 1, ranks=2)
    await attempt.stop()

    await attempt.start(place.order(LONG, ranks=2))
    seen = await to_the_end(attempt)

    assert seen.began == []
    assert {ending.how for ending in seen.ended.values()} == {"was not started"}
    assert len(seen.ended) == 2


async def test_a_start_that_fails_leaves_an_attempt_that_can_be_stopped(workers: WorkerPool, place: Place) -> None:
    attempt = await workers.attempt("1", 1, ranks=1)
    order = place.order()
    (place.state / "jobs" / "1" / "attempt-1").write_bytes(b"no folder")  # where the local pool wants one
    order.payload.unlink()  # which the stub pool reads

    with pytest.raises((OSError, RuntimeError)):
        await attempt.start(order)

    (place.state / "jobs" / "1" / "attempt-1").unlink()
    await attempt.stop()
    assert (await to_the_end(attempt)).ended == {0: Ending(how="was not started")}


async def test_a_new_attempt_finds_nothing_of_an_earlier_one_of_its_number(workers: WorkerPool, place: Place) -> None:
    first = await workers.attempt("1", 1, ranks=1)
    await first.start(place.order({"do": "say", "text": "old\n"}))
    await to_the_end(first)

    second = await workers.attempt("1", 1, ranks=1)

    assert not second.is_started
    assert not (await second.result()).exists()
    await second.start(place.order({"do": "say", "text": "new\n"}))
    assert (await to_the_end(second)).of(Output) == [Output(text="new")]


async def test_clear_removes_what_an_attempt_left_outside_the_jobs_folder(workers: WorkerPool, place: Place) -> None:
    attempt = await workers.attempt("1", 1, ranks=1)
    await attempt.start(place.order())
    await to_the_end(attempt)
    assert [left.number for left in await workers.attempts_of("1")] == [1]

    await attempt.clear()
    await attempt.clear()

    assert not (await attempt.result()).exists()
    assert await workers.attempts_of("1") == []


async def test_attempts_of_a_job_are_found_and_can_be_ended_without_a_handle(workers: WorkerPool, place: Place) -> None:
    for number in (1, 2):
        attempt = await workers.attempt("1", number, ranks=1)
        await attempt.start(place.order(LONG))
    other = await workers.attempt("2", 1, ranks=1)
    (place.state / "jobs" / "2").mkdir()
    await other.start(place.order(LONG))

    left = await workers.attempts_of("1")

    assert sorted((each.job, each.number) for each in left) == [("1", 1), ("1", 2)]
    for each in left:
        await each.stop(grace_s=0.0)
        await each.clear()
    assert await workers.attempts_of("1") == []
    assert [each.number for each in await workers.attempts_of("2")] == [1]
    await other.stop(grace_s=0.0)


async def test_an_attempt_is_adopted_where_it_was_read_up_to_or_has_ended(workers: WorkerPool, place: Place) -> None:
    first = await workers.attempt("1", 1, ranks=1)
    await first.start(place.order({"do": "say", "text": "before\n"}, {"do": "wait", "seconds": 1.0}, {"do": "say", "text": "after\n"}))
    offsets = (await until_said(first, "before")).offsets
    later = place.pool()  # as of a server that was started after the first was killed

    adopted = await later.adopt("1", 1, ranks=1, offsets=offsets)
    seen = await to_the_end(adopted)

    assert list(seen.ended) == [0]
    if later.survives_server_restart:
        assert seen.began == []
        assert seen.of(Output) == [Output(text="after")]
        assert len(seen.of(Finished)) == 1
    else:
        assert (seen.said, adopted.is_started) == ([], False)
    assert [each.number for each in await later.attempts_of("1")] == [1]
    await first.stop(grace_s=0.0)


async def test_after_close_no_rank_lives_whether_it_was_stopped_or_not(place: Place) -> None:
    pool = place.pool()
    attempt = await pool.attempt("1", 1, ranks=2)
    await attempt.start(place.order(LONG, ranks=2))

    await pool.close()
    await pool.close()

    assert processes_of(place.state) == []
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("stub rank")] == []
