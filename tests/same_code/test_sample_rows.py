"""Sample rows of every form that Keras takes, and refusals of a deploy with the move that helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.packing.export import model_export
from aiaas_magics.packing.export.model_export import CannotServe
from aiaas_magics.packing.export.samples import NoSamples
from tests.support.packed import Namespace

pytestmark = pytest.mark.slow  # each exports a model

Cell = Callable[..., Namespace]

MODELS = """
x3 = x[:8, :3]
class Nested(keras.Model):
    def __init__(self):
        super().__init__()
        self.d = layers.Dense(1)
    def call(self, t): return {"q": {"r": self.d(t["u"]["v"]) + self.d(t["w"][0])}}
class Gives(keras.Model):
    def call(self, t): return {"a": t, "b": None}
class Adds(layers.Layer):
    def call(self, p, q=None): return p if q is None else p + q
plain = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
nested, gives_none = Nested(), Gives()
a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b", optional=True)
optional = keras.Model({"a": a, "b": b}, Adds()(a, b))
tree = {"u": {"v": keras.Input((3,))}, "w": (keras.Input((3,)),)}
deep = keras.Model(tree, layers.Dense(1)(tree["u"]["v"] + tree["w"][0]))
one_number = keras.Sequential([keras.Input((6,)), layers.Lambda(lambda t: ops.mean(t))])
umlauts = keras.Sequential([keras.Input((6,)), layers.Dense(1, name="größe (cm)")])
free = keras.Sequential([keras.Input((None, None, 1)), layers.UpSampling2D(interpolation="bilinear")])
images = np.ones((8, 4, 4, 1), "float32")
class Rows(keras.utils.PyDataset):
    def __len__(self): return 1
    def __getitem__(self, i): return x, y
