"""Models and data for the tests of the strategy spmd."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

SCALE = 0.5


def table(rows: int = 70) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    x = random.normal(size=(rows, 6)).astype("float32")
    return x, (x.sum(axis=1, keepdims=True) + 0.1 * random.normal(size=(rows, 1))).astype("float32")


def dense() -> Any:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([layers.Input((6,)), layers.Dense(16, "tanh"), layers.Dense(8, "tanh"), layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01, clipnorm=0.5), "mse", metrics=["mae"])
    return model


def by_executions() -> Any:
    model = dense()
    model.compile(keras.optimizers.Adam(0.01, clipnorm=0.5), "mse", metrics=["mae"], steps_per_execution=3)
    return model


def normalised() -> Any:
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            layers.Input((6, 1)),
            layers.Conv1D(4, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0), "mse")
    return model


def dropping() -> Any:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([layers.Input((6,)), layers.Dense(16, "tanh"), layers.Dropout(0.5), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


def read(vocabulary: int = 32) -> Any:
    """A model whose kernels and table can be cut in two."""
    keras.utils.set_random_seed(4)
    inputs = layers.Input((5,), dtype="int32")
    hidden = layers.Embedding(vocabulary, 8, name="table")(inputs)
    hidden = layers.GlobalAveragePooling1D()(hidden)
    hidden = layers.Dense(16, "relu", name="wide")(hidden)
    model = keras.Model(inputs, layers.Dense(3, name="narrow")(hidden))
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    return model


def words(rows: int = 50) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    x = random.integers(0, 32, size=(rows, 5))
    return x, (x.sum(axis=1) % 3).astype("int64")


class Gate(layers.Layer):
    """A layer of the user's own, with state besides its weights."""

    def __init__(self, strength: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.strength = strength

    def build(self, shape: Any) -> None:
        self.gate = self.add_weight(shape=(shape[-1],), initializer="ones", name="gate")

    def call(self, x: Any) -> Any:
        return x * ops.sigmoid(self.gate) * self.strength

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "strength": self.strength}


def absolute(y: Any, y_pred: Any) -> Any:
    return ops.mean(ops.abs(y - y_pred), axis=-1) * SCALE


class HalfAt(keras.callbacks.Callback):
    """Looks at the model and changes a variable, as callbacks do."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch
        self.seen: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen.append(float(np.abs(self.model.get_weights()[0]).sum()))
        if epoch == self.epoch:
            self.model.optimizer.learning_rate = float(self.model.optimizer.learning_rate) / 2


class CountsBatches(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches.append(batch)


def own() -> Any:
    """Two outputs, a layer, a lambda and a loss of the user's own."""
    keras.utils.set_random_seed(6)
    inputs = layers.Input((6,))
    hidden = Gate(0.7)(layers.Dense(8, "tanh")(inputs))
    hidden = layers.Lambda(lambda h: ops.tanh(h) * SCALE, output_shape=(8,))(hidden)
    model = keras.Model(inputs, {"a": layers.Dense(1, name="a")(hidden), "b": layers.Dense(1, name="b")(hidden)})
    model.compile("sgd", {"a": "mse", "b": absolute}, loss_weights={"a": 1.0, "b": 0.3}, metrics={"a": ["mae"]})
    return model


class OnJaxTwice(layers.Layer):
    """Computes something else where Keras runs on JAX."""

    def call(self, x: Any) -> Any:
        return x * 2.0 if keras.backend.backend() == "jax" else x


def two_faced() -> Any:
    keras.utils.set_random_seed(7)
    model = keras.Sequential([layers.Input((6,)), layers.Dense(4), OnJaxTwice(), layers.Dense(1)])
    model.compile("sgd", "mse")
    return model
