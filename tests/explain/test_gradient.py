"""Gradient attributions of Keras models whose answers are known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from aiaas_magics.core.errors import InvalidSpec, UnknownName
from aiaas_magics.core.explain_settings import METHODS, ExplainSettings
from aiaas_magics.explain.attributions import Attributions, join_attributions
from aiaas_magics.explain.gradcam import enlarged
from aiaas_magics.explain.gradient import GradientExplainer, gradient_attributions
from aiaas_magics.explain.layer_taps import layers_of

pytestmark = pytest.mark.slow  # each compiles gradients

RNG = np.random.default_rng(3)
ENTRY_METHODS = [name for name, info in METHODS.items() if info.family == "gradient" and name != "gradcam"]


def explained(method: str, model: Any, *inputs: np.ndarray, background: list[np.ndarray] | None = None, **more: Any) -> Attributions:
    return gradient_attributions(model, list(inputs), background, ExplainSettings(method=method, **more))


@pytest.fixture(scope="module")
def linear() -> Any:
    model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
    model.set_weights([RNG.normal(size=(5, 1)), np.array([0.5])])
    return model


@pytest.fixture(scope="module")
def curved() -> Any:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [keras.Input((5,)), layers.Dense(16, activation="tanh"), layers.BatchNormalization(), layers.Dense(3, activation="softmax")]
    )


@pytest.fixture(scope="module")
def pictures() -> Any:
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.MaxPool2D(),
            layers.Conv2D(6, 3, activation="relu", name="last"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, activation="softmax"),
        ],
        name="pictures",
    )


ROWS = RNG.normal(size=(7, 5)).astype(np.float32)
BACKGROUND = RNG.normal(size=(20, 5)).astype(np.float32)


def test_integrated_gradients_of_a_linear_model_are_its_shapley_values(linear: Any) -> None:
    weights = linear.get_weights()[0][:, 0]

    attributions = explained("integrated_gradients", linear, ROWS, background=[BACKGROUND], steps=4)

    assert np.allclose(attributions.values[0], weights * (ROWS - BACKGROUND.mean(axis=0)), atol=1e-5)


def test_gradients_of_a_linear_model_are_its_weights(linear: Any) -> None:
    weights = linear.get_weights()[0][:, 0]

    assert np.allclose(explained("saliency", linear, ROWS).values[0], np.abs(weights), atol=1e-6)
    assert np.allclose(explained("gradient_input", linear, ROWS).values[0], weights * ROWS, atol=1e-5)
    assert np.allclose(explained("smoothgrad", linear, ROWS).values[0], np.abs(weights), atol=1e-5)


def test_integrated_gradients_sum_to_the_output_and_more_steps_come_nearer(curved: Any) -> None:
    coarse = explained("integrated_gradients", curved, 3 * ROWS, steps=3).completeness_errors
    fine = explained("integrated_gradients", curved, 3 * ROWS, steps=128).completeness_errors

    assert coarse is not None
    assert fine is not None
    assert fine.max() < 1e-5 < coarse.max()


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name == "smoothgrad" else pytest.mark.nightly) for name in ENTRY_METHODS]
)
def test_a_row_gets_the_same_alone_and_in_a_batch(method: str, curved: Any) -> None:
    whole = explained(method, curved, ROWS, background=[BACKGROUND])
    alone = [explained(method, curved, ROWS[row : row + 1], background=[BACKGROUND]) for row in (0, 6)]
    small = explained(method, curved, ROWS, background=[BACKGROUND], batch_rows=3)

    assert np.allclose(join_attributions(alone).values[0], whole.values[0][[0, 6]], rtol=1e-4, atol=1e-6)
    assert np.allclose(small.values[0], whole.values[0], rtol=1e-4, atol=1e-6)


def test_grad_cam_finds_the_last_convolution_in_a_nested_model_too(pictures: Any) -> None:
    outer = keras.Input((16, 16, 3))
    nested = keras.Model(outer, layers.Activation("linear")(pictures(outer)))
    images = RNG.random((2, 16, 16, 3)).astype(np.float32)

    plain = explained("gradcam", pictures, images)
    inside = explained("gradcam", nested, images)
    named = explained("gradcam", nested, images, layer="last")

    assert plain.values[0].shape == images.shape
    assert plain.values[0].min() >= 0
    assert np.allclose(plain.values[0], inside.values[0], atol=1e-6)
    assert np.allclose(plain.values[0], named.values[0], atol=1e-6)


def test_grad_cam_is_the_weighted_sum_of_the_channels(pictures: Any) -> None:
    """By hand: gradients at the convolution's output, taken through the rest of the model alone."""
    import tensorflow as tf

    images = RNG.random((2, 16, 16, 3)).astype(np.float32)
    activations = tf.constant(images)
    for layer in pictures.layers[:3]:
        activations = layer(activations)
    with tf.GradientTape() as tape:
        tape.watch(activations)
        outputs = pictures.layers[-1](pictures.layers[-2](activations))
        score = tf.reduce_sum(tf.reduce_max(outputs, axis=1))
    slopes = tape.gradient(score, activations).numpy()
    coarse = np.maximum((slopes.mean(axis=(1, 2), keepdims=True) * activations.numpy()).sum(axis=-1), 0)

    attributions = explained("gradcam", pictures, images)

    assert np.allclose(attributions.values[0].sum(axis=-1), enlarged(coarse, (16, 16)), atol=1e-6)


