"""What is served agrees with Keras as far as float32 goes, and a refusal says why no engine could agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiaas_magics.backend.serving.engines.onnx_engine import OnnxEngine
from aiaas_magics.backend.serving.models.parity_check import check_parity, read_samples
from aiaas_magics.client.serving.deployment import notes_of
from aiaas_magics.core import precision
from aiaas_magics.core.agreement import compare, largest_of
from aiaas_magics.core.precision import Precision
from aiaas_magics.core.spec import DeploySpec
from aiaas_magics.packing.export import model_export
from aiaas_magics.packing.export.model_export import CannotServe, Servable
from aiaas_magics.packing.export.onnx_session import onnx_form
from tests.support.packed import Namespace

pytestmark = pytest.mark.slow  # each exports a model

Cell = Callable[..., Namespace]

PIXELS = """
keras.utils.set_random_seed(1)
pixels = np.random.default_rng(1).integers(0, 256, (32, 784)).astype("float32")
auto = keras.Sequential([keras.Input((784,)), *(layers.Dense(n, "relu") for n in (256, 64, 256)), layers.Dense(784)])
# Two columns of large terms that nearly cancel: what is left is not known to five digits.
cancels = keras.Sequential([keras.Input((784,)), layers.Dense(512, "relu"), layers.Dense(1)])
"""


def host_proof(exported: Servable, folder: Path) -> float:
    """The largest difference that the host's own proof finds."""
    (folder / "artefact").write_bytes(exported.artefact)
    (folder / "samples").write_bytes(exported.samples)
    spec = DeploySpec(
        name="m",
        artefact="0" * 64,
        format=exported.format,
        samples="0" * 64,
        inputs=exported.inputs,
        outputs=exported.outputs,
        precision=precision.for_spread(exported.spread),
    )
    engine = OnnxEngine(spec, folder / "artefact", threads=1)
    try:
        return check_parity(engine, read_samples(folder / "samples", spec), spec).largest
    finally:
        engine.close()


@pytest.mark.parametrize("name", ["auto", pytest.param("cancels", marks=pytest.mark.nightly)])
def test_layers_on_raw_pixels_are_served(name: str, cell: Cell, tmp_path: Path) -> None:
    made = cell(PIXELS)

    exported = model_export.export(made[name], made["pixels"])

    assert exported.format == "onnx", exported.note
    assert host_proof(exported, tmp_path) <= 1e-5 * largest_of(made[name](made["pixels"]).numpy())
    assert notes_of(exported) == ()


def test_an_answer_near_zero_is_compared_by_the_largest_of_all_rows() -> None:
    expected = np.array([[100.0], [1e-3]])
    rounded, wrong = np.array([[100.0], [1.5e-3]]), np.array([[100.0], [6e-3]])

    assert compare(rounded, expected, Precision(), largest=100.0)
    assert compare(wrong, expected, Precision(), largest=100.0).row == 1
    assert compare(rounded[1:], expected[1:], Precision(), largest=100.0)
    assert not compare(rounded[1:], expected[1:], Precision(of_largest=0.0), largest=100.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "same"), [(np.nan, np.nan, True), (np.nan, 1.0, False), (np.inf, np.inf, True), (np.inf, -np.inf, False)]
)
def test_no_number_equals_itself_alone(ours: float, theirs: float, same: bool) -> None:
    assert bool(compare(np.array([ours]), np.array([theirs]), Precision(), largest=1.0)) is same


def test_a_model_that_keras_itself_spreads_is_served_with_the_spread_shown(cell: Cell, tmp_path: Path) -> None:
    # What stands for rounding: the number of rows itself goes into the answer, by five in 100,000.
    made = cell("""
class Spreads(layers.Layer):
    def call(self, t): return t * (1.0 + 5e-5 * ops.cast(ops.shape(t)[0], "float32") / 32.0)
model = keras.Sequential([keras.Input((6,)), Spreads()])
""")

    exported = model_export.export(made["model"], made["x"])
    (note,) = notes_of(exported)

    assert exported.spread == pytest.approx(5e-5, rel=0.3)
    assert "Keras' own answers to the same rows differ by 4e-05 of the largest" in note
    assert host_proof(exported, tmp_path) > 0


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("layers.Lambda(lambda t: t - ops.mean(t, 0, keepdims=True))", "what it answers to a row depends on the rows beside it"),
        ("layers.Lambda(lambda t: t + tf.random.normal([1]))", "since it draws random numbers in each call"),
        ("layers.Lambda(lambda t: ops.reshape(t, (32, 6)))", "it takes the whole sample, and not 1 row of it"),
    ],
)
def test_what_no_engine_could_agree_with_is_refused_with_the_cause(model: str, said: str, cell: Cell) -> None:
    made = cell(f"model = keras.Sequential([keras.Input((6,)), {model}])")

    with pytest.raises(CannotServe) as refused:
        model_export.export(made["model"], made["x"][:32])

    assert said in str(refused.value)
    assert "--sample" not in str(refused.value)


@pytest.mark.parametrize(
    "last",
    [
        "layers.Dense(1, 'sigmoid')",
        pytest.param("layers.Dense(3, 'softmax')", marks=pytest.mark.nightly),
        pytest.param("layers.Dense(2), layers.Activation('sigmoid'), layers.Reshape((2, 1))", marks=pytest.mark.nightly),
    ],
)
def test_rare_events_keep_their_order(last: str, cell: Cell) -> None:
    """ONNX Runtime's own Sigmoid is 0 below -18 or so: a ranking of rare events would lose its order, and no difference would tell."""
    made: dict[str, Any] = cell(f"model = keras.Sequential([keras.Input((6,)), {last}])")
    model = made["model"]
    x = np.linspace(-1, 1, 60, dtype="float32").reshape(10, 6) * 60
    expected = model(x).numpy()

    answers = onnx_form(model_export.export(model, x).artefact)({"input_0": x})["output_0"]

    shown = expected > 1e-30
    assert (expected[shown] < 1e-8).any()
    np.testing.assert_allclose(answers[shown], expected[shown], rtol=1e-4)
