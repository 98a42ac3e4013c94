"""What training sets on the model, its layers and its data is there after the fit, as with plain `fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from aiaas_magics.packing.fitcall.fit_call import FitCall, pack
from aiaas_magics.packing.live import attributes
from tests.same_code.fits import fit

X = np.random.default_rng(1).normal(size=(48, 4)).astype("float32")
Y = X[:, :1] - X[:, 1:2]


class Noting(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.d, self.out = layers.Dense(3), layers.Dense(1)
        self.seen: list[float] = []
        self.best = 0.0
        self.count = tf.Variable(0.0, trainable=False)
        self.counts = {"all": [self.count]}

    def call(self, x: Any) -> Any:
        return self.out(self.d(x))


class Sets(keras.callbacks.Callback):  # type: ignore[misc]
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.seen.append(epoch)
        self.model.best = {"epoch": epoch, "values": np.arange(epoch + 1)}
        self.model.flag = True
        self.model.count.assign_add(1.0)
        self.model.d.trainable = False


class Rows(keras.utils.PyDataset):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.calls, self.order = 0, np.arange(3)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, place: int) -> Any:
        rows = slice(16 * self.order[place], 16 * self.order[place] + 16)
        return X[rows], Y[rows]

    def on_epoch_end(self) -> None:
        self.calls += 1
        self.order = np.roll(self.order, 1)


class Shuffled(Rows):
    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.default_rng(0)


def noting() -> Any:
    keras.utils.set_random_seed(3)
    model = Noting()
    model(X[:2])
    model.compile("sgd", "mse")
    return model


def test_attributes_that_a_callback_sets_on_the_model_and_its_layers_come_back(tmp_path: Path) -> None:
    plain, ours = noting(), noting()
    other_name = ours.seen
    plain.fit(X, Y, epochs=2, callbacks=[Sets()], verbose=0)

    fit(tmp_path, ours, x=X, y=Y, epochs=2, callbacks=[Sets()])

    assert list(other_name) == list(ours.seen) == list(plain.seen) == [0, 1]
    assert ours.best["epoch"] == plain.best["epoch"] == 1
    np.testing.assert_array_equal(ours.best["values"], plain.best["values"])
    assert ours.flag is True
    assert float(ours.count) == float(plain.count) == 2.0
    assert isinstance(ours.count, tf.Variable)
    assert ours.counts["all"][0] is ours.count
    assert [layer.trainable for layer in ours.layers] == [layer.trainable for layer in plain.layers] == [False, True]
    assert len(ours.trainable_weights) == len(plain.trainable_weights) == 2


class Counting(keras.Sequential):  # type: ignore[misc]
    seen = 0

    def __init__(self) -> None:
        super().__init__([layers.Dense(1)])
        self.rows: list[int] = []
        self.sums: list[float] = []

    def train_step(self, data: Any) -> Any:
        self.seen += len(data[0])
        self.rows.append(len(data[0]))
        self.sums.append(float(tf.reduce_sum(data[0])))
        self.last = tf.reduce_sum(data[0])
        return super().train_step(data)


def test_what_a_step_counts_is_counted_in_training_alone(tmp_path: Path) -> None:
    def counting() -> Any:
        model = Counting()
        model.compile("sgd", "mse", run_eagerly=True)
        return model

    plain, ours = counting(), counting()
    plain.fit(X, Y, shuffle=False, verbose=0)

    fit(tmp_path, ours, x=X, y=Y, shuffle=False)

    assert (ours.seen, list(ours.rows)) == (plain.seen, list(plain.rows)) == (48, [32, 16])
    np.testing.assert_allclose(ours.sums, plain.sums, rtol=1e-5)


def test_what_early_stopping_compares_by_is_chosen_after_the_fit(tmp_path: Path) -> None:
    def monitors() -> list[Any]:
        return [keras.callbacks.EarlyStopping(monitor="loss"), keras.callbacks.ReduceLROnPlateau(monitor="loss")]

    theirs, mine = monitors(), monitors()
    noting().fit(X, Y, verbose=0, callbacks=theirs)

    fit(tmp_path, noting(), x=X, y=Y, callbacks=mine)

    assert [one.monitor_op for one in mine] == [one.monitor_op for one in theirs]
    assert mine[0].monitor_op is keras.ops.less


def test_a_pydataset_goes_on_where_training_has_left_it(tmp_path: Path) -> None:
    theirs, mine = Rows(), Rows()
    noting().fit(theirs, epochs=2, shuffle=False, verbose=0)

    fit(tmp_path, noting(), x=mine, epochs=2, shuffle=False)

    assert mine.calls == theirs.calls
    np.testing.assert_array_equal(mine.order, theirs.order)


def test_a_random_generator_of_a_pydataset_is_named_before_the_run() -> None:
    told = " ".join(pack(FitCall(noting(), {"x": Shuffled(), "shuffle": False})).notes)

    assert "Shuffled (x) has a random generator (random), whose state does not come back" in told
    assert "random generator" not in " ".join(pack(FitCall(noting(), {"x": Rows(), "shuffle": False})).notes)


def test_a_backend_sets_data_on_a_model_and_its_layers_and_neither_code_nor_paths_nor_what_is_keras_own() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="first")])
    layer = model.layers[0]
    layer.folder = "runs/a"

    attributes.put_back([layer], [{"best": 0.5, "call": 1, "folder": "/elsewhere", "_path": "x", "_trainable": False}])

    assert (layer.best, layer.folder, layer.trainable) == (0.5, "runs/a", False)
    assert callable(layer.call)
    assert not hasattr(layer, "_path") or layer._path != "x"
