"""Stub pool: attempts without a process, played within the server's own event loop.

Owns the same promises as any pool, for tests of what happens around workers. A payload is a script as `scripted_worker` has it;
steps that need a process of their own (files, signals to others, code) are refused at the start. Nothing outlives the server.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from aiaas_magics.backend.folders import checkpoint_folder
from aiaas_magics.backend.folders.checkpoint_folder import TrainingPosition
from aiaas_magics.backend.folders.job_folder import JobFolder
from aiaas_magics.backend.training.worker_command import WorkerLine
from aiaas_magics.backend.workers.attempt import AttemptNews, AttemptOrder, Ending
from aiaas_magics.backend.workers.pool import PoolSetting
from aiaas_magics.core.events import AnyEvent, Checkpointed, Crashed, EpochEnded, Finished, Output, Phase, PhaseEntered
from aiaas_magics.core.remote_error import ErrorReport

KILLED: Final = "was killed by signal 9"
PLAYED: Final = frozenset({"say", "wait", "epochs", "crash", "kill", "exit", "stubborn", "finish"})


class StubPool:
    """See `workers.pool.WorkerPool`. What an attempt leaves outside its job's folder stands in stub/ of the state folder."""

    survives_server_restart = False

    def __init__(self, setting: PoolSetting) -> None:
        self._state = setting.state
        self._attempts: dict[tuple[str, int], StubAttempt] = {}

    def warm(self) -> None:
        pass

    async def keep_house(self, *, is_wanted: bool) -> None:
        pass

    async def attempt(self, job: str, number: int, /, *, ranks: int) -> StubAttempt:
        attempt = StubAttempt(self._state, job, number, ranks=ranks)
        await attempt.clear()
        self._attempts[job, number] = attempt
        return attempt

    async def adopt(self, job: str, number: int, /, *, ranks: int, offsets: Mapping[str, int]) -> StubAttempt:
        """Its ranks were tasks of a server that is gone, or never were."""
        return StubAttempt(self._state, job, number, ranks=ranks, is_lost=True)

    async def attempts_of(self, job: str, /) -> Sequence[StubAttempt]:
        attempts = [attempt for (of, _), attempt in self._attempts.items() if of == job and attempt.has_left_something]
        leftover_names = [path.name.split("-") for path in sorted((self._state / "stub").glob(f"{job}-*"))]
        numbers = {attempt.number for attempt in attempts}
        return attempts + [StubAttempt(self._state, job, int(n), ranks=0, is_lost=True) for _, n in leftover_names if int(n) not in numbers]

    async def close(self) -> None:
        for attempt in self._attempts.values():
            await attempt.stop(grace_s=0.0)


