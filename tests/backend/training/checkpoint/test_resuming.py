"""An attempt that goes on from a checkpoint ends where an undisturbed one ends, bit for bit."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import keras
import msgspec
import numpy as np
import pytest
from keras import layers
from tensorflow.python.framework.config import disable_op_determinism, enable_op_determinism

from aiaas_magics.backend.folders.checkpoint_folder import TrainingPosition, is_whole
from aiaas_magics.backend.training.checkpoint import training_state
from aiaas_magics.backend.training.checkpoint.checkpoint_callback import left_behind, matching, state_of
from aiaas_magics.backend.workers.local.local_pool import LocalPool
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.events import EpochEnded, Notice
from aiaas_magics.core.execution import Execution
from aiaas_magics.packing.fitcall import fit_call
from tests.backend.training import ranks
from tests.backend.training.fit_cases import data, dense, stopping, validation

EPOCHS, STEPS = 3, 10
EVERYTHING = Execution(checkpoint_epochs=1, checkpoint_s=1e-6)


def attempt(pool: LocalPool, sent: ranks.Sent, folder: Path, *, n: int, number: int = 1, **more: Any) -> fit_call.FitResult:
    """One attempt on `n` ranks, to its good end."""
    assert ranks.fork(pool, sent, folder, ranks=n, attempt=number, **more) == [0] * n, ranks.output_of(folder)
    return ranks.result_in(folder, number)


class Noise(keras.layers.Layer):
    """Draws from the generator that Keras has for random ops without a seed."""

    def call(self, x: Any, training: bool = False) -> Any:
        return x + 0.1 * keras.random.normal(keras.ops.shape(x), dtype=x.dtype) if training else x


class Draws(keras.callbacks.Callback):
    """State of its own, changed at every step by Python's and numpy's random numbers; begins each epoch with an empty list."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []
        self.hidden = object()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.drawn = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        import time

        self.drawn.append(random.random() + np.random.rand())
        self.model.optimizer.learning_rate.assign(0.01 + 0.01 * self.drawn[-1])
        time.sleep(0.02)  # so that a checkpoint of nearly every step fits into the time that they may take


