"""The trained state comes back into the live objects, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aiaas_magics.core.errors import AiaasBug, ResultMismatch
from aiaas_magics.packing.fitcall import fit_call
from aiaas_magics.packing.fitcall.fit_call import FitCall
from aiaas_magics.packing.live import plain_json
from tests.packing.cells import CELLS
from tests.support import lanes
from tests.support.packed import Namespace, Worker

Cell = Callable[..., Namespace]


def train(made: Namespace, worker: Worker, folder: Path, *, check: str = "") -> tuple[fit_call.PackedFitCall, fit_call.FitResult]:
    packed = fit_call.pack(FitCall(made["model"], made["arguments"]))
    return packed, fit_call.read_result(worker.train(packed, folder, check=check))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("a Sequential that is not built", marks=pytest.mark.nightly),
        "random layers, whose seeds go on",
        "everything the user can define",
    ],
)
def test_a_second_fit_goes_on_from_the_first(name: str, cell: Cell, worker: Worker, tmp_path: Path) -> None:
    made, plain = cell(CELLS[name]), cell(CELLS[name])
    for turn in range(2):
        packed, result = train(made, worker, tmp_path / f"run{turn}")
        history = fit_call.apply_result(result, packed)
        expected = plain["model"].fit(**plain["arguments"], verbose=0)
        assert history.history == expected.history

    import keras

    assert isinstance(history, keras.callbacks.History)
    assert made["model"].history is history
    assert int(made["model"].optimizer.iterations.numpy()) == 20
    for mine, theirs in zip(made["model"].get_weights(), plain["model"].get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    made["model"].fit(**made["arguments"], verbose=0)
    plain["model"].fit(**plain["arguments"], verbose=0)
    for mine, theirs in zip(made["model"].get_weights(), plain["model"].get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_plain_attributes_of_callbacks_come_back(cell: Cell, worker: Worker, tmp_path: Path) -> None:
    made = cell("""
class Recorder(keras.callbacks.Callback):
    def __init__(self, shared):
        super().__init__()
        self.losses, self.table, self.last, self.array = shared, {}, None, np.zeros(2)
        self.helper = lambda: 1
    def on_epoch_end(self, epoch, logs=None):
        self.losses.append(logs['loss'])
        self.table[epoch] = ('epoch', np.float32(epoch))
        self.last = logs
        self.array = self.array + 1
