"""Models in fewer bits: made, measured and judged in the kernel, then proved, served and named by a real local server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest

import aiaas_magics
from aiaas_magics.backend.serving.engines import UnsafeArtefact
from aiaas_magics.backend.serving.engines.onnx_check import check_onnx
from aiaas_magics.client.backend import Backend
from aiaas_magics.core import precision as precisions
from aiaas_magics.core.errors import BackendRefused, ChangedTooMuch, DataMismatch, InvalidSpec, ProofFailed
from aiaas_magics.core.precision import SERVED, Precision
from aiaas_magics.core.spec import DeploySpec
from aiaas_magics.notebook import present
from aiaas_magics.packing.export import accuracy_impact, model_export, quantization
from aiaas_magics.packing.export.accuracy_impact import PrecisionChange
from aiaas_magics.packing.export.export_request import QuantizationOptions
from aiaas_magics.packing.export.model_export import CannotServe
from aiaas_magics.packing.export.onnx_session import onnx_form
from tests.support import lanes

pytestmark = pytest.mark.slow  # each exports a model

ROWS = 600
draw = np.random.default_rng(5)
NUMBERS = draw.normal(size=(ROWS, 40)).astype("float32")
CLASSES = (NUMBERS[:, :3] @ draw.normal(size=(3, 4))).argmax(1)
IMAGES = draw.normal(size=(ROWS, 12, 12, 1)).astype("float32")
WORDS = draw.integers(0, 200, (ROWS, 9)).astype("int32")


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with aiaas_magics.connect() as backend:
        yield backend


def trained(model: Any, x: Any, y: Any, loss: Any, metrics: Any = None) -> Any:
    model.compile("adam", loss, metrics=metrics)
    model.fit(x, y, epochs=6, batch_size=32, verbose=0)
    return model


def dense() -> tuple[Any, Any, Any]:
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((40,)), layers.Dense(96, "relu"), layers.Dense(64, "relu"), layers.Dense(4, "softmax")])
    return trained(model, NUMBERS, CLASSES, "sparse_categorical_crossentropy", ["accuracy"]), NUMBERS, CLASSES


def images() -> tuple[Any, Any, Any]:
    import keras
    from keras import layers

    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(1, "sigmoid"),
        ]
    )
    y = (IMAGES.mean((1, 2, 3)) > 0).astype("float32")
    return trained(model, IMAGES, y, "binary_crossentropy", ["accuracy"]), IMAGES, y


def words() -> tuple[Any, Any, Any]:
    import keras
    from keras import layers

    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [keras.Input((9,), dtype="int32"), layers.Embedding(200, 24), layers.Bidirectional(layers.LSTM(16)), layers.Dense(1)]
    )
    y = (WORDS % 7).mean(1).astype("float32")
    return trained(model, WORDS, y, "mse"), WORDS, y


def several() -> tuple[Any, Any, Any]:
    import keras
    from keras import layers

    keras.utils.set_random_seed(4)
    left, right = keras.Input((40,), name="left"), keras.Input((9,), dtype="int32", name="right")
    both = layers.Concatenate()([layers.Dense(64, "relu")(left), layers.Flatten()(layers.Embedding(200, 32)(right))])
    outputs = {"kind": layers.Dense(4, "softmax", name="kind")(both), "size": layers.Dense(1, name="size")(both)}
    x, y = {"left": NUMBERS, "right": WORDS}, {"kind": CLASSES, "size": NUMBERS[:, :1]}
    losses = {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    return trained(keras.Model([left, right], outputs), x, y, losses, {"kind": ["accuracy"], "size": ["mae"]}), x, y


MODELS: dict[str, Callable[[], tuple[Any, Any, Any]]] = {"dense": dense, "images": images, "words": words, "several": several}


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[Any, Any, Any]]:
    """By name, each trained when first asked for."""
    return Made()


class Made(dict[str, tuple[Any, Any, Any]]):
    def __missing__(self, name: str) -> tuple[Any, Any, Any]:
        return self.setdefault(name, MODELS[name]())


def rows(x: Any, count: int) -> Any:
    return {name: array[:count] for name, array in x.items()} if isinstance(x, dict) else x[:count]


def operators(artefact: bytes) -> set[str]:
    return {node.op_type for node in onnx.load_model_from_string(artefact).graph.node}


@pytest.mark.parametrize(
    ("name", "bits"),
    lanes.thinned(
        [(name, bits) for name in MODELS for bits in SERVED],
        keep=lambda case: case in {("dense", "int4"), ("images", "int8"), ("words", "float16")},
    ),
)
def test_a_model_in_fewer_bits_is_measured_proved_and_served(made: Any, backend: Backend, name: str, bits: str) -> None:
    model, x, y = made[name]
    weights, compiled = [np.array(w) for w in model.get_weights()], model.evaluate(x, y, verbose=0, return_dict=True)
    told: list[PrecisionChange] = []

    endpoint = backend.deploy(
        model, name=name, sample=rows(x, 32), precision=bits, validation_data=(x, y), max_change=0.2, tell=told.append
    )

    answers, own = endpoint.predict(rows(x, 50)), model.predict(rows(x, 50), verbose=0)
    assert told == [endpoint.change]
    figures = {line.measure: line for line in told[0].lines}
    for metric in compiled.keys() & figures.keys():
        assert figures[metric].before == pytest.approx(compiled[metric], rel=1e-3), "as Keras' own evaluate has it"
    assert "loss" in figures
    assert told[0].bytes_after < told[0].bytes_before * (0.62 if bits == "float16" else 0.5)
    for output in own if isinstance(own, dict) else [None]:
        full, found = (own, answers) if output is None else (own[output], answers[output])
        assert np.abs(full - found).mean() < {"float16": 2e-3, "int8": 0.02, "int4": 0.2}[bits] * max(1.0, float(np.abs(full).max()))
    (version,) = [view for view in endpoint.versions if view.version == endpoint.view().routing.live]
    assert (version.engine, version.precision.name) == ("onnx", bits)
    assert version.precision.change == told[0].sentence
    assert bits in present.endpoint_bundle(endpoint)["text/plain"]
    assert model.evaluate(x, y, verbose=0, return_dict=True) == compiled, "the user's model, its metrics included, is as it was"
    assert all(np.array_equal(before, after) for before, after in zip(weights, model.get_weights(), strict=True))


@pytest.mark.nightly
def test_the_page_and_the_configuration_name_the_precision(made: Any, backend: Backend) -> None:
    model, x, y = made["dense"]

    endpoint = backend.deploy(model, name="told", precision="int8", validation_data=(x, y), max_change=0.2)
    config = json.loads(endpoint._calls.exchange("GET", "/v2/models/told/config"))
    page = json.loads(endpoint._calls.exchange("GET", "/endpoints/told"))
    again = backend.deploy(model, name="told")

    assert config["parameters"] == {"precision": {"string_value": "int8"}}
    assert page["versions"][0]["precision"]["name"] == "int8"
    assert "accuracy" in page["versions"][0]["precision"]["change"]
    assert [str(view.precision) for view in again.versions] == ["as trained", "int8"]
    assert "1 (previous, int8)" in present.routing_text(again)


def test_answers_do_not_depend_on_the_rows_beside_them(made: Any) -> None:
    """What onnxruntime's quantize_dynamic would make differs here by one part in a hundred."""
    model, x, _ = made["dense"]
    for bits in SERVED:
        form = onnx_form(quantization.reduce(model_export.export(model).artefact, bits))
        large = np.concatenate([x[:4], 100 * x[4:64]])
        (together,) = form({"input_0": large}).values()
        (alone,) = form({"input_0": large[:4]}).values()

        np.testing.assert_allclose(together[:4], alone, rtol=1e-5, atol=1e-6)


