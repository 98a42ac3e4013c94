"""What trains in the kernel while a cell is open is counted and named."""

from __future__ import annotations

import threading
from collections.abc import Callable

from aiaas_magics.notebook.capture import capturing
from tests.support.packed import Namespace

Cell = Callable[..., Namespace]

MODELS = """
def small(name):
    model = keras.Sequential([layers.Input((6,)), layers.Dense(1)], name=name)
    model.compile('sgd', 'mse')
    return model
"""


def in_thread(action: Callable[[], object]) -> None:
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()


def test_fits_of_other_threads_are_named_beside_one_of_the_cell(cell: Cell) -> None:
    made = cell(MODELS)
    first, second, third = (made["small"](name) for name in ("first", "second", "third"))

    with capturing(lambda call: "carried out") as in_kernel:
        assert first.fit(made["x"], made["y"]) == "carried out"
        for model in (second, third):
            in_thread(lambda model=model: model.fit(made["x"], made["y"], verbose=0))

    assert in_kernel.sentence() == (
        "Trained in the kernel: 2 fits of other threads (second, third). Call fit in the cell's own thread to train on the backend."
    )


def test_train_on_batch_is_named_and_silence_is_no_training(cell: Cell) -> None:
    made = cell(MODELS)
    model = made["small"]("alone")

    with capturing(lambda call: None) as in_kernel:
        assert not in_kernel
        model.train_on_batch(made["x"], made["y"])
        model.train_on_batch(made["x"], made["y"])

    assert in_kernel.sentence().startswith("Trained in the kernel: 2 train_on_batch calls (alone).")
    model.train_on_batch(made["x"], made["y"])
    assert "2 train_on_batch" in in_kernel.sentence(), "the cell is closed"
