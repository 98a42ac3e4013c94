"""An exported model computes what Keras computed, in the engine that will serve it, with names that clients can use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiaas_magics.backend.serving.engines.onnx_engine import OnnxEngine
from aiaas_magics.backend.serving.engines.saved_model_engine import SavedModelEngine
from aiaas_magics.backend.serving.models.parity_check import check_parity, read_samples
from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.core.spec import DeploySpec
from aiaas_magics.packing.export import model_export
from aiaas_magics.packing.export.model_export import CannotServe, Servable
from aiaas_magics.packing.export.samples import NoSamples
from aiaas_magics.packing.fitcall import fit_call
from tests.packing.cells import CELLS
from tests.support.packed import Namespace

pytestmark = pytest.mark.slow  # each exports a model

Cell = Callable[..., Namespace]


def proof(exported: Servable, folder: Path) -> float:
    """The largest difference between the engine and Keras on the samples."""
    artefact, samples = folder / "artefact", folder / "samples"
    artefact.write_bytes(exported.artefact)
    samples.write_bytes(exported.samples)
    blob = "0" * 64
    spec = DeploySpec(name="m", artefact=blob, format=exported.format, samples=blob, inputs=exported.inputs, outputs=exported.outputs)
    engine = (
        OnnxEngine(spec, artefact, threads=1) if exported.format == "onnx" else SavedModelEngine(spec, artefact, threads=1, scratch=folder)
    )
    try:
        return check_parity(engine, read_samples(samples, spec), spec).largest
    finally:
        engine.close()


@pytest.mark.parametrize(
    "name",
    [
        "the article's Sequential",
        "several inputs and outputs by name, with an embedding and masks",
        pytest.param("a list of inputs, shared layers and a model inside a model", marks=pytest.mark.nightly),
        pytest.param("a subclassed model without get_config, with closures and a lambda", marks=pytest.mark.nightly),
        "everything the user can define",
        pytest.param("recurrent layers in wrappers", marks=pytest.mark.nightly),
        pytest.param("images", marks=pytest.mark.nightly),
        pytest.param("pandas", marks=pytest.mark.nightly),
    ],
)
def test_a_fitted_model_is_exported_with_rows_of_its_fit(name: str, cell: Cell, tmp_path: Path) -> None:
    made = cell(CELLS[name])
    fit_call.pack(fit_call.FitCall(made["model"], made["arguments"]))

    exported = model_export.export(made["model"])

    assert exported.format == "onnx", exported.note
    assert proof(exported, tmp_path) <= 1e-4
    assert all(spec.shape[0] == -1 for spec in (*exported.inputs, *exported.outputs))


@pytest.mark.process
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("the article's Sequential", marks=pytest.mark.nightly),
        "several inputs and outputs by name, with an embedding and masks",
    ],
)
def test_a_saved_model_computes_the_same(name: str, cell: Cell, tmp_path: Path) -> None:
    made = cell(CELLS[name])

    exported = model_export.export(made["model"], made["arguments"]["x"], format="saved_model")

    assert exported.format == "saved_model"
    assert proof(exported, tmp_path) <= 1e-4


@pytest.mark.process
def test_texts_are_served_as_a_saved_model(cell: Cell, tmp_path: Path) -> None:
    made = cell(CELLS["texts"])

    exported = model_export.export(made["model"], np.array([["red"], ["blue"], ["grün"]]))

    assert exported.format == "saved_model"
    assert exported.inputs[0].dtype == "string"
    assert proof(exported, tmp_path) <= 1e-4


@pytest.mark.process
def test_an_operator_that_onnx_does_not_know_falls_back(cell: Cell, tmp_path: Path) -> None:
    made = cell("""
class Odd(layers.Layer):
    def call(self, v): return tf.math.igamma(tf.ones_like(v), tf.abs(v))
