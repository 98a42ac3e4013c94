"""Local pool: workers as processes of this machine.

Owns writing the command files, having the launcher start the processes (or spawning them
where there is no fork), ending them, and removing what they left. Reading what they write
belongs to `attempt_watch`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from aiaas_magics.backend.folders.small_files import is_no_room
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.backend.workers.local.attempt_folder import COMMAND_BYTES, REDUCE_NAME, AttemptFolder, ProcessId, read_value, write_value
from aiaas_magics.backend.workers.local.launcher_client import LauncherClient, LauncherGone
from aiaas_magics.backend.workers.local.spawn import spawn
from aiaas_magics.core.engines import ENGINES, HOME, EngineInfo

LOOK_S: Final = 0.01  # ending is waited for by looking; a look is a read of /proc
ASK_WAITS_S: Final = (0.1, 0.5)  # a killed process closes its sockets some moments before it is seen dead
KILLED_S: Final = 10.0  # what the kernel gets to end a killed process; guess
SHARED_MEMORY: Final = Path("/dev/shm")  # where POSIX shared memory is files (Linux)


class LocalPool:
    """See `pool.WorkerPool`. `folder` is where the launcher keeps its socket, its file and its log."""

    survives_server_restart = True

    def __init__(self, folder: Path, *, launcher_options: Sequence[str] = (), fork: bool = hasattr(os, "fork")) -> None:
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

    def warm(self) -> None:
        if self._launchers and self._warming is None:
            self._warming = asyncio.create_task(self._warm(), name="warm the launcher")

    async def _warm(self) -> None:
        # Whatever is wrong with the launcher is told to whoever wants to start an attempt.
        with contextlib.suppress(OSError, TimeoutError, RuntimeError):
            await self._ask_launcher(HOME, {"ping": True})

    async def start(self, folder: AttemptFolder, commands: Sequence[WorkerCommand], /) -> None:
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

    async def keep_warm(self) -> None:
        """Tell the launcher that jobs fork from as a rule that it is still wanted; it would end by itself otherwise."""
        launcher = self._launchers.get(HOME.name)
        if launcher is not None and launcher.running() is not None:
            with contextlib.suppress(OSError, TimeoutError, RuntimeError):
                await asyncio.to_thread(launcher.ask, {"ping": True})

    def reap(self) -> None:
        """Collect launchers that have ended by themselves; until a job wants one again nobody else looks."""
        for launcher in self._launchers.values():
            launcher.running()

    async def stop(self, folder: AttemptFolder, /, *, ranks: int, patience_s: float = 0.0, grace_s: float = 1.0) -> None:
        try:
            folder.stop.touch(mode=0o600)
        except FileNotFoundError:  # an attempt that was cleared has no process
            pass
        except OSError as error:  # on a full disk the processes that there are end all the same
            if not is_no_room(error):
                raise
        if await self._until_gone(folder, ranks, patience_s):
            return
        _signal_all(folder, ranks, signal.SIGTERM)
        if await self._until_gone(folder, ranks, grace_s):
            return
        _signal_all(folder, ranks, getattr(signal, "SIGKILL", signal.SIGTERM))
        if not await self._until_gone(folder, ranks, KILLED_S):
            raise TimeoutError(f"processes of {folder.path.name} are alive {KILLED_S:g} s after they were killed")

    async def _until_gone(self, folder: AttemptFolder, ranks: int, wait_s: float) -> bool:
        deadline = time.monotonic() + wait_s
        while _living(folder, ranks):
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    async def clear(self, folder: AttemptFolder, /) -> None:
        await asyncio.to_thread(_clear, folder)

    async def close(self) -> None:
        if self._warming is not None:
            self._warming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._warming
        for launcher in self._launchers.values():
            await asyncio.to_thread(launcher.stop)


def _living(folder: AttemptFolder, ranks: int) -> list[ProcessId]:
    processes = (folder.process(rank) for rank in range(ranks) if not folder.exit(rank).exists())
    return [process for process in processes if process is not None and process.is_alive()]


def _signal_all(folder: AttemptFolder, ranks: int, number: int) -> None:
    """From the highest rank down: rank 0 owns the checkpoint and shall be the last to go."""
    for process in reversed(_living(folder, ranks)):
        if sys.platform == "win32":
            with contextlib.suppress(psutil.Error):
                psutil.Process(process.pid).kill()
            continue
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # it does not lead its group yet, or it is gone
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


def _clear(folder: AttemptFolder) -> None:
    for path in folder.path.glob("command-*.json"):
        command = read_value(path, WorkerCommand, most_bytes=COMMAND_BYTES)
        if command is not None and REDUCE_NAME.fullmatch(command.reduce_name) and SHARED_MEMORY.is_dir():
            for segment in SHARED_MEMORY.glob(f"{command.reduce_name}*"):
                segment.unlink(missing_ok=True)
    shutil.rmtree(folder.path, ignore_errors=True)
