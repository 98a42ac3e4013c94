"""Where a fit differs from plain `fit`, or is refused, the user is told before the run, and whose limit it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from aiaas_magics.errors import DataMismatch, InvalidSpec, RemoteTrainingError
from aiaas_magics.events import ErrorReport
from aiaas_magics.notebook.capture import capturing
from aiaas_magics.packing.fitcall import FitCall, pack

X, Y = np.ones((100, 3), "float32"), np.ones((100, 2), "float32")


def small(**compiled: Any) -> Any:
    model = keras.Sequential([layers.Input((3,)), layers.Dense(2)])
    model.compile("sgd", "mse", **compiled)
    return model


def notes(model: Any, **arguments: Any) -> str:
    return " ".join(pack(FitCall(model, {"x": X, "y": Y, **arguments})).notes)


def test_executions_that_do_not_divide_the_steps_are_announced() -> None:
    told = notes(small(steps_per_execution=3), batch_size=16, steps_per_epoch=5)

    assert "steps_per_execution=3 does not divide steps_per_epoch=5: an epoch has 5 steps here, 6 in plain fit." in told


def test_callbacks_that_count_batches_are_told_of_the_last_one() -> None:
    saving = keras.callbacks.ModelCheckpoint("s-{batch}.keras", save_freq=8)

    told = notes(small(steps_per_execution=4), batch_size=8, callbacks=[saving])

    assert "its last batch is number 12 for callbacks here (ModelCheckpoint), 15 in plain fit." in told


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        (small(steps_per_execution=4), {"batch_size": 8}),
        (small(steps_per_execution=4), {"batch_size": 25, "steps_per_epoch": 4}),
        (small(), {}),
    ],
    ids=["nobody counts batches", "they divide", "one step an execution"],
)
def test_nothing_is_announced_where_nothing_differs(model: Any, arguments: dict[str, Any]) -> None:
    assert "steps_per_execution" not in notes(model, **arguments)


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