class Waits(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        import time

        time.sleep(0.02)


class Collects(keras.callbacks.Callback):
    """Puts aside every checkpoint that it sees; only the newest two stay in their place."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        import shutil
        from pathlib import Path

        for path in Path("../checkpoints").glob("epoch-*"):
            if not Path("../collected", path.name).exists():
                shutil.copytree(path, Path("../collected", path.name))


def random_model(optimizer: Any, weight: float = 1.0) -> Any:
    keras.utils.set_random_seed(4)
    x = keras.Input((6,))
    y = layers.BatchNormalization()(layers.Dense(16, activation="tanh")(x))
    y = layers.Dense(1, activation="sigmoid")(Noise()(layers.Dropout(0.3)(y)))
    model = keras.Model(x, y)
    model.compile(optimizer, "binary_crossentropy", loss_weights=[weight], metrics=["accuracy", keras.metrics.AUC(name="auc")])
    return model


def calm_model() -> Any:
    return dense("adam", metrics=["accuracy"])()


def arguments(*callbacks: Any, shuffle: bool = True) -> dict[str, Any]:
    made = data(12 * STEPS - 7, epochs=EPOCHS, validation_data=validation, shuffle=shuffle)()
    return made | {"callbacks": [*stopping(), *callbacks, Collects()]}


def collected(folder: Path, *, within: bool) -> Path:
    """The last checkpoint that was put aside from within an epoch, or from the end of one."""
    found = [path for path in sorted((folder / "collected").iterdir()) if bool(TrainingPosition.of(path).step) == within]  # type: ignore[union-attr]
    assert found, f"no such checkpoint among {list((folder / 'collected').iterdir())}"
    assert is_whole(found[-1])
    return found[-1]


@pytest.mark.parametrize(
    ("n", "devices", "optimizer", "precision"),
    [
        pytest.param(1, 1, "adam", "", marks=pytest.mark.nightly),
        pytest.param(2, 1, "sgd", "", marks=pytest.mark.nightly),
        pytest.param(1, 2, "adam", "", marks=pytest.mark.nightly),
        (2, 1, "adam", "mixed_float16"),  # has what the others have, and the scale of a loss that the worker adds
    ],
)
def test_a_resumed_attempt_ends_where_an_undisturbed_one_ends(
    pool: LocalPool, tmp_path: Path, n: int, devices: int, optimizer: str, precision: str
) -> None:
    execution = msgspec.structs.replace(EVERYTHING, strategy="mirrored" if devices > 1 else "auto", precision=precision)
    how = {"devices": devices, "execution": execution}
    enable_op_determinism()
    try:
        # Gradients of a loss this large overflow in half precision until the scale of the loss, which the worker adds, came down.
        model = random_model(optimizer, weight=3000.0 if precision else 1.0)
        sent = ranks.send(tmp_path, model, workers=n * devices, execution=execution, **arguments(Draws()))
    finally:
        disable_op_determinism()
    whole = attempt(pool, sent, tmp_path, n=n, **how)

    for number, within in enumerate((False, True), start=2):
        begin = collected(tmp_path, within=within)
        shutil.rmtree(tmp_path / "checkpoints")
        resumed = attempt(pool, sent, tmp_path, n=n, number=number, resume_from=str(begin), **how)

        assert max(ranks.gaps(resumed.variables, whole.variables)) == 0.0, begin.name
        assert resumed.history == whole.history
        assert resumed.epoch == whole.epoch
        assert [state.get("wait") for state in resumed.callbacks] == [state.get("wait") for state in whole.callbacks]
        assert resumed.callbacks[1]["drawn"] == whole.callbacks[1]["drawn"]
        events = ranks.events_in(tmp_path, attempt=number)
        assert min(e.epoch for e in events if isinstance(e, EpochEnded)) == TrainingPosition.of(begin).epoch  # type: ignore[union-attr]
        [notice] = [e.text for e in events if isinstance(e, Notice)]
        assert "Draws.hidden" in notice


def test_ranks_that_make_steps_at_their_own_pace_keep_a_checkpoint_of_the_same_step(pool: LocalPool, tmp_path: Path) -> None:
    """Nobody looks at single steps here, so that each rank makes as many in one call as it finds right."""
    sent = ranks.send(tmp_path, calm_model(), **data(12 * 3000, epochs=1, shuffle=True)())
    whole = attempt(pool, sent, tmp_path, n=2, execution=Execution(checkpoint_epochs=0, checkpoint_s=0.05))
    begin = max(path for path in (tmp_path / "checkpoints").iterdir() if TrainingPosition.of(path).step)  # type: ignore[union-attr]

    resumed = attempt(pool, sent, tmp_path, n=2, number=2, resume_from=str(begin))

    assert max(ranks.gaps(resumed.variables, whole.variables)) == 0.0, begin.name
    assert resumed.history == whole.history


@pytest.mark.nightly  # tests/contracts/test_backend.py has a job that goes on so
def test_another_number_of_workers_goes_on_with_the_same_global_batches(pool: LocalPool, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    sent = {n: ranks.send(folder, calm_model(), workers=n, **arguments(Waits())) for n, folder in ((1, one), (2, two))}
    whole = {n: attempt(pool, sent[n], folder, n=n, execution=EVERYTHING) for n, folder in ((1, one), (2, two))}

    for n, folder in ((2, one), (1, two)):
        begin = collected(folder, within=True)
        resumed = attempt(pool, sent[1], folder, n=n, number=2, resume_from=str(begin))

        assert max(ranks.gaps(resumed.variables, whole[1].variables)) <= 1e-5, begin.name
        for name, values in whole[1].history.items():
            np.testing.assert_allclose(resumed.history[name], values, rtol=1e-5)


def test_training_goes_on_where_no_checkpoint_can_be_written(pool: LocalPool, tmp_path: Path) -> None:
    sent = ranks.send(tmp_path, calm_model(), **data()())
    (tmp_path / "checkpoints").write_text("no folder")

    attempt(pool, sent, tmp_path, n=1)

    [notice] = [e.text for e in ranks.events_in(tmp_path) if isinstance(e, Notice)]
    assert notice == "Checkpoints are left out since epoch 2 (File exists): a lost worker costs everything since the last one."


def test_a_checkpoint_of_another_model_is_refused_in_words_before_anything_is_changed() -> None:
    def arrived(model: Any) -> Any:
        packed = fit_call.pack(fit_call.FitCall(model, data()()))
        return fit_call.unpack(packed.payload, packed.arrays)

    narrow, wide = arrived(dense("adam")()), arrived(random_model("adam"))
    kept, own = training_state.take(narrow, None)

    with pytest.raises(InvalidSpec, match=rf"has {len(kept)} variables and the model {len(wide.variables)}. Build and compile the model"):
        training_state.put_back(wide, kept, own, rank=0, ranks=1)
    before = [variable.numpy() for variable in narrow.variables]
    with pytest.raises(InvalidSpec, match=r"kernel is float32 \[6, 17\] in the checkpoint and float32 \[6, 16\] in the model"):
        training_state.put_back(narrow, [np.zeros((6, 17), "float32") if v.shape == (6, 16) else v + 1 for v in kept], own, rank=0, ranks=1)
    np.testing.assert_equal([variable.numpy() for variable in narrow.variables], before)


def test_callbacks_find_their_states_though_one_was_taken_out() -> None:
    stopping, drawing = keras.callbacks.EarlyStopping(patience=3), Draws()
    stopping.wait = 2
    kept = [state_of(callback) for callback in (Waits(), stopping, drawing)]

    found = matching([Draws(), keras.callbacks.EarlyStopping(), Draws()], kept)

    assert [(type(callback).__name__, state.kind) for callback, state in found] == [("Draws", "Draws"), ("EarlyStopping", "EarlyStopping")]
    assert found[1][1].attributes["wait"] == 2
    assert left_behind([Draws()], kept).startswith("Not part of a checkpoint, so they begin anew: Draws.hidden.")
    assert left_behind([keras.callbacks.EarlyStopping()], kept) == ""
