"""A worker that stands by takes the next command that it is made for, once; every other command gets a process of its own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec.structs import replace

from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder
from aiaas_magics.backend.workers.local.local_attempt import stop_ranks
from aiaas_magics.backend.workers.local.local_pool import LocalPool
from aiaas_magics.backend.workers.local.spare_worker import IDLE_S, Spare, cores_of
from aiaas_magics.core.execution import Execution
from tests.backend.workers.local.test_local_pool import LONG, attempt, until
from tests.conftest import processes_of
from tests.support.launchers import ROOT

pytestmark = pytest.mark.process

ENTRY = ("--entry", "tests.backend.workers.local.standing_by:main", "--preload", "tests.backend.workers.local.standing_by")
DONE: dict[str, Any] = {"do": "epochs", "count": 1}


@pytest.fixture
async def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalPool]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pool = LocalPool(tmp_path, launcher_options=ENTRY)
    yield pool
    await pool.close()
    await until(lambda: not processes_of(tmp_path), "a process was left")


async def started(pool: LocalPool, folder: Path, *steps: dict[str, Any], number: int, **changes: Any) -> AttemptFolder:
    there, commands = attempt(folder, *steps, number=number)
    await pool.start_ranks(there, [replace(command, **{"cores": (0,), "sets_environment": False} | changes) for command in commands])
    return there


async def ended(pool: LocalPool, folder: Path, *, number: int, **changes: Any) -> int:
    """A command that has run to its end: the process it ran in."""
    there = await started(pool, folder, DONE, number=number, **changes)
    await until(lambda: there.ending(0), "the worker did not end")
    process = there.process(0)
    assert process is not None
    assert there.ending(0).code == 0  # type: ignore[union-attr]
    return process.pid


def launcher_in(folder: Path) -> psutil.Process:
    return min(processes_of(folder / "launcher"), key=lambda process: process.create_time())


async def spare_in(folder: Path) -> psutil.Process:
    return (await until(lambda: launcher_in(folder).children(), "no worker stands by"))[0]


async def test_the_next_command_goes_to_the_worker_that_stands_by_and_the_one_after_it_to_another(pool: LocalPool, tmp_path: Path) -> None:
    first = await ended(pool, tmp_path, number=1)
    spare = await spare_in(tmp_path)

    second = await ended(pool, tmp_path, number=2)
    other = await spare_in(tmp_path)

    assert second == spare.pid
    assert len({first, second, other.pid}) == 3


@pytest.mark.parametrize("changes", [{"cores": (0, 1)}, {"sets_environment": True}, {"devices": 2}])
async def test_another_kind_of_command_gets_a_process_of_its_own(pool: LocalPool, tmp_path: Path, changes: dict[str, Any]) -> None:
    await ended(pool, tmp_path, number=1)
    spare = await spare_in(tmp_path)

    second = await ended(pool, tmp_path, number=2, **changes)

    assert second != spare.pid
    await until(lambda: not spare.is_running(), "the worker that nobody wanted was kept")


async def test_none_stands_by_while_a_worker_trains_and_what_it_runs_can_be_stopped(pool: LocalPool, tmp_path: Path) -> None:
    await ended(pool, tmp_path, number=1)
    spare = await spare_in(tmp_path)
    running = await started(pool, tmp_path, LONG, number=2)
    await until(lambda: running.events(0).exists(), "the worker did not begin")

    assert [process.pid for process in launcher_in(tmp_path).children()] == [spare.pid]
    await stop_ranks(running, ranks=1)

    ending = await until(lambda: running.ending(0), "its end was not seen")
    assert ending.signal is not None
    assert not spare.is_running()


async def test_one_that_dies_costs_the_next_command_nothing(pool: LocalPool, tmp_path: Path) -> None:
    await ended(pool, tmp_path, number=1)
    spare = await spare_in(tmp_path)
    spare.kill()

    assert await ended(pool, tmp_path, number=2) != spare.pid


async def test_one_that_cannot_be_made_ready_is_not_made_again_and_again(pool: LocalPool, tmp_path: Path) -> None:
    await ended(pool, tmp_path, number=1, cores=(0, 7))
    await until(lambda: not launcher_in(tmp_path).children(), "it is made again and again")

    assert await ended(pool, tmp_path, number=2, cores=(0, 7))


async def test_it_ends_with_its_launcher(pool: LocalPool, tmp_path: Path) -> None:
    await ended(pool, tmp_path, number=1)
    spare = await spare_in(tmp_path)

    launcher_in(tmp_path).kill()

    await until(lambda: not spare.is_running(), "it outlived its launcher")


def test_it_is_given_up_after_a_while() -> None:
    import socket

    now = [0.0]
    ours, theirs = socket.socketpair()
    spare = Spare(os.getpid(), ours, (0,), clock=lambda: now[0])
    now[0] = IDLE_S

    assert not spare.is_idle_for_long
    now[0] += 1.0
    assert spare.is_idle_for_long
    theirs.close()
    assert not spare.hand_over(Path("command-0.json"))  # it has ended


@pytest.mark.parametrize(
    "changes", [{"ranks": 2}, {"gpus": (0,)}, {"devices": 2}, {"sets_environment": True}, {"execution": Execution(engine="jax")}]
)
def test_what_counts_when_tensorflow_starts_makes_a_process_of_its_own_necessary(tmp_path: Path, changes: dict[str, Any]) -> None:
    from aiaas_magics.backend.workers.local.attempt_folder import write_value

    [command] = attempt(tmp_path, DONE)[1]
    plain: WorkerCommand = replace(command, cores=(0, 1), sets_environment=False)
    path = tmp_path / "command-0.json"

    write_value(path, plain)
    assert cores_of(path) == (0, 1)
    write_value(path, replace(plain, **changes))
    assert cores_of(path) is None