model = keras.Sequential([layers.Input((6,)), Odd(), layers.Dense(1)])
""")

    exported = model_export.export(made["model"], made["x"])

    assert exported.format == "saved_model"
    assert "Igamma" in exported.note
    assert proof(exported, tmp_path) <= 1e-4


def test_inputs_and_outputs_have_the_names_of_the_model(cell: Cell) -> None:
    made = cell(CELLS["several inputs and outputs by name, with an embedding and masks"])

    exported = model_export.export(made["model"], made["arguments"]["x"])

    assert [(spec.name, spec.dtype, spec.shape) for spec in exported.inputs] == [("a", "float32", (-1, 6)), ("b", "int32", (-1, 5))]
    assert [(spec.name, spec.shape) for spec in exported.outputs] == [("o1", (-1, 1)), ("o2", (-1, 3))]


def test_names_that_keras_made_up_do_not_change_from_model_to_model(cell: Cell) -> None:
    first, second = (model_export.export(cell(CELLS["the article's Sequential"])["model"]) for _ in range(2))

    assert (first.inputs, first.outputs) == (second.inputs, second.outputs)
    assert first.inputs[0].name == "input_0"
    assert first.outputs[0].name == "output_0"


def test_samples_of_a_list_of_inputs_go_by_position_or_name(cell: Cell, tmp_path: Path) -> None:
    made = cell("""
p, q = keras.Input((2,), name='p'), keras.Input((3,), name='q')
model = keras.Model([p, q], layers.Dense(1, name='sum')(layers.Concatenate()([p, q])))
""")
    left, right = np.ones((4, 2)), np.zeros((4, 3))

    by_place = model_export.export(made["model"], [left, right])
    by_name = model_export.export(made["model"], {"q": right, "p": left})

    assert by_place.samples == by_name.samples
    assert [spec.name for spec in by_place.inputs] == ["p", "q"]


def test_random_rows_are_never_made_for_an_embedding(cell: Cell) -> None:
    made = cell("model = keras.Sequential([layers.Input((5,)), layers.Embedding(10, 4), layers.Flatten(), layers.Dense(1)])")

    with pytest.raises(NoSamples, match="Give some with --sample ARRAY"):
        model_export.export(made["model"])


def test_a_subclassed_model_without_data_asks_for_rows(cell: Cell) -> None:
    made = cell(CELLS["a subclassed model without get_config, with closures and a lambda"])

    with pytest.raises(NoSamples, match="--sample ARRAY"):
        model_export.export(made["model"])


@pytest.mark.parametrize("sample", [np.ones((4, 5)), np.ones(6), np.ones((0, 6)), [np.ones((4, 6)), np.ones((4, 6))]])
def test_rows_that_do_not_fit_are_refused(sample: Any, cell: Cell) -> None:
    made = cell(CELLS["the article's Sequential"])

    with pytest.raises(DataMismatch):
        model_export.export(made["model"], sample)


def test_rows_beyond_an_embedding_are_refused_or_agree_with_keras(cell: Cell) -> None:
    made = cell("""
class Fussy(layers.Layer):
    def call(self, v):
        tf.debugging.assert_less(v, 10.0)
        return v
model = keras.Sequential([layers.Input((6,)), Fussy(), layers.Dense(1)])
""")

    with pytest.raises(DataMismatch, match="does not take these sample rows"):
        model_export.export(made["model"], np.full((3, 6), 11.0))


def test_what_is_no_model_cannot_be_served() -> None:
    with pytest.raises(CannotServe, match=r"int is no keras.Model"):
        model_export.export(3)


def test_an_export_says_nothing(cell: Cell, capfd: pytest.CaptureFixture[str]) -> None:
    made = cell(CELLS["the article's Sequential"])

    model_export.export(made["model"])

    assert capfd.readouterr() == ("", "")


def test_rows_of_the_last_fit_are_there_for_a_reference_evenly_and_within_bounds(cell: Cell) -> None:
    import pandas as pd

    from aiaas_magics.packing.export import samples

    made = cell(CELLS["the article's Sequential"])
    x = np.arange(10_000 * 100, dtype="float32").reshape(10_000, 100)
    frame = pd.DataFrame(x, columns=[f"column {number}" for number in range(100)])

    samples.remember_data(made["model"], x, dataset=frame, streams=())

    rows = samples.fitted_rows(made["model"])
    assert 4000 < len(rows) <= samples.MOST_SPREAD_ROWS
    assert rows.nbytes <= samples.MOST_SPREAD_BYTES
    assert set(np.diff(rows[:, 0] // 100)) <= {2, 3}
    assert rows[-1, 0] > 9_990 * 100
    assert samples.fitted_columns(made["model"])[7] == "column 7"
    assert samples.fitted_rows("a path.keras") is None


def test_the_rows_are_forgotten_with_the_model(cell: Cell) -> None:
    import gc

    from aiaas_magics.packing.export import samples

    made = cell(CELLS["the article's Sequential"])
    fit_call.pack(fit_call.FitCall(made["model"], made["arguments"]))
    before = len(samples._remembered)
    made.clear()
    gc.collect()

    assert len(samples._remembered) < before
