"""Fits that plain Keras carries out, on two workers: their results are those of plain `fit`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from aiaas_magics.backend.workers.local.launcher_client import LauncherClient
from aiaas_magics.core.events import Planned
from aiaas_magics.core.execution import Execution
from aiaas_magics.packing.fitcall import fit_call
from tests.backend.training import ranks

X = np.random.default_rng(1).normal(size=(48, 4)).astype("float32")
Y = np.concatenate([X[:, :1] - X[:, 1:2], X[:, 2:3]], axis=1)


class Decorated(keras.Model):  # type: ignore[misc]
    @tf.function  # type: ignore[untyped-decorator]
    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


class WithHelper(keras.Model):  # type: ignore[misc]
    @tf.function  # type: ignore[untyped-decorator]
    def descend(self, x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True))
        return loss

    def train_step(self, data: Any) -> Any:
        return {"loss": self.descend(*data)}


def helped() -> Any:
    inputs = keras.Input((4,))
    model = WithHelper(inputs, layers.Dense(2)(inputs))
    model.compile("adam")
    return model


def decorated() -> Any:
    inputs = keras.Input((4,))
    model = Decorated(inputs, layers.Dense(2)(inputs))
    model.compile("adam", "mse")
    return model


def eager() -> Any:
    model = keras.Sequential([layers.Input((4,)), layers.Dense(2, use_bias=False)])
    model.compile("sgd", "mse", run_eagerly=True)
    return model


def normalized() -> Any:
    model = keras.Sequential([layers.Input((4,)), layers.BatchNormalization(synchronized=True), layers.Dense(2)])
    model.compile("sgd", "mse")
    return model


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "a train_step that is a tf.function": (decorated, "xla"),
    "a helper that is a tf.function": (helped, "auto"),
    "one variable, run eagerly": (eager, "auto"),
    "a synchronized BatchNormalization": (normalized, "xla"),
}


def made(case: str) -> Any:
    keras.utils.set_random_seed(3)
    return CASES[case][0]()


@pytest.fixture(scope="module")
def trained(cases: LauncherClient, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any, Any]]:
    """All cases by one pair of processes: folder, model and `History` of each."""
    folder = tmp_path_factory.mktemp("two")
    sent, files, models = {}, [[], []], {}  # type: ignore[var-annotated]
    for place, (case, (_, fused)) in enumerate(CASES.items()):
        models[case] = made(case)
        there, execution = folder / str(place), Execution(fused=fused)
        sent[case] = ranks.send(there, models[case], execution=execution, x=X, y=Y, batch_size=16, epochs=2, shuffle=False)
        for rank, path in enumerate(ranks.commands(sent[case], there, ranks=2, execution=execution)):
            files[rank].append(path)
    ranks.carry_out(cases, files, folder)
    return {
        case: (folder / str(place), models[case], fit_call.apply_result(ranks.result_in(folder / str(place)), sent[case].packed))
        for place, case in enumerate(CASES)
    }


@pytest.mark.parametrize("case", CASES)
def test_two_workers_train_as_plain_fit_does(case: str, trained: dict[str, tuple[Path, Any, Any]]) -> None:
    plain = made(case)
    expected = plain.fit(X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0).history["loss"]

    _, ours, history = trained[case]

    np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-5)
    for mine, theirs in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("a train_step that is a tf.function", "train_step is a tf.function"),
        ("a helper that is a tf.function", "descend is a tf.function"),
        ("a synchronized BatchNormalization", "its losses are weighed by what all workers count"),
    ],
)
def test_why_a_step_cannot_be_cut_is_one_plain_clause(case: str, why: str, trained: dict[str, tuple[Path, Any, Any]]) -> None:
    [plan] = [event for event in ranks.events_in(trained[case][0]) if isinstance(event, Planned)]

    [clause] = plan.why

    assert why in clause
    assert "\x1b" not in clause
    assert "Exception encountered" not in clause
    assert "Arguments received" not in clause
