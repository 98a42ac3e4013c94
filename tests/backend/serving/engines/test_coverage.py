"""Which engine serves what: models of every kind, deployed to a real local server, proved there, and called.

Each case names its engine. One that could be served by ONNX and falls back to a SavedModel shows here, as does one whose answers differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aiaas_magics
from aiaas_magics.client.backend import Backend
from tests.support import lanes

draw = np.random.default_rng(11)
NUMBERS = draw.normal(3.0, 2.0, (24, 6)).astype("float32")
WHOLE = draw.integers(0, 20, (24, 7)).astype("int32")
SERIES = draw.normal(size=(24, 5, 3)).astype("float32")
COLOURS = np.array([["red"], ["blue"], ["grün"], ["red"]] * 6, dtype=object)
SENTENCES = np.array([["a good film"], ["a bad film, a long film"], ["unheard of"], [""]] * 6, dtype=object)


def cell(source: str) -> dict[str, Any]:
    """What a cell defines; its classes belong to `__main__`, as a notebook's do."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    names = {"__name__": "__main__", "keras": keras, "layers": keras.layers, "ops": keras.ops, "tf": tf, "np": np}
    names |= {"NUMBERS": NUMBERS, "WHOLE": WHOLE, "SERIES": SERIES, "COLOURS": COLOURS, "SENTENCES": SENTENCES}
    exec(compile(source, "<cell>", "exec"), names)
    return names


