"""Fit calls, each with one property that n workers could get wrong. Built anew at every call, always alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

ROWS, BATCH = 53, 12  # the last batch has 5 rows: uneven for 2 and 3 ranks


@dataclass(frozen=True)
class Case:
    model: Callable[[], Any]
    arguments: Callable[[], dict[str, Any]]
    ranks: tuple[int, ...] = (2,)
    floatx: str = "float32"
    tolerance: float = 1e-5
    exact: bool = True  # no part of it is announced as different on several workers


def table(rows: int = ROWS, columns: int = 6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    x = random.normal(size=(rows, columns))
    return x.astype("float32"), (x.sum(axis=1) > 0).astype("float32")


def data(rows: int = ROWS, **more: Any) -> Callable[[], dict[str, Any]]:
    def arguments() -> dict[str, Any]:
        x, y = table(rows)
        made = {name: value() if callable(value) else value for name, value in more.items()}
        return {"x": x, "y": y, "epochs": 3, "batch_size": BATCH, "shuffle": False} | made

    return arguments


def dense(optimizer: Any = "sgd", loss: Any = "binary_crossentropy", **compiled: Any) -> Callable[[], Any]:
    def build() -> Any:
        keras.utils.set_random_seed(11)
        model = keras.Sequential([layers.Input((6,)), layers.Dense(16, activation="tanh"), layers.Dense(1, activation="sigmoid")])
        given = {name: value() if callable(value) else value for name, value in compiled.items()}
        model.compile(optimizer() if callable(optimizer) else optimizer, loss() if callable(loss) else loss, **given)
        return model

    return build


def metrics() -> list[Any]:
    return ["accuracy", "mae", keras.metrics.AUC(name="auc"), keras.metrics.Precision(name="precision")]


def scalar_metric(y: Any, p: Any) -> Any:
    return keras.ops.mean(keras.ops.abs(y - keras.ops.squeeze(p, -1)))


def weights() -> np.ndarray:
    return np.random.default_rng(5).uniform(0.1, 3.0, ROWS).astype("float32")


def masked(recurrent: bool = False) -> Any:
    keras.utils.set_random_seed(11)
    words = keras.Input((7,), dtype="int32")
    states = layers.Embedding(9, 4, mask_zero=True)(words)
    states = layers.LSTM(5, return_sequences=True)(states) if recurrent else layers.Dense(5, activation="tanh")(states)
    model = keras.Model(words, layers.Dense(3, activation="softmax")(states))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def sentences() -> dict[str, Any]:
    random = np.random.default_rng(3)
    words = random.integers(1, 9, (ROWS, 7))
    for row, length in enumerate(random.integers(1, 8, ROWS)):
        words[row, length:] = 0
    return {"x": words.astype("int32"), "y": (words % 3).astype("int32"), "epochs": 2, "batch_size": BATCH, "shuffle": False}


def wide(optimizer: Any = lambda: keras.optimizers.AdamW(1e-3, weight_decay=0.01)) -> Any:
    """More than a million weights: their gradients go in two buckets, and each rank may update its own share of them."""
    keras.utils.set_random_seed(11)
    model = keras.Sequential(
        [layers.Input((6,)), layers.Dense(1024, activation="relu"), layers.Dense(1024, activation="tanh"), layers.Dense(1)]
    )
    model.compile(optimizer(), "mse", metrics=["mae"])
    return model


def wide_and_clipped() -> Any:
    return wide(lambda: keras.optimizers.SGD(0.1, global_clipnorm=0.5))


def several() -> Any:
    keras.utils.set_random_seed(11)
    a, b = keras.Input((6,), name="a"), keras.Input((2,), name="b")
    joined = layers.Dense(8, activation="tanh")(layers.Concatenate()([a, b]))
    outputs = {"value": layers.Dense(1, name="value")(joined), "kind": layers.Dense(3, activation="softmax", name="kind")(joined)}
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile(
        "adam",
        {"value": "mse", "kind": "sparse_categorical_crossentropy"},
        loss_weights={"value": 0.3, "kind": 2.0},
        metrics={"value": ["mae"], "kind": ["accuracy"]},
    )
    return model


def several_data(rows: int = ROWS) -> dict[str, Any]:
    x, y = table(rows)
    inputs = {"a": x, "b": x[:, :2] ** 2}
    return {"x": inputs, "y": {"value": x[:, :1], "kind": y.astype("int32")}, "epochs": 2, "batch_size": BATCH, "shuffle": False}


class OwnStep(keras.Model):
    """As Keras' guide writes a custom train_step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = layers.Dense(8, activation="tanh")
        self.outer = layers.Dense(1)
        self.seen = keras.metrics.Mean(name="loss")

    def call(self, x: Any) -> Any:
        return self.outer(self.inner(x))

    def train_step(self, batch: Any) -> Any:
        x, y = batch
        with tf.GradientTape() as tape:
            loss = keras.ops.mean(keras.ops.square(keras.ops.squeeze(self(x, training=True), -1) - y))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.seen.update_state(loss)
        return {"loss": self.seen.result()}

    @property
    def metrics(self) -> list[Any]:
        return [self.seen]


