"""Every fit of a cell's own thread is caught, however it is reached; nothing else is."""

from __future__ import annotations

import threading
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from aiaas_magics.core.errors import CannotTravel, JobStillRunning, NotCompiled
from aiaas_magics.notebook.capture import GUARDED, capturing, guard
from aiaas_magics.packing.fitcall.fit_call import FitCall

X, Y = np.ones((6, 2), "float32"), np.ones((6, 1), "float32")


class Overriding(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.asked = 0

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def fit(self, *args: Any, **options: Any) -> Any:
        self.asked += 1
        return super().fit(*args, **{**options, "batch_size": 3})


def small() -> Any:
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


class Catcher:
    """Notes the calls; answers with a word that no `fit` would return."""

    def __init__(self) -> None:
        self.calls: list[FitCall] = []

    def __call__(self, call: FitCall) -> str:
        self.calls.append(call)
        return "carried out"


def helper(model: Any) -> Any:
    return model.fit(X, Y)


def test_arguments_are_bound_by_the_names_of_fit() -> None:
    catch, model = Catcher(), small()

    with capturing(catch):
        answer = model.fit(X, Y, 4, epochs=2, verbose=0)

    assert answer == "carried out"
    (call,) = catch.calls
    assert call.model is model
    assert call.arguments["x"] is X
    assert call.arguments["y"] is Y
    assert {name: call.arguments[name] for name in ("batch_size", "epochs", "verbose")} == {"batch_size": 4, "epochs": 2, "verbose": 0}
    assert set(call.arguments) == {"x", "y", "batch_size", "epochs", "verbose"}


@pytest.mark.parametrize(
    "reach",
    [
        helper,
        lambda model: keras.Model.fit(model, X, Y),
        lambda model: tf.keras.Model.fit(model, X, Y),
        lambda model: getattr(model, "fit")(x=X, y=Y),  # noqa: B009 - as computed names reach it
        lambda model: type(model).fit(model, X, Y),
    ],
)
def test_fit_is_caught_however_it_is_reached(reach: Any) -> None:
    catch = Catcher()

    with capturing(catch):
        assert reach(small()) == "carried out"

    assert len(catch.calls) == 1


def test_a_subclass_that_overrides_fit_is_caught_at_its_super_call() -> None:
    catch, model = Catcher(), Overriding()
    model.compile("sgd", "mse")

    with capturing(catch):
        assert model.fit(X, Y, epochs=2) == "carried out"

    assert model.asked == 1
    assert catch.calls[0].arguments["batch_size"] == 3


def test_a_wrong_argument_is_a_type_error_as_in_keras() -> None:
    with capturing(Catcher()), pytest.raises(TypeError, match=r"fit\(\) got an unexpected keyword argument 'epoch'. Did you mean epochs\?"):
        small().fit(X, Y, epoch=3)
    with capturing(Catcher()), pytest.raises(TypeError, match=r"fit\(\) multiple values for argument 'y'.$"):
        small().fit(X, Y, y=Y)


def test_outside_of_the_cell_fit_is_keras_own() -> None:
    before = keras.Model.fit
    with pytest.raises(ZeroDivisionError), capturing(Catcher()):
        raise ZeroDivisionError

    assert keras.Model.fit is before
    assert isinstance(small().fit(X, Y, verbose=0), keras.callbacks.History)


def test_other_threads_get_keras_own() -> None:
    catch, answers = Catcher(), []

    with capturing(catch):
        thread = threading.Thread(target=lambda: answers.append(small().fit(X, Y, verbose=0)))
        thread.start()
        thread.join(60)

    assert isinstance(answers[0], keras.callbacks.History)
    assert catch.calls == []


def test_cells_inside_cells_are_each_their_own() -> None:
    outer, inner = Catcher(), Catcher()
    before = keras.Model.fit

    with capturing(outer):
        with capturing(inner):
            small().fit(X, Y)
        small().fit(X, Y)

    assert (len(outer.calls), len(inner.calls)) == (1, 1)
    assert keras.Model.fit is before


def test_a_fit_inside_a_fit_runs_in_the_kernel() -> None:
    answers = []

    def carry_out(call: FitCall) -> Any:
        answers.append(small().fit(X, Y, verbose=0))
        return "carried out"

    with capturing(carry_out):
        assert small().fit(X, Y) == "carried out"
        assert small().fit(X, Y) == "carried out"

    assert [type(answer) for answer in answers] == [keras.callbacks.History] * 2


def test_what_cannot_travel_runs_here_where_that_was_asked_for() -> None:
    def refuse(call: FitCall) -> Any:
        raise CannotTravel("x", "a tf.data.Dataset", "Give arrays.")

    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(2)
    with capturing(refuse, local_fallback=True):
        assert isinstance(small().fit(dataset, verbose=0, shuffle=False), keras.callbacks.History)
    with capturing(refuse), pytest.raises(CannotTravel):
        small().fit(dataset)


def test_other_refusals_do_not_fall_back() -> None:
    def refuse(call: FitCall) -> Any:
        raise NotCompiled("plain")

    with capturing(refuse, local_fallback=True), pytest.raises(NotCompiled):
        small().fit(X, Y)


def test_a_model_in_training_refuses_every_use_until_it_is_released() -> None:
    model, other = small(), small()
    guard.hold(model, "j7")

    for name in GUARDED:
        with pytest.raises(JobStillRunning, match=rf"{name} on a model that job j7 is still training. Call job.result\(\) first"):
            getattr(model, name)(X)
    assert guard.holds(model)
    assert not guard.holds(other)
    other.predict(X, verbose=0)

    guard.release(model)
    guard.release(model)
    assert model.predict(X, verbose=0).shape == (6, 1)
    assert not guard.holds(model)


def test_a_held_model_refuses_a_fit_in_a_cell() -> None:
    catch, model = Catcher(), small()
    guard.hold(model, "j7")

    with capturing(catch), pytest.raises(JobStillRunning):
        model.fit(X, Y)

    assert catch.calls == []
