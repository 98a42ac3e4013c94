# ruff: noqa: E501 - the cells are text
"""What is sent: each thing named with its size, the user's helper modules among them; and what is announced."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from aiaas_magics.core.execution import Execution
from aiaas_magics.packing.fitcall import fit_call
from aiaas_magics.packing.fitcall.fit_call import FitCall
from aiaas_magics.packing.pickling import state_pickle
from tests.support.packed import Namespace, Worker

Cell = Callable[..., Namespace]


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The notebook's folder, on the path as in a kernel; what was imported from it is forgotten afterwards."""
    folder = tmp_path / "notebook"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


def test_helper_modules_beside_the_notebook_travel(beside: Path, cell: Cell, worker: Worker, tmp_path: Path) -> None:
    (beside / "blocks.py").write_text(
        "import keras\nfrom shapes import factor\nclass Block(keras.layers.Layer):\n    def call(self, v): return v * factor()\n"
    )
    (beside / "shapes.py").write_text("SIZE = 1.1\ndef factor(): return SIZE\n")
    (beside / "late.py").write_text("def scale(v):\n    import later\n    return v * later.AMOUNT\n")
    (beside / "later.py").write_text("AMOUNT = 0.5\n")
    made = cell("""
import blocks, late
from shapes import factor as imported
class Last(layers.Layer):
    def call(self, v):
        import shapes
        return late.scale(v) * imported() * shapes.SIZE
model = keras.Sequential([layers.Dense(3), blocks.Block(), Last(), layers.Dense(1)])
model.compile('sgd', 'mse')
""")
    packed = fit_call.pack(FitCall(made["model"], made["arguments"]))

    result = fit_call.read_result(worker.train(packed, tmp_path / "run"))

    own = made["model"].fit(**made["arguments"], verbose=0)
    assert result.history == own.history
    assert {"Block", "Last"} <= {item.name for item in packed.manifest.of_kind("class")}
    assert {"late", "later", "shapes"} <= {item.name for item in packed.manifest.of_kind("module")}


def test_packing_does_not_change_how_others_pickle(beside: Path, cell: Cell) -> None:
    import cloudpickle

    (beside / "mine.py").write_text("import keras\nclass Block(keras.layers.Layer):\n    def call(self, v): return v\n")
    made = cell("import mine\nmodel = keras.Sequential([mine.Block(), layers.Dense(1)])\nmodel.compile('sgd', 'mse')")

    fit_call.pack(FitCall(made["model"], made["arguments"]))

    assert cloudpickle.list_registry_pickle_by_value() == set()


def test_the_manifest_names_classes_functions_and_arrays_with_their_sizes(cell: Cell) -> None:
    made = cell("""
class Layered(layers.Layer):
    def call(self, v): return v * 2
def gap(t, p): return ops.mean((t - p) ** 2)
model = keras.Sequential([layers.Input((600,)), Layered(), layers.Dense(100)], name='told')
model.compile('sgd', gap)
arguments.update(x=np.zeros((70, 600), 'float32'), y=np.zeros((70, 100), 'float32'), validation_data=(np.ones((50, 600), 'float32'), np.ones((50, 100), 'float32')))
""")

    packed = fit_call.pack(FitCall(made["model"], made["arguments"]))

    manifest = packed.manifest
    assert manifest.of_kind("model")[0].name == "told"
    assert "Sequential, 2 layers, 60,100 parameters" in manifest.of_kind("model")[0].detail
    arrays = {item.name: item.bytes for item in manifest.of_kind("array")}
    assert arrays["x"] == 70 * 600 * 4
    assert arrays["validation_data[0]"] == 50 * 600 * 4
    assert arrays["y"] == 70 * 100 * 4  # small ones too, which are sent within the model
    apart = [item.bytes for item in manifest.of_kind("array") if "within the model" not in item.detail]
    assert sum(apart) == sum(array.nbytes for array in packed.arrays)
    assert [item.name for item in manifest.of_kind("class")] == ["Layered"]
    assert "gap" in {item.name for item in manifest.of_kind("function")}
    assert all(item.bytes > 0 for item in (*manifest.of_kind("class"), *manifest.of_kind("function")))


