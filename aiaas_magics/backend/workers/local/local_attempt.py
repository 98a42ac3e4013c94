"""Local attempt: one try at a job, as processes of this machine and a folder between them and the server.

Owns the life of the folder, and ending the processes. Reading the folder belongs to `attempt_watch`, starting processes to `local_pool`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from aiaas_magics.backend.folders.small_files import is_no_room
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.backend.workers.attempt import AttemptNews, AttemptOrder, Ending
from aiaas_magics.backend.workers.local.attempt_folder import COMMAND_BYTES, EXIT_ALONE, REDUCE_NAME, AttemptFolder, Exit, read_value
from aiaas_magics.backend.workers.local.attempt_watch import STOPPED_S, AttemptWatch, FolderNews
from aiaas_magics.core.process_id import ProcessId

# How often an attempt's files are looked at. A view is redrawn four times a second, and a job's end should not
# be felt to wait; a look costs some stats and reads (0.1 ms a rank measured).
LOOK_S: Final = 0.05
END_LOOK_S: Final = 0.01  # ending is waited for by looking; a look is a read of /proc
KILLED_S: Final = 10.0  # what the kernel gets to end a killed process; guess
SHARED_MEMORY: Final = Path("/dev/shm")  # where POSIX shared memory is files (Linux)
PAUSED: Final = f"is stopped (SIGSTOP), and the other workers wait for it. The attempt ends in {STOPPED_S:g} s. Resume it with kill -CONT."

Start = Callable[[AttemptFolder, Sequence[WorkerCommand]], Awaitable[None]]


def choices_of(folder: Path, owner: str) -> Path:
    """Where what was measured for this user's jobs is kept, with traces beside it: nobody's fit runs what another's job has left.

    >>> choices_of(Path("state/choices"), ""), choices_of(Path("state/choices"), "ada")
    (PosixPath('state/choices'), PosixPath('state/owners/ada/choices'))
    """
    return folder.parent / "owners" / owner / folder.name if owner else folder


class LocalAttempt:
    """See `attempt.Attempt`. `start_ranks` is the pool's way to start processes."""

    def __init__(
        self, job_folder: Path, number: int, *, ranks: int, start_ranks: Start, choices: Path, offsets: Mapping[str, int] | None = None
    ) -> None:
        self.job, self.number = job_folder.name, number
        self.folder = AttemptFolder(job_folder / f"attempt-{number}")
        self._ranks, self._start_ranks, self._choices = ranks, start_ranks, choices
        self._watch = AttemptWatch(self.folder, ranks=ranks, offsets=dict(offsets or {}))
        self._is_stopped = False  # nothing of it runs, and nothing will start

    @property
    def is_started(self) -> bool:
        return all(self.folder.process(rank) is not None for rank in range(self._ranks))

    @property
    def is_over(self) -> bool:
        return self._watch.is_over

    async def start(self, order: AttemptOrder, /) -> None:
        if self._is_stopped:
            return
        self.folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        commands = order.commands(
            job=self.job,
            attempt=self.number,
            attempt_dir=self.folder.path,
            job_dir=self.folder.path.parent,
            reduce_name=f"aiaas-{secrets.token_hex(6)}",
            choices=choices_of(self._choices, order.owner),
        )
        await self._start_ranks(self.folder, tuple(commands))

    async def news(self) -> AttemptNews:
        while True:
            was_stopped = self._is_stopped
            folder_news = await asyncio.to_thread(self._watch.look)
            news = news_of(folder_news, is_stopping=self.folder.stop.exists())
            if was_stopped:
                news.ended += [(rank, Ending(how="was not started")) for rank in self._watch.end_unstarted()]
            if news or self.is_over:
                return news
            await asyncio.sleep(LOOK_S)

    async def stop(self, *, patience_s: float = 0.0, grace_s: float = 1.0) -> None:
        await stop_ranks(self.folder, ranks=self._ranks, patience_s=patience_s, grace_s=grace_s)
        self._is_stopped = True

    async def result(self) -> Path:
        return self.folder.result

    async def clear(self) -> None:
        await asyncio.to_thread(clear, self.folder)


def news_of(folder_news: FolderNews, *, is_stopping: bool) -> AttemptNews:
    """What a look into the folder brought, for whoever knows no folder. `is_stopping`: the attempt was told to end before it."""
    return AttemptNews(
        began=[(rank, process.pid) for rank, process in folder_news.began],
        lines=folder_news.lines,
        notices=[(rank, f"Worker {rank} {PAUSED}") for rank in folder_news.stopped],
        stuck=[(rank, f"was stopped (SIGSTOP) for {STOPPED_S:g} s") for rank in folder_news.stuck],
        ended=[(rank, ending_of(exit, is_stopping=is_stopping)) for rank, exit in folder_news.ended],
        offsets=folder_news.offsets,
    )


def ending_of(exit: Exit, *, is_stopping: bool) -> Ending:
    return Ending(
        how=exit.how,
        out_of_memory=exit.out_of_memory,
        alone=exit.code == EXIT_ALONE,
        by_stop=is_stopping and exit.signal == signal.SIGTERM,
    )


async def stop_ranks(folder: AttemptFolder, /, *, ranks: int, patience_s: float = 0.0, grace_s: float = 1.0) -> None:
    """See `Attempt.stop`.

    Raises:
        TimeoutError: a process is alive after it was killed.
    """
    try:
        folder.stop.touch(mode=0o600)
    except FileNotFoundError:  # an attempt that was cleared has no process
        pass
    except OSError as error:  # on a full disk the processes that there are end all the same
        if not is_no_room(error):
            raise
    if await _until_gone(folder, ranks, patience_s):
        return
    _signal_all(folder, ranks, signal.SIGTERM)
    if await _until_gone(folder, ranks, grace_s):
        return
    _signal_all(folder, ranks, getattr(signal, "SIGKILL", signal.SIGTERM))
    if not await _until_gone(folder, ranks, KILLED_S):
        raise TimeoutError(f"processes of {folder.path.name} are alive {KILLED_S:g} s after they were killed")


async def _until_gone(folder: AttemptFolder, ranks: int, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while _living(folder, ranks):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(END_LOOK_S)
    return True


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


def clear(folder: AttemptFolder) -> None:
    """Remove the folder, and the shared memory that its commands name."""
    for path in folder.path.glob("command-*.json"):
        command = read_value(path, WorkerCommand, most_bytes=COMMAND_BYTES)
        if command is not None and REDUCE_NAME.fullmatch(command.reduce_name) and SHARED_MEMORY.is_dir():
            for segment in SHARED_MEMORY.glob(f"{command.reduce_name}*"):
                segment.unlink(missing_ok=True)
    shutil.rmtree(folder.path, ignore_errors=True)
