"""A kernel's cell and a worker process, for round trips between two processes: fixtures of every test."""

from __future__ import annotations

import linecache
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

PREAMBLE = """
import keras, numpy as np, tensorflow as tf
from keras import layers, ops
keras.utils.set_random_seed(7)
rows = np.random.default_rng(0)
x = rows.normal(size=(70, 6)).astype("float32")
y = (x.sum(axis=1) > 0).astype("float32")
arguments = {"x": x, "y": y, "epochs": 2, "batch_size": 16, "shuffle": False}
"""

Namespace = dict[str, Any]


def run_cell(source: str, *, file: str = "<cell>", **names: Any) -> Namespace:
    """Run `source` as a notebook does: its classes and functions belong to `__main__`, its text to `file` in `linecache`."""
    namespace: Namespace = {"__name__": "__main__", **names}
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(PREAMBLE, "<first cell>", "exec"), namespace)
    exec(compile(source, file, "exec"), namespace)
    return namespace


@pytest.fixture
def cell() -> Iterator[Callable[..., Namespace]]:
    """Runs a cell; Keras' global settings are put back afterwards."""
    import keras

    before = keras.config.floatx(), keras.config.dtype_policy()
    yield run_cell
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


class Worker:
    """A process that has imported the libraries and forks a fresh one for each training."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "fresh_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        self._await("ready")

    def _await(self, word: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == word:
                return
        raise AssertionError("the worker process ended")

    def train(self, packed: Any, folder: Path, *, check: str = "") -> bytes:
        """Carry out a packed call in a fresh process; the result's bytes."""
        folder.mkdir()
        (folder / "payload").write_bytes(packed.payload)
        for place, array in enumerate(packed.arrays):
            np.save(folder / f"{place:04d}.npy", array)
        if check:
            (folder / "check.py").write_text(check)
        assert self._process.stdin is not None
        print(folder, file=self._process.stdin, flush=True)
        self._await("done")
        failure = folder / "failure.txt"
        assert not failure.exists(), failure.read_text()
        return (folder / "result.safetensors").read_bytes()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()