def test_big_arrays_are_sent_as_the_very_objects_that_were_given(cell: Cell) -> None:
    made = cell("model = keras.Sequential([layers.Dense(1)])\nmodel.compile('sgd', 'mse')\nbig = np.zeros((5000, 6), 'float32')")
    arguments = {"x": made["big"], "y": np.zeros(5000, "float32"), "validation_data": (made["big"], np.zeros(5000, "float32"))}

    first = fit_call.pack(FitCall(made["model"], arguments))
    second = fit_call.pack(FitCall(made["model"], arguments))

    assert sum(array is made["big"] for array in first.arrays) == 1
    assert sum(array is made["big"] for array in second.arrays) == 1


NOTED = """
losses, total, names = [], 0.0, ('a',)
def remember(epoch, logs):
    losses.append(logs['loss'])
class Sum(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        global total
        total += logs['loss']
        self.seen = len(names)
def counted():
    count = 0
    def step(batch, logs):
        nonlocal count
        count += 1
    return step
model = keras.Sequential([layers.Dense(1)])
model.compile('sgd', 'mse')
arguments['callbacks'] = [keras.callbacks.LambdaCallback(on_epoch_end=remember), Sum(), keras.callbacks.LambdaCallback(on_train_batch_end=counted())]
"""


def test_state_changed_through_closures_is_announced(cell: Cell) -> None:
    made = cell(NOTED)

    notes = [note for note in fit_call.pack(FitCall(made["model"], made["arguments"])).notes if "closures" in note]

    assert len(notes) == 1
    assert notes[0].startswith("State changed through closures does not come back: 'losses' (callbacks[0], on_epoch_end)")
    assert "'total' (callbacks[1], on_epoch_end)" in notes[0]
    assert "'count' (callbacks[2], on_train_batch_end)" in notes[0]
    assert "names" not in notes[0]


def test_callbacks_that_keep_to_themselves_are_not_announced(cell: Cell) -> None:
    import keras

    made = cell("model = keras.Sequential([layers.Dense(1)])\nmodel.compile('sgd', 'mse')")
    arguments = {
        **made["arguments"],
        "callbacks": [keras.callbacks.EarlyStopping("loss"), keras.callbacks.LearningRateScheduler(lambda e: 0.1)],
    }

    assert not any("closures" in note for note in fit_call.pack(FitCall(made["model"], arguments)).notes)


def test_memory_grows_with_the_batch(cell: Cell) -> None:
    made = cell("model = keras.Sequential([layers.Input((6,)), layers.Dense(1000), layers.Dense(1)])\nmodel.compile('adam', 'mse')")

    small, large = (fit_call.pack(FitCall(made["model"], {**made["arguments"], "batch_size": n})).memory_bytes for n in (1, 64))

    assert large - small >= 63 * 1000 * 4


def test_a_draft_is_finished_for_the_engine_that_was_chosen_without_pickling_again(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cell("model = keras.Sequential([layers.Dense(1)]); model.compile('sgd', 'mse')")
    pickled: list[object] = []
    dumps = state_pickle.dumps
    monkeypatch.setattr(state_pickle, "dumps", lambda root: pickled.append(root) or dumps(root))

    draft = fit_call.draft(FitCall(made["model"], made["arguments"]))
    on_tensorflow, on_jax = draft.finish(Execution()), draft.finish(Execution(engine="jax"))

    assert len(pickled) == 1
    assert (on_tensorflow.execution.runs_on.name, on_jax.execution.runs_on.name) == ("tensorflow", "jax")
    assert len(on_jax.payload) > len(on_tensorflow.payload) == len(draft.payload)
    assert on_tensorflow.shape == on_jax.shape == draft.shape


def test_parsed_arguments_cannot_be_changed(cell: Cell) -> None:
    made = cell("model = keras.Sequential([layers.Dense(1)]); model.compile('sgd', 'mse')")

    data = fit_call.draft(FitCall(made["model"], {**made["arguments"], "epochs": 2})).data

    assert data.arguments["x"] is made["arguments"]["x"], "nothing is copied"
    with pytest.raises(TypeError):
        data.arguments["epochs"] = 3  # type: ignore[index]
    with pytest.raises(AttributeError):
        data.rows = 3  # type: ignore[misc]