def own_step() -> Any:
    keras.utils.set_random_seed(11)
    model = OwnStep()
    model.compile(optimizer="adam")
    return model


class KeepsMetrics(keras.Sequential):
    """Of its metrics only the loss begins anew in every epoch."""

    def reset_metrics(self) -> None:
        self.metrics[0].reset_state()


def kept_metrics() -> Any:
    keras.utils.set_random_seed(11)
    model = KeepsMetrics([layers.Input((6,)), layers.Dense(1, activation="sigmoid")])
    model.compile("sgd", "binary_crossentropy", metrics=metrics())
    return model


class OnlyInputs(keras.Model):
    """An autoencoder without y: the loss is made from x in compute_loss."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = layers.Dense(3)
        self.outer = layers.Dense(6)

    def call(self, x: Any) -> Any:
        return self.outer(self.inner(x))

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True) -> Any:
        return keras.ops.mean(keras.ops.square(x - y_pred))


def only_inputs() -> Any:
    keras.utils.set_random_seed(11)
    model = OnlyInputs()
    model.compile(optimizer="adam")
    return model


def regularized() -> Any:
    keras.utils.set_random_seed(11)
    model = keras.Sequential(
        [
            layers.Input((6,)),
            layers.Dense(16, activation="tanh", kernel_regularizer="l2", activity_regularizer=keras.regularizers.L2(0.1)),
            layers.Dense(1, activation="sigmoid", bias_regularizer="l1"),
        ]
    )
    model.compile("adam", "binary_crossentropy")
    return model


def normalized(*, synchronized: bool = True, masked: bool = False) -> Callable[[], Any]:
    def build() -> Any:
        keras.utils.set_random_seed(11)
        words = keras.Input((7,), dtype="int32")
        states = layers.Embedding(9, 4, mask_zero=masked)(words)
        if not masked:
            states = layers.Conv1D(4, 3, activation="relu")(states)
        states = layers.BatchNormalization(synchronized=synchronized, momentum=0.8)(states)
        model = keras.Model(words, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling1D()(states)))
        model.compile(keras.optimizers.SGD(0.3, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    return build


def standing() -> Any:
    """A model that learns nothing but the statistics of its rows."""
    keras.utils.set_random_seed(11)
    model = keras.Sequential([layers.Input((6,)), layers.BatchNormalization(momentum=0.5), layers.Dense(1, activation="sigmoid")])
    model.compile(keras.optimizers.SGD(0.0), "binary_crossentropy")
    return model


def adapted() -> Any:
    """A trained model of which only what LoRA adds is trained on; it was built, and compiled once, before."""
    keras.utils.set_random_seed(11)
    model = keras.Sequential([layers.Input((6,)), layers.Dense(16, activation="tanh"), layers.Dense(1, activation="sigmoid")])
    model.compile("sgd", "binary_crossentropy")
    for layer in model.layers:
        layer.enable_lora(2)
    model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy", metrics=["accuracy"])
    return model


def labelled() -> dict[str, Any]:
    given = sentences()
    return given | {"y": given["y"][:, 0], "validation_data": (given["x"][:31], given["y"][:31, 0])}


class Watcher(keras.callbacks.Callback):
    """Keeps the logs of every batch, and stops the training by itself in the third epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches.append(float(logs["loss"]))
        self.batches.append(float(logs["auc"]))
        if len(self.batches) == 22:
            self.model.stop_training = True


def stopping() -> list[Any]:
    return [keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True, min_delta=0.02)]


def validation() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(8)
    x = random.normal(size=(31, 6)).astype("float32")
    return x, (x.sum(axis=1) > 0.2).astype("float32")


