"""The JAX engine in an environment of its own that has no TensorFlow."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from aiaas_magics.core.engines import ENGINES
from benchmarks.environments import python_of
from tests.support.engine_jobs import carried_out
from tests.support.launchers import ROOT

NEEDED = {"cloudpickle", "keras", "ml_dtypes", "msgspec", "numpy", "psutil", "safetensors", "xxhash"}


def requirements() -> list[str]:
    """Of the package's own dependencies those that a worker imports, with JAX: as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    light = [line for line in project["dependencies"] if re.split(r"[<>=\[;]", line)[0] in NEEDED]
    assert len(light) == len(NEEDED)
    return [*light, *project["optional-dependencies"]["jax"]]


@pytest.mark.nightly
@pytest.mark.process
@pytest.mark.timeout(900)
def test_a_worker_without_tensorflow_trains_to_the_weights_of_plain_keras_on_jax(tmp_path: Path) -> None:
    python = python_of("no-tensorflow", requirements())
    absent = subprocess.run([str(python), "-c", "import tensorflow"], capture_output=True, text=True, timeout=60, check=False)

    outcomes = carried_out(ENGINES["jax"], tmp_path, python=str(python))

    assert "No module named 'tensorflow'" in absent.stderr
    assert outcomes.code == 0, outcomes.output[-6000:]
    for name in ("train-off", "train-xla", "several"):
        assert outcomes.gap(name, "plain") < 1e-5, name
