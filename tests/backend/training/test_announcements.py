"""What is said before a run on several workers, and what is not."""

from __future__ import annotations

from typing import Any

import keras
import pytest
import tensorflow as tf
from keras import layers

from aiaas_magics.core.execution import Execution
from aiaas_magics.packing.checks import randomness
from aiaas_magics.packing.checks.exactness import adaptive, announcements
from tests.backend.training.fit_cases import dense, own_step, regularized, scalar_metric


def compiled(*inner: Any, **how: Any) -> Any:
    model = keras.Sequential([layers.Input((4,)), *inner, layers.Dense(1)])
    model.compile("sgd", "mse", **how)
    return model


class Adds(layers.Layer):
    def call(self, x: Any) -> Any:
        self.add_loss(keras.ops.mean(x))
        return x


class Largest(keras.metrics.Metric):
    def __init__(self) -> None:
        super().__init__(name="largest")
        self.value = self.add_variable((), "zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.value.assign(keras.ops.maximum(self.value, keras.ops.max(y_pred)))

    def result(self) -> Any:
        return self.value


def built(model: Any) -> Any:
    model._symbolic_build(data_batch=(keras.KerasTensor((2, 4)), keras.KerasTensor((2, 1)), None))
    return model


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (own_step, "train_step"),
        (lambda: compiled(layers.BatchNormalization(name="bn")), "BatchNormalization (bn)"),
        (lambda: compiled(layers.Dropout(0.5, name="drop")), "Random numbers (drop)"),
        (lambda: recurrent(dropout=0.1), "Random numbers (lstm_cell"),
        (lambda: recurrent(recurrent_dropout=0.1), "Random numbers (lstm_cell"),
        (lambda: compiled(Adds(name="adds")), "add_loss in adds"),
        (lambda: built(compiled(metrics=[Largest()])), "metric largest"),
        (lambda: built(compiled(metrics=[scalar_metric])), "scalar_metric"),
        (lambda: compiled(steps_per_execution=7), "steps_per_execution=7"),
        (lambda: compiled(jit_compile=True), "jit_compile is off"),
    ],
)
def test_what_cannot_be_exact_is_announced(model: Any, word: str) -> None:
    said = announcements(model(), {}, 2)

    assert len(said) == 1
    assert word in said[0]


def recurrent(**how: Any) -> Any:
    model = keras.Sequential([layers.Input((5, 4)), layers.LSTM(3, **how), layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize("model", [dense("adam", metrics=["accuracy", "mae"]), regularized, recurrent])
def test_what_is_exact_is_not_spoken_of(model: Any) -> None:
    assert announcements(model(), {"callbacks": [keras.callbacks.EarlyStopping()]}, 4) == ()


MIRRORED = Execution(strategy="mirrored")


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (lambda: compiled(jit_compile=True), "jit_compile is off"),
        (lambda: compiled(layers.BatchNormalization(name="bn")), "BatchNormalization (bn)"),
        (lambda: compiled(layers.Dropout(0.5, name="drop")), "Random numbers (drop)"),
    ],
)
def test_what_cannot_be_exact_on_mirrored_devices_is_announced(model: Any, word: str) -> None:
    said = announcements(model(), {}, 2, MIRRORED)

    assert len(said) == 1
    assert word in said[0]


def test_mirrored_devices_keep_clipping_accumulation_steps_a_call_and_synchronized_statistics_as_they_are() -> None:
    class Own(keras.callbacks.Callback):
        pass

    optimizer = keras.optimizers.Adam(global_clipnorm=1.0, gradient_accumulation_steps=2)
    model = compiled(layers.BatchNormalization(synchronized=True), steps_per_execution=3)
    model.optimizer = optimizer

    assert announcements(model, {"callbacks": [Own()]}, 2, MIRRORED) == ()


def test_a_model_that_divides_by_the_number_of_replicas_itself_is_told_not_to() -> None:
    class Divides(keras.Model):
        def call(self, x: Any) -> Any:
            return x / tf.distribute.get_strategy().num_replicas_in_sync

    model = Divides()
    model.compile("sgd", "mse")

    assert "num_replicas_in_sync" in announcements(model, {}, 2, MIRRORED)[0]


def test_one_worker_has_nothing_to_announce() -> None:
    assert announcements(compiled(layers.BatchNormalization()), {}, 1) == ()


class Drawing(layers.Layer):
    def call(self, x: Any) -> Any:
        return x + tf.random.normal(tf.shape(x))


class Repeatable(layers.Layer):
    def call(self, x: Any) -> Any:
        return x + tf.random.stateless_normal(tf.shape(x), seed=[1, 2]) + keras.random.normal(keras.ops.shape(x))


def test_random_numbers_that_no_checkpoint_holds_are_named_before_the_run() -> None:
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: tf.random.uniform([]))

    [said] = randomness.notes(compiled(Drawing()), [callback])

    assert said.startswith("Drawing.call, LambdaCallback.on_epoch_end draws TensorFlow's own random numbers")
    assert randomness.notes(compiled(Repeatable(), layers.Dropout(0.5)), [keras.callbacks.EarlyStopping()]) == ()


def test_callbacks_of_the_users_own_are_said_to_run_everywhere() -> None:
    class Own(keras.callbacks.Callback):
        pass

    assert "Own" in announcements(compiled(), {"callbacks": [Own()]}, 2)[0]


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (keras.optimizers.SGD(momentum=0.9), ""),
        (keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), ""),
        (keras.optimizers.Adam(), "Adam"),
        (keras.optimizers.LossScaleOptimizer(keras.optimizers.Lion()), "Lion"),
    ],
)
def test_an_optimizer_that_enlarges_rounding_is_known_by_its_name(optimizer: Any, name: str) -> None:
    model = compiled()
    model.compile(optimizer, "mse")

    assert adaptive(model) == name
