"""Where a fit differs from plain `fit`, or is refused, the user is told before the run, and whose limit it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from aiaas_magics.core.errors import DataMismatch, InvalidSpec, RemoteTrainingError
from aiaas_magics.core.events import ErrorReport
from aiaas_magics.notebook.capture import capturing
from aiaas_magics.packing.fitcall.fit_call import FitCall, pack

X, Y = np.ones((100, 3), "float32"), np.ones((100, 2), "float32")


def small(**compiled: Any) -> Any:
    model = keras.Sequential([layers.Input((3,)), layers.Dense(2)])
    model.compile("sgd", "mse", **compiled)
    return model


def notes(model: Any, **arguments: Any) -> str:
    return " ".join(pack(FitCall(model, {"x": X, "y": Y, **arguments})).notes)


def test_executions_of_data_that_yields_batches_are_announced_on_several_workers() -> None:
    def notes_of(x: Any, **arguments: Any) -> str:
        call = FitCall(small(steps_per_execution=3), {"x": x, "steps_per_epoch": 5, **arguments})
        return " ".join(pack(call, workers=2).notes)

    of_batches = notes_of(tf.data.Dataset.from_tensor_slices((X, Y)).batch(16))
    of_arrays = notes_of(X, y=Y, batch_size=16)

    assert "steps_per_execution=3 does not divide steps_per_epoch=5: an epoch has 5 steps here, 6 in plain fit." in of_batches
    assert "callbacks are called after each step" in of_batches
    assert "does not divide" not in of_arrays
    assert "callbacks are called as often as before" in of_arrays


@pytest.mark.parametrize("arguments", [{"batch_size": 8}, {"batch_size": 16, "steps_per_epoch": 5}])
def test_executions_are_no_matter_on_one_worker(arguments: dict[str, Any]) -> None:
    assert "steps_per_execution" not in notes(small(steps_per_execution=4), **arguments)


def test_a_generator_is_said_to_be_read_ahead() -> None:
    def batches() -> Iterator[Any]:
        while True:
            yield X[:10], Y[:10]

    told = " ".join(pack(FitCall(small(), {"x": batches(), "steps_per_epoch": 4})).notes)

    assert "Some batches of x are read ahead of training" in told


def test_a_fixed_batch_size_is_refused_on_several_workers_with_the_move() -> None:
    model = keras.Sequential([layers.Input(batch_shape=(20, 3, 1)), layers.LSTM(2, stateful=True)])
    model.compile("sgd", "mse")
    call = FitCall(model, {"x": X[:, :, None], "y": Y, "batch_size": 20})

    with pytest.raises(InvalidSpec, match=r"takes batches of 20 rows only .*Use --workers 1"):
        pack(call, workers=2)

    assert pack(call).payload


def test_refused_data_name_the_fallback_and_the_fallback_runs_it() -> None:
    answers = []

    def carry_out(call: FitCall) -> Any:
        return pack(call)

    with capturing(carry_out), pytest.raises(DataMismatch, match="if plain fit takes both, the limit is ours, and --local-fallback"):
        small().fit(X[:, :2], Y)
    with capturing(lambda _: _refuse(), local_fallback=True):
        answers.append(small().fit(X, Y, verbose=0))

    assert isinstance(answers[0], keras.callbacks.History)


def _refuse() -> Any:
    raise DataMismatch("Model 'a' rejects this data.")


def test_an_error_in_a_worker_says_that_the_limit_may_be_ours() -> None:
    error = RemoteTrainingError(ErrorReport(type="TypeError", message="no", frames=()))

    assert "If plain fit runs it as it is, the limit is ours: try --fused off and --workers 1" in str(error)