def test_a_model_is_as_it_was_after_an_explanation(pictures: Any) -> None:
    images = RNG.random((2, 16, 16, 3)).astype(np.float32)
    before, weights = pictures.predict(images, verbose=0), pictures.get_weights()

    explained("gradcam", pictures, images)
    with pytest.raises(UnknownName):
        explained("gradcam", pictures, images, layer="nothing")

    assert not [layer.name for layer in layers_of(pictures) if "call" in vars(layer)]
    assert np.array_equal(pictures.predict(images, verbose=0), before)
    assert all(np.array_equal(old, new) for old, new in zip(weights, pictures.get_weights(), strict=True))


@pytest.fixture(scope="module")
def tokens() -> Any:
    keras.utils.set_random_seed(4)
    ids = keras.Input((8,), dtype="int32")
    vectors = layers.Embedding(20, 4, mask_zero=True)(ids)
    return keras.Model(ids, layers.Dense(1, activation="sigmoid")(layers.GlobalAveragePooling1D()(vectors)))


@pytest.mark.parametrize("method", ENTRY_METHODS)
def test_tokens_get_the_attribution_of_their_embedding_and_padding_none(method: str, tokens: Any) -> None:
    ids = np.array([[3, 7, 7, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8]])

    values = explained(method, tokens, ids).values[0]

    assert values.shape == ids.shape
    assert np.abs(values[0, 3:]).max() == 0
    assert np.abs(values[0, :3]).min() > 0
    assert values[0, 1] == pytest.approx(values[0, 2], rel=1e-4)


def test_integrated_gradients_of_tokens_are_complete(tokens: Any) -> None:
    errors = explained("integrated_gradients", tokens, RNG.integers(1, 20, (4, 8))).completeness_errors

    assert errors is not None
    assert errors.max() < 1e-5


def test_texts_get_an_attribution_per_word() -> None:
    import tensorflow as tf

    look_up = layers.TextVectorization(30, output_sequence_length=6)
    look_up.adapt(["good film", "bad long film"])
    texts = keras.Input((1,), dtype="string")
    embedding = layers.Embedding(30, 1)
    model = keras.Model(texts, layers.Lambda(lambda vectors: keras.ops.sum(vectors, axis=(1, 2)))(embedding(look_up(texts))))
    vocabulary = look_up.get_vocabulary()
    weights = np.zeros((30, 1))
    weights[vocabulary.index("good")], weights[vocabulary.index("bad")] = 2.0, -3.0
    embedding.set_weights([weights])
    rows = np.array([["Good film!"], ["a bad, bad long film"]], dtype=object)

    attributions = gradient_attributions(model, [rows], None, ExplainSettings(method="integrated_gradients"))

    assert float(model(tf.constant(rows.astype(str)))[1]) == -6.0
    assert attributions.tokens == (("Good", "film!"), ("a", "bad,", "bad", "long", "film"))
    assert np.allclose(attributions.values[0], [[2, 0, np.nan, np.nan, np.nan], [0, -3, -3, 0, 0]], equal_nan=True, atol=1e-6)


def test_several_inputs_and_the_named_output_are_explained() -> None:
    keras.utils.set_random_seed(5)
    numbers, kinds = keras.Input((2,), name="numbers"), keras.Input((1,), name="kinds", dtype="int32")
    joined = layers.Concatenate()([numbers, layers.Flatten()(layers.Embedding(5, 3)(kinds))])
    model = keras.Model({"numbers": numbers, "kinds": kinds}, {"a": layers.Dense(1)(joined), "b": layers.Dense(2)(joined)})
    inputs = [np.array([[1], [4]]), RNG.normal(size=(2, 2)).astype(np.float32)]  # in the order of model.inputs: by name

    attributions = explained("integrated_gradients", model, *inputs, output="b", target=1)
    expected = model({"kinds": inputs[0], "numbers": inputs[1]})["b"][:, 1]

    assert [values.shape for values in attributions.values] == [(2, 1), (2, 2)]
    assert np.allclose(attributions.outputs, expected, atol=1e-6)
    assert attributions.completeness_errors is not None
    assert attributions.completeness_errors.max() < 1e-5
    with pytest.raises(UnknownName, match="no output 'c'"):
        explained("saliency", model, *inputs, output="c")


