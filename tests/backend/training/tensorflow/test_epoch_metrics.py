"""Metrics between epochs cost next to nothing, and are those of the stock `fit` whatever a model or a callback makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

from aiaas_magics.backend.training.tensorflow.epoch_metrics import is_stock
from tests.backend.training.tensorflow.test_multi_step import Trained, mlp, table
from tests.support import lanes

pytestmark = pytest.mark.slow


class Scaled(keras.metrics.Mean):  # type: ignore[misc]
    """A result that depends on what Python holds."""

    scale = 1.0

    def result(self) -> Any:
        return super().result() * self.scale

    def update_state(self, y: Any, p: Any, sample_weight: Any = None) -> None:
        super().update_state(y - p)


class Rescale(keras.callbacks.Callback):  # type: ignore[misc]
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        [compiled] = [metric for metric in self.model.metrics if hasattr(metric, "metrics")]
        for metric in compiled.metrics:  # none before the first step
            metric.scale = float(epoch + 1)


class Forget(keras.callbacks.Callback):  # type: ignore[misc]
    """Metrics of an epoch's last steps only."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 3:
            self.model.reset_metrics()


class OwnResults(keras.Model):  # type: ignore[misc]
    """The same names as Keras', with other numbers in a step."""

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return {name: value + 1 for name, value in super().compute_metrics(x, y, y_pred, sample_weight).items()}


class OwnReset(keras.Model):  # type: ignore[misc]
    """Metrics that run on from epoch to epoch, but for the loss."""

    def reset_metrics(self) -> None:
        self.metrics[0].reset_state()


class Halving(keras.metrics.BinaryAccuracy):  # type: ignore[misc]
    def reset_state(self) -> None:
        self.total.assign(self.total / 2)


class Counting(layers.Layer):
    """Has a metric of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = keras.metrics.Sum(name="seen")

    def call(self, x: Any) -> Any:
        self.seen.update_state(tf.reduce_sum(x))
        return x


def functional(kind: type[Any] = keras.Model, *more: Any, metrics: tuple[Any, ...] = ("accuracy",)) -> Callable[[], Any]:
    def make() -> Any:
        keras.utils.set_random_seed(3)
        inputs = keras.Input((12,))
        outputs = layers.Dense(1, activation="sigmoid")(layers.Dense(8, activation="relu")(inputs))
        for layer in more:
            outputs = layer()(outputs)
        model = kind(inputs, outputs)
        model.compile("sgd", "binary_crossentropy", metrics=[one() if isinstance(one, type) else one for one in metrics])
        return model

    return make


FITS: dict[str, tuple[Callable[[], Any], list[type[Any]], bool]] = {
    "Keras' own": (mlp(metrics=["accuracy", keras.metrics.Precision(), keras.metrics.AUC()]), [], True),
    "a layer's": (functional(keras.Model, Counting), [], True),
    "a result that Python has a part in": (functional(metrics=(Scaled,)), [Rescale], False),
    "a callback that resets them": (functional(), [Forget], False),
    "a model that changes them": (functional(OwnResults), [], False),
    "a model that keeps them": (functional(OwnReset), [], True),
    "a metric that keeps a part": (functional(metrics=(Halving,)), [], False),
}


@pytest.mark.parametrize(
    "name",
    lanes.thinned(
        FITS,
        keep=lambda name: name not in {"a model that changes them", "a metric that keeps a part", "a layer's", "a model that keeps them"},
    ),
)
def test_logs_are_those_of_the_stock_fit(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, callbacks, quick = FITS[name]
    x, y = table()
    arguments = {"x": x, "y": y, "epochs": 3, "shuffle": False, "validation_split": 0.2}
    plain = make().fit(**arguments, callbacks=[one() for one in callbacks], verbose=0)
    read: list[str] = []
    stock = keras.Model.get_metrics_result

    def counting(model: Any) -> Any:
        if tf.executing_eagerly():
            read.append(model.name)
        return stock(model)

    monkeypatch.setattr(TensorFlowTrainer, "get_metrics_result", counting)  # on the class, where it still counts as Keras' own
    ours = Trained(tmp_path, make, arguments | {"callbacks": [one() for one in callbacks]}, fused="graph")

    assert ours.history.history.keys() == plain.history.keys()
    for log, values in plain.history.items():
        np.testing.assert_allclose(ours.history.history[log], values, rtol=1e-5, err_msg=log)
    assert (not read) == quick


def test_whose_logs_are_its_metrics() -> None:
    assert is_stock(mlp()())
    assert not is_stock(functional(OwnResults)())
    patched = mlp()()
    object.__setattr__(patched, "train_step", patched.train_step)
    assert not is_stock(patched)
