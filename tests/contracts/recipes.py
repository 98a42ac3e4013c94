"""Servers and models that the contract tests share."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

START_S = 30.0


@contextmanager
def server_by_hand(folder: Path, *options: str) -> Iterator[tuple[str, str]]:
    """`aiaas serve` in another folder, as on another machine: its URL and token."""
    log = (folder / "serve.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "aiaas_magics", "serve", "--state", str(folder), "--port", "0", *options],
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )
    try:
        yield wait_for_server(folder, process), (folder / "token").read_text().strip()
    finally:
        process.terminate()
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        log.close()


def wait_for_server(folder: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the server ended with {process.returncode}: {(folder / 'serve.log').read_text()}")
        try:
            told = json.loads((folder / "server.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            time.sleep(0.05)
            continue
        if told["pid"] == process.pid:
            return str(told["url"])
        time.sleep(0.05)
    raise AssertionError(f"the server did not come up: {(folder / 'serve.log').read_text()}")


def table(rows: int = 512, columns: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A table that a small model can learn."""
    x = np.random.default_rng(seed).normal(size=(rows, columns)).astype("float32")
    return x, (x[:, 0] * x[:, 1] > 0).astype("float32")


def small_model(columns: int = 8, *, seed: int = 1):  # type: ignore[no-untyped-def]
    import keras

    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((columns,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1, activation="sigmoid")]
    )
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    return model


def gap(model, other) -> float:  # type: ignore[no-untyped-def]
    """Largest norm(a - b) / norm(b) over the weights of two models."""
    pairs = zip(model.get_weights(), other.get_weights(), strict=True)
    return float(np.max([np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12) for a, b in pairs]))  # of which NaN is the largest
