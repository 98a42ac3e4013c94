"""A callback object is used in one fit after the other, as with plain `fit`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aiaas_magics.packing.fitcall.fit_call import FitCall, apply_result, pack, read_result, unpack
from tests.support.packed import Namespace, Worker

Cell = Callable[..., Namespace]

SMALL = """
class Opener(keras.callbacks.Callback):
    opened = 0
    def set_model(self, model):
        super().set_model(model)
        self.opened += 1
        open("opened.txt", "w").close()
model = keras.Sequential([layers.Input((6,)), layers.Dense(1)])
model.compile('sgd', 'mse')
"""


def test_a_tensorboard_that_has_open_writers_from_the_fit_before_travels(cell: Cell, tmp_path: Path) -> None:
    made = cell(SMALL)
    board = made["keras"].callbacks.TensorBoard(str(tmp_path / "logs"), write_graph=False)
    board.set_model(made["model"])
    assert board._train_writer is board._writers["train"]

    packed = pack(FitCall(made["model"], {**made["arguments"], "callbacks": [board]}))

    [sent] = unpack(packed.payload, packed.arrays).callbacks
    assert sent._writers == {}
    as_made = vars(made["keras"].callbacks.TensorBoard("logs"))
    assert as_made.keys() - {"_model", "_batch_trace_context"} <= vars(sent).keys(), (
        "it has all that a new one has before its on_train_begin"
    )
    assert board._writers, "the live object stays as it is"


def test_what_set_model_does_is_done_in_the_worker_alone(
    cell: Cell, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = cell(SMALL)
    opener = made["Opener"]()
    call = FitCall(made["model"], {**made["arguments"], "callbacks": [opener], "verbose": 2})
    packed = pack(call)
    result = read_result(worker.train(packed, tmp_path / "job"))

    history = apply_result(result, packed)

    assert (tmp_path / "job" / "opened.txt").exists()
    assert not Path("opened.txt").exists()
    assert opener.opened == 1
    assert opener.model is made["model"]
    assert history.params["verbose"] == opener.params["verbose"] == 2
