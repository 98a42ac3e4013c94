"""What cannot travel is named before anything is sent, with the next move."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiaas_magics.core.errors import CannotTravel
from aiaas_magics.packing.fitcall.fit_call import FitCall, pack
from tests.support.packed import Namespace

Cell = Callable[..., Namespace]

SMALL = """
model = keras.Sequential([layers.Input((6,)), layers.Dense(1)])
model.compile('sgd', 'mse')
class Keeper(keras.callbacks.Callback):
    def __init__(self, thing):
        super().__init__()
        self.thing = thing
def make_loss(thing):
    def loss(t, p):
        print(thing)
        return ops.mean((t - p) ** 2)
    return loss
"""


def refusal(call: FitCall) -> str:
    with pytest.raises(CannotTravel) as caught:
        pack(call)
    return str(caught.value)


def test_an_open_file_in_a_callback_is_named_by_its_path(cell: Cell, tmp_path: Path) -> None:
    made = cell(SMALL)
    import keras

    with (tmp_path / "x.txt").open("w") as file:
        callbacks = [keras.callbacks.History(), made["Keeper"](file)]
        told = refusal(FitCall(made["model"], {**made["arguments"], "callbacks": callbacks}))

    assert told.startswith("callbacks[1].thing cannot be sent to a worker: an open file '")
    assert "x.txt'. Open it where it is used" in told
    assert "--local-fallback" in told


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: socket.socket(), "an open socket"),
        (lambda: (n for n in range(3)), "a generator"),
        (lambda: threading.Thread(), "a thread"),
        (lambda: held_lock(), "a lock that is held"),
        (lambda: figure(), "a matplotlib figure"),
        (lambda: __import__("sqlite3").connect(":memory:"), "an open database"),
    ],
)
def test_things_of_one_process_are_refused_by_name(make: Callable[[], Any], named: str, cell: Cell) -> None:
    made = cell(SMALL)
    thing = make()

    told = refusal(FitCall(made["model"], {**made["arguments"], "callbacks": [made["Keeper"]({"deep": [thing]})]}))

    assert f"callbacks[0].thing['deep'][0] cannot be sent to a worker: {named}" in told
    if hasattr(thing, "close"):
        thing.close()


def held_lock() -> Any:
    lock = threading.Lock()
    lock.acquire()
    return lock


def figure() -> Any:
    from matplotlib.figure import Figure

    return Figure()


def test_a_lock_that_is_free_travels(cell: Cell) -> None:
    made = cell(SMALL)

    packed = pack(FitCall(made["model"], {**made["arguments"], "callbacks": [made["Keeper"](threading.Lock())]}))

    assert packed.payload


def test_a_file_that_is_closed_travels(cell: Cell, tmp_path: Path) -> None:
    """As `CSVLogger` holds one after a fit."""
    import keras

    made = cell(SMALL)
    logger = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    made["model"].fit(**made["arguments"], callbacks=[logger], verbose=0)

    assert pack(FitCall(made["model"], {**made["arguments"], "callbacks": [logger]})).payload


def test_a_closure_names_its_variable(cell: Cell, tmp_path: Path) -> None:
    made = cell(SMALL)
    with (tmp_path / "log").open("w") as file:
        made["model"].compile("sgd", made["make_loss"](file))
        told = refusal(FitCall(made["model"], made["arguments"]))

    assert "(variable 'thing' of loss) cannot be sent to a worker: an open file" in told


def test_a_global_variable_is_named(cell: Cell, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        made = cell(SMALL + "def loss(t, p):\n    log.write('x')\n    return ops.mean((t - p) ** 2)\nmodel.compile('sgd', loss)", log=file)
        told = refusal(FitCall(made["model"], made["arguments"]))

    assert "(global variable 'log') cannot be sent" in told


def test_an_object_that_refuses_to_be_pickled_is_named_with_its_reason(cell: Cell) -> None:
    made = cell(SMALL + "class Odd:\n    def __reduce__(self): raise TypeError('not me')\nodd = Odd()")

    told = refusal(FitCall(made["model"], {**made["arguments"], "callbacks": [made["Keeper"](made["odd"])]}))

    assert told.startswith("callbacks[0].thing cannot be sent to a worker: an object of type Odd (not me).")


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("[tf.data.Dataset.from_tensor_slices((x, y)).batch(8)]", "a _BatchDataset, which yields whole batches"),
        ("{'a': Rows()}", "a Rows, which yields whole batches"),
        ("tf.ragged.constant([[1.0], [1.0, 2.0]])", "a RaggedTensor"),
    ],
)
def test_what_yields_batches_within_a_structure_is_refused_by_name(source: str, named: str, cell: Cell) -> None:
    made = cell(
        SMALL
        + "class Rows(keras.utils.PyDataset):\n    def __len__(self): return 1\n    def __getitem__(self, i): return x, y\n"
        + f"given = {source}"
    )

    told = refusal(FitCall(made["model"], {"x": made["given"]}))

    assert re.match(rf"x.* cannot be sent to a worker: {re.escape(named)}", told)


def test_a_dataset_inside_a_callback_is_refused_by_name(cell: Cell) -> None:
    made = cell(SMALL + "given = Keeper(tf.data.Dataset.range(3))")

    told = refusal(FitCall(made["model"], {**made["arguments"], "callbacks": made["given"]}))

    assert told.startswith("callbacks[0].thing cannot be sent to a worker: a tf.data.Dataset")


def test_a_refusal_leaves_the_model_as_it_was(cell: Cell) -> None:
    made = cell(SMALL)
    model = made["model"]
    before = [np.array(w) for w in model.get_weights()]
    refusal(FitCall(model, {**made["arguments"], "callbacks": [made["Keeper"](held_lock())]}))

    model.fit(**made["arguments"], verbose=0)

    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