class StubAttempt:
    """See `workers.attempt.Attempt`. Each rank is a task."""

    _pids: Iterator[int] = itertools.count(2**30)  # of no process

    def __init__(self, state: Path, job: str, number: int, *, ranks: int, is_lost: bool = False) -> None:
        self.job, self.number = job, number
        self._folder, self._job_folder = state / "stub" / f"{job}-{number}", JobFolder(state / "jobs" / job)
        self._open = set(range(ranks))
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._deaf: set[int] = set()  # ranks that do not listen when they are told to end
        self._news, self._has_news = AttemptNews(), asyncio.Event()
        self._is_stopped = False
        self._ranks = ranks
        for rank in range(ranks) if is_lost else ():
            self._end(rank, Ending(how="ended with the server that started it"))

    @property
    def is_started(self) -> bool:
        return len(self._tasks) == self._ranks

    @property
    def is_over(self) -> bool:
        return not self._open and not self._news

    @property
    def has_left_something(self) -> bool:
        return self._folder.exists() or any(not task.done() for task in self._tasks.values())

    async def start(self, order: AttemptOrder, /) -> None:
        if self._is_stopped:
            return
        script = json.loads(order.payload.read_bytes())
        if unknown := {step["do"] for step in script} - PLAYED:
            raise RuntimeError(f"the stub pool does not play {', '.join(sorted(unknown))}")
        self._folder.mkdir(parents=True, exist_ok=True)
        for rank in range(len(order.ranks)):
            self._news.began.append((rank, next(self._pids)))
            self._tasks[rank] = asyncio.create_task(self._run(rank, script, order), name=f"stub rank {rank} of job {self.job}")
        self._has_news.set()

    async def _run(self, rank: int, script: list[dict[str, Any]], order: AttemptOrder) -> None:
        try:
            ending = await self._play(rank, script, order)
        except asyncio.CancelledError as error:  # `stop` says how
            ending = Ending(how=error.args[0] if error.args else KILLED, by_stop=bool(error.args))
        self._end(rank, ending)

    async def _play(self, rank: int, script: list[dict[str, Any]], order: AttemptOrder) -> Ending:
        self._send(rank, PhaseEntered(phase=Phase.TRAINING))
        result = f"result of attempt {self.number}"
        for step in script:
            if rank not in step.get("ranks", [rank]) or self.number not in step.get("attempts", [self.number]):
                continue
            match step["do"]:
                case "say":
                    self._send(rank, Output(text=step["text"].removesuffix("\n")))
                case "wait":
                    await asyncio.sleep(step["seconds"])
                case "epochs":
                    await self._epochs(rank, step, order)
                case "stubborn":
                    self._deaf.add(rank)
                case "crash":
                    self._send(rank, Crashed(report=ErrorReport(type=step.get("type", "ValueError"), message=step.get("message", "no"))))
                    return Ending(how="exited with code 3 before it was done")
                case "kill":
                    return Ending(how=f"was killed by signal {int(step.get('signal', 9))}")
                case "exit":
                    return Ending(how=f"exited with code {int(step['code'])} before it was done")
                case "finish":
                    result = step.get("result", result)
                    break
        if rank == 0:
            (self._folder / "result").write_text(result, encoding="utf-8")
        self._send(rank, Finished())
        return Ending(how="exited with code 0 before it was done")

    async def _epochs(self, rank: int, step: dict[str, Any], order: AttemptOrder) -> None:
        resumed = TrainingPosition.of(order.resume_from) if order.resume_from else None
        for epoch in range(resumed.epoch if resumed else 0, count := step["count"]):
            await asyncio.sleep(step.get("seconds", 0.0))
            self._send(rank, EpochEnded(epoch=epoch, epochs=count, rows=10, seconds=0.01, logs={"loss": 1.0 / (epoch + 1)}))
            if rank == 0:
                with checkpoint_folder.written(self._job_folder.checkpoints, TrainingPosition(epoch + 1)) as folder:
                    (folder / checkpoint_folder.STATE).write_text('{"variables": []}', encoding="utf-8")
                self._send(rank, Checkpointed(epoch=epoch + 1))

    def _send(self, rank: int, event: AnyEvent) -> None:
        self._news.lines.append((rank, WorkerLine(at_s=time.time(), event=event)))
        self._has_news.set()

    def _end(self, rank: int, ending: Ending) -> None:
        if rank in self._open:
            self._open.discard(rank)
            self._news.ended.append((rank, ending))
            self._has_news.set()

    async def news(self) -> AttemptNews:
        while not self._news and self._open:
            self._has_news.clear()
            await self._has_news.wait()
        news, self._news = self._news, AttemptNews()
        return news

    async def stop(self, *, patience_s: float = 0.0, grace_s: float = 1.0) -> None:
        self._is_stopped = True
        await self._wait(patience_s)
        for rank, task in self._tasks.items():
            if rank not in self._deaf:
                task.cancel("was killed by signal 15")
        await self._wait(grace_s)
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for rank in list(self._open):
            self._end(rank, Ending(how="was not started"))

    async def _wait(self, wait_s: float) -> None:
        if left := [task for task in self._tasks.values() if not task.done()]:
            await asyncio.wait(left, timeout=wait_s)

    async def result(self) -> Path:
        return self._folder / "result"

    async def clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
