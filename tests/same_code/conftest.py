"""A real kernel for the tests that need one: all of this folder share it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.backend.training.conftest import cases
from tests.notebook.conftest import Kernel, started

__all__ = ["cases"]  # a fixture


@pytest.fixture(scope="session")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    yield from started(tmp_path_factory.mktemp("same_code"))
