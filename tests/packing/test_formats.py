"""Which format a model gets, why not the other, and what to do where it gets none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiaas_magics.client.endpoint import notes_of
from aiaas_magics.packing import formats, servable
from tests.packed import Namespace

Cell = Callable[..., Namespace]


def test_the_reason_for_a_saved_model_is_told(cell: Cell) -> None:
    made = cell("model = keras.Sequential([keras.Input((6,)), layers.Lambda(lambda t: tf.math.digamma(t * t + 1.0))])")
    steps: list[str] = []

    (note,) = notes_of(servable.export(made["model"], made["x"][:3], on_step=steps.append))

    assert note.startswith("Served by TensorFlow, in a process of its own")
    assert note.endswith("ONNX has no operator for Digamma.")
    assert steps == ["computing 3 sample rows in Keras", "writing it as ONNX", "writing it as a SavedModel"]


def test_a_model_too_large_for_an_onnx_file_is_not_tried_as_one(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cell("model = keras.Sequential([keras.Input((6,)), layers.Dense(100)])")
    monkeypatch.setattr(formats, "MOST_ONNX_BYTES", 2_000)

    exported = servable.export(made["model"], made["x"][:3])

    assert exported.format == "saved_model"
    assert exported.note.startswith("its weights have 0.0 GB, and an ONNX file holds")


def test_an_export_without_memory_says_so(cell: Cell) -> None:
    made = cell(
        "def grow(t):\n    if not isinstance(t, tf.Tensor) or not hasattr(t, 'numpy'): return np.empty(2**45)\n    return t\n"
        "model = keras.Sequential([keras.Input((6,)), layers.Lambda(grow, output_shape=(6,))])"
    )

    with pytest.raises(servable.CannotServe, match=r"\(onnx and saved_model: there is not enough memory for it\). An export takes several"):
        servable.export(made["model"], made["x"][:3])
