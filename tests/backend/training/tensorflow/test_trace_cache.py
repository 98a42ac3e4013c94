"""A fit of an equal step takes the graph that an earlier one has traced, and computes the same bits; of any other step it does not."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from aiaas_magics.backend.training.tensorflow.multi_step import MultiStepFunction
from aiaas_magics.backend.training.tensorflow.trace_cache import clear
from aiaas_magics.core import keras_messages
from aiaas_magics.packing.fitcall.fit_call import FitCall, pack
from aiaas_magics.packing.pickling.fingerprint import fingerprint
from tests.backend.training import fit_cases
from tests.backend.training.tensorflow.test_multi_step import Trained

pytestmark = pytest.mark.slow


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the loops that are really traced, as it happens."""
    found: list[str] = []
    stock = MultiStepFunction._traced

    def watched(self: MultiStepFunction, *args: Any, **kwargs: Any) -> Any:
        found.append(self._name)
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(MultiStepFunction, "_traced", watched)
    return found


def fitted(folder: Path, make: Callable[[], Any], arguments: dict[str, Any], *, fused: str = "graph") -> Trained:
    """A fit in a folder of its own, with the traces of those before it."""
    folder.mkdir(exist_ok=True)
    return Trained(folder, make, arguments, fused=fused, choices=folder.parent / "choices")


def same(a: Trained, b: Trained) -> None:
    assert a.history.history == b.history.history
    for one, other in zip(a.variables, b.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    assert a.told.plan() == b.told.plan()


def dropping() -> Any:
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            layers.Input((6,)),
            layers.Normalization(mean=0.5, variance=2.0),
            layers.Dense(8, activation="tanh"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.GaussianNoise(0.1),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile("adam", "binary_crossentropy", metrics=fit_cases.metrics())
    return model


EQUAL: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "dropout, noise and statistics": (dropping, fit_cases.data(validation_split=0.2)),
    "masks": (fit_cases.masked, fit_cases.sentences),
    "several outputs": (lambda: named(fit_cases.several()), fit_cases.several_data),
    "regularizers": (fit_cases.regularized, fit_cases.data()),
    "averages and weight decay": (fit_cases.CASES["weight decay and averages"].model, fit_cases.data()),
    "accumulated gradients": (fit_cases.CASES["accumulated gradients"].model, fit_cases.data()),
    "weights of classes": (fit_cases.dense("adam", metrics=fit_cases.metrics), fit_cases.data(class_weight={0: 0.3, 1: 4.0})),
}


def named(model: Any) -> Any:
    """Built once more it would have layers of other names, which its logs have: as if the same model was fitted again."""
    keras.backend.clear_session(free_memory=False)
    return model


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "masks" else pytest.mark.nightly) for name in EQUAL])
def test_an_equal_fit_traces_nothing_and_computes_the_same_bits(tmp_path: Path, traced: list[str], name: str) -> None:
    make, arguments = EQUAL[name]
    keras.backend.clear_session(free_memory=False)
    first = fitted(tmp_path / "first", make, arguments())
    assert "train" in traced
    traced.clear()
    keras.backend.clear_session(free_memory=False)

    second = fitted(tmp_path / "second", make, arguments())

    assert traced == []
    same(first, second)


def test_a_model_that_is_built_once_more_is_equal(tmp_path: Path, traced: list[str]) -> None:
    first = fitted(tmp_path / "first", dropping, fit_cases.data()())
    traced.clear()

    second = fitted(tmp_path / "second", dropping, fit_cases.data()())

    assert first.model.layers[1].name != second.model.layers[1].name
    assert traced == []
    same(first, second)


@pytest.mark.nightly
def test_a_compiled_loop_is_taken_too(tmp_path: Path, traced: list[str]) -> None:
    arguments = fit_cases.data(36)()
    first = fitted(tmp_path / "first", dropping, arguments, fused="xla")
    traced.clear()

    second = fitted(tmp_path / "second", dropping, arguments, fused="xla")

    assert traced == []
    assert second.told.plan().fused == "xla"
    same(first, second)