ONNX = {
    "an adapted Normalization": """
scale = layers.Normalization(); scale.adapt(NUMBERS)
model, x = keras.Sequential([keras.Input((6,)), scale, layers.Dense(2)]), NUMBERS""",
    "Rescaling of bytes": """
pixels = keras.Input((4, 4, 1), dtype="uint8")
model = keras.Sequential([pixels, layers.Rescaling(1 / 255), layers.Conv2D(3, 2), layers.Flatten(), layers.Dense(2)])
x = np.arange(24 * 16, dtype="uint8").reshape(24, 4, 4, 1)""",
    "CategoryEncoding": """
model = keras.Sequential([keras.Input((7,), dtype="int32"), layers.CategoryEncoding(20, output_mode="multi_hot"), layers.Dense(2)])
x = WHOLE""",
    "several inputs and outputs, by name": """
a, b = keras.Input((6,), name="a"), keras.Input((7,), dtype="int32", name="b")
c = layers.Concatenate()([a, layers.Flatten()(layers.Embedding(20, 3)(b))])
model = keras.Model({"a": a, "b": b}, {"sum": layers.Dense(1, name="sum")(c), "kind": layers.Dense(4, "softmax", name="kind")(c)})
x = {"a": NUMBERS, "b": WHOLE}""",
    "a list of inputs, two outputs": """
a, b = keras.Input((6,)), keras.Input((5, 3))
c = layers.Concatenate()([a, layers.GlobalAveragePooling1D()(b)])
model, x = keras.Model([a, b], [layers.Dense(1)(c), layers.Dense(2)(c)]), [NUMBERS, SERIES]""",
    "a constant that the model closes over": """
tilt = tf.constant(NUMBERS.std(0))
model, x = keras.Sequential([keras.Input((6,)), layers.Lambda(lambda v: v * tilt), layers.Dense(2)]), NUMBERS""",
    "sequences of any length": """
model = keras.Sequential([keras.Input((None,), dtype="int32"), layers.Embedding(20, 4), layers.LSTM(5), layers.Dense(1)])
x = WHOLE""",
    "sequences of any length, bidirectional, masked": """
words = keras.Input((None,), dtype="int32")
model = keras.Sequential([words, layers.Embedding(20, 4, mask_zero=True), layers.Bidirectional(layers.LSTM(5)), layers.Dense(1)])
x = np.where(np.arange(7) < np.arange(24)[:, None] % 7 + 1, WHOLE, 0).astype("int32")""",
    "bidirectional, all steps": """
both = layers.Bidirectional(layers.LSTM(4, return_sequences=True))
model = keras.Sequential([keras.Input((5, 3)), both, layers.TimeDistributed(layers.Dense(2))])
x = SERIES""",
    "Masking before a GRU": """
model = keras.Sequential([keras.Input((5, 3)), layers.Masking(0.0), layers.GRU(4), layers.Dense(1)])
x = SERIES * (np.arange(5) < np.arange(24)[:, None] % 5 + 1)[..., None]""",
    "attention": """
a = keras.Input((5, 3))
model, x = keras.Model(a, layers.LayerNormalization()(a + layers.MultiHeadAttention(2, 4)(a, a))), SERIES""",
    "a layer of the cell": """
class Gate(layers.Layer):
    def build(self, shape): self.w = self.add_weight(shape=(shape[-1],), name="w")
    def call(self, v): return ops.sigmoid(v * self.w) * tf.nn.relu(v)
model, x = keras.Sequential([keras.Input((6,)), Gate(), layers.Dense(2)]), NUMBERS""",
    "a subclassed model that takes a dict": """
class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.one, self.two = layers.Dense(4), layers.Dense(1)
    def call(self, given): return {"y": self.two(self.one(given["a"]) * ops.mean(given["b"], axis=(1, 2))[:, None])}
model, x = Net(), {"a": NUMBERS, "b": SERIES}""",
    "float64": """
model = keras.Sequential([keras.Input((6,), dtype="float64"), layers.Dense(8, "tanh", dtype="float64"), layers.Dense(2, dtype="float64")])
x = NUMBERS.astype("float64")""",
    "whole numbers in and out": """
a = keras.Input((7,), dtype="int32")
model, x = keras.Model(a, ops.sum(a, axis=1) * 2), WHOLE""",
    "Discretization and IntegerLookup": """
a, b = keras.Input((6,), name="a"), keras.Input((7,), dtype="int64", name="b")
bins, known = layers.Discretization(bin_boundaries=[0.0, 2.0, 4.0])(a), layers.IntegerLookup(vocabulary=[3, 5, 7])(b)
model = keras.Model([a, b], layers.Flatten()(layers.Embedding(4, 3)(layers.Concatenate()([bins, known]))))
x = {"a": NUMBERS, "b": WHOLE.astype("int64")}""",
}
SAVED_MODEL = {
    "StringLookup": """
known = layers.StringLookup(vocabulary=["red", "blue", "grün"], output_mode="one_hot")
model = keras.Sequential([keras.Input((1,), dtype="string"), known, layers.Dense(2)])
x = COLOURS""",
    "TextVectorization": """
words = layers.TextVectorization(max_tokens=20, output_sequence_length=6); words.adapt(["a good film", "a bad film", "long"])
texts = keras.Input((1,), dtype="string")
model = keras.Sequential([texts, words, layers.Embedding(20, 3), layers.GlobalAveragePooling1D(), layers.Dense(1)])
x = SENTENCES""",
    "computed in bfloat16": """
model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu", dtype="mixed_bfloat16"), layers.Dense(2, dtype="mixed_bfloat16")])
x = NUMBERS""",
    "computed in float16": """
model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu", dtype="mixed_float16"), layers.Dense(2, dtype="float32")])
x = NUMBERS""",
}
CASES = [("onnx", name) for name in ONNX] + [("saved_model", name) for name in SAVED_MODEL]


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with aiaas_magics.connect() as backend:
        yield backend


def parts(x: Any, count: int) -> Any:
    if isinstance(x, dict):
        return {name: array[:count] for name, array in x.items()}
    return [array[:count] for array in x] if isinstance(x, list) else x[:count]


def own(model: Any, x: Any) -> list[np.ndarray]:
    """Keras' own answers, flat."""
    import keras
    import tensorflow as tf

    def tensor(array: np.ndarray) -> Any:
        return tf.constant(array.astype(object) if array.dtype.kind in "OSU" else array)

    found = model(keras.tree.map_structure(tensor, x), training=False)
    return [np.asarray(tf.cast(one, tf.float32) if one.dtype == tf.bfloat16 else one) for one in keras.tree.flatten(found)]


# Of each kind one: the others differ in a layer, not in the way to their engine.
AT_NIGHT = frozenset(
    {
        *(
            "Rescaling of bytes",
            "a list of inputs, two outputs",
            "sequences of any length, bidirectional, masked",
            "bidirectional, all steps",
        ),
        *("Masking before a GRU", "a layer of the cell", "float64", "computed in bfloat16", "TextVectorization", "StringLookup"),
    }
)


