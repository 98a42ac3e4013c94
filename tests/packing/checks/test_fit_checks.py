"""What cannot work is said before anything is sent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aiaas_magics.core.errors import DataMismatch, NotCompiled
from aiaas_magics.packing.checks.fit_checks import UnsuitableKeras, check_keras
from aiaas_magics.packing.fitcall.fit_call import FitCall, pack
from tests.support.packed import Namespace

Cell = Callable[..., Namespace]

SMALL = """
model = keras.Sequential([layers.Input((6,)), layers.Dense(2), layers.Dense(1)])
model.compile('sgd', 'mse')
"""


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"y": np.zeros(69)}, "x has 70, y has 69"),
        ({"sample_weight": np.zeros(3)}, "sample_weight has 3"),
        ({"x": np.zeros((0, 6)), "y": np.zeros(0)}, "x has no rows (shape (0, 6))"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": -4}, "batch_size=-4"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"epochs": 2.5}, "epochs=2.5: a whole number is needed"),
        ({"epochs": None}, "epochs=None"),
        ({"initial_epoch": -1}, "initial_epoch=-1"),
        ({"validation_split": 1.5}, "validation_split=1.5"),
        ({"validation_split": 0.999}, "leaves no rows for training"),
        ({"x": None}, "x is missing"),
        ({"x": 3.0}, "x is of type float"),
        ({"y": [0.0] * 70}, "y is a list of numbers, which Keras does not take. Use numpy.array(y)."),
        ({"x": [[0.0] * 6] * 70}, "x is a list of rows, which Keras does not take. Use numpy.array(x)."),
        ({"x": np.array([[object()] * 6] * 70)}, "x holds Python objects"),
        ({"validation_data": 3}, "validation_data is not (x_val, y_val)"),
        ({"validation_data": (np.zeros((3, 6)), np.zeros(4))}, "validation_data[0] has 3, validation_data[1] has 4"),
        ({"class_weight": {0: 1.0}, "sample_weight": np.ones(70)}, "class_weight and sample_weight"),
    ],
)
def test_data_that_does_not_fit_together_is_refused(changes: dict[str, Any], told: str, cell: Cell) -> None:
    made = cell(SMALL)

    with pytest.raises(DataMismatch) as caught:
        pack(FitCall(made["model"], {**made["arguments"], **changes}))

    assert told in str(caught.value)


def test_a_shape_that_the_model_rejects_is_told_with_both_shapes(cell: Cell) -> None:
    made = cell(SMALL)

    with pytest.raises(DataMismatch) as caught:
        pack(FitCall(made["model"], {**made["arguments"], "x": np.zeros((70, 5), "float32")}))

    assert "a batch is x (16, 5), y (16,)" in str(caught.value)
    assert "the model takes (None, 6) and gives (None, 1)" in str(caught.value)
    assert "Arguments received" not in str(caught.value), "what Keras dumps is left out"
    assert str(caught.value).endswith("(in Sequential.call()).")


def test_a_target_that_the_loss_rejects_is_told_with_both_shapes(cell: Cell) -> None:
    made = cell(SMALL)

    with pytest.raises(DataMismatch) as caught:
        pack(FitCall(made["model"], {**made["arguments"], "y": np.zeros((70, 4, 3), "float32")}))

    assert "y (16, 4, 3)" in str(caught.value)


def test_a_model_that_cannot_be_built_from_the_data_is_told(cell: Cell) -> None:
    made = cell("model = keras.Sequential([layers.Conv2D(4, 3), layers.Dense(1)])\nmodel.compile('sgd', 'mse')")

    with pytest.raises(DataMismatch, match=r"rejects this data: a batch is x \(16, 6\)"):
        pack(FitCall(made["model"], made["arguments"]))


def test_a_model_that_is_not_compiled_is_named(cell: Cell) -> None:
    made = cell("model = keras.Sequential([layers.Dense(1)], name='plain')")

    with pytest.raises(NotCompiled, match=r"'plain' is not compiled\. Call model\.compile"):
        pack(FitCall(made["model"], made["arguments"]))


def test_an_argument_that_fit_does_not_know_is_a_type_error(cell: Cell) -> None:
    made = cell(SMALL)

    with pytest.raises(TypeError, match="epoch"):
        pack(FitCall(made["model"], {**made["arguments"], "epoch": 3}))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(UnsuitableKeras, match=r"no keras.Model"):
        check_keras("model")


def test_a_model_of_legacy_keras_is_refused() -> None:
    legacy = type("Sequential", (), {"__module__": "tf_keras.src.engine.sequential"})

    with pytest.raises(UnsuitableKeras, match="legacy Keras"):
        check_keras(legacy())


@pytest.mark.process
def test_a_kernel_on_another_backend_is_refused() -> None:
    """In a process of its own, which says that it chose JAX: the library itself is an extra, and is not needed to be refused."""
    probe = (
        "import keras\n"
        "from keras.src.backend import config\n"
        "from aiaas_magics.packing.fitcall.fit_call import FitCall, pack\n"
        "model = keras.Sequential([keras.layers.Dense(1)])\n"
        "config._BACKEND = 'jax'\n"
        "try: pack(FitCall(model, {}))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )

    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, check=False)

    assert "UnsuitableKeras This kernel's Keras runs on jax, workers run TensorFlow." in done.stdout, done.stderr


def test_what_is_not_built_is_built_here(cell: Cell) -> None:
    made = cell("model = keras.Sequential([layers.Dense(3), layers.Dense(1)])\nmodel.compile('adam', 'mse', metrics=['mae'])")
    model = made["model"]

    packed = pack(FitCall(model, made["arguments"]))

    assert model.built
    assert model.optimizer.built
    assert packed.shape.parameters == 25
    assert len(packed.variables) == 4 + (2 + 2 * 4) + 4


def test_the_shape_of_the_work_is_counted_as_keras_does(cell: Cell) -> None:
    made = cell(SMALL)

    shape = pack(FitCall(made["model"], {**made["arguments"], "validation_split": 0.25, "initial_epoch": 1})).shape

    assert (shape.rows, shape.global_batch, shape.steps_per_epoch, shape.initial_epoch, shape.epochs) == (52, 16, 4, 1, 2)