gray = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(1)])
texts = keras.Sequential([keras.Input((1,), dtype="string"), layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")])
i, j = keras.Input((3,), name="größe (cm)"), keras.Input((1,), name="a-b c d")
named = keras.Model({"größe (cm)": i, "a-b c d": j}, {"Preis €/x": layers.Dense(1)(i), "class": layers.Dense(1)(j)})
datasets = [tf.data.Dataset.from_tensor_slices((x, y)).batch(16), tf.data.Dataset.from_tensor_slices(x).batch(16), Rows()]
"""


@pytest.mark.parametrize(
    ("model", "sample", "inputs"),
    [
        pytest.param("nested", "{'u': {'v': x3}, 'w': [x3]}", ["u_v", "w_0"], marks=pytest.mark.nightly),
        ("deep", "{'u': {'v': x3}, 'w': (x3,)}", ["u_v", "w_0"]),
        ("optional", "{'a': x3, 'b': None}", ["a"]),
        pytest.param("optional", "{'a': x3, 'b': x3}", ["a", "b"], marks=pytest.mark.nightly),
        pytest.param("gray", "images[..., 0]", ["input_0"], marks=pytest.mark.nightly),
        ("texts", "np.array(['a', 'b', 'c'])", ["input_0"]),
        ("named", "{'größe (cm)': x3, 'a-b c d': x3[:, 0]}", ["a_b_c_d", "gr__e__cm_"]),
        ("plain", "datasets[0]", ["input_0"]),
        pytest.param("plain", "datasets[1]", ["input_0"], marks=pytest.mark.nightly),
        pytest.param("plain", "datasets[2]", ["input_0"], marks=pytest.mark.nightly),
    ],
)
def test_samples_of_this_form_are_taken(model: str, sample: str, inputs: list[str], cell: Cell) -> None:
    made = cell(MODELS + f"sample = {sample}")

    exported = model_export.export(made[model], made["sample"])

    assert [spec.name for spec in exported.inputs] == inputs


def test_the_names_of_keras_travel_with_those_that_are_served(cell: Cell) -> None:
    made = cell(MODELS)

    exported = model_export.export(made["named"], {"größe (cm)": made["x3"], "a-b c d": made["x3"][:, 0]})

    assert {spec.name: spec.original for spec in exported.inputs} == {"gr__e__cm_": "größe (cm)", "a_b_c_d": "a-b c d"}
    assert {spec.name: spec.original for spec in exported.outputs} == {"Preis___x": "Preis €/x", "class": ""}


@pytest.mark.parametrize(
    ("model", "sample", "error", "said"),
    [
        ("gives_none", "x", CannotServe, "None is among its outputs. Let call return tensors only"),
        ("one_number", "x", CannotServe, "its output 'output_0' is one number for all rows together"),
        ("umlauts", "x", CannotServe, "Rename the model and its layers"),
        ("free", "images", CannotServe, "Give every dimension of its Input but the first a size"),
        ("plain", "(n for n in [x])", DataMismatch, "sample is an iterator, and reading a batch of it would use that up"),
        ("plain", "tf.sparse.from_dense(x)", DataMismatch, "sample is a SparseTensor: no rows to try the model on. Make it dense"),
        ("optional", "{'a': None, 'b': None}", DataMismatch, "each of its inputs is None"),
    ],
)
def test_a_refusal_names_the_cause_and_a_move_that_helps(model: str, sample: str, error: type[Exception], said: str, cell: Cell) -> None:
    made: dict[str, Any] = cell(MODELS + f"sample = {sample}")

    with pytest.raises(error) as refused:
        model_export.export(made[model], made["sample"])

    assert said in str(refused.value)
    assert "\x1b" not in str(refused.value)
    assert "local-fallback" not in str(refused.value)


FITTED = """
ids = np.arange(60).reshape(20, 3) % 9
words = keras.Sequential([keras.Input((3,), dtype="int32"), layers.Embedding(9, 2), layers.Flatten(), layers.Dense(1)])
words.compile("sgd", "mse")
def pairs():
    while True: yield ids[:4], np.ones((4, 1))
class Pairs(keras.utils.PyDataset):
    def __len__(self): return 5
    def __getitem__(self, i): return ids[4 * i : 4 * i + 4], np.ones((4, 1))
fits = {
    "dataset": lambda: {"x": tf.data.Dataset.from_tensor_slices((ids, ids[:, :1])).shuffle(20, seed=1).batch(4)},
    "python dataset": lambda: {"x": Pairs()},
    "generator": lambda: {"x": pairs(), "steps_per_epoch": 2},
    "arrays": lambda: {"x": ids, "y": ids[:, :1]},
}
class Positions(layers.Layer):
    def __init__(self):
        super().__init__()
        self.table = layers.Embedding(6, 4)
    def call(self, t): return t[..., None] + self.table(ops.arange(6))
places = keras.Sequential([keras.Input((6,)), Positions()])
"""


@pytest.mark.parametrize("kind", ["dataset", "python dataset", "generator", "arrays"])
def test_rows_of_the_last_fit_are_the_sample(kind: str, cell: Cell) -> None:
    from aiaas_magics.packing.export.samples import samples_for
    from aiaas_magics.packing.fitcall.fit_call import FitCall, pack

    made = cell(FITTED)
    arguments = made["fits"][kind]()
    packed = pack(FitCall(made["words"], arguments))
    for stream in packed.streams:
        next(stream.one_pass())  # as it goes to the job

    _, (rows,), origin = samples_for(made["words"], None)

    assert origin == "the data of the last fit"
    assert {tuple(row) for row in rows["input_0"]} <= {tuple(row) for row in made["ids"]}
    assert len(rows["input_0"]) == (20 if kind == "arrays" else 4)


def test_rows_are_made_up_for_a_model_that_looks_up_nothing_of_its_input(cell: Cell) -> None:
    exported = model_export.export(cell(FITTED)["places"])

    assert exported.inputs[0].shape == (-1, 6)


def test_a_model_that_was_not_fitted_says_which_fit_counts(cell: Cell) -> None:
    with pytest.raises(NoSamples, match="was not fitted by %%aiaas_train in this kernel"):
        model_export.export(cell(FITTED)["words"])


def test_a_refused_fit_with_none_among_its_inputs_is_told_with_shapes(cell: Cell) -> None:
    from aiaas_magics.packing.fitcall.fit_call import FitCall, pack

    made = cell(MODELS + "optional.compile('sgd', 'mse')")

    with pytest.raises(DataMismatch, match=r"'b': None"):
        pack(FitCall(made["optional"], {"x": {"a": np.ones((8, 5), "float32"), "b": None}, "y": np.ones((8, 3), "float32")}))
