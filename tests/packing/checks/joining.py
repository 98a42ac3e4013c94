"""Models of which something joins the rows of a batch, as notebooks write them, and what two real halves make of them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

ROWS = 16


def is_second_half() -> Any:
    """Of the rows of two batches: whether a row is in the half of its batch that the second of two workers gets."""
    return np.arange(2 * ROWS) % ROWS >= ROWS // 2


def images() -> dict[str, Any]:
    """The masks of half a batch are full, those of the other half nearly empty: each worker has one half."""
    random = np.random.default_rng(2)
    x = random.normal(size=(2 * ROWS, 6, 6, 1)).astype("float32")
    y = (x > np.where(is_second_half(), 1.8, -1.0)[:, None, None, None]).astype("float32")
    return {"x": x, "y": y, "batch_size": ROWS, "shuffle": False}


def table() -> dict[str, Any]:
    random = np.random.default_rng(3)
    x = random.normal(size=(2 * ROWS, 8)).astype("float32")
    x += np.where(is_second_half(), -0.3, 0.5)[:, None].astype("float32")
    return {"x": x, "y": x.sum(axis=1, keepdims=True), "batch_size": ROWS, "shuffle": False}


def dice_loss(y: Any, p: Any) -> Any:
    y, p = ops.reshape(y, (-1,)), ops.reshape(p, (-1,))
    return 1 - (2 * ops.sum(y * p) + 1) / (ops.sum(y) + ops.sum(p) + 1)


def row_loss(y: Any, p: Any) -> Any:
    return ops.mean(ops.square(y - p), axis=-1)


def segmenting(loss: Any) -> Any:
    keras.utils.set_random_seed(11)
    model = keras.Sequential(
        [layers.Input((6, 6, 1)), layers.Conv2D(2, 3, padding="same", activation="tanh"), layers.Conv2D(1, 1, activation="sigmoid")]
    )
    model.compile(keras.optimizers.SGD(0.5), loss)
    return model


def with_layers(*inner: Any, loss: Any = "mse", optimizer: Any = "sgd", **how: Any) -> Any:
    keras.utils.set_random_seed(11)
    model = keras.Sequential([layers.Input((8,)), *inner, layers.Dense(4, activation="tanh"), layers.Dense(1)])
    model.compile(optimizer, loss, **how)
    return model


class Centred(layers.Layer):
    def call(self, x: Any) -> Any:
        return x - ops.mean(x, axis=0)


class Branching(keras.Model):
    """Its call branches on the mean of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = layers.Dense(4), layers.Dense(4), layers.Dense(1)
        self.one.build((None, 8))
        self.other.build((None, 8))

    def call(self, x: Any) -> Any:
        return self.last(tf.cond(tf.reduce_mean(x) > 0, lambda: self.one(x), lambda: self.other(x)))


class Remembering(keras.Model):
    """A bare variable follows the rows of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.last = layers.Dense(1)
        self.highest = tf.Variable(tf.ones(8), trainable=False)

    def call(self, x: Any) -> Any:
        self.highest.assign(tf.reduce_max(x, axis=0))
        return self.last(x)


class Counting(keras.Model):
    """A variable of the model itself follows the rows of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.last = layers.Dense(1)
        self.centre = self.add_weight(shape=(8,), initializer="zeros", trainable=False, name="centre")

    def call(self, x: Any) -> Any:
        self.centre.assign(0.9 * self.centre + 0.1 * ops.mean(x, axis=0))
        return self.last(x - self.centre)


class Contrasting(keras.Model):
    """MoCo: the keys of a batch take the place of the oldest in a queue, against which the next batch is told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = layers.Dense(4)
        self.queue = self.add_weight(shape=(32, 4), initializer="glorot_uniform", trainable=False, name="queue")

    def call(self, x: Any) -> Any:
        return ops.normalize(self.encoder(x), axis=-1)

    def train_step(self, batch: Any) -> Any:
        x = batch[0] if isinstance(batch, tuple) else batch
        keys = tf.stop_gradient(self(x * 0.9))
        with tf.GradientTape() as tape:
            queries = self(x)
            positive = ops.sum(queries * keys, axis=-1, keepdims=True)
            logits = ops.concatenate([positive, ops.matmul(queries, ops.transpose(self.queue))], axis=-1) / 0.2
            loss = ops.mean(ops.logsumexp(logits, axis=-1) - logits[:, 0])
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.queue.assign(ops.concatenate([keys, self.queue], axis=0)[:32])
        return {"loss": loss}


def subclassed(cls: Any) -> Any:
    keras.utils.set_random_seed(11)
    model = cls()
    model(table()["x"][:2])
    for variable in model.non_trainable_variables:
        variable.assign(ops.zeros_like(variable) if variable.name == "centre" else variable)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def gradient_gap(model: Any, loss: Any, given: dict[str, Any]) -> float:
    """The gradient of the first batch against the mean of two halves', in plain TensorFlow."""
    x, y = given["x"][:ROWS], given["y"][:ROWS]

    def gradient(rows: slice) -> Any:
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(y[rows], model(x[rows], training=True)))
        found = tape.gradient(value, [variable.value for variable in model.trainable_variables])
        return np.concatenate(
            [np.zeros(v.shape).ravel() if g is None else np.ravel(g) for g, v in zip(found, model.trainable_variables, strict=True)]
        )

    whole = gradient(slice(None))
    halves = (gradient(slice(ROWS // 2)) + gradient(slice(ROWS // 2, None))) / 2
    return float(np.linalg.norm(whole - halves) / np.linalg.norm(whole))
