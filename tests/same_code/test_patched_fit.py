"""Wrappers around `keras.Model.fit`, as tracking libraries put there, run as with plain `fit`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from aiaas_magics.notebook.capture import capturing
from aiaas_magics.packing.fitcall.fit_call import FitCall

X, Y = np.ones((6, 2), "float32"), np.ones((6, 1), "float32")


def small() -> Any:
    model = keras.Sequential([layers.Input((2,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


class Wrapper:
    """Counts, adds a callback, and calls what it found, as mlflow's autolog does."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self.calls = 0

        def fit(model: Any, *args: Any, **options: Any) -> Any:
            self.calls += 1
            return original(model, *args, **options, callbacks=[keras.callbacks.TerminateOnNaN()])

        self.fit = fit


@pytest.fixture
def put() -> Iterator[Callable[[Any], None]]:
    yield lambda fit: setattr(keras.Model, "fit", fit)
    if "fit" in vars(keras.Model):
        del keras.Model.fit


def test_a_wrapper_from_an_earlier_cell_runs_and_its_fit_is_carried_out(put: Callable[[Any], None]) -> None:
    wrapper, calls = Wrapper(keras.Model.fit), list[FitCall]()
    put(wrapper.fit)

    with capturing(calls.append):
        small().fit(X, Y, epochs=2)

    assert wrapper.calls == len(calls) == 1
    assert [type(callback).__name__ for callback in calls[0].arguments["callbacks"]] == ["TerminateOnNaN"]
    assert isinstance(small().fit(X, Y, verbose=0), keras.callbacks.History), "outside of the cell it is plain"
    assert wrapper.calls == 2
    assert len(calls) == 1


@pytest.mark.parametrize("early", [True, False], ids=["over what it found before the cell", "over what it found in the cell"])
def test_a_wrapper_that_the_cell_puts_there_runs_and_stays(early: bool, put: Callable[[Any], None]) -> None:
    calls, found = list[FitCall](), keras.Model.fit

    with capturing(calls.append):
        wrapper = Wrapper(found if early else keras.Model.fit)
        put(wrapper.fit)
        small().fit(X, Y)

    assert wrapper.calls == len(calls) == 1
    assert isinstance(small().fit(X, Y, verbose=0), keras.callbacks.History)
    assert wrapper.calls == 2
    assert len(calls) == 1


def test_a_fit_of_another_thread_is_counted_once(put: Callable[[Any], None]) -> None:
    put(Wrapper(keras.Model.fit).fit)

    with capturing(lambda _: None) as in_kernel:
        thread = threading.Thread(target=lambda: small().fit(X, Y, verbose=0))
        thread.start()
        thread.join(60)

    assert in_kernel.sentence().startswith("Trained in the kernel: 1 fit of other threads")
