"""Which format a model gets, why not the other, and what to do where it gets none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aiaas_magics.backend.serving.engines import saved_model_child
from aiaas_magics.backend.serving.models.parity_check import read_samples
from aiaas_magics.client.serving.deployment import notes_of
from aiaas_magics.core.spec import DeploySpec
from aiaas_magics.packing.export import export_formats, model_export
from tests.support.packed import Namespace

pytestmark = pytest.mark.slow

Cell = Callable[..., Namespace]


def test_the_reason_for_a_saved_model_is_told(cell: Cell) -> None:
    made = cell("model = keras.Sequential([keras.Input((6,)), layers.Lambda(lambda t: tf.math.digamma(t * t + 1.0))])")
    steps: list[str] = []

    (note,) = notes_of(model_export.export(made["model"], made["x"][:3], on_step=steps.append))

    assert note.startswith("Served by TensorFlow, in a process of its own")
    assert note.endswith("ONNX has no operator for Digamma.")
    assert steps == ["computing 3 sample rows in Keras", "writing it as ONNX", "writing it as a SavedModel"]


def test_a_model_too_large_for_an_onnx_file_is_not_tried_as_one(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cell("model = keras.Sequential([keras.Input((6,)), layers.Dense(100)])")
    monkeypatch.setattr(export_formats, "MOST_ONNX_BYTES", 2_000)

    exported = model_export.export(made["model"], made["x"][:3])

    assert exported.format == "saved_model"
    assert exported.note.startswith("its weights have 0.0 GB, and an ONNX file holds")


def test_shapes_that_keras_traces_otherwise_are_told_with_the_move(cell: Cell) -> None:
    made = cell("model = keras.Sequential([keras.Input((None, 4)), layers.TimeDistributed(layers.Dense(3))])")

    with pytest.raises(
        model_export.CannotServe, match=r"traced with free sizes, .* Give every dimension of its Input but the first a size"
    ):
        model_export.export(made["model"], np.ones((5, 6, 4), "float32"))


def test_an_export_without_memory_says_so(cell: Cell) -> None:
    made = cell(
        "def grow(t):\n    if not isinstance(t, tf.Tensor) or not hasattr(t, 'numpy'): return np.empty(2**45)\n    return t\n"
        "model = keras.Sequential([keras.Input((6,)), layers.Lambda(grow, output_shape=(6,))])"
    )

    with pytest.raises(
        model_export.CannotServe, match=r"\(onnx and saved_model: there is not enough memory for it\). An export takes several"
    ):
        model_export.export(made["model"], made["x"][:3])


@pytest.mark.parametrize(
    ("function", "given", "said"),
    [
        (
            "lambda t: tf.strings.to_number(t)",
            "tf.constant(['abc'])",
            "StringToNumberOp could not correctly convert string: abc (at the operation StringToNumber)",
        ),
        ("lambda t: tf.gather([1.0, 2.0], t)", "tf.constant([7])", "indices[0] = 7 is not in [0, 2) (at the operation GatherV2)"),
    ],
)
def test_an_error_of_a_saved_model_has_tensorflows_sentence(function: str, given: str, said: str, cell: Cell) -> None:
    made = cell(f"given = {given}\nfunction = tf.function({function})\n")

    with pytest.raises(made["tf"].errors.OpError) as refused:
        made["function"](made["given"])

    assert saved_model_child.sentence_of(refused.value) == said
    heading = "Detected at node X defined at (most recent call last):"
    whole = RuntimeError(f'Graph execution error:\n\n{heading}\n  File "a.py", line 1, in f\n{refused.value}')
    assert saved_model_child.sentence_of(whole) == f"{said.partition(' (at')[0]} (at the operation X)"


def test_bytes_that_end_in_zeros_are_compared_whole(cell: Cell, tmp_path: Path) -> None:
    made = cell("model = keras.Sequential([keras.Input((1,), dtype='string'), layers.Lambda(lambda t: t + '\\0')])")
    rows = np.array([[b"\x01\x00\x00"], [b"\x00\xff"]], dtype=object)

    exported = model_export.export(made["model"], rows)
    (tmp_path / "samples").write_bytes(exported.samples)
    spec = DeploySpec(name="m", artefact="", format="saved_model", samples="", inputs=exported.inputs, outputs=exported.outputs)
    samples = read_samples(tmp_path / "samples", spec)

    assert samples.inputs["input_0"].tolist() == rows.tolist()
    assert samples.outputs["output_0"].tolist() == [[b"\x01\x00\x00\x00"], [b"\x00\xff\x00"]]
