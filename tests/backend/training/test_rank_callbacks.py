"""Which callbacks a worker runs, and what their logs may hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from aiaas_magics.backend.folders.checkpoint_folder import newest_whole
from aiaas_magics.backend.training.checkpoint.checkpoint_contents import load
from aiaas_magics.backend.training.rank_callbacks import callbacks_of_rank, epoch_lines, most_steps_a_call
from aiaas_magics.backend.training.run import NEW_PASS
from aiaas_magics.core.events import Checkpointed, Notice
from aiaas_magics.packing.live import plain_json
from tests.backend.training.tensorflow.test_multi_step import Told, Trained, mlp, table

pytestmark = pytest.mark.slow  # each compiles a fit


class Losses(keras.callbacks.History):  # type: ignore[misc]
    """What a tutorial makes of Keras' History."""

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        self.losses: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.losses.append(logs["loss"])


class Remarks(keras.callbacks.Callback):  # type: ignore[misc]
    """Puts into the logs what is no number."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["remark"] = f"epoch {epoch}"
        logs["where"] = Path("somewhere")
        logs["rate"] = np.float32(0.5)


def classes() -> Any:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([layers.Input((12,)), layers.Dense(3, activation="softmax")])
    model.compile("sgd", "categorical_crossentropy", metrics=[keras.metrics.F1Score()])  # gives one number a class
    return model


def test_a_metric_of_many_numbers_and_words_in_the_logs_cost_no_training(tmp_path: Path) -> None:
    x, _ = table()
    y = np.eye(3, dtype="float32")[np.arange(len(x)) % 3]
    arguments = {"x": x, "y": y, "epochs": 2, "shuffle": False}

    ours = Trained(tmp_path, classes, arguments | {"callbacks": [Remarks()]}, fused="graph", checkpoint_epochs=1)

    plainly = classes().fit(**arguments, callbacks=[Remarks()], verbose=0).history
    assert [event for event in ours.told if isinstance(event, Checkpointed)]
    found = newest_whole(ours.folder / "checkpoints")
    assert found is not None
    kept = load(found[1])
    assert kept is not None
    epochs = len(kept.history["loss"])
    for history in (kept.history, plain_json.decode_history(plain_json.encode_history(ours.history.history, arrays := []), arrays)):
        np.testing.assert_allclose(history["f1_score"], np.stack(plainly["f1_score"])[: len(history["f1_score"])], rtol=1e-5)
        assert history["remark"][:epochs] == plainly["remark"][:epochs]
        assert history["where"][0] == "somewhere"
        assert history["rate"][0] == 0.5


def test_a_history_of_the_users_runs_and_keras_own_does_not(tmp_path: Path) -> None:
    users = [Losses(), keras.callbacks.History(), keras.callbacks.ProgbarLogger(), keras.callbacks.BackupAndRestore(str(tmp_path))]
    told = Told()

    kept = callbacks_of_rank(users, rank=0, channel=told)  # type: ignore[arg-type]

    assert kept == users[:1]
    assert [type(event) for event in told] == [Notice]
    assert most_steps_a_call(mlp()(), users) is None, "what does not run looks at no batches"
    x, y = table()
    trained = Trained(tmp_path, mlp(), {"x": x, "y": y, "epochs": 2, "callbacks": users}, fused="graph")
    assert trained.callbacks[0].losses == trained.history.history["loss"]


@pytest.mark.parametrize("verbose", [pytest.param(0, marks=pytest.mark.nightly), pytest.param(1, marks=pytest.mark.nightly), 2, "auto"])
def test_verbose_2_prints_the_lines_of_a_plain_fit_and_anything_else_nothing(
    verbose: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = table()
    arguments = {"x": x, "y": y, "epochs": 3, "verbose": verbose, "shuffle": False, "validation_split": 0.25}
    keras.utils.set_random_seed(3)
    Trained(tmp_path, mlp(), arguments, fused="graph")
    ours = capsys.readouterr().out
    if verbose != 2:
        assert ours == ""
        return

    keras.utils.set_random_seed(3)
    mlp()().fit(**arguments)

    assert untimed(ours) == untimed(capsys.readouterr().out)
    assert "Epoch 2/3" in ours
    assert "val_loss" in ours


def untimed(lines: str) -> str:
    """Without times, and losses as far as they are the same in any form of the steps."""
    return re.sub(r"(\d\.\d)\d*", r"\1", re.sub(r"\d+[mu]?s(/\w+)?", "", lines))


def test_one_worker_prints_the_epochs() -> None:
    assert [len(epoch_lines({"verbose": 2}, rank=rank)) for rank in range(3)] == [1, 0, 0]


def test_that_batches_are_passed_over_anew_is_said_only_by_a_run_that_is_resumed(tmp_path: Path) -> None:
    def arguments(epochs: int) -> dict[str, Any]:
        return {"x": tf.data.Dataset.from_tensor_slices(table()).batch(32), "epochs": epochs, "shuffle": False}

    first = Trained(tmp_path / "first", mlp(), arguments(1), fused="graph", checkpoint_epochs=1)
    found = newest_whole(first.folder / "checkpoints")
    assert found is not None
    resumed = Trained(tmp_path / "second", mlp(), arguments(2), fused="graph", resume_from=found[1])

    said = [[event.text for event in run.told if isinstance(event, Notice)] for run in (first, resumed)]
    assert said == [[], [NEW_PASS]]
