"""Deploying a model leaves it as it was, and says what its served form does not do."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aiaas_magics.client.serving.deployment import notes_of
from aiaas_magics.packing.export import model_export
from aiaas_magics.packing.export.model_export import CannotServe
from tests.support.packed import Namespace

pytestmark = pytest.mark.slow  # each exports a model

Cell = Callable[..., Namespace]

STATEFUL = """
class Counting(layers.Layer):
    def __init__(self, factor=0.0):
        super().__init__(name='counting')
        self.n = self.add_weight(name='n', shape=(), initializer='zeros', trainable=False)
        self.own = {'total': [tf.Variable(0.0)]}
        self.calls, self.factor = 0, factor
    def call(self, t):
        self.calls += 1
        self.n.assign_add(1.0)
        self.own['total'][0].assign_add(ops.sum(t))
        return t + self.factor * self.n
class Noise(layers.Layer):
    def __init__(self, scale):
        super().__init__()
        self.generator, self.scale = keras.random.SeedGenerator(1), scale
    def call(self, t): return t + self.scale * keras.random.normal((1,), seed=self.generator) + 0 * keras.random.normal((1,))
keras.random.normal((1,))
counting = keras.Sequential([keras.Input((6,)), Counting()])
counted = keras.Sequential([keras.Input((6,)), Counting(1.0)])
seeded = keras.Sequential([keras.Input((6,)), Noise(0.0)])
noisy = keras.Sequential([keras.Input((6,)), Noise(1.0)])
recurrent = keras.Sequential([keras.Input(batch_shape=(1, 5, 2)), layers.LSTM(4, stateful=True, name='memory'), layers.Dense(1)])
recurrent.predict(np.ones((1, 5, 2)), verbose=0)
"""


def state_of(model: Any) -> list[np.ndarray]:
    from keras.src.backend.common import global_state
    from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

    layer = model.layers[0]
    general = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    variables = [*model.variables, *getattr(layer, "states", []), *getattr(layer, "own", {}).get("total", []), general.state]
    return [*(np.array(v.numpy()) for v in variables), np.array(getattr(layer, "calls", 0)), np.array(random.getstate()[1])]


@pytest.mark.parametrize("name", ["counting", "counted", "seeded", "noisy", "recurrent"])
def test_an_export_leaves_every_state_as_it_was_also_when_refused(name: str, cell: Cell) -> None:
    model = cell(STATEFUL)[name]
    before = state_of(model)

    try:
        model_export.export(model, np.ones((1, 5, 2) if name == "recurrent" else (8, 6), "float32"))
    except CannotServe:
        assert name in {"counted", "noisy", "recurrent"}

    assert all(np.array_equal(a, b) for a, b in zip(before, state_of(model), strict=True))


def test_state_that_no_answer_depends_on_is_told(cell: Cell) -> None:
    made = cell(STATEFUL)

    engine, note = notes_of(model_export.export(made["counting"], made["x"]))

    assert engine.endswith("a call changes its state, which an ONNX file cannot hold.")
    assert note.startswith("Each call changes ")
    assert "counting.own" in note
    assert "counting/n" in note
    assert "The endpoint does not go on with that" in note


def test_a_model_that_answers_the_same_rows_differently_is_refused_with_the_cause(cell: Cell) -> None:
    made = cell(STATEFUL)

    for name, cause in (("counted", "counting/n"), ("noisy", "seed_generator")):
        with pytest.raises(CannotServe, match="answers the same rows differently from call to call") as refused:
            model_export.export(made[name], made["x"])
        assert cause in str(refused.value)


def test_a_stateful_recurrent_layer_is_refused_with_what_to_do(cell: Cell) -> None:
    made = cell(STATEFUL)

    with pytest.raises(CannotServe, match="its layer 'memory' is stateful") as refused:
        model_export.export(made["recurrent"], np.ones((1, 5, 2), "float32"))

    assert "stateful=False" in str(refused.value)


def test_what_building_sets_stays_when_the_export_is_the_first_call(cell: Cell) -> None:
    made = cell(
        "class Own(layers.Layer):\n"
        "    def __init__(self):\n        super().__init__()\n        self.width = None\n"
        "    def build(self, shape): self.width = shape[-1]\n"
        "    def call(self, t): return t * self.width\n"
        "class Net(keras.Model):\n"
        "    def __init__(self):\n        super().__init__()\n        self.own = Own()\n"
        "    def call(self, t): return self.own(t)\n"
        "net = Net()"
    )

    model_export.export(made["net"], made["x"])

    assert made["net"].own.width == 6
    assert made["net"].predict(made["x"], verbose=0).shape == (70, 6)


def test_the_numbers_for_another_backend_leave_every_state_as_it_was(cell: Cell) -> None:
    from aiaas_magics.packing.checks import reference_answers

    made = cell(STATEFUL + "counting.compile('sgd', 'mse')")
    before = state_of(made["counting"])

    reference_answers.take(made["counting"], {"x": made["x"], "y": made["x"]})

    assert all(np.array_equal(a, b) for a, b in zip(before, state_of(made["counting"]), strict=True))


def test_a_refused_name_does_not_stay_in_the_names_of_the_notebooks_next_variables(cell: Cell) -> None:
    made = cell("model = keras.Sequential([keras.Input((6,)), layers.Dense(1, name='größe (cm)')], name='outer')")

    with pytest.raises(CannotServe, match="Rename the model"):
        model_export.export(made["model"], made["x"])

    assert made["keras"].Variable(0.0, name="next").path == "next"
