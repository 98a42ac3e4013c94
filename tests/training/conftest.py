"""A launcher for the ranks of these tests: forking one costs a second where importing the libraries costs eight."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aiaas_magics.backend.workers.launching import LauncherClient
from tests.training import ranks


@pytest.fixture(scope="session", autouse=True)
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Started by the first test that wants ranks."""
    ranks.launchers.append(LauncherClient(tmp_path_factory.mktemp("launcher")))
    yield
    ranks.launchers.pop().stop()
