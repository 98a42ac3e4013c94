"""Models that Keras writes with operators for which the converter has no translation are ONNX files nevertheless."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aiaas_magics.packing.export import model_export
from aiaas_magics.packing.export.onnx_session import onnx_form
from tests.support.packed import Namespace

pytestmark = pytest.mark.slow

Cell = Callable[..., Namespace]

# Over two axes, so that its products have seven letters: the converter would try all 5,040 orders of them, again and again.
ATTENTION = "i = keras.Input((2, 2, 4)); model = keras.Model(i, layers.MultiHeadAttention(2, 2, attention_axes=(1, 2))(i, i))"


@pytest.mark.parametrize(
    ("shape", "model"),
    [
        ((2, 2, 4), "attention"),
        ((6,), "layers.Dense(8, 'gelu'), layers.Dense(2)"),
        pytest.param((6,), "layers.Dense(8, 'celu')", marks=pytest.mark.nightly),
        ((8, 8, 4), "layers.Conv2D(8, 3, groups=2), layers.Conv2D(4, 3, groups=4, padding='same')"),
        pytest.param((9, 4), "layers.Conv1D(8, 3, groups=2)", marks=pytest.mark.nightly),
        ((6,), "layers.Lambda(lambda t: ops.argmax(t, axis=-1))"),
        pytest.param((6,), "layers.Lambda(lambda t: ops.log1p(ops.abs(t)))", marks=pytest.mark.nightly),
        ((6,), "layers.Lambda(lambda t: ops.log1p(ops.abs(t) * 1e-9) * 1e9)"),
        pytest.param((6,), "layers.Discretization([-1.0, -0.25, 0.5])", marks=pytest.mark.nightly),
        ((6,), "layers.Discretization([-1.0, 0.0, 1.0], output_mode='one_hot')"),
    ],
)
def test_a_model_is_an_onnx_file_that_computes_as_keras(shape: tuple[int, ...], model: str, cell: Cell) -> None:
    made: dict[str, Any] = cell(ATTENTION if model == "attention" else f"model = keras.Sequential([keras.Input({shape}), {model}])")
    rows = np.random.default_rng(0).normal(scale=2, size=(16, *shape)).astype("float32")
    rows.ravel()[:3] = -1.0, -0.0, 0.0

    exported = model_export.export(made["model"], rows)

    assert exported.format == "onnx", exported.note
    expected = made["model"](rows).numpy()
    answers = onnx_form(exported.artefact)({"input_0": rows})["output_0"]
    np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize(
    "model", ["layers.IntegerLookup(vocabulary=[3, 5, 7]), layers.Embedding(5, 2)", "layers.IntegerLookup(vocabulary=[3, 5], invert=True)"]
)
def test_tables_of_numbers_are_looked_up_in_onnx(model: str, cell: Cell) -> None:
    made = cell(f"model = keras.Sequential([keras.Input((7,), dtype='int64'), {model}])")
    rows = np.arange(21).reshape(3, 7) % (3 if "invert" in model else 21)

    exported = model_export.export(made["model"], rows)

    assert exported.format == "onnx", exported.note
    np.testing.assert_array_equal(onnx_form(exported.artefact)({"input_0": rows})["output_0"], made["model"](rows))