def test_the_form_of_the_steps_is_decided_as_by_a_new_trace(tmp_path: Path, traced: list[str]) -> None:
    """Whether indices hold, and how many steps follow, is asked of each fit's own data."""
    make, arguments = fit_cases.dense("adam"), fit_cases.data(36)() | {"epochs": 2}
    first = fitted(tmp_path / "first", make, arguments, fused="auto")
    traced.clear()

    second = fitted(tmp_path / "second", make, arguments, fused="auto")
    fewer = fitted(tmp_path / "fewer", make, arguments | {"epochs": 1}, fused="auto")

    assert traced == []
    same(first, second)
    assert [plan.told.plan().why[0].partition("this fit has ")[2] for plan in (second, fewer)] == ["6", "3"]


class Halving(keras.callbacks.Callback):  # type: ignore[misc]
    """Changes the model in Python before its step is traced."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.model.layers[-2].trainable = False


OTHER_MODELS: dict[str, Callable[[], Any]] = {
    "loss": fit_cases.dense("adam", "mse"),
    "metrics": fit_cases.dense("adam", metrics=["mae"]),
    "rate of decay": fit_cases.dense(lambda: keras.optimizers.Adam(beta_1=0.8)),
    "clipping": fit_cases.dense(lambda: keras.optimizers.Adam(clipnorm=0.1)),
    "optimizer": fit_cases.dense("sgd"),
    "schedule": fit_cases.dense(lambda: keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.9))),
    "frozen layer": lambda: frozen(fit_cases.dense("adam")()),
    "user's own loss": fit_cases.dense("adam", lambda: lambda y, p: keras.ops.mean(keras.ops.square(y - p))),
}


def frozen(model: Any) -> Any:
    model.layers[0].trainable = False
    return model


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_a_model_that_differs_in_one_thing_has_another_fingerprint(name: str) -> None:
    model, other = fit_cases.dense("adam")(), OTHER_MODELS[name]()
    for one in (model, other):  # metrics are built when a fit is packed
        pack(FitCall(one, fit_cases.data()()))

    assert fingerprint(model) != fingerprint(other)


def test_code_of_the_users_that_differs_has_another_fingerprint() -> None:
    def model(factor: float) -> Any:
        return fit_cases.dense("adam", lambda: lambda y, p: factor * keras.ops.mean(keras.ops.square(y - p)))()

    assert fingerprint(model(2.0)) != fingerprint(model(3.0))


def scaled(y: Any, p: Any) -> Any:
    return float(os.environ["SCALE"]) * keras.ops.mean(keras.ops.square(y - p))


@pytest.mark.nightly
def test_a_variable_of_the_environment_that_is_another_makes_another_step(
    tmp_path: Path, traced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALE", "1")
    first = fitted(tmp_path / "first", fit_cases.dense("adam", lambda: scaled), fit_cases.data()())
    traced.clear()
    monkeypatch.setenv("SCALE", "3")

    second = fitted(tmp_path / "second", fit_cases.dense("adam", lambda: scaled), fit_cases.data()())

    assert "train" in traced
    assert second.history.history["loss"][0] > 2 * first.history.history["loss"][0]


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_a_number_that_python_draws_while_a_step_is_traced_is_drawn_in_each_fit(
    tmp_path: Path, traced: list[str], draw: Callable[[], float]
) -> None:
    def loss(y: Any, p: Any) -> Any:
        return (1 + draw()) * keras.ops.mean(keras.ops.square(y - p))

    fitted(tmp_path / "first", fit_cases.dense("adam", lambda: loss), fit_cases.data()())
    traced.clear()
    fitted(tmp_path / "second", fit_cases.dense("adam", lambda: loss), fit_cases.data()())

    assert "train" in traced


OTHER_STEPS: dict[str, Callable[[], dict[str, Any]]] = {
    "rows": fit_cases.data(41),
    "batch": fit_cases.data(batch_size=11),
    "what a callback does before": fit_cases.data(callbacks=lambda: [Halving()]),
    "weights of rows": fit_cases.data(sample_weight=fit_cases.weights),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if "callback" in name else pytest.mark.nightly) for name in OTHER_STEPS])
def test_another_step_is_traced(tmp_path: Path, traced: list[str], name: str) -> None:
    fitted(tmp_path / "first", fit_cases.dense("adam"), fit_cases.data()())
    traced.clear()

    fitted(tmp_path / "second", fit_cases.dense("adam"), OTHER_STEPS[name]())

    assert "train" in traced


def test_a_learning_rate_and_other_rows_are_no_other_step(tmp_path: Path, traced: list[str]) -> None:
    fitted(tmp_path / "first", fit_cases.dense(lambda: keras.optimizers.Adam(0.1)), fit_cases.data()())
    traced.clear()
    other = fit_cases.data()() | {"epochs": 2}
    other["x"] = other["x"] * 2

    second = fitted(tmp_path / "second", fit_cases.dense(lambda: keras.optimizers.Adam(0.01)), other)

    assert traced == []
    assert float(second.model.optimizer.learning_rate) == pytest.approx(0.01)


class Counting(layers.Layer):  # type: ignore[misc]
    """A user's layer that keeps in Python how often it was traced: that is a part of the training."""

    calls = 0

    def call(self, x: Any) -> Any:
        self.calls += 1
        return x


