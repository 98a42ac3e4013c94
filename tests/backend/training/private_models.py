"""Models, rows and a budget that private steps are tested with, whichever library Keras computes with."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from aiaas_magics.backend.training.private_fit import PrivateFit
from aiaas_magics.core.privacy import Privacy

ROW_COUNT = 11


def private(*, clip: float = 0.5, noise: float = 1.0, chunk: int = 4, batch: int = 8, secret: int = 3) -> PrivateFit:
    privacy = Privacy(delta=1e-5, noise=noise, clip=clip)
    return PrivateFit(privacy=privacy, secret=secret, rows=100, batch=batch, chunk=chunk, first_epoch=0)


def table(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(ROW_COUNT, *shape)).astype("float32")


def classes(count: int) -> np.ndarray:
    return np.random.default_rng(6).integers(0, count, ROW_COUNT).astype("int32")


def dense() -> tuple[Any, Any]:
    model = keras.Sequential([layers.Input((6,)), layers.Dense(8, activation="tanh"), layers.Dense(1, activation="sigmoid")])
    model.compile("sgd", "binary_crossentropy", metrics=["accuracy", "AUC"], weighted_metrics=["mse"])
    return model, (table(6), classes(2)[:, None].astype("float32"), np.linspace(0.1, 2, ROW_COUNT).astype("float32"))


def convolution() -> tuple[Any, Any]:
    conv = layers.Conv2D(4, 3, activation="relu")
    model = keras.Sequential([layers.Input((8, 8, 2)), conv, layers.GroupNormalization(2), layers.Flatten(), layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model, (table(8, 8, 2), classes(3))


def words() -> tuple[Any, Any]:
    tokens = keras.Input((5,), dtype="int32")
    states = layers.LSTM(4)(layers.Embedding(9, 3, mask_zero=True)(tokens))
    model = keras.Model(tokens, layers.Dense(1)(states))
    model.compile("sgd", "mse", metrics=["mae"])
    x = np.random.default_rng(7).integers(0, 9, (ROW_COUNT, 5)).astype("int32")
    x[:, 0] = 1
    return model, (x, table(1))


def several() -> tuple[Any, Any]:
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    joined = layers.Dense(5, kernel_regularizer="l2")(layers.Concatenate()([a, b]))
    outputs = {"value": layers.Dense(1, name="value")(joined), "kind": layers.Dense(3, activation="softmax", name="kind")(joined)}
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile("sgd", {"value": "mse", "kind": "sparse_categorical_crossentropy"}, loss_weights={"value": 0.3, "kind": 2.0})
    return model, ({"a": table(3), "b": table(2)}, {"value": table(1), "kind": classes(3)})
