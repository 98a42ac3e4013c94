"""Many steps in one call are the steps of the stock `fit`: same weights, same logs, same errors, same callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.framework.config import disable_op_determinism, enable_op_determinism

from aiaas_magics.backend.folders.checkpoint_folder import TrainingPosition
from aiaas_magics.backend.training.autotune import trial
from aiaas_magics.backend.training.autotune.compile_policy import both_forms, quickest
from aiaas_magics.backend.training.autotune.loop_length import CALL_S, GROWTH, LoopLength
from aiaas_magics.backend.training.batch_partition import BatchPartition, order_of
from aiaas_magics.backend.training.run import run
from aiaas_magics.backend.training.tensorflow import device_data, tensorflow_engine, xla_rules
from aiaas_magics.backend.training.tensorflow.graph_operations import operation_of
from aiaas_magics.backend.training.tensorflow.multi_step import MultiStepFunction, StepChunk
from aiaas_magics.backend.training.tensorflow.rank_rows import RowSource
from aiaas_magics.backend.training.tensorflow.xla_rules import has_few_rows
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.core.events import Candidate, EpochEnded, Event, Planned
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.spec import MeasureSpec
from aiaas_magics.core.timing_cache import StepTiming, TimingCache
from aiaas_magics.packing.fitcall.fit_call import FitCall, pack, unpack
from tests.backend.training.ranks import gaps
from tests.support import lanes

pytestmark = pytest.mark.slow

ROWS, BATCH = 210, 32  # the last batch has 18 rows


class Told(list[Event]):
    """A channel that keeps what it is told."""

    send = list.append

    def plan(self) -> Planned:
        [told] = [event for event in self if isinstance(event, Planned)]
        return told


def planned(fused: str, *why: str) -> Planned:
    return Planned(fused=fused, why=why, engine="tensorflow", strategy="single")


class Trained:
    def __init__(
        self,
        folder: Path,
        make: Callable[[], Any],
        arguments: dict[str, Any],
        *,
        fused: str,
        choices: Path | None = None,
        measure: MeasureSpec | None = None,
        checkpoint_epochs: int = 0,
        resume_from: Path | None = None,
    ) -> None:
        """Train a fresh model in this process, as a worker does with what it has unpacked."""
        packed = pack(FitCall(make(), arguments))
        call = unpack(packed.payload, packed.arrays)
        command = WorkerCommand(
            job="test",
            attempt=1,
            rank=0,
            ranks=1,
            attempt_dir=str(folder),
            job_dir=str(folder / fused),
            payload="",
            arrays=(),
            seed=5,
            choices=str(choices or ""),
            measure=measure,
            resume_from=str(resume_from) if resume_from else None,
            execution=Execution(fused=fused, checkpoint_epochs=checkpoint_epochs),
        )
        self.told, self.folder = Told(), folder / fused
        self.history = run(tensorflow_engine.ENGINE, command, call, self.told)  # type: ignore[arg-type]
        self.model, self.callbacks = call.model, call.callbacks

    @property
    def variables(self) -> list[Any]:
        return [variable.numpy() for variable in (*self.model.variables, *self.model.optimizer.variables)]


def table(rows_: int = ROWS) -> tuple[Any, Any]:
    random = np.random.default_rng(1)
    x = random.normal(size=(rows_, 12)).astype("float32")
    return x, (x[:, :1] + x[:, 1:2] ** 2 > 0.5).astype("float32")


def mlp(**compiled: Any) -> Callable[[], Any]:
    def make() -> Any:
        keras.utils.set_random_seed(3)
        model = keras.Sequential([layers.Input((12,)), layers.Dense(16, activation="relu"), layers.Dense(1, activation="sigmoid")])
        compiled_with = {name: value() if name == "optimizer" else value for name, value in compiled.items()}
        model.compile(
            **({"optimizer": "adam", "loss": "binary_crossentropy", "metrics": ["accuracy", keras.metrics.AUC(name="auc")]} | compiled_with)
        )
        return model

    return make


def scheduled() -> Any:
    return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.9), momentum=0.9)


def drop() -> Any:
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            layers.Input((12,)),
            layers.Dense(16, use_bias=False),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile("sgd", "binary_crossentropy")
    return model


class Seen(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps.append(batch)
        self.losses.append(logs["loss"])


FITS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "metrics, validation, class weights": (mlp(), {"validation_split": 0.2, "class_weight": {0: 1.0, 1: 3.0}}),
    "an epoch is a part of a pass": (mlp(), {"steps_per_epoch": 3}),
    "a schedule": (mlp(optimizer=scheduled), {}),
    "random masks and statistics": (drop, {}),
}


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # where steps_per_epoch does not divide the pass
@pytest.mark.parametrize(
    ("name", "fused"),
    lanes.thinned(
        [(name, fused) for name in FITS for fused in ("graph", "xla")],
        keep=lambda case: case[1] == "xla" or case[0] == "random masks and statistics",
    ),
)
def test_weights_and_logs_are_those_of_one_step_a_call(tmp_path: Path, name: str, fused: str) -> None:
    make, more = FITS[name]
    x, y = table()
    arguments = {"x": x, "y": y, "batch_size": BATCH, "epochs": 4} | more

    ours = Trained(tmp_path, make, arguments, fused=fused)
    stock = Trained(tmp_path, make, arguments, fused="off")

    assert ours.told.plan() == planned(fused)
    assert stock.told.plan() == planned("off")
    assert max(gaps(ours.variables, stock.variables)) <= 1e-5
    assert ours.history.history.keys() == stock.history.history.keys()
    for log, values in stock.history.history.items():
        np.testing.assert_allclose(ours.history.history[log], values, rtol=1e-5, err_msg=log)
    assert [event.rows for event in ours.told if isinstance(event, EpochEnded)] == [
        event.rows for event in stock.told if isinstance(event, EpochEnded)
    ]


@pytest.mark.parametrize("a_call", [1, 3])
def test_whoever_looks_at_batches_sees_what_the_stock_fit_shows(tmp_path: Path, a_call: int) -> None:
    x, y = table()
    arguments = {"x": x, "y": y, "batch_size": BATCH, "epochs": 2, "shuffle": False, "callbacks": [Seen()]}

    ours = Trained(tmp_path, mlp(steps_per_execution=a_call), arguments, fused="xla").callbacks[0]

    plain = Seen()
    mlp(steps_per_execution=a_call)().fit(**arguments | {"callbacks": [plain], "verbose": 0})
    assert ours.steps == plain.steps  # Keras gives the last call of a pass the number of a step that may not be there
    np.testing.assert_allclose(ours.losses, plain.losses, rtol=1e-5)


class Asserting(layers.Layer):
    def call(self, x: Any) -> Any:
        tf.debugging.assert_less(tf.reduce_max(x), 100.0)
        return x


def by_numpy(x: Any) -> Any:
    return tf.ensure_shape(tf.numpy_function(np.abs, [x], tf.float32), x.shape)


def words() -> Any:
    model = keras.Sequential([layers.Input((1,), dtype="int32"), layers.Embedding(10, 4), layers.Flatten(), layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def layered(*more: Any, shape: tuple[int, ...] = (12,)) -> Callable[[], Any]:
    def make() -> Any:
        model = keras.Sequential([layers.Input(shape), *more, layers.Flatten(), layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    return make


@pytest.mark.parametrize(
    ("make", "x", "said"),
    [
        (layered(Asserting()), np.zeros((64, 12), "float32"), "drop the check Assert"),
        (layered(layers.Conv1D(2, 3), shape=(12, 1)), np.zeros((64, 12, 1), "float32"), "slow on a CPU"),
        (
            layered(layers.Lambda(lambda x: tf.ensure_shape(tf.numpy_function(np.abs, [x], tf.float32), x.shape))),
            np.zeros((64, 12), "float32"),
            "PyFunc",
        ),
        (layered(layers.Lambda(lambda x: tf.strings.to_number(tf.strings.as_string(x)))), np.zeros((64, 12), "float32"), "XLA has no"),
        (words, np.full((64, 1), 10, "int32"), "out of range"),
    ],
)
def test_what_xla_would_change_is_not_compiled_and_the_plan_says_why(tmp_path: Path, make: Callable[[], Any], x: Any, said: str) -> None:
    def train() -> Trained:
        return Trained(tmp_path, make, {"x": x, "y": np.zeros(64), "epochs": 1}, fused="auto")

    if said == "out of range":  # as the stock fit, and not a row of another word
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"indices|is not in"):
            train()
        return
    plan = train().told.plan()
    assert plan.fused == "graph"
    assert any(said in why for why in plan.why)


class After(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends a training that was to be long."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self._epochs = epochs

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.stop_training = epoch + 1 == self._epochs


def as_many(x: Any) -> Any:
    """Something whose shape only the data say."""
    return x * tf.reduce_sum(tf.ones([tf.cast(tf.reduce_max(x), tf.int32)]))


def test_what_xla_cannot_compile_trains_uncompiled_and_the_plan_says_why(tmp_path: Path) -> None:
    arguments = {"x": np.ones((64, 12), "float32"), "y": np.zeros(64), "epochs": 2000, "callbacks": [After(1)]}

    trained = Trained(tmp_path, layered(layers.Lambda(as_many)), arguments, fused="auto")

    assert trained.told.plan().fused == "graph"
    assert trained.told.plan().why[0].startswith("XLA cannot compile this step: ")
    assert len(trained.history.history["loss"]) == 1


def test_indices_in_range_are_compiled(tmp_path: Path) -> None:
    x = np.arange(64, dtype="int32")[:, None] % 10
    arguments = {"x": x, "y": x[:, 0] % 3, "epochs": 2000, "callbacks": [After(1)]}

    assert Trained(tmp_path, words, arguments, fused="auto").told.plan() == planned("xla")


@pytest.mark.parametrize(
    ("make", "shape", "epochs", "said"),
    [
        (mlp(), (64, 12), 2000, ()),
        (mlp(), (64, 12), 3, ("compiling pays from about 2,500 steps, this fit has 6",)),
        (layered(layers.LSTM(8), shape=(5, 3)), (64, 5, 3), 200, ()),
        (
            layered(layers.Dense(600), layers.Dense(600)),
            (2000, 12),
            2000,
            ("its time goes into matrix products of many rows, which XLA does not make faster on a CPU",),
        ),
        (layered(layers.Dense(1200), layers.Dense(1200)), (200, 12), 200, ()),
    ],
)
def test_steps_are_compiled_where_that_pays(
    tmp_path: Path, make: Callable[[], Any], shape: tuple[int, ...], epochs: int, said: tuple[str, ...]
) -> None:
    arguments = {"x": np.zeros(shape, "float32"), "y": np.zeros((shape[0], 1)), "epochs": epochs, "callbacks": [After(1)]}
    arguments["batch_size"] = shape[0] // 2

    assert Trained(tmp_path, make, arguments, fused="auto").told.plan() == planned("graph" if said else "xla", *said)


@pytest.mark.parametrize(("length", "few"), [(None, True), (32, True), (700, False)])
def test_rows_are_few_beside_those_of_the_matrix_unless_a_sequence_may_have_made_them(length: int | None, few: bool) -> None:
    rows = length or 32
    with tf.Graph().as_default():
        matrix = tf.zeros((1200, 1300))
        of_batch = tf.matmul(tf.compat.v1.placeholder(tf.float32, (length, 1200)), matrix)
        sequences = tf.compat.v1.placeholder(tf.float32, (length, 8, 1200))
        of_sequences = tf.matmul(tf.reshape(sequences, (-1, 1200)), matrix)
        of_any_shape = tf.matmul(tf.reshape(sequences, tf.compat.v1.placeholder(tf.int32)), matrix)

    assert has_few_rows(operation_of(of_batch.op), rows) is few
    assert not has_few_rows(operation_of(of_sequences.op), rows)
    assert not has_few_rows(operation_of(of_any_shape.op), rows)


def test_a_long_run_tries_both_forms_and_remembers_what_they_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "LONG_S", 0.0)
    monkeypatch.setattr(trial, "TRIED_S", 0.01)
    monkeypatch.setattr(trial, "TRIED_SHARE", math.inf)
    x, y = table()
    choices = tmp_path / "choices"

    def train(epochs: int) -> Trained:
        arguments = {"x": x, "y": y, "batch_size": BATCH, "epochs": epochs, "callbacks": [After(100)]}
        return Trained(tmp_path, mlp(metrics=[]), arguments, fused="auto", choices=choices)

    def plans(trained: Trained) -> list[Planned]:
        return [event for event in trained.told if isinstance(event, Planned)]

    first = train(100)
    [kept] = choices.iterdir()
    measured = both_forms(TimingCache(choices).get(kept.stem))
    second = train(10**9)

    before, after = plans(first)
    assert before.fused == "graph", "so few steps do not pay for a compilation by estimate"
    assert after.why[0].startswith("measured: ")
    assert measured["xla"].compile_s > measured["graph"].compile_s > 0
    assert second.told.plan().fused == after.fused, "what was measured is not measured again"
    assert max(gaps(first.variables, second.variables)) <= 1e-5
    kept.write_text("torn")
    assert len(plans(train(100))) == 2


def test_a_form_that_would_compile_longer_than_it_can_gain_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "LONG_S", 0.0)
    monkeypatch.setattr(trial, "TRIED_S", 0.01)
    monkeypatch.setattr(xla_rules, "OPERATION_COMPILES_S", 10.0)
    x, y = table()

    trained = Trained(tmp_path, mlp(), {"x": x, "y": y, "batch_size": BATCH, "epochs": 100}, fused="auto", choices=tmp_path / "choices")

    assert trained.told.plan().fused == "graph"  # told once: nothing was measured


def timing(fused: str, step_s: float, compile_s: float) -> StepTiming:
    return StepTiming(engine="tensorflow", strategy="single", fused=fused, step_s=step_s, compile_s=compile_s)


QUICKER_COMPILED = {"graph": timing("graph", 0.2, 0.5), "xla": timing("xla", 0.1, 5.5)}


@pytest.mark.parametrize(
    ("ahead", "form", "why"), [(10, "graph", "2.60 times"), (500, "xla", "1.81 times"), (math.inf, "xla", "2.00 times")]
)
def test_a_short_fit_does_not_compile_what_a_long_one_gained_by(ahead: float, form: str, why: str) -> None:
    choice = quickest(QUICKER_COMPILED, ahead)

    assert choice.fused == form
    assert why in choice.why[0]


@pytest.mark.nightly
def test_where_the_same_bits_are_asked_for_no_measurement_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "LONG_S", 0.0)
    monkeypatch.setattr(trial, "TRIED_S", 0.01)
    monkeypatch.setattr(trial, "TRIED_SHARE", math.inf)
    x, y = table()
    choices = tmp_path / "choices"

    def train() -> Trained:
        return Trained(tmp_path, mlp(), {"x": x, "y": y, "batch_size": BATCH, "epochs": 100}, fused="auto", choices=choices)

    train()
    [kept] = choices.iterdir()
    TimingCache(choices).put(kept.stem, list(QUICKER_COMPILED.values()))
    swayed = train()
    enable_op_determinism()
    try:
        deterministic = train()
    finally:
        disable_op_determinism()

    assert swayed.told.plan().fused == "xla"
    assert deterministic.told.plan() == planned("graph", "compiling pays from about 2,500 steps, this fit has 600")
    assert both_forms(TimingCache(choices).get(kept.stem)) == QUICKER_COMPILED, "nor is it measured"


@pytest.mark.parametrize("rows_", [pytest.param(BATCH, marks=pytest.mark.nightly), BATCH - 5])
def test_an_epoch_of_one_batch_has_a_plan(tmp_path: Path, rows_: int) -> None:
    x, y = table(rows_)

    trained = Trained(tmp_path, mlp(), {"x": x, "y": y, "batch_size": BATCH, "epochs": 2}, fused="xla")

    assert trained.told.plan() == planned("xla")


def eager() -> Any:
    return mlp(run_eagerly=True)()


def fed() -> dict[str, Any]:
    return {"x": tf.data.Dataset.from_tensor_slices(table(64)).batch(16), "shuffle": False}


@pytest.mark.parametrize(
    ("make", "arguments", "said"),
    [
        (eager, {"x": table(64)[0], "y": table(64)[1]}, "the model runs eagerly"),
        (mlp(), fed(), "its data comes batch by batch"),
    ],
)
def test_steps_that_are_made_one_a_call_have_a_plan_that_says_why(
    tmp_path: Path, make: Callable[[], Any], arguments: dict[str, Any], said: str
) -> None:
    assert Trained(tmp_path, make, arguments, fused="auto").told.plan() == planned("off", said)


@pytest.mark.parametrize(("callbacks", "one_by_one"), [([], False), ([Seen()], True)])
def test_a_plan_is_measured_with_as_many_steps_a_call_as_the_callbacks_of_the_fit_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, callbacks: list[Any], one_by_one: bool
) -> None:
    made: list[int] = []
    stock = MultiStepFunction._run

    def run(self: Any, chunk: StepChunk, *, compiled: bool) -> Any:
        made.append(chunk.stop - chunk.start)
        return stock(self, chunk, compiled=compiled)

    monkeypatch.setattr(MultiStepFunction, "_run", run)
    x, y = table()
    arguments = {"x": x, "y": y, "batch_size": 1, "callbacks": callbacks}

    told = Trained(tmp_path, mlp(), arguments, fused="graph", measure=MeasureSpec(compare=True, steps=210, repeats=1)).told

    [candidate] = [event for event in told if isinstance(event, Candidate)]
    assert (candidate.fused, candidate.why) == ("graph", "")
    assert (max(made) == 1) is one_by_one


def test_a_model_with_a_loop_of_its_own_keeps_it(tmp_path: Path) -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layers.Dense(1)

        def call(self, x: Any) -> Any:
            return self.inner(x)

        def make_train_function(self, force: bool = False) -> Any:
            self.train_function = lambda iterator: {"loss": float(len(next(iterator)[0]))}
            return self.train_function

    def make() -> Any:
        model = Own()
        model.compile("sgd", "mse")
        return model

    x, y = table(64)
    trained = Trained(tmp_path, make, {"x": x, "y": y, "batch_size": 16}, fused="auto")

    assert trained.told.plan() == planned("off", "Own has a make_train_function of its own")


@pytest.mark.parametrize("budget", [None, 2000, 0])
def test_rows_read_ahead_are_those_of_memory(budget: int | None) -> None:
    x, y = table(77)
    read = device_data.device_data_of((x, tf.constant(y), None), budget=budget)
    for epoch in range(2):
        plan = BatchPartition(rows=77, batch=8, rank=1, ranks=2)
        cut = plan.cut(order_of(epoch, rows=77, batch=8, shuffle=True, seed=1))
        read.begin(plan, cut, uneven=True)

        seen, at = [], 0
        while at < plan.full_batches:
            chunk = read.chunk(at, 4)
            assert 1 <= chunk.stop - chunk.start <= 4
            lines = chunk.positions.numpy()[chunk.start : chunk.stop]
            seen += [(chunk.arrays[0].numpy()[line], chunk.arrays[1].numpy()[line]) for line in lines]
            at += chunk.stop - chunk.start

        tail = read.tail()
        for step, positions in enumerate(cut.full):
            assert np.array_equal(seen[step][0], x[positions])
            assert np.array_equal(seen[step][1], y[positions])
        assert np.array_equal(tail.arrays[0].numpy()[tail.positions.numpy()[0]], x[cut.tail])


def test_data_read_ahead_train_as_data_in_memory_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = table()
    arguments = {"x": x, "y": y, "batch_size": BATCH, "epochs": 4}
    kept = Trained(tmp_path, mlp(), arguments, fused="graph")
    monkeypatch.setattr(device_data, "MEMORY_SHARE", 0.0)

    streamed = Trained(tmp_path, mlp(), arguments, fused="auto")

    assert max(gaps(streamed.variables, kept.variables)) <= 1e-5
    assert streamed.told.plan() == planned("graph", "compiling pays from about 2,500 steps, this fit has 24")


def test_an_index_out_of_range_in_data_that_is_read_later_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_data, "MEMORY_SHARE", 0.0)
    x = np.arange(96, dtype="int32")[:, None] % 10
    x[-1] = 10

    with pytest.raises(tf.errors.InvalidArgumentError, match=r"indices|is not in"):
        Trained(tmp_path, words, {"x": x, "y": x[:, 0] % 3, "epochs": 2000, "shuffle": False}, fused="auto")


def test_ranks_share_the_memory_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = table()
    monkeypatch.setattr(device_data, "free_bytes", lambda: int(x.nbytes / device_data.MEMORY_SHARE) + 1)

    assert isinstance(device_data.device_data_of((x,)), device_data.Resident)
    assert isinstance(device_data.device_data_of((x,), ranks=2), device_data.Streamed)


def test_an_attempt_that_goes_on_decides_by_the_steps_of_the_whole_fit() -> None:
    def source(start: TrainingPosition) -> RowSource:
        made = RowSource(seed=1, start=start, epochs=10)
        made.begin(BatchPartition(rows=20_000, batch=32), steps_per_epoch=None)
        return made

    first, resumed = source(TrainingPosition(0)), source(TrainingPosition(7, 100))

    assert first.in_all(625) == resumed.in_all(625) == 6250
    assert (first.ahead(625), resumed.ahead(625)) == (625 * 11, 625 * 4)  # before the first pass has begun


def test_calls_grow_to_what_fits_between_two_looks() -> None:
    pace = LoopLength()

    assert pace() == 1
    pace.took(1, 3.0)  # the first call compiles
    assert pace() == 1
    pace.took(1, CALL_S / 1000)
    assert pace() == GROWTH
    pace.took(GROWTH, CALL_S / 1000 * GROWTH)
    assert pace() == GROWTH**2
    pace.took(500, CALL_S / 1000 * 500)
    assert pace() == 1000
    assert LoopLength(steps_per_call=3)() == 3