def test_a_subclassed_model_is_explained() -> None:
    class Squares(keras.Model):  # type: ignore[misc]
        def call(self, rows: Any, training: bool = False) -> Any:
            return keras.ops.sum(rows**2, axis=1, keepdims=True)

    attributions = explained("integrated_gradients", Squares(), ROWS)

    assert np.allclose(attributions.values[0], ROWS**2, atol=1e-5)


def test_integers_without_an_embedding_are_refused_with_a_next_move() -> None:
    model = keras.Sequential([keras.Input((3,), dtype="int32"), layers.CategoryEncoding(10, output_mode="multi_hot"), layers.Dense(1)])

    with pytest.raises(InvalidSpec, match=r"int32, and no embedding reads it\. Use method='kernel_shap'"):
        explained("saliency", model, RNG.integers(0, 9, (2, 3)))


def test_grad_cam_of_a_table_and_a_method_of_another_family_are_refused(curved: Any) -> None:
    with pytest.raises(InvalidSpec, match="Use method='integrated_gradients' or 'occlusion'"):
        explained("gradcam", curved, ROWS)
    with pytest.raises(InvalidSpec, match="is no gradient method"):
        explained("kernel_shap", curved, ROWS)


def test_a_saturated_output_is_said_to_have_no_gradient() -> None:
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, activation="relu")])
    model.set_weights([np.array([[-1.0], [-1.0]]), np.array([0.0])])

    attributions = explained("saliency", model, np.ones((3, 2), dtype=np.float32))

    assert "3 of 3 rows have no attribution" in attributions.notes[0]


def test_progress_can_stop_an_explanation(curved: Any) -> None:
    seen = []

    def stop(explained_rows: int, rows: int) -> None:
        seen.append((explained_rows, rows))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gradient_attributions(curved, [ROWS], None, ExplainSettings(method="saliency", batch_rows=2), stop)

    assert seen == [(2, 7), (4, 7)]


def test_an_explainer_is_called_again_for_other_rows(curved: Any) -> None:
    explainer = GradientExplainer(curved, [BACKGROUND], ExplainSettings(method="integrated_gradients"))

    blocks = [explainer.explain([ROWS[first : first + 3]]) for first in (0, 3, 6)]

    whole = explained("integrated_gradients", curved, ROWS, background=[BACKGROUND])
    assert np.allclose(join_attributions(blocks).values[0], whole.values[0], rtol=1e-4, atol=1e-6)
    assert blocks[0].evaluations == blocks[1].evaluations


ON_ONE_BACKEND = """
import sys
import keras
import numpy as np
from keras import layers
from aiaas_magics.core.explain_settings import ExplainSettings
from aiaas_magics.explain.gradient import gradient_attributions

assert keras.backend.backend() == sys.argv[2]
keras.utils.set_random_seed(3)
rng = np.random.default_rng(1)
images, ids = rng.random((3, 10, 10, 2)).astype("float32"), rng.integers(1, 9, (3, 5))
picture, words = keras.Input((10, 10, 2)), keras.Input((5,), dtype="int32")
seen = layers.Flatten()(layers.Conv2D(3, 3, activation="softplus")(picture))
read = layers.GlobalAveragePooling1D()(layers.Embedding(9, 4)(words))
outputs = layers.Dense(2, activation="softmax")(layers.Concatenate()([seen, read]))
model = keras.Model([picture, words], outputs)
model.set_weights([rng.normal(size=weights.shape) * 0.3 for weights in model.get_weights()])
alone = keras.Model(picture, layers.Dense(2)(seen))
alone.set_weights([rng.normal(size=weights.shape) for weights in alone.get_weights()])
found = {}
for method in sys.argv[3:]:
    settings = ExplainSettings(method=method, target=1, batch_rows=40, steps=8, samples=8)
    inputs = [images] if method == "gradcam" else [images, ids]
    made = gradient_attributions(alone if method == "gradcam" else model, inputs, None, settings)
    found |= {f"{method} {place}": values for place, values in enumerate(made.values)}
np.savez(sys.argv[1], **found)
"""


@pytest.mark.process
@pytest.mark.nightly  # a process with JAX
@pytest.mark.parametrize(
    "methods",
    [("integrated_gradients",), ("saliency", "gradient_input", "smoothgrad", "gradcam")],
    ids=" ".join,
)
def test_jax_and_tensorflow_give_the_same(methods: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jax", reason="the extra `jax` is not installed")
    environment = os.environ | {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", ON_ONE_BACKEND, str(tmp_path / "jax.npz"), "jax", *methods]

    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "tensorflow.npz"), "tensorflow", *methods])
    exec(ON_ONE_BACKEND, {})

    assert done.returncode == 0, done.stderr[-3000:]
    on_jax, on_tensorflow = np.load(tmp_path / "jax.npz"), np.load(tmp_path / "tensorflow.npz")
    assert {name.split()[0] for name in on_jax.files} == {*methods}
    for name in on_jax.files:
        assert np.abs(on_jax[name]).max() > 0
        assert np.allclose(on_jax[name], on_tensorflow[name], rtol=1e-3, atol=1e-6), name