def test_a_change_beyond_the_limit_is_shown_and_does_not_go_live(made: Any, backend: Backend) -> None:
    model, x, y = made["words"]
    told: list[PrecisionChange] = []

    with pytest.raises(ChangedTooMuch, match=r"int4 changes loss by .* on 600 rows of your validation data, more than the limit of 1e-06"):
        backend.deploy(model, name="never", precision="int4", validation_data=(x, y), max_change=1e-6, tell=told.append)

    assert len(told) == 1
    assert "The model does not go live." in present.change_table(told[0])["text/plain"]
    assert "never" not in [endpoint.name for endpoint in backend.endpoints()]


def test_without_validation_data_it_says_on_what_it_was_measured(made: Any) -> None:
    model, x, _ = made["dense"]
    import keras

    fresh = keras.models.clone_model(model)
    made_up = model_export.export(fresh, quantization_options=QuantizationOptions(precision="int8")).change
    sampled = model_export.export(model, x[:20], quantization_options=QuantizationOptions(precision="int8")).change

    assert made_up is not None
    assert sampled is not None
    assert (made_up.of, made_up.limit, sampled.of, sampled.rows) == ("made-up data", 0.1, "your sample", 20)
    text = present.change_table(made_up)["text/plain"]
    assert "Measured on only 32 rows of made-up data" in text
    assert "--validate x_val,y_val" in text


