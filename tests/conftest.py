"""What every test stands on: a state folder of the session's own, and nothing left behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests.support import lanes
from tests.support.launchers import FORKED, python_path
from tests.support.packed import cell, worker

__all__ = ["cell", "worker"]  # fixtures

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.pop("AIAAS_BACKEND", None)
os.environ.pop("AIAAS_TOKEN", None)
# How long an example takes says how busy the machine is; the tests judge what comes out.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")

ENDED_S = 5.0  # what waits for a launcher hears of its end a moment later


def pytest_configure(config: pytest.Config) -> None:
    if lanes.is_quick(config):
        config.pluginmanager.register(lanes.ProcessGuard())


@pytest.hookimpl(tryfirst=True)  # before markers choose
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lanes.arrange(items)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """AIAAS_HOME for the whole session; its local server ends with it, and no process of it is left."""
    folder = tmp_path_factory.mktemp("home")
    os.environ["AIAAS_HOME"] = str(folder)
    if sys.platform == "linux":
        share_launchers(tmp_path_factory.mktemp("launchers"))
    yield folder
    from aiaas_magics.client import local_server

    local_server.stop_local()
    _, left = psutil.wait_procs(processes_of(folder), timeout=ENDED_S)
    for process in left:
        process.kill()
    assert left == [], f"left behind: {left}"


def share_launchers(folder: Path) -> None:
    """Every launcher of workers that this session starts is forked from one process that has imported the libraries."""
    os.environ[FORKED], os.environ["AIAAS_TEST_SESSION"] = str(folder), str(os.getpid())
    os.environ["PYTHONPATH"] = python_path(Path(__file__).parent / "support" / "preloaded")


def processes_of(folder: Path) -> list[psutil.Process]:
    """Living processes whose command line or working directory names `folder`."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        told = " ".join(process.info["cmdline"] or ()) + " " + (process.info["cwd"] or "")
        if str(folder) in told and process.pid != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found
