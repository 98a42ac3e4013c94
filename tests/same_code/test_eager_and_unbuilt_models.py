"""Models that plain `fit` builds on its way: by their own steps, by code that reads numbers, with losses of layers only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from aiaas_magics.core.errors import ResultMismatch
from tests.same_code.fits import fit

pytestmark = pytest.mark.slow  # each compiles several fits

X = np.random.default_rng(1).normal(size=(48, 4)).astype("float32")
Y = X[:, :1] - X[:, 1:2]


class Gan(keras.Model):  # type: ignore[misc]
    """Has no `call`, so nothing builds it."""

    def __init__(self) -> None:
        super().__init__()
        self.d = keras.Sequential([layers.Input((4,)), layers.Dense(4)])

    def train_step(self, q: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self.d(q) - q) ** 2)
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.d.trainable_variables), self.d.trainable_variables, strict=True))
        return {"loss": loss}


class Act(layers.Layer):  # type: ignore[misc]
    def call(self, t: Any) -> Any:
        self.add_loss(keras.ops.mean(t**2))
        return t


class ReadsNumbers(keras.Model):  # type: ignore[misc]
    """Its step needs values, and it says that it is built before its layer is."""

    def __init__(self) -> None:
        super().__init__()
        self.d = layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.d(x)

    def train_step(self, data: Any) -> Any:
        float(np.linalg.norm(data[0].numpy()))
        return super().train_step(data)


class CallReadsNumbers(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.d = layers.Dense(1)
        self.calls = 0

    def call(self, x: Any) -> Any:
        return self.d(x * float(np.sign(x.numpy().sum()) ** 2))


def my_loss(y: Any, p: Any) -> Any:
    return tf.reduce_mean(tf.square(y - p), -1) + 0 * float(np.mean(p.numpy()))


def my_metric(y: Any, p: Any) -> Any:
    return tf.constant(float(np.abs(y.numpy() - p.numpy()).mean()))


def gan() -> Any:
    model = Gan()
    model.compile("adam")
    return model


def added() -> Any:
    model = keras.Sequential([layers.Input((4,)), layers.Dense(1), Act()])
    model.compile("sgd")
    return model


def added_unbuilt() -> Any:
    model = keras.Sequential([layers.Dense(1), Act()])
    model.compile("sgd", metrics=[])
    return model


def says_that_it_is_built() -> Any:
    model = ReadsNumbers()
    with pytest.warns(UserWarning, match="does not have a"):
        model.build((None, 4))
    model.compile("sgd", "mse", run_eagerly=True)
    return model


def eager_loss() -> Any:
    model = keras.Sequential([layers.Input((4,)), layers.Dense(1)])
    model.compile("adam", my_loss, metrics=[my_metric], run_eagerly=True)
    return model


def eager_call() -> Any:
    model = CallReadsNumbers()
    model.compile("adam", "mse", metrics=["mae"], run_eagerly=True)
    return model


def batches() -> dict[str, Any]:
    return {"x": tf.data.Dataset.from_tensor_slices(X).batch(16), "shuffle": False}


def rows(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"x": X, "batch_size": 16, "shuffle": False, **more}


CASES: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "its own step is all that builds it": (gan, batches),
    "its only loss is a layer's": (added, rows()),
    "its only loss is a layer's, and it is not built": (added_unbuilt, rows()),
    "its step reads numbers": (says_that_it_is_built, rows(y=Y)),
    "its loss and metric read numbers": (eager_loss, rows(y=Y)),
    "its call reads numbers": (eager_call, rows(y=Y)),
}


def same_as_plain(make: Callable[[], Any], arguments: Callable[[], dict[str, Any]], folder: Path) -> None:
    keras.utils.set_random_seed(3)
    plain = make()
    expected = plain.fit(**arguments(), epochs=2, verbose=0).history
    keras.utils.set_random_seed(3)
    ours = make()

    history = fit(folder, ours, **arguments(), epochs=2).history

    assert history.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5, err_msg=name)
    assert [w.shape for w in ours.weights] == [w.shape for w in plain.weights]
    for mine, theirs in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    assert int(ours.optimizer.iterations.numpy()) == int(plain.optimizer.iterations.numpy())


@pytest.mark.parametrize("case", CASES)
def test_what_plain_fit_builds_on_its_way_trains_alike(case: str, tmp_path: Path) -> None:
    same_as_plain(*CASES[case], tmp_path)


@pytest.fixture
def functions_run_eagerly() -> Iterator[Callable[[], None]]:
    yield lambda: tf.config.run_functions_eagerly(True)
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
def test_tensorflows_switch_for_eager_functions_travels(functions_run_eagerly: Callable[[], None], tmp_path: Path) -> None:
    seen: list[bool] = []

    def make() -> Any:
        model = keras.Sequential([layers.Input((4,)), layers.Dense(1)])
        model.compile("adam", my_loss)
        return model

    def between() -> None:
        tf.config.run_functions_eagerly(False)  # as in a worker

    functions_run_eagerly()
    history = fit(tmp_path, make(), between=between, **rows(y=Y)(), epochs=1).history
    seen.append(tf.config.functions_run_eagerly())

    assert np.isfinite(history["loss"]).all()
    assert seen == [True]


class OnlyInTraining(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.d, self.late = layers.Dense(1), layers.Dense(1)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.late(self.d(x)) if training else self.d(x)


def only_in_training() -> Any:
    model = OnlyInTraining()
    model.compile("sgd", "mse")
    return model


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called on layer")
def test_a_layer_that_is_called_in_training_only_comes_back_trained(tmp_path: Path) -> None:
    same_as_plain(only_in_training, rows(y=Y), tmp_path)


class BuildsTheSpare(keras.callbacks.Callback):  # type: ignore[misc]
    def on_train_end(self, logs: Any = None) -> None:
        self.model.spare.build((None, 4))


class WithASpare(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.d, self.spare = layers.Dense(1), layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.d(x)


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called on layer")
def test_weights_that_only_training_makes_are_not_lost_without_a_word(tmp_path: Path) -> None:
    model = WithASpare()
    model.compile("sgd", "mse")

    with pytest.raises(ResultMismatch, match="training made 2 weights that it has not got here") as caught:
        fit(tmp_path, model, x=X, y=Y, batch_size=16, callbacks=[BuildsTheSpare()])

    assert str(caught.value).endswith("Call the model on a batch before fit, so that it has all its weights.")
