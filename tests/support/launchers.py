"""Preloaded launchers, as the backend's, whose processes run code of the tests: starting one costs no import of the libraries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiaas_magics.backend.workers.local.launcher_client import LauncherClient
from aiaas_magics.core.engines import HOME

ROOT = Path(__file__).parents[2]
FORKED = "AIAAS_TEST_LAUNCHERS"  # the folder of the process that launchers are forked from; where it is set they are


def python_path(*folders: Path) -> str:
    """PYTHONPATH of a process of ours: `folders` before what it is here."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def launcher_in(folder: Path, *, module: str) -> Iterator[LauncherClient]:
    """One whose processes call `main` of `module` with the path of their command."""
    # All runs of one way are asked for at once, and may take longer than a launcher waits for the next job.
    options = ["--entry", f"{module}:main", "--preload", ",".join([*HOME.preload, module]), "--idle-s", "7200"]
    client = LauncherClient(folder, options=options)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", python_path(ROOT))
            client.ensure()
        yield client
    finally:
        client.stop()