def counting() -> Any:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([layers.Input((6,)), Counting(), layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def with_python() -> Any:
    keras.utils.set_random_seed(3)
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(1)(layers.Lambda(python_inside, output_shape=(6,))(x)))
    model.compile("sgd", "mse")
    return model


def python_inside(x: Any) -> Any:
    twice = tf.numpy_function(lambda value: value * 2, [x], tf.float32)
    twice.set_shape(x.shape)
    return twice


@pytest.mark.parametrize("make", [counting, pytest.param(with_python, marks=pytest.mark.nightly)])
def test_what_a_graph_cannot_be_without_its_process_is_traced_each_time(tmp_path: Path, traced: list[str], make: Callable[[], Any]) -> None:
    first = fitted(tmp_path / "first", make, fit_cases.data()())
    traced.clear()
    keras.backend.clear_session(free_memory=False)

    second = fitted(tmp_path / "second", make, fit_cases.data()())

    assert "train" in traced
    same(first, second)


@pytest.mark.nightly
@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data[:500] + b"\0" + data[501:], lambda data: b""])
def test_a_damaged_trace_is_made_again(tmp_path: Path, traced: list[str], damage: Callable[[bytes], bytes]) -> None:
    first = fitted(tmp_path / "first", fit_cases.dense("adam"), fit_cases.data()())
    for path in (tmp_path / "traces").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    traced.clear()

    second = fitted(tmp_path / "second", fit_cases.dense("adam"), fit_cases.data()())

    assert "train" in traced
    same(first, second)


def test_an_error_in_a_kept_loop_has_the_words_of_a_traced_one(tmp_path: Path, traced: list[str]) -> None:
    good = fit_cases.sentences()
    bad = good | {"x": np.where(np.arange(good["x"].shape[1]) == 3, 99, good["x"]).astype("int32")}
    fitted(tmp_path / "first", fit_cases.masked, good)
    traced.clear()
    model = fit_cases.masked()

    with pytest.raises(tf.errors.InvalidArgumentError) as kept:
        fitted(tmp_path / "second", lambda: model, bad)

    assert traced == []
    assert "keras/src/layers/core/embedding.py" in str(kept.value)
    assert keras_messages.message_of(kept.value).startswith(f"indices[0,3] = 99 is not in [0, 9) (at the operation {model.name}")
    assert model.layers[1].name in keras_messages.message_of(kept.value)


def test_the_folder_keeps_what_was_used_last(tmp_path: Path) -> None:
    for place in range(6):
        path = tmp_path / f"{place}.trace"
        path.write_bytes(b"x" * 10)
        os.utime(path, (place, place))

    clear(tmp_path, most=4, most_bytes=35)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.trace", "4.trace", "5.trace"]


def test_models_of_one_structure_have_one_fingerprint_whatever_they_were_seeded_with() -> None:
    def model() -> Any:
        return keras.Sequential([layers.Input((6,)), layers.Dense(8), layers.Dropout(0.5), layers.Dense(1)])

    assert fingerprint(model()) == fingerprint(model())
    assert fingerprint(dropping()) == fingerprint(dropping())
    assert fingerprint(fit_cases.masked()) != fingerprint(fit_cases.masked(recurrent=True))
