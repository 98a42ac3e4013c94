"""Local pool: what it promises beyond every pool, seen on real processes that play scripts."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.backend.workers.local import launcher_client
from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder, Exit, RunningLauncher, read_value, write_value
from aiaas_magics.backend.workers.local.launcher import LOOK_S
from aiaas_magics.backend.workers.local.launcher_client import LauncherClient, LauncherGone
from aiaas_magics.backend.workers.local.local_attempt import clear, stop_ranks
from aiaas_magics.backend.workers.local.local_pool import LocalPool
from aiaas_magics.core.process_id import ProcessId
from aiaas_magics.core.settings import package_version
from aiaas_magics.testing.scripted_server import SCRIPTED
from tests.conftest import processes_of

pytestmark = pytest.mark.process

WAIT_S = 20.0


async def until(there: Callable[[], Any], otherwise: str) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if found := there():
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(otherwise)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[LocalPool]:
    pool = LocalPool(tmp_path, launcher_options=SCRIPTED)
    yield pool
    await pool.close()
    assert processes_of(tmp_path) == []


def attempt(folder: Path, *steps: dict[str, Any], ranks: int = 1, number: int = 1) -> tuple[AttemptFolder, list[WorkerCommand]]:
    found = AttemptFolder(folder / "jobs" / "1" / f"attempt-{number}")
    found.path.mkdir(parents=True)
    payload = found.path / "payload"
    payload.write_text(json.dumps(steps))
    return found, [
        WorkerCommand(
            job="1",
            attempt=number,
            rank=rank,
            ranks=ranks,
            attempt_dir=str(found.path),
            job_dir=str(found.path.parent),
            payload=str(payload),
            arrays=(),
            seed=1,
            reduce_name=f"aiaas-test-{os.getpid()}-{number}",
        )
        for rank in range(ranks)
    ]


def shared(command: WorkerCommand) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{command.reduce_name}*"))


LONG = {"do": "wait", "seconds": 600}


async def test_a_rank_runs_to_its_end_and_leaves_its_exit(pool: LocalPool, tmp_path: Path) -> None:
    folder, commands = attempt(tmp_path, {"do": "say", "text": "hello\n"}, ranks=2)

    await pool.start_ranks(folder, commands)

    await until(lambda: folder.ending(0) and folder.ending(1), "the ranks did not end")
    assert read_value(folder.exit(1), Exit) == Exit(code=0)
    assert folder.output(0).read_text() == "hello\n"
    assert folder.result.exists()


async def test_when_start_returns_the_processes_exist_and_lead_groups_of_their_own(pool: LocalPool, tmp_path: Path) -> None:
    folder, commands = attempt(tmp_path, LONG, ranks=2)

    await pool.start_ranks(folder, commands)

    processes = [folder.process(rank) for rank in range(2)]
    assert all(process is not None and process.is_alive() for process in processes)
    await until(lambda: all(os.getsid(p.pid) == p.pid for p in processes if p), "they stayed in the launcher's session")
    await stop_ranks(folder, ranks=2)


async def test_a_killed_rank_is_known_by_its_signal(pool: LocalPool, tmp_path: Path) -> None:
    folder, commands = attempt(tmp_path, LONG)
    await pool.start_ranks(folder, commands)
    process = folder.process(0)
    assert process is not None

    os.kill(process.pid, signal.SIGKILL)

    ending = await until(lambda: read_value(folder.exit(0), Exit), "nobody reaped it")
    assert ending == Exit(signal=9)
    assert ending.how == "was killed by signal 9"


async def test_what_the_users_code_started_dies_with_its_rank(pool: LocalPool, tmp_path: Path) -> None:
    folder, commands = attempt(tmp_path, {"do": "daemonise"}, {"do": "say", "text": "done\n"}, LONG)
    await pool.start_ranks(folder, commands)
    await until(lambda: folder.output(0).exists() and folder.output(0).read_text(), "it did not begin")
    sleepers = [process for process in processes_of(folder.path) if "-c" in process.cmdline()]
    assert len(sleepers) == 1

    await stop_ranks(folder, ranks=1)

    await until(lambda: not any(process.is_running() for process in sleepers), "the user's process outlived its rank")


async def test_clearing_removes_the_folder_and_the_shared_memory(pool: LocalPool, tmp_path: Path) -> None:
    folder, commands = attempt(tmp_path, {"do": "share"})
    await pool.start_ranks(folder, commands)
    await until(lambda: folder.ending(0), "the rank did not end")
    assert shared(commands[0])

    clear(folder)

    assert not shared(commands[0])
    assert not folder.path.exists()


async def test_a_pool_of_another_server_finds_the_launcher_and_the_processes(pool: LocalPool, tmp_path: Path) -> None:
    folder, commands = attempt(tmp_path, LONG)
    await pool.start_ranks(folder, commands)
    told = tmp_path / "launcher" / "launcher.json"
    before = told.read_bytes()

    other = LocalPool(tmp_path, launcher_options=SCRIPTED)
    second, more = attempt(tmp_path, number=2)
    await other.start_ranks(second, more)

    assert told.read_bytes() == before
    await stop_ranks(folder, ranks=1)
    await until(lambda: folder.ending(0), "its launcher did not say how it ended")


async def test_a_dead_launcher_is_replaced_and_its_ranks_go_on(pool: LocalPool, tmp_path: Path) -> None:
    folder, commands = attempt(tmp_path, LONG)
    await pool.start_ranks(folder, commands)
    launcher = read_value(tmp_path / "launcher" / "launcher.json", RunningLauncher)
    assert launcher is not None
    os.kill(launcher.process.pid, signal.SIGKILL)
    second, more = attempt(tmp_path, number=2)

    await pool.start_ranks(second, more)

    await until(lambda: second.ending(0), "the second attempt did not end")
    assert folder.ending(0) is None
    process = folder.process(0)
    await stop_ranks(folder, ranks=1)
    assert process is not None
    assert not process.is_alive()
    assert folder.ending(0) is None  # nobody was there to see how it ended


async def test_a_launcher_without_descriptors_goes_on_when_it_has_some_again(pool: LocalPool, tmp_path: Path) -> None:
    folder, commands = attempt(tmp_path)
    await pool.start_ranks(folder, commands)
    await until(lambda: folder.ending(0), "the first attempt did not end")
    launcher = read_value(tmp_path / "launcher" / "launcher.json", RunningLauncher)
    assert launcher is not None
    limits = resource.prlimit(launcher.process.pid, resource.RLIMIT_NOFILE)

    resource.prlimit(launcher.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    second, more = attempt(tmp_path, number=2)
    starting = asyncio.ensure_future(pool.start_ranks(second, more))
    await asyncio.sleep(1.5 * LOOK_S)  # it looks for its folder meanwhile
    resource.prlimit(launcher.process.pid, resource.RLIMIT_NOFILE, limits)
    await starting

    assert await until(lambda: second.ending(0), "the second attempt did not end") == Exit(code=0)
    assert read_value(tmp_path / "launcher" / "launcher.json", RunningLauncher) == launcher


async def test_a_stopped_launcher_is_replaced_and_its_ranks_go_on(pool: LocalPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher_client, "STOPPED_S", 0.2)
    folder, commands = attempt(tmp_path, LONG)
    await pool.start_ranks(folder, commands)
    launcher = read_value(tmp_path / "launcher" / "launcher.json", RunningLauncher)
    assert launcher is not None
    os.kill(launcher.process.pid, signal.SIGSTOP)
    second, more = attempt(tmp_path, number=2)

    await pool.start_ranks(second, more)

    await until(lambda: second.ending(0), "the second attempt did not end")
    assert not launcher.process.is_alive()
    process = folder.process(0)
    assert process is not None
    assert process.is_alive()
    await stop_ranks(folder, ranks=1)


async def test_a_launcher_that_is_stopped_for_a_moment_is_waited_for(pool: LocalPool, tmp_path: Path) -> None:
    pool.warm()
    told = tmp_path / "launcher" / "launcher.json"
    launcher = await until(lambda: read_value(told, RunningLauncher), "it did not come up")
    os.kill(launcher.process.pid, signal.SIGSTOP)
    asyncio.get_running_loop().call_later(1.2, os.kill, launcher.process.pid, signal.SIGCONT)
    folder, commands = attempt(tmp_path)

    await pool.start_ranks(folder, commands)

    await until(lambda: folder.ending(0), "the attempt did not end")
    assert read_value(told, RunningLauncher) == launcher


def test_a_launcher_that_answered_once_and_answers_no_more_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher_client, "ANSWER_S", 0.3)
    monkeypatch.setattr(launcher_client, "READY_S", 1.5)
    monkeypatch.setattr(launcher_client, "SILENT_LOOK_S", 0.1)
    with socket.socket(socket.AF_UNIX) as listener, subprocess.Popen(["sleep", "600"]) as process:
        listener.bind(str(tmp_path / "deaf.sock"))
        listener.listen(1)
        deaf = RunningLauncher(process=ProcessId.of(process.pid), socket="deaf.sock", version=package_version(), entry="")
        write_value(tmp_path / "launcher.json", deaf)
        client = LauncherClient(tmp_path)

        with pytest.raises(TimeoutError, match=r"did not answer within 1\.5 s"):  # it may be importing still
            client.ask({"ping": True})
        assert process.poll() is None
        client._ready = deaf.process
        with pytest.raises(LauncherGone, match=r"did not answer for 0\.3 s"):
            client.ask({"ping": True})

        assert process.wait(10) == -signal.SIGKILL


async def test_a_launcher_that_cannot_start_says_why(tmp_path: Path) -> None:
    broken = LocalPool(tmp_path, launcher_options=("--preload", "no_such_module"))
    folder, commands = attempt(tmp_path)

    with pytest.raises((RuntimeError, OSError), match=r"no_such_module|launcher"):
        await broken.start_ranks(folder, commands)

    await broken.close()


async def test_a_folder_with_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    pool = LocalPool(deep, launcher_options=SCRIPTED)
    folder, commands = attempt(tmp_path)

    await pool.start_ranks(folder, commands)

    await until(lambda: folder.ending(0), "the rank did not end")
    await pool.close()
    assert processes_of(tmp_path) == []


async def test_a_launcher_ends_by_itself_when_nobody_asks(tmp_path: Path) -> None:
    pool = LocalPool(tmp_path, launcher_options=(*SCRIPTED, "--idle-s", "0.1"))
    folder, commands = attempt(tmp_path)

    await pool.start_ranks(folder, commands)

    await until(lambda: not processes_of(tmp_path / "launcher"), "the launcher stayed")
    assert not list((tmp_path / "launcher").glob("*.sock"))
    await pool.close()


def test_a_launcher_that_has_just_taken_its_socket_away_is_gone_so_that_it_is_asked_again(tmp_path: Path) -> None:
    me = RunningLauncher(process=ProcessId.of(os.getpid()), socket="launcher-gone.sock", version=package_version(), entry="")
    write_value(tmp_path / "launcher.json", me)

    with pytest.raises(LauncherGone):
        LauncherClient(tmp_path).ask({"ping": True})


async def test_without_fork_a_rank_is_a_fresh_process_with_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiaas_magics.backend.workers.local.spawn.MODULE", "aiaas_magics.testing.scripted_worker")
    pool = LocalPool(tmp_path, fork=False)
    folder, commands = attempt(tmp_path, {"do": "exit", "code": 5})

    await pool.start_ranks(folder, commands)

    assert isinstance(folder.process(0), ProcessId)
    ending = await until(lambda: read_value(folder.exit(0), Exit), "nobody reaped it")
    assert ending == Exit(code=5)
    await pool.close()