shared = []
model = keras.Sequential([layers.Dense(1)])
model.compile('sgd', 'mse')
recorder, stopper = Recorder(shared), keras.callbacks.EarlyStopping(monitor='loss', patience=0, min_delta=10.0)
arguments.update(callbacks=[recorder, stopper], epochs=9)
""")
    packed, result = train(made, worker, tmp_path / "run")

    history = fit_call.apply_result(result, packed)

    recorder, stopper = made["recorder"], made["stopper"]
    assert history.epoch == [0, 1]
    assert recorder.losses is made["shared"]
    assert made["shared"] == history.history["loss"]
    assert recorder.table == {0: ("epoch", 0.0), 1: ("epoch", 1.0)}
    assert recorder.last == {"loss": made["shared"][1]}
    np.testing.assert_array_equal(recorder.array, [2.0, 2.0])
    assert recorder.helper() == 1
    assert recorder.model is made["model"]
    assert stopper.stopped_epoch == 1
    assert made["model"].stop_training is True


def test_a_backend_gives_callbacks_data_and_neither_paths_nor_other_code() -> None:
    """What `trusted` lets through of attributes that a lying backend sends."""
    import keras

    class Stops(keras.callbacks.Callback):
        limit = 3

        def __init__(self) -> None:
            super().__init__()
            self.status, self.seen, self.folder, self.where = "begun", [], "runs", Path("runs/a")

        @property
        def best(self) -> int:
            return 1

    saves, logs, stops = keras.callbacks.ModelCheckpoint("best.keras"), keras.callbacks.CSVLogger("log.csv"), Stops()
    board = keras.callbacks.TensorBoard("logs")

    def trusted(callback: object, **state: object) -> list[str]:
        return sorted(plain_json.trusted(callback, state))

    assert trusted(saves, filepath="/etc/x.keras", best=0.5, _current_epoch=3, epochs_since_last_save=1, save_best_only=True) == [
        "_current_epoch",
        "best",
        "epochs_since_last_save",
        "save_best_only",
    ]
    assert trusted(saves, filepath="best.keras") == ["filepath"]
    assert trusted(saves, filepath=None) == trusted(logs, filename="log2.csv") == trusted(board, log_dir="elsewhere") == []
    assert trusted(stops, status="stopped early", seen=[1.0], limit=5, losses=[1], note="runs/b") == [
        "limit",
        "losses",
        "note",
        "seen",
        "status",
    ]
    assert trusted(stops, status="../x", folder="other", where="runs/b", best=2, on_epoch_end=1, __class__="x", __dict__={}) == []
    assert trusted(stops, out="/etc/passwd", other="~/x", up="../x") == []


def test_a_mismatch_leaves_the_model_as_it_was(cell: Cell, worker: Worker, tmp_path: Path) -> None:
    made = cell(CELLS["the article's Sequential"])
    packed, result = train(made, worker, tmp_path / "run")
    before = [np.array(value) for value in made["model"].get_weights()]
    wrong = list(result.variables)
    wrong[-1] = np.zeros((3, 3), "float32")

    for broken in (tuple(wrong), result.variables[:-1], (*result.variables[:-1], result.variables[-1].astype("float64"))):
        with pytest.raises(ResultMismatch, match="does not fit model"):
            fit_call.apply_result(replace(result, variables=broken), packed)

    for mine, theirs in zip(before, made["model"].get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def file_of(header: object, data: bytes = b"", **tensors: object) -> bytes:
    """A safetensors file with our header, as text or as what becomes text."""
    text = header if isinstance(header, str) else json.dumps(header)
    head = json.dumps({"__metadata__": {"aiaas": text}, **tensors}).encode()
    return len(head).to_bytes(8, "little") + head + data


NONE = {"variables": 0, "dtypes": [], "shapes": [], "callbacks": []}
NONE |= {"paths": [], "roles": {}, "history": {}, "epoch": [], "params": {}, "stop_training": False, "batch": None}
ONE = {**NONE, "variables": 1, "dtypes": ["<f4"], "shapes": [[1]]}
NO_RESULTS = {
    "empty": b"",
    "another header": b"\x02\0\0\0\0\0\0\0{}",
    "no safetensors": b"\xff" * 16,
    "a list": file_of([]),
    "deep": file_of("[" * 100_000 + "]" * 100_000),
    "a tensor is missing": file_of(ONE),
    "a tensor is longer than the file": file_of(ONE, b"1234", **{"0": {"dtype": "U8", "shape": [4], "data_offsets": [0, 400]}}),
    "objects": file_of({**ONE, "dtypes": ["|O"]}, b"12345678", **{"0": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}),
    "a callback that is a number": file_of({**NONE, "callbacks": [7]}),
    "an array that is not there": file_of({**NONE, "callbacks": [{"x": {"$": "array", "at": 99}}]}),
}


@pytest.mark.parametrize("data", NO_RESULTS.values(), ids=NO_RESULTS)
def test_bytes_that_are_no_result_are_said_to_be_none(data: bytes) -> None:
    with pytest.raises(AiaasBug, match="cannot be read"):
        fit_call.read_result(data)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("the article's Sequential", marks=pytest.mark.nightly),
        pytest.param("a Sequential that is not built", marks=pytest.mark.nightly),
        pytest.param("several inputs and outputs by name, with an embedding and masks", marks=pytest.mark.nightly),
        "random layers, whose seeds go on",
        "a subclassed model without get_config, with closures and a lambda",
    ],
)
def test_a_model_in_another_kernel_takes_the_result(name: str, cell: Cell, worker: Worker, tmp_path: Path) -> None:
    made = cell(CELLS[name])
    packed, result = train(made, worker, tmp_path / "run")
    expected = fit_call.apply_result(result, packed)
    fresh = cell(CELLS[name])  # as a restarted kernel makes it again; names count up, as they do there

    history = fit_call.apply_to(result, fresh["model"])

    assert history.history == expected.history
    for model in (made["model"], fresh["model"]):
        model.fit(**made["arguments"], verbose=0)
    for mine, theirs in zip(made["model"].get_weights(), fresh["model"].get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_model_of_another_architecture_is_refused(cell: Cell, worker: Worker, tmp_path: Path) -> None:
    made = cell(CELLS["the article's Sequential"])
    _, result = train(made, worker, tmp_path / "run")
    other = cell("model = keras.Sequential([layers.Input((6,)), layers.Dense(2)])")["model"]
    before = [np.array(value) for value in other.get_weights()]

    with pytest.raises(ResultMismatch, match="it has 2 weights, the trained one 6"):
        fit_call.apply_to(result, other)

    np.testing.assert_array_equal(before[0], other.get_weights()[0])


SAVES = {
    "several inputs and outputs by name, with an embedding and masks": True,
    "a list of inputs, shared layers and a model inside a model": True,
    "the article's Sequential": True,
    "recurrent layers in wrappers": True,
    "images": True,
}


@pytest.mark.parametrize("name", lanes.thinned(SAVES, keep=lambda name: not name.startswith(("several", "images"))))
def test_the_model_in_the_worker_saves_clones_and_tells_its_config(name: str, cell: Cell, worker: Worker, tmp_path: Path) -> None:
    import keras

    made = cell(CELLS[name])
    made["arguments"]["callbacks"] = [keras.callbacks.ModelCheckpoint("best.keras", monitor="loss", save_best_only=False)]
    check = (
        "import keras\n"
        "twin = keras.models.clone_model(model)\n"
        "assert [w.shape for w in twin.weights] == [w.shape for w in model.weights]\n"
        "assert type(model).from_config(model.get_config()).count_params() == model.count_params()\n"
        "model.export('exported', verbose=False)\n"
        "model.save_weights('model.weights.h5')\n"
        "model.summary(print_fn=lambda *a, **k: None)\n"
    )

    packed, result = train(made, worker, tmp_path / "run", check=check)
    fit_call.apply_result(result, packed)

    again = keras.models.load_model(tmp_path / "run" / "best.keras")
    for mine, theirs in zip(made["model"].get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    made["model"].load_weights(tmp_path / "run" / "model.weights.h5")


def test_a_custom_class_saved_in_the_worker_loads_here(cell: Cell, worker: Worker, tmp_path: Path) -> None:
    import keras

    made = cell("""
@keras.saving.register_keras_serializable(package='Mine')
class Doubled(layers.Layer):
    def call(self, v): return v * 2.0
@keras.saving.register_keras_serializable(package='Mine')
def gap(t, p): return ops.mean((t - p) ** 2)
model = keras.Sequential([layers.Input((6,)), Doubled(), layers.Dense(1)])
model.compile('sgd', gap)
arguments['callbacks'] = keras.callbacks.ModelCheckpoint('best.keras')
""")
    packed, result = train(made, worker, tmp_path / "run")
    fit_call.apply_result(result, packed)

    again = keras.models.load_model(tmp_path / "run" / "best.keras")

    assert type(again.layers[0]) is made["Doubled"]
    np.testing.assert_array_equal(again.get_weights()[0], made["model"].get_weights()[0])


def test_packing_leaves_the_live_model_as_it_was(cell: Cell) -> None:
    made = cell(CELLS["a model that was fitted before"])
    model = made["model"]
    before = {name: id(value) for name, value in vars(model).items()}

    fit_call.pack(FitCall(model, made["arguments"]))

    assert {name: id(value) for name, value in vars(model).items()} == before
