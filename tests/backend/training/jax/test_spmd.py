"""The strategy spmd, on two and four simulated devices: BatchNormalization, parts of a model, what stays on TensorFlow, resuming.

That it computes what plain `fit` computes, models by optimizers, is among the runs of `tests.equivalence`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from aiaas_magics.backend.folders.checkpoint_folder import TrainingPosition
from aiaas_magics.backend.training.batch_partition import BatchPartition, order_of
from aiaas_magics.backend.training.epochs import Passes, Reading
from aiaas_magics.core.errors import NotOnEngine
from aiaas_magics.core.events import EpochEnded, Measured, Planned
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.spec import MeasureSpec
from aiaas_magics.packing.checks import portability
from aiaas_magics.packing.fitcall import fit_call
from tests.backend.training import ranks
from tests.backend.training.jax import jax_models

SEED = 7
ON_JAX = Execution(engine="jax", strategy="spmd")
# Hundreds of float32 steps in another order of sums; the models' weights are of order 1.
CLOSE = 2e-4


@dataclass
class Case:
    """A fit call on some devices; `result` is what came back, `sent` what went."""

    model: Callable[[], Any]
    arguments: dict[str, Any]
    devices: int = 2
    execution: Execution = ON_JAX
    more: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()
    live: Any = None
    sent: Any = None

    @property
    def result(self) -> fit_call.FitResult:
        return ranks.result_in(self.folder)

    @property
    def shards(self) -> dict[str, int]:
        found: dict[str, int] = json.loads((self.folder / "attempt-1" / "shards.json").read_text())
        return found

    @property
    def refused(self) -> str:
        return (self.folder / "attempt-1" / "refused.txt").read_text()

    def plain(self) -> tuple[Any, Any]:
        """The same fit here, on TensorFlow; the model and its `History`."""
        model = self.model()
        arguments = {name: value() if callable(value) else value for name, value in self.arguments.items()}
        return model, model.fit(**arguments, verbose=0)


def fit_of(data: tuple[Any, Any], **arguments: Any) -> dict[str, Any]:
    return {"x": data[0], "y": data[1], "epochs": 3, "batch_size": 16, "shuffle": False, **arguments}


def with_layout() -> Any:
    model = jax_models.read()
    model.layout_map = {"wide/kernel": (None, "model"), "wide/bias": ("model",)}
    return model


X, Y = jax_models.table()
VALIDATED = fit_of((X, Y), validation_data=(X[:33], Y[:33]))
RESHAPED = fit_of((X[:, :, None], Y))
OWN = fit_of((X[:64], {"a": Y[:64], "b": Y[:64] * 2}), sample_weight=np.linspace(0.5, 1.5, 64), callbacks=lambda: [jax_models.HalfAt(1)])
WORDS = fit_of(jax_models.words())
EXECUTIONS: dict[str, Any] = {"steps_per_epoch": 4, "epochs": 2, "callbacks": lambda: [jax_models.CountsBatches()]}
CUT = Execution(engine="jax", model_parallel=2)

CASES = {
    "dense-2": Case(jax_models.dense, VALIDATED),
    "large-2": Case(jax_models.dense, VALIDATED),
    "normalised-2": Case(jax_models.normalised, RESHAPED),
    "shuffled-2": Case(
        jax_models.dense,
        VALIDATED | {"shuffle": True, "steps_per_epoch": 3, "epochs": 4, "callbacks": lambda: [jax_models.CountsBatches()]},
    ),
    # Five batches in a pass, and four steps asked for: whole executions of three make five of them.
    "executions-2": Case(jax_models.by_executions, VALIDATED | EXECUTIONS),
    "large-executions-2": Case(jax_models.by_executions, VALIDATED | EXECUTIONS),
    "dropping-1": Case(jax_models.dropping, fit_of((X, Y)), devices=1),
    "dropping-2": Case(jax_models.dropping, fit_of((X, Y))),
    "own-2": Case(jax_models.own, OWN),
    "cut-2": Case(jax_models.read, WORDS, execution=CUT),
    "cut-4": Case(jax_models.read, WORDS, devices=4, execution=CUT),
    "layout-2": Case(with_layout, WORDS, execution=CUT),
    "two-faced": Case(jax_models.two_faced, fit_of((X, Y))),
    "measured": Case(jax_models.dense, fit_of((X, Y)), more={"measure": MeasureSpec(steps=5, repeats=2)}),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """All cases trained by one worker process: starting one for each would take minutes."""
    root = tmp_path_factory.mktemp("spmd")
    paths = []
    for name, case in CASES.items():
        case.folder = root / name
        case.live = case.model()
        arguments = {key: value() if callable(value) else value for key, value in case.arguments.items()}
        case.sent = ranks.send(case.folder, case.live, execution=case.execution, **arguments)
        given = {"seed": SEED, "devices": case.devices, "execution": case.sent.packed.execution, **case.more}
        paths += ranks.commands(case.sent, case.folder, ranks=1, **given)
    done = root / "resumed"
    done.mkdir()
    whole = CASES["dropping-2"]
    kept = whole.folder / "checkpoints"  # the worker takes the oldest there, since which epochs have one is a matter of time
    paths += ranks.commands(whole.sent, done, ranks=1, seed=SEED, devices=2, execution=ON_JAX, resume_from=str(kept))
    output = root / "output.txt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "jax")
        patch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")  # nearly all is compiling
        process = ranks.spawn("-m", "tests.backend.training.jax.jax_cases", *map(str, paths), output=output)
    assert ranks.finish([process]) == [0], output.read_text()[-6000:]
    return CASES


def weights_of(case: Case) -> list[np.ndarray]:
    return [case.result.variables[place] for place in case.result.roles["weights"]]


def assert_close(ours: list[np.ndarray], theirs: list[np.ndarray], limit: float = CLOSE) -> None:
    gaps = ranks.gaps(ours, theirs)
    assert max(gaps) < limit, gaps


@pytest.mark.parametrize(
    "name", ["dense-2", "large-2", "normalised-2", "own-2", "cut-2", "cut-4", "layout-2", "executions-2", "large-executions-2"]
)
def test_any_number_of_devices_computes_what_plain_fit_computes_on_tensorflow(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    plain, expected = case.plain()

    history = fit_call.apply_result(case.result, case.sent.packed)

    assert_close(case.live.get_weights(), plain.get_weights())
    assert int(case.live.optimizer.iterations.numpy()) == int(plain.optimizer.iterations.numpy())
    assert set(history.history) == set(expected.history)
    for metric, values in expected.history.items():
        np.testing.assert_allclose(history.history[metric], values, rtol=1e-3, atol=1e-5, err_msg=metric)
    assert_close([v.numpy() for v in case.live.optimizer.variables], [v.numpy() for v in plain.optimizer.variables], 5e-3)


def test_the_order_of_rows_is_that_of_every_other_strategy(cases: dict[str, Case]) -> None:
    case = cases["shuffled-2"]
    plain = jax_models.dense()
    orders = [order_of(number, rows=len(X), batch=16, shuffle=True, seed=SEED) for number in range(2)]
    for order in orders:  # a pass of five batches is two epochs: three, and the two that are left
        plain.fit(X[order], Y[order], batch_size=16, shuffle=False, verbose=0)

    assert_close(weights_of(case), plain.get_weights())
    assert len(case.result.history["loss"]) == 4


def test_an_attempt_within_an_epoch_goes_on_with_the_next_batch() -> None:
    plan = BatchPartition(rows=70, batch=16)
    passes = Passes(Reading(seed=SEED, start=TrainingPosition(1, 3)), plan, shuffle=True, steps_per_epoch=None)

    begun = passes.begin()

    assert (begun[0], passes.first_step()) == (3, 3)
    np.testing.assert_array_equal(begun[1], order_of(1, rows=70, batch=16, shuffle=True, seed=SEED))
    assert (passes.begin()[0], passes.first_step()) == (0, 0)


def test_masks_are_the_same_for_any_number_of_devices_and_announced_as_jaxs(cases: dict[str, Case]) -> None:
    one, two = cases["dropping-1"], cases["dropping-2"]

    assert_close(weights_of(one), weights_of(two), 1e-5)
    (note,) = two.sent.packed.notes
    assert note.startswith("Random numbers (dropout")
    assert "drawn by JAX" in note
    seed, drawn = two.result.variables[two.result.roles["seeds"][0]]
    assert drawn == 15  # five steps in each of three epochs
    assert seed == two.sent.packed.variables[two.result.roles["seeds"][0]].numpy()[0]


def test_a_resumed_run_ends_where_the_uninterrupted_one_ends(cases: dict[str, Case]) -> None:
    whole = cases["dropping-2"]
    folder = whole.folder.parent / "resumed"

    resumed = ranks.result_in(folder)

    for there, here in zip(resumed.variables, whole.result.variables, strict=True):
        np.testing.assert_array_equal(there, here)
    assert resumed.history == whole.result.history
    assert [event.epoch for event in ranks.events_in(folder) if isinstance(event, EpochEnded)] in ([1, 2], [2])


def test_callbacks_see_the_model_and_come_back(cases: dict[str, Case]) -> None:
    case = cases["own-2"]
    plain, _ = case.plain()

    fit_call.apply_result(case.result, case.sent.packed)

    (callback,) = case.sent.packed.callbacks
    assert len(callback.seen) == 3
    np.testing.assert_allclose(callback.seen[-1], float(np.abs(plain.get_weights()[0]).sum()), rtol=1e-3)
    assert callback.model is case.live
    assert float(case.live.optimizer.learning_rate.numpy()) == pytest.approx(0.005)


def test_many_steps_make_one_call_where_it_pays(cases: dict[str, Case]) -> None:
    def planned(name: str) -> Planned:
        (plan,) = [event for event in ranks.events_in(cases[name].folder) if isinstance(event, Planned)]
        return plan

    assert planned("dense-2") == Planned(fused="xla", engine="jax", strategy="spmd")
    *_, large = [event for event in ranks.events_in(cases["large-2"].folder) if isinstance(event, Planned)]
    assert (large.fused, large.why) == ("off", ("its data do not fit into the share of the memory that they may take",))
    assert planned("normalised-2").fused == "off"
    assert planned("normalised-2").why[0].startswith("convolutions (conv1d")


def test_a_callback_that_looks_at_batches_sees_every_one(cases: dict[str, Case]) -> None:
    case = cases["shuffled-2"]

    (callback,) = case.result.callbacks

    assert callback["batches"] == [0, 1, 2, 0, 1, 0, 1, 2, 0, 1]  # passes of five batches, epochs of three steps at most


@pytest.mark.parametrize("name", ["executions-2", pytest.param("large-executions-2", marks=pytest.mark.nightly)])
def test_a_callback_that_looks_at_batches_is_told_the_numbers_of_plain_fit(cases: dict[str, Case], name: str) -> None:
    (callback,) = cases[name].result.callbacks

    assert callback["batches"] == [2, 5, 2, 5]


def test_parts_of_the_model_lie_on_different_devices(cases: dict[str, Case]) -> None:
    default, own = cases["cut-2"].shards, cases["layout-2"].shards

    assert {path for path, parts in default.items() if parts == 2} == {"table/embeddings", "wide/kernel"}
    assert {path for path, parts in own.items() if parts == 2} == {"wide/kernel", "wide/bias"}
    assert set(cases["cut-4"].shards.values()) == {1, 2}
    assert set(cases["dense-2"].shards.values()) == {1}


def test_a_model_that_computes_something_else_on_jax_is_refused_with_the_difference(cases: dict[str, Case]) -> None:
    assert "it would compute something else there: " in cases["two-faced"].refused
    assert "of its norm (0.0001 is allowed)" in cases["two-faced"].refused


def test_a_study_gets_its_point(cases: dict[str, Case]) -> None:
    (point,) = [event for event in ranks.events_in(cases["measured"].folder) if isinstance(event, Measured)]

    assert (point.steps, point.rows_per_step, len(point.seconds)) == (5, 16, 2)


# --------------------------------------------------------------------------- what never leaves TensorFlow


class OwnStep(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.out = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.out(x)

    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


class UsesTensorFlow(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        import tensorflow as tf

        return tf.nn.relu(x)


class Unmakeable(keras.layers.Layer):
    def __init__(self, units: np.ndarray, **options: Any) -> None:
        super().__init__(**options)
        self.units = units

    def call(self, x: Any) -> Any:
        return x


def compiled(model: Any) -> Any:
    model.compile("sgd", "mse")
    return model


def sequential(*stack: Any) -> Any:
    return compiled(keras.Sequential([keras.layers.Input((6,)), *stack, keras.layers.Dense(1)]))


def looked_up() -> Any:
    lookup = keras.layers.IntegerLookup(vocabulary=[1, 2, 3])
    return sequential(
        keras.layers.Lambda(lambda x: keras.ops.cast(x, "int64")), lookup, keras.layers.Lambda(lambda x: keras.ops.cast(x, "float32"))
    )


def in_double_precision() -> Any:
    return sequential(keras.layers.Dense(2, dtype="float64"))


def holding_a_variable(model: Any) -> Any:
    import tensorflow as tf

    callback = keras.callbacks.LambdaCallback()
    callback.count = tf.Variable(1.0)
    return callback


def test_what_yields_batches_is_read_by_tensorflow() -> None:
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)

    assert portability.why_not(jax_models.dense(), {"x": dataset}, ()) == "x is no array, and what yields batches is read by TensorFlow"


@pytest.mark.parametrize(
    ("model", "callback", "why"),
    [
        (lambda: compiled(OwnStep()), None, "OwnStep has its own train_step, which is written for TensorFlow"),
        (lambda: sequential(UsesTensorFlow()), None, "UsesTensorFlow.call uses TensorFlow (tensorflow)"),
        (looked_up, None, "runs on TensorFlow only"),
        (in_double_precision, None, "is float64"),
        (lambda: sequential(Unmakeable(np.ones(2))), None, "Keras cannot describe Sequential"),
        (jax_models.dense, holding_a_variable, "holds the variable"),
    ],
)
def test_what_cannot_move_stays_on_tensorflow_and_says_why(model: Any, callback: Any, why: str) -> None:
    made = model()
    arguments = {"x": X, "y": Y, "callbacks": [callback(made)] if callback else None}
    call = fit_call.FitCall(made, arguments)

    packed = fit_call.pack(call, workers=2, execution=Execution(strategy="spmd"))

    assert packed.execution == Execution(engine="tensorflow")
    assert packed.notes[0].startswith("This fit stays on TensorFlow: ")
    assert why in packed.notes[0]
    with pytest.raises(NotOnEngine, match="Leave --engine") as refused:
        fit_call.pack(call, workers=2, execution=ON_JAX)
    assert why in str(refused.value)


def test_what_differs_on_jax_is_announced() -> None:
    looking = jax_models.read()
    looking.compile("adam", "sparse_categorical_crossentropy")
    words = fit_call.pack(fit_call.FitCall(looking, WORDS), execution=ON_JAX)
    looking.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(clipvalue=0.1)), "sparse_categorical_crossentropy")
    clipped = fit_call.pack(fit_call.FitCall(looking, WORDS), execution=ON_JAX)
    looking.compile(keras.optimizers.Adam(global_clipnorm=0.1, gradient_accumulation_steps=2), "sparse_categorical_crossentropy")
    added_up = fit_call.pack(fit_call.FitCall(looking, WORDS), execution=ON_JAX)
    parts = fit_call.pack(fit_call.FitCall(jax_models.own(), {**fit_of((X, {"a": Y, "b": Y}))}), execution=ON_JAX)

    even = {"x": X[:64], "y": {"a": Y[:64], "b": Y[:64]}, "batch_size": 16}
    validated = [
        fit_call.pack(fit_call.FitCall(jax_models.own(), {**even, **more}), execution=ON_JAX).notes
        for more in ({}, {"validation_data": (X[:20], {"a": Y[:20], "b": Y[:20]})}, {"validation_split": 0.5}, {"validation_split": 0.25})
    ]
    odd = fit_call.pack(fit_call.FitCall(jax_models.dense(), fit_of((X, Y), batch_size=15)), workers=2, execution=ON_JAX)

    assert [note.partition(", so")[0] for note in odd.notes] == ["Batches of 15 rows cannot be shared evenly by 2 devices"]
    assert [len(notes) for notes in validated] == [0, 1, 0, 0], "batches of 16, 4 of them left over for validation"
    assert [note.partition(" on JAX")[0] for note in words.notes] == ["Adam squares the gradient of a row of table once"]
    assert [note.partition(" on JAX")[0] for note in clipped.notes] == ["clipvalue clips the gradient of a row of table as a whole"]
    assert added_up.notes == ()
    assert [note.partition(" on JAX")[0] for note in parts.notes] == [
        "The losses shown of single outputs count the last, smaller batch by its rows"
    ]


def test_the_proof_leaves_the_kernels_model_as_it_is() -> None:
    model = jax_models.normalised()
    model.fit(**RESHAPED, verbose=0)
    before = [np.array(variable.numpy()) for variable in (*model.variables, *model.optimizer.variables)]

    fit_call.pack(fit_call.FitCall(model, RESHAPED), execution=ON_JAX)

    after = [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
