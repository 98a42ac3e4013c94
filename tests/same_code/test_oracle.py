"""The oracle itself: what it compares, and that it can fail."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.notebook.conftest import Kernel
from tests.same_code.oracle import Oracle, Ran, covering, differences, unannounced

STATE: dict[str, Any] = {
    "names": {"model": "Sequential"},
    "values": {"model": {"weights": [np.ones((2, 2), "float32")], "built": True}, "n": 1, "h": {"params": {"steps": 2}, "epoch": [0]}},
    "files": {"log.csv": "epoch\n"},
    "random": {"python": [1, 2]},
    "notices": [],
}


def test_a_run_equals_itself_and_what_rounding_leaves() -> None:
    rounded = {**STATE, "values": {**STATE["values"], "model": {"weights": [np.full((2, 2), 1.00001, "float32")], "built": True}}}

    assert differences(Ran(state=STATE), Ran(state=STATE)) == []
    assert differences(Ran(state=STATE), Ran(state=rounded)) == []


@pytest.mark.parametrize(
    ("ours", "place"),
    [
        (Ran(state=STATE, error=("RemoteTrainingError", "RuntimeError")), "outcome"),
        (Ran(state=STATE, lines=("epoch 0",)), "lines"),
        (Ran(state=STATE, warnings=("UserWarning: odd",)), "warnings"),
        (Ran(state=STATE, figures=1), "figures"),
        (Ran(state={**STATE, "names": {}}), "names.model"),
        (Ran(state={**STATE, "values": {**STATE["values"], "n": 2}}), "values.n"),
        (Ran(state={**STATE, "values": {**STATE["values"], "n": True}}), "values.n"),
        (Ran(state={**STATE, "values": {**STATE["values"], "h": {"params": {"steps": 3}, "epoch": [0]}}}), "values.h.params.steps"),
        (Ran(state={**STATE, "values": {**STATE["values"], "h": {"params": {"steps": 2}, "epoch": [0, 1]}}}), "values.h.epoch"),
        (
            Ran(state={**STATE, "values": {**STATE["values"], "model": {"weights": [np.full((2, 2), 1.01, "float32")], "built": True}}}),
            "values.model.weights[0]",
        ),
        (Ran(state={**STATE, "values": {**STATE["values"], "model": {"weights": [], "built": True}}}), "values.model.weights"),
        (Ran(state={**STATE, "files": {"log.csv": "epoch\n0\n"}}), "files.log.csv"),
        (Ran(state={**STATE, "files": {}}), "files.log.csv"),
        (Ran(state={**STATE, "random": {"python": [1, 3]}}), "random.python[1]"),
    ],
)
def test_each_kind_of_difference_is_seen_and_named(ours: Ran, place: str) -> None:
    [difference] = differences(Ran(state=STATE), ours)

    assert difference.startswith(place + ":")


@pytest.mark.parametrize(
    ("plain", "ours", "is_caught"),
    [
        (("ValueError", "Exception"), ("a.DataMismatch", "a.UsageError", "ValueError", "Exception"), True),
        (("ValueError", "Exception"), ("RuntimeError", "Exception"), False),
        (("tf.OpError", "Exception"), ("a.DataMismatch", "Exception"), True),
        (("__main__.Enough", "Exception"), ("RuntimeError", "Exception"), False),
    ],
)
def test_an_exception_has_to_be_one_that_the_cells_own_except_clause_catches(
    plain: tuple[str, ...], ours: tuple[str, ...], is_caught: bool
) -> None:
    assert (differences(Ran(error=plain), Ran(error=ours)) == []) == is_caught


def test_a_difference_counts_as_announced_only_where_the_cell_says_so() -> None:
    told, silent = (Ran(state={**STATE, "notices": notices}) for notices in (["The backend keeps a checkpoint."], []))
    announced = {"^files.b/": "keeps a checkpoint"}

    assert unannounced(["files.b/x: 1 != 2", "values.n: 1 != 2"], announced, told) == ["values.n: 1 != 2"]
    assert unannounced(["files.b/x: 1 != 2"], announced, silent) == ["files.b/x: 1 != 2"]


def test_a_covering_array_has_each_pair_that_is_valid() -> None:
    values = {"a": "123", "b": "xy", "c": "pqr", "d": "mn"}

    rows = covering(values, valid=lambda row: (row["a"], row["b"]) != ("1", "x"))

    there = {pair for row in rows for pair in itertools.combinations(sorted(row.items()), 2)}
    every = {((m, u), (n, v)) for m, n in itertools.combinations(values, 2) for u in values[m] for v in values[n]}
    assert every - there == {(("a", "1"), ("b", "x"))}
    assert len(rows) <= 13


BEFORE = """
import random, keras, numpy as np, matplotlib.pyplot as plt
x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32"); y = x[:, :1] - x[:, 1:2]
class Look(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.seen = self.model.predict(x[:2], verbose=0); print("epoch", epoch, sorted(logs)); plt.plot([1, epoch]); plt.show()
"""
CELL = """
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(1)])
model.compile("adam", "mse", metrics=["mae"])
look = Look()
arguments = dict(batch_size=16, epochs=2, shuffle=False, validation_split=0.2, verbose=0)
history = model.fit(x, y, callbacks=[look, keras.callbacks.CSVLogger("log.csv")], **arguments)
second = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
drawn = random.random(), np.random.rand()
"""


@pytest.mark.process
def test_a_cell_leaves_what_it_leaves_plainly(notebook: Kernel, tmp_path_factory: pytest.TempPathFactory) -> None:
    plain, ours = Oracle(notebook, notebook, tmp_path_factory.mktemp("oracle")).run(CELL, before=BEFORE)

    assert differences(plain, ours) == []
    assert (plain.figures, plain.lines) == (
        2,
        ("epoch 0 ['loss', 'mae', 'val_loss', 'val_mae']", "epoch 1 ['loss', 'mae', 'val_loss', 'val_mae']"),
    )
    assert set(plain.state["values"]) >= {"model", "history", "look", "second", "drawn", "x"}
    assert [row[0] for row in plain.state["files"]["log.csv"]] == ["epoch", 0.0, 1.0]
