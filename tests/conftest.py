"""What every test stands on: a state folder of the session's own, and nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests import lanes
from tests.packed import cell, worker

__all__ = ["cell", "worker"]  # fixtures

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.pop("AIAAS_BACKEND", None)
os.environ.pop("AIAAS_TOKEN", None)
# How long an example takes says how busy the machine is; the tests judge what comes out.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")


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
    yield folder
    from aiaas_magics.client import embedded

    embedded.stop_local()
    left = processes_of(folder)
    for process in left:
        process.kill()
    assert left == [], f"left behind: {left}"


def processes_of(folder: Path) -> list[psutil.Process]:
    """Living processes whose command line or working directory names `folder`."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        told = " ".join(process.info["cmdline"] or ()) + " " + (process.info["cwd"] or "")
        if str(folder) in told and process.pid != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found
