"""What the tests of training share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from aiaas_magics.backend.workers.local.launcher_client import LauncherClient
from aiaas_magics.backend.workers.local.local_pool import LocalPool
from tests.support.launchers import launcher_in


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPool]:
    """Ranks are forked, so that an attempt costs a second instead of the libraries' import."""
    pool = LocalPool(tmp_path_factory.mktemp("launcher"))
    yield pool
    asyncio.run(pool.close())


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LauncherClient]:
    """For `ranks.carry_out`: its processes train many fit calls each."""
    with launcher_in(tmp_path_factory.mktemp("cases"), module="tests.backend.training.run_cases") as launcher:
        yield launcher
