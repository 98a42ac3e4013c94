"""Who a process is stays the same whatever happens to the clock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from aiaas_magics import processes
from aiaas_magics.backend.serving.files import Started
from aiaas_magics.backend.serving.files import is_alive as front_end_is_alive
from aiaas_magics.backend.training.group import Group
from aiaas_magics.backend.workers.attempt import ProcessId
from aiaas_magics.client import embedded

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
    assert front_end_is_alive(Started(pid=ME.pid, started=ME.started))
    assert embedded._process(embedded._Serving(pid=ME.pid, started=ME.started, url="")) == psutil.Process()


def test_a_clock_that_is_set_makes_no_rank_missing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with Group(rank=0, ranks=1, name="aiaas-test-stepped", folder=tmp_path) as group:
        request.getfixturevalue("stepped")

        assert group._why_missing(0) == ""


def test_a_pid_that_is_used_again_or_in_another_boot_is_another_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not processes.is_alive(ME.pid, started=ME.started - 1)
    assert not processes.is_alive(ME.pid, started=int(psutil.Process().create_time())), "as it was written once"

    boot = tmp_path / "boot_id"
    boot.write_text("the next one")
    monkeypatch.setattr(processes, "BOOT_ID", boot)
    processes._boot.cache_clear()
    try:
        assert not ME.is_alive()
    finally:
        processes._boot.cache_clear()


@pytest.mark.process
def test_a_process_may_have_any_name_and_is_gone_when_it_has_ended(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "600"]) as process:
        started = processes.start_mark(process.pid)
        assert 0 < started < 2**63
        assert processes.is_alive(process.pid, started=started)

        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

        assert not processes.is_alive(process.pid, started=started), "it is dead, and not reaped"
    assert not processes.is_alive(process.pid, started=started)
    with pytest.raises(psutil.NoSuchProcess):
        processes.start_mark(process.pid)