def test_the_table_says_size_metrics_and_verdict(made: Any) -> None:
    model, x, y = made["dense"]

    found = model_export.export(model, quantization_options=QuantizationOptions(precision="int8", validation_data=(x, y))).change

    assert found is not None
    text = present.change_table(found)["text/plain"]
    assert text.startswith("Accuracy impact of int8, measured on 600 rows of your validation data\n")
    assert [line.split()[0] for line in text.splitlines()[3:6]] == ["size", "accuracy", "loss"]
    assert "same answer" in text
    assert text.splitlines()[-1].startswith("Criterion: accuracy, change 0")
    assert found.sentence.startswith("accuracy 0.")


def test_an_output_that_is_no_number_any_more_is_refused() -> None:
    worse = accuracy_impact.ImpactLine(measure="accuracy", before=0.9, after=float("nan"))
    what, by = accuracy_impact.judged((worse,))
    bad = PrecisionChange(
        precision="int8", bytes_before=2, bytes_after=1, rows=1, of="x", validated=True, lines=(worse,), judged=what, by=by, limit=1.0
    )

    with pytest.raises(ChangedTooMuch):
        bad.check()


def test_what_onnx_cannot_express_is_refused_before_anything_is_sent() -> None:
    import keras
    import tensorflow as tf
    from keras import layers

    class Odd(layers.Layer):
        def call(self, v: Any) -> Any:
            return tf.math.igamma(tf.ones_like(v), tf.abs(v))

    texts = keras.Sequential([keras.Input((1,), dtype="string"), layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")])
    for model, sample in [
        (keras.Sequential([keras.Input((40,)), Odd(), layers.Dense(64)]), NUMBERS[:8]),
        (texts, np.array([["a"], ["b"]])),
    ]:
        with pytest.raises(CannotServe, match=r"as a SavedModel only.* int8 is to be had as ONNX\. Leave --precision out"):
            model_export.export(model, sample, quantization_options=QuantizationOptions(precision="int8"))
    with pytest.raises(CannotServe, match="gains nothing from int8"):
        model_export.export(
            keras.Sequential([keras.Input((3,)), layers.Dense(2)]), quantization_options=QuantizationOptions(precision="int8")
        )


def test_validation_data_that_do_not_fit_are_refused_in_words(made: Any) -> None:
    model, x, y = made["dense"]
    for given, said in [
        ((x, y[:5]), "different numbers of rows"),
        ((x[:, :3], y), "the model takes"),
        ((x, y, y), "3 parts"),
        ((x, np.ones((ROWS, 7, 2), "float32")), "do not take y_val"),
    ]:
        with pytest.raises(DataMismatch, match=said):
            model_export.export(model, quantization_options=QuantizationOptions(precision="int8", validation_data=given))


def test_a_tolerance_is_never_looser_than_its_precision() -> None:
    assert precisions.of("int8").of_largest == 0.02
    for wrong in ({"of_largest": 0.02}, {"rtol": 1e-3}, {"name": "float16", "of_largest": 0.01}, {"atol": float("nan")}, {"name": "int3"}):
        with pytest.raises(InvalidSpec):
            Precision(**wrong)


@pytest.mark.nightly
def test_the_host_proves_the_reduced_form(made: Any, backend: Backend) -> None:
    """Full precision's file with the samples of int4, and a tolerance that claims too much."""
    from aiaas_magics.core.spec import EndpointView

    model, x, _ = made["several"]
    full = model_export.export(model, rows(x, 32))
    int4 = model_export.export(model, rows(x, 32), quantization_options=QuantizationOptions(precision="int4"))
    sent = backend.blobs.send_bytes
    spec = DeploySpec(
        name="swapped", artefact=sent(full.artefact), format="onnx", samples=sent(int4.samples), inputs=full.inputs, outputs=full.outputs
    )

    with pytest.raises(ProofFailed, match="swapped was not deployed"):
        backend.transport.post("/v1/endpoints", spec, EndpointView)
    loose = json.loads(aiaas_magics.core.wire.encode(spec)) | {"precision": {"name": "", "of_largest": 0.5}}
    with pytest.raises((InvalidSpec, BackendRefused), match="tolerance is looser"):
        backend.transport.post("/v1/endpoints", loose, EndpointView)


def test_only_products_pass_of_the_runtimes_own_operators(made: Any) -> None:
    artefact = quantization.reduce(model_export.export(made["dense"][0]).artefact, "int4")
    check_onnx(artefact)
    model = onnx.load_model_from_string(artefact)
    product = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    product.op_type = "FusedGemm"

    with pytest.raises(UnsafeArtefact, match=r"com\.microsoft"):
        check_onnx(model.SerializeToString())


def test_each_operator_has_its_form(made: Any) -> None:
    dense_8, images_8, words_8 = (
        operators(quantization.reduce(model_export.export(made[name][0], rows(made[name][1], 4)).artefact, "int8"))
        for name in ("dense", "images", "words")
    )

    assert "MatMulNBits" in dense_8
    assert {"Conv", "Cast", "Mul"} <= images_8
    assert {"Gather", "Cast", "Mul"} <= words_8


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_comes_back_within_half_a_step_of_its_block(bits: int) -> None:
    matrix = draw.normal(size=(70, 5)).astype("float32")
    matrix[:, 3] = 0

    packed, scales = quantization.blocks(matrix, bits)

    values = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(5, 3, quantization.BLOCK)
    again = ((values.astype("float32") - 2 ** (bits - 1)) * scales[..., None]).reshape(5, -1)[:, :70].T
    steps = np.repeat(scales.T, quantization.BLOCK, axis=0)[:70]
    assert (np.abs(again - matrix) <= 0.501 * steps).all()
    assert (again[:, 3] == 0).all()


def test_what_the_models_metrics_had_counted_is_put_back(made: Any) -> None:
    model, x, y = made["dense"]
    model.evaluate(x[:64], y[:64], verbose=0)
    before = [np.array(variable.numpy()) for variable in model.metrics_variables]

    model_export.export(model, quantization_options=QuantizationOptions(precision="int8", validation_data=(x, y)))

    assert all(np.array_equal(kept, variable.numpy()) for kept, variable in zip(before, model.metrics_variables, strict=True))


def test_a_metric_above_one_is_judged_in_parts_of_itself() -> None:
    lines = (
        accuracy_impact.ImpactLine(measure="mae", before=30.0, after=30.6),
        accuracy_impact.ImpactLine(measure="same answer", before=None, after=0.5),
    )

    assert accuracy_impact.judged(lines) == ("mae", pytest.approx(0.02))
    assert accuracy_impact.judged(lines[1:]) == ("the share of other answers", 0.5)