@pytest.mark.parametrize(
    ("engine", "name"), lanes.thinned(CASES, keep=lambda case: case[1] not in AT_NIGHT), ids=[name for _, name in CASES]
)
def test_a_model_is_served_by_its_engine_and_answers_as_keras(backend: Backend, engine: str, name: str) -> None:
    made = cell((ONNX | SAVED_MODEL)[name])
    model, x = made["model"], made["x"]

    endpoint = backend.deploy(model, name="covered", sample=x, replicas=1)
    try:
        assert endpoint.versions[0].engine == engine
        assert any(note.startswith("Served by TensorFlow") for note in endpoint.notes) == (engine == "saved_model")
        for count in (1, 5, 24):
            given = parts(x, count)
            answers = endpoint.predict(given)
            flat = [answers[key] for key in answers] if isinstance(answers, dict) else [answers]
            for found, expected in zip(flat, own(model, given), strict=True):
                assert found.shape == expected.shape
                assert found.dtype == expected.dtype
                np.testing.assert_allclose(found, expected, rtol=TOLERANCES.get(name, 1e-4), atol=TOLERANCES.get(name, 1e-5))
        if "any length" in name:
            longer = np.tile(x, 3)
            np.testing.assert_allclose(endpoint.predict(longer), own(model, longer)[0], rtol=1e-4, atol=1e-5)
    finally:
        endpoint.stop()


def test_names_of_keras_go_both_ways_and_an_onnx_model_is_served_as_it_is(backend: Backend) -> None:
    import keras
    import onnx

    from aiaas_magics.packing.export import model_export

    named = {"größe (cm)": keras.Input((6,), name="größe (cm)"), "b": keras.Input((3,), name="b")}
    joined = keras.layers.Concatenate()(list(named.values()))
    model = keras.Model(named, {"Preis €": keras.layers.Dense(1)(joined), "class": keras.layers.Dense(2)(joined)})
    x = {"größe (cm)": NUMBERS, "b": SERIES[:, 0]}
    served = {"gr__e__cm_": NUMBERS, "b": SERIES[:, 0]}

    of_keras = backend.deploy(model, sample=x, name="named")
    of_onnx = backend.deploy(onnx.load_model_from_string(model_export.export(model, x).artefact), sample=served, name="file")

    expected, answers, file_answers = model.predict(x, verbose=0), of_keras.predict(x), of_onnx.predict(served)
    assert answers.keys() == expected.keys()
    for name, key in (("Preis €", "Preis__"), ("class", "class")):
        np.testing.assert_allclose(answers[name], expected[name], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(file_answers[key], expected[name], rtol=1e-4, atol=1e-5)
    assert of_keras.view().origin == "Keras"
    assert of_onnx.view().origin == "ONNX Runtime in the kernel"
    of_keras.stop()
    of_onnx.stop()


def test_two_samples_of_different_length_leave_the_length_free(backend: Backend) -> None:
    model = cell(
        """
        class Net(keras.Model):
            def __init__(self):
                super().__init__()
                self.lookup, self.memory = layers.Embedding(20, 4), layers.GRU(3)
            def call(self, ids): return self.memory(self.lookup(ids))
        model = Net()""".replace("\n        ", "\n")
    )["model"]

    endpoint = backend.deploy(model, name="lengths", sample=WHOLE, other_samples=[np.tile(WHOLE, 2)])

    longer = np.tile(WHOLE, 3)[:5]
    np.testing.assert_allclose(endpoint.predict(longer), own(model, longer)[0], rtol=1e-4, atol=1e-5)
    assert [spec.shape for spec in endpoint.view().inputs] == [(-1, -1)]
    endpoint.stop()


@pytest.mark.nightly
def test_a_saved_models_folder_is_served(backend: Backend, tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    model.export(tmp_path / "net", verbose=False)

    endpoint = backend.deploy(tmp_path / "net", sample=NUMBERS)

    np.testing.assert_allclose(endpoint.predict(NUMBERS), model.predict(NUMBERS, verbose=0), rtol=1e-4, atol=1e-5)
    assert (endpoint.name, endpoint.view().origin) == ("net", "TensorFlow in the kernel")
    endpoint.stop()


TOLERANCES: dict[str, float] = {"computed in bfloat16": 2e-2, "computed in float16": 5e-3}
