"""Fit calls on data that yields batches. Built anew at every call, always alike; order comes from seeds in the data itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

ROWS = 101
X = np.random.default_rng(5).normal(size=(ROWS, 6)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("float32")[:, None]


class Rows(keras.utils.PyDataset):  # type: ignore[misc]
    """Shuffles itself after each epoch, which is another order in every process."""

    def __init__(self) -> None:
        super().__init__()
        self.order, self.random = np.arange(ROWS), np.random.default_rng(3)

    def __len__(self) -> int:
        return -(-ROWS // 16)

    def __getitem__(self, place: int) -> Any:
        rows = self.order[place * 16 : place * 16 + 16]
        return X[rows], Y[rows]

    def on_epoch_end(self) -> None:
        self.random.shuffle(self.order)


def generator(batches: int = 10**6) -> Iterator[Any]:
    for place in range(batches):
        rows = np.arange(place * 16, place * 16 + 16) % ROWS
        yield X[rows], Y[rows], (rows % 3 + 1).astype("float32")


def slices(rows: int = ROWS) -> Any:
    return tf.data.Dataset.from_tensor_slices((X[:rows], Y[:rows]))


def shuffled() -> Any:
    return slices().shuffle(ROWS, seed=3)


def python(x: Any, y: Any) -> Any:
    return tf.ensure_shape(tf.numpy_function(lambda rows: rows * 2, [x], tf.float32), [6]), y


# Two ranks train all cases, other numbers these: starting a process and tracing a case cost seconds.
FEW = {
    1: ("a PyDataset that shuffles itself", "a generator"),
    3: ("shuffle, repeat, steps and a remainder", "a PyDataset that shuffles itself"),
}

CASES: dict[str, Callable[[], dict[str, Any]]] = {
    # 101 rows in batches of 25: the last batch of a pass has one row, fewer than ranks.
    "shuffle, repeat, steps and a remainder": lambda: {"x": shuffled().batch(25).repeat(), "epochs": 3, "steps_per_epoch": 4},
    "a shuffle that changes with each pass": lambda: {"x": shuffled().batch(16).prefetch(2), "epochs": 3},
    "nobody knows how many batches": lambda: {"x": shuffled().filter(lambda x, _: x[0] > -1.0).batch(16), "epochs": 2},
    "class weights and a validation that is cut short": lambda: {
        "x": slices().map(lambda x, y: (x, tf.cast(y[0], tf.int32))).batch(16),
        "epochs": 2,
        "class_weight": {0: 0.3, 1: 2.0},
        "validation_data": slices(70).batch(16),
        "validation_steps": 3,
    },
    "a PyDataset that shuffles itself": lambda: {"x": Rows(), "epochs": 3, "shuffle": False, "validation_data": slices(50).batch(8)},
    "a generator": lambda: {"x": generator(), "epochs": 2, "steps_per_epoch": 5},
    "a generator that ends, validated by another": lambda: {
        "x": generator(7),
        "epochs": 1,
        "validation_data": generator(),
        "validation_steps": 2,
    },
    "Python in a dataset": lambda: {"x": slices().map(python).batch(16), "epochs": 2},
}


def model() -> Any:
    keras.utils.set_random_seed(11)
    made = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1, activation="sigmoid")])
    made.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return made
