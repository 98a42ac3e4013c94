"""Local pool: workers as processes of this machine.

Owns the launchers, and having them start processes (or spawning these where there is no fork).
What an attempt is here belongs to `local_attempt`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder, write_value
from aiaas_magics.backend.workers.local.launcher_client import LauncherClient, LauncherGone
from aiaas_magics.backend.workers.local.local_attempt import LocalAttempt
from aiaas_magics.backend.workers.local.spawn import spawn
from aiaas_magics.backend.workers.pool import PoolSetting
from aiaas_magics.core.engines import ENGINES, HOME, EngineInfo

ASK_WAITS_S: Final = (0.1, 0.5)  # a killed process closes its sockets some moments before it is seen dead
ATTEMPT: Final = re.compile(r"attempt-(\d+)", re.ASCII)


class LocalPool:
    """See `pool.WorkerPool`. Below `state`, attempts live in jobs/<id>/, and the launcher's socket, file and log in launcher/."""

    survives_server_restart = True

    def __init__(self, state: Path, *, launcher_options: Sequence[str] = (), fork: bool = hasattr(os, "fork")) -> None:
        self._jobs, self._choices, folder = state / "jobs", state / "choices", state / "launcher"
        # Each engine has a launcher of its own, started by the first job that wants it: Keras runs on one backend per process.
        folders = {info.name: folder if info is HOME else folder / info.name for info in ENGINES.values()}
        for needed in folders.values():
            needed.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._launchers = {
            info.name: LauncherClient(folders[info.name], options=launcher_options, backend=info.keras_backend)
            for info in ENGINES.values()
            if fork
        }
        self._lock = asyncio.Lock()
        self._warming: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, setting: PoolSetting) -> LocalPool:
        return cls(setting.state, launcher_options=setting.launcher_options)

    def warm(self) -> None:
        if self._launchers and self._warming is None:
            self._warming = asyncio.create_task(self._warm(), name="warm the launcher")

    async def _warm(self) -> None:
        # Whatever is wrong with the launcher is told to whoever wants to start an attempt.
        with contextlib.suppress(OSError, TimeoutError, RuntimeError):
            await self._ask_launcher(HOME, {"ping": True})

    async def start_ranks(self, folder: AttemptFolder, commands: Sequence[WorkerCommand], /) -> None:
        """Write the commands into the attempt's folder, which exists, and start a process for each."""
        for command in commands:
            write_value(folder.command(command.rank), command)
        paths = [folder.command(command.rank) for command in commands]
        engine = commands[0].execution.runs_on  # one for all ranks of an attempt
        if not self._launchers:
            for path in paths:
                await asyncio.to_thread(spawn, path, backend=engine.keras_backend)
        else:
            await self._ask_launcher(engine, {"commands": [str(path) for path in paths]})

    async def _ask_launcher(self, engine: EngineInfo, request: dict[str, object]) -> None:
        """Ask, and again when the launcher died over it. A rank that has its pid file is not started again."""
        launcher = self._launchers[engine.name]
        for wait_s in (*ASK_WAITS_S, None):
            async with self._lock:  # one launcher is started, however many attempts want it at once
                await asyncio.to_thread(launcher.ensure)
            try:
                await asyncio.to_thread(launcher.ask, request)
            except (ConnectionError, LauncherGone):
                if wait_s is None:
                    raise
                await asyncio.sleep(wait_s)
            else:
                return

    async def keep_house(self, *, is_wanted: bool) -> None:
        """Tell the launcher that jobs fork from as a rule that it is still wanted, and collect launchers that have ended by themselves."""
        launcher = self._launchers.get(HOME.name)
        if is_wanted and launcher is not None and launcher.running() is not None:
            with contextlib.suppress(OSError, TimeoutError, RuntimeError):
                await asyncio.to_thread(launcher.ask, {"ping": True})
        for launcher_client in self._launchers.values():  # until a job wants one again nobody else looks
            launcher_client.running()

    async def attempt(self, job: str, number: int, /, *, ranks: int) -> LocalAttempt:
        attempt = self._handle(job, number, ranks=ranks)
        await attempt.clear()
        return attempt

    async def adopt(self, job: str, number: int, /, *, ranks: int, offsets: Mapping[str, int]) -> LocalAttempt:
        return self._handle(job, number, ranks=ranks, offsets=offsets)

    async def attempts_of(self, job: str, /) -> Sequence[LocalAttempt]:
        """By the folders that stand there; an attempt has as many ranks as its folder has commands."""
        folder = self._jobs / job
        numbered = [(path, match) for path in sorted(folder.glob("attempt-*")) if (match := ATTEMPT.fullmatch(path.name))]
        return [self._handle(job, int(match[1]), ranks=len(list(path.glob("command-*.json")))) for path, match in numbered]

    def _handle(self, job: str, number: int, *, ranks: int, offsets: Mapping[str, int] | None = None) -> LocalAttempt:
        return LocalAttempt(self._jobs / job, number, ranks=ranks, start_ranks=self.start_ranks, choices=self._choices, offsets=offsets)

    async def close(self) -> None:
        if self._warming is not None:
            self._warming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._warming
        # Stopped attempts are cleared as a rule. What is left has run into trouble, and must not outlive the pool all the same.
        attempts = [attempt for job in self._jobs.glob("*") for attempt in await self.attempts_of(job.name)]
        ends = await asyncio.gather(*(attempt.stop(grace_s=0.0) for attempt in attempts), return_exceptions=True)
        for launcher in self._launchers.values():
            await asyncio.to_thread(launcher.stop)
        for end in ends:
            if isinstance(end, BaseException):
                raise end
