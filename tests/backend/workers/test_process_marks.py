"""Who a process is stays the same whatever happens to the clock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from aiaas_magics.backend.serving.process.state_directory import RunningProcess
from aiaas_magics.backend.serving.process.state_directory import is_alive as inference_process_is_alive
from aiaas_magics.backend.training.comm.shared_memory_group import SharedMemoryGroup
from aiaas_magics.client import local_server
from aiaas_magics.core import process_id
from aiaas_magics.core.contract import ServerNote
from aiaas_magics.core.process_id import ProcessId

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system keeps the time of a start, and does not work it out")


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock has been set by five seconds since every process here began: psutil works the boot time out anew."""
    from psutil import _pslinux

    boot_time = _pslinux.boot_time
    began = psutil.Process().create_time()
    monkeypatch.setattr(_pslinux, "boot_time", lambda: boot_time() + 5.0)
    assert psutil.Process().create_time() == pytest.approx(began + 5.0), "the fixture has an effect"


ME = ProcessId.of(os.getpid())


@pytest.mark.usefixtures("stepped")
def test_a_clock_that_is_set_makes_no_process_another() -> None:
    assert ME.is_alive()
    running = RunningProcess(pid=ME.pid, started=ME.started, url="", host="", tls="", control="", secret="", version="")
    assert inference_process_is_alive(running)
    assert local_server._process(ServerNote(pid=ME.pid, started=ME.started, url="")) == psutil.Process()


def test_a_clock_that_is_set_makes_no_rank_missing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with SharedMemoryGroup(rank=0, ranks=1, name="aiaas-test-stepped", folder=tmp_path) as group:
        request.getfixturevalue("stepped")

        assert group._why_missing(0) == ""


def test_a_pid_that_is_used_again_or_in_another_boot_is_another_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not process_id.is_alive(ME.pid, started=ME.started - 1)
    assert not process_id.is_alive(ME.pid, started=int(psutil.Process().create_time())), "as it was written once"

    boot = tmp_path / "boot_id"
    boot.write_text("the next one")
    monkeypatch.setattr(process_id, "BOOT_ID", boot)
    process_id._boot.cache_clear()
    try:
        assert not ME.is_alive()
    finally:
        process_id._boot.cache_clear()


@pytest.mark.process
def test_a_process_may_have_any_name_and_is_gone_when_it_has_ended(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "600"]) as process:
        started = process_id.start_mark(process.pid)
        assert 0 < started < 2**63
        assert process_id.is_alive(process.pid, started=started)

        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

        assert not process_id.is_alive(process.pid, started=started), "it is dead, and not reaped"
    assert not process_id.is_alive(process.pid, started=started)
    with pytest.raises(psutil.NoSuchProcess):
        process_id.start_mark(process.pid)