def loss(name: str, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(keras.losses, name)(**more)


def optimizer(name: str, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(keras.optimizers, name)(**more)


CASES: dict[str, Case] = {
    "sgd": Case(dense(optimizer("SGD", learning_rate=0.1), metrics=metrics), data(), ranks=(2, 3)),
    "momentum": Case(dense(optimizer("SGD", learning_rate=0.1, momentum=0.9, nesterov=True)), data()),
    "adam": Case(dense("adam", metrics=metrics), data()),
    "sgd in float64": Case(dense("sgd", metrics=metrics), data(), floatx="float64", tolerance=1e-9),
    "momentum in float64": Case(dense(optimizer("SGD", momentum=0.9)), data(), floatx="float64", tolerance=1e-9),
    "adam in float64": Case(dense("adam"), data(sample_weight=weights), floatx="float64", tolerance=1e-9),
    "class weights": Case(dense("adam", metrics=metrics), data(class_weight={0: 0.3, 1: 4.0})),
    "sample weights": Case(dense("adam", weighted_metrics=metrics), data(sample_weight=weights)),
    "mean with sample weights": Case(
        dense("adam", loss("BinaryCrossentropy", reduction="mean_with_sample_weight")), data(sample_weight=weights)
    ),
    "sum": Case(dense("adam", loss("BinaryCrossentropy", reduction="sum"), metrics=metrics), data()),
    "statistics of each worker's own": Case(standing, data(epochs=2), exact=False),
    "sum, tail smaller than n": Case(dense("sgd", loss("BinaryCrossentropy", reduction="sum")), data(49), ranks=(2, 3)),
    "synchronized statistics": Case(normalized(), labelled, floatx="float64", tolerance=1e-9),
    "synchronized statistics, tail smaller than n": Case(
        normalized(), lambda: labelled() | {"batch_size": 13}, floatx="float64", tolerance=1e-9
    ),
    "synchronized statistics of masked rows": Case(normalized(masked=True), labelled),
    "lora": Case(adapted, data()),
    "masks": Case(masked, sentences, ranks=(2, 3)),
    "masks through an LSTM": Case(lambda: masked(recurrent=True), sentences),
    "masks, tail smaller than n": Case(masked, lambda: {k: v[:49] if hasattr(v, "shape") else v for k, v in sentences().items()}),
    "masks and weights": Case(masked, lambda: sentences() | {"sample_weight": np.tile(weights()[:, None], 7)}),
    "several outputs": Case(several, several_data),
    "several outputs, odd batches": Case(several, lambda: several_data(36) | {"batch_size": 9}),
    "tail smaller than n": Case(
        dense("adam", metrics=metrics), data(49, validation_data=validation, validation_batch_size=15), ranks=(2, 3)
    ),
    "batches smaller than n": Case(dense(optimizer("SGD", momentum=0.9), metrics=metrics), data(9, batch_size=1, epochs=2)),
    "fewer rows than a batch": Case(dense("adam", metrics=metrics), data(7)),
    "odd batches": Case(dense("adam", metrics=[scalar_metric, "mae"]), data(45, batch_size=9)),
    "scalar metric, uneven tail": Case(dense("adam", metrics=[scalar_metric]), data()),
    "an update shared out": Case(wide, lambda: data(epochs=2)() | {"validation_split": 0.2}, ranks=(2, 3)),
    "buckets of an update of all": Case(wide_and_clipped, data(epochs=2)),
    "clipnorm": Case(dense(optimizer("Adam", clipnorm=0.05)), data()),
    "global clipnorm": Case(dense(optimizer("SGD", learning_rate=0.5, global_clipnorm=0.1)), data()),
    "weight decay and averages": Case(dense(optimizer("AdamW", weight_decay=0.1, use_ema=True, ema_overwrite_frequency=4)), data()),
    "accumulated gradients": Case(dense(optimizer("Adam", gradient_accumulation_steps=3)), data()),
    "scaled loss": Case(dense(lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))), data()),
    "custom train_step": Case(own_step, data()),
    "metrics that are kept": Case(kept_metrics, data(epochs=3, validation_data=validation)),
    "no y": Case(only_inputs, lambda: data()() | {"y": None}),
    "regularizers": Case(regularized, data()),
    "validation data": Case(dense("adam", metrics=metrics), data(validation_data=validation, validation_freq=2)),
    "validation split": Case(dense("adam", metrics=metrics), data(validation_split=0.25, sample_weight=weights)),
    "early stopping": Case(
        dense(optimizer("SGD", learning_rate=0.3)), data(validation_data=validation, epochs=12, callbacks=stopping), ranks=(2, 3)
    ),
    "batch logs": Case(dense("adam", metrics=metrics), data(callbacks=lambda: [Watcher()])),
    "several steps a call": Case(dense("adam", steps_per_execution=3), data()),
    "step by step": Case(dense("adam", run_eagerly=True), data(epochs=1)),
    "steps per epoch": Case(dense("adam"), data(steps_per_epoch=2, epochs=5, initial_epoch=1)),
    "no epochs": Case(dense("adam"), data(epochs=0)),
    "learning rate plateaus": Case(
        dense(optimizer("SGD", learning_rate=0.3)),
        data(epochs=6, callbacks=lambda: [keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=0.05)]),
    ),
}
