"""`steps_per_execution` makes the steps, and tells callbacks the numbers, that it does in plain `fit`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from tests.same_code.fits import fit
from tests.support.lanes import thinned

pytestmark = pytest.mark.slow  # each compiles several fits

X = np.random.default_rng(1).normal(size=(100, 4)).astype("float32")
Y = X[:, :1] - X[:, 1:2]


class Numbers(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.train: list[int] = []
        self.test: list[int] = []
        self.losses: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.train.append(batch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.train.append(batch)
        self.losses.append(logs["loss"])

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.test.append(batch)


def made(size: int) -> Any:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "relu"), layers.Dense(1)])
    model.compile("adam", "mse", steps_per_execution=size)
    return model


def ran_out(caught: Sequence[warnings.WarningMessage]) -> int:
    return sum("ran out of data" in str(one.message) for one in caught)


SPLIT = {"batch_size": 16, "validation_split": 0.3, "validation_steps": 1}
CASES: list[tuple[int, dict[str, Any], bool]] = [
    (3, {"batch_size": 15}, True),
    (3, {"batch_size": 16, "steps_per_epoch": 5}, False),
    (4, SPLIT, True),
    (3, {"batch_size": 15}, False),
    (3, {"batch_size": 16, "steps_per_epoch": 5}, True),
    (4, SPLIT, False),
    (101, {"batch_size": 16}, True),
    (2, {"batch_size": 20, "steps_per_epoch": 3, "epochs": 4}, True),
    (2, {"batch_size": 20, "steps_per_epoch": 3, "epochs": 4}, False),
]


@pytest.mark.parametrize(("size", "arguments", "watched"), thinned(CASES, keep=lambda case: case in CASES[:3]))
def test_an_epoch_has_the_executions_of_plain_fit(size: int, arguments: dict[str, Any], watched: bool, tmp_path: Path) -> None:
    arguments = {"x": X, "y": Y, "epochs": 2, "shuffle": False} | arguments
    plain, ours = made(size), made(size)
    theirs, mine = Numbers(), Numbers()
    with warnings.catch_warnings(record=True) as expected_warnings:
        warnings.simplefilter("always")
        expected = plain.fit(**arguments, verbose=0, callbacks=[theirs] if watched else [])

    with warnings.catch_warnings(record=True) as our_warnings:
        warnings.simplefilter("always")
        history = fit(tmp_path, ours, **arguments, callbacks=[mine] if watched else [])

    assert ran_out(our_warnings) == ran_out(expected_warnings)
    assert int(ours.optimizer.iterations) == int(plain.optimizer.iterations)
    assert (mine.train, mine.test) == (theirs.train, theirs.test)
    assert bool(mine.train) == watched
    np.testing.assert_allclose(mine.losses, theirs.losses, rtol=1e-5)
    assert history.params["steps"] == expected.params["steps"]
    for name, values in expected.history.items():
        np.testing.assert_allclose(history.history[name], values, rtol=1e-5)
    for one, other in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
