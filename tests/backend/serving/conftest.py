"""Fixtures: one inference process a session for whatever leaves it as it was, a fresh one for what does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backend.serving.support import serving_models
from tests.backend.serving.support.serving_models import Made
from tests.backend.serving.support.serving_rig import Rig


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keras' own exports, made by a process of its own."""
    folder = tmp_path_factory.mktemp("exports")
    subprocess.run([sys.executable, serving_models.__file__, str(folder)], check=True, capture_output=True, timeout=240)
    return folder


@pytest.fixture(scope="session")
def article(exports: Path) -> Made:
    return Made(serving_models.article_spec(), exports / "article.onnx", exports / "article.safetensors")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A process with a model for each kind of value; tests that share it leave its endpoints alone."""
    folder = tmp_path_factory.mktemp("models")
    with Rig(tmp_path_factory.mktemp("state")) as rig:
        for dtype in serving_models.ONNX_TYPES:
            rig.load(serving_models.echo(folder, f"echo-{dtype}", dtype, 2))
        rig.load(serving_models.echo(folder, "scalar", "float32"))
        rig.load(serving_models.sums(folder, "sums"))
        rig.load(serving_models.lookup(folder, "lookup"))
        rig.load(serving_models.plus(folder, "plus", 1.0), 3)
        yield rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A process that the test may do anything with."""
    with Rig(tmp_path / "state") as rig:
        yield rig
