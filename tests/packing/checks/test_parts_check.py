"""What joins the rows of a batch is announced with its size, and trying it leaves no trace."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

from aiaas_magics.core.execution import Execution
from aiaas_magics.packing.checks import parts_check
from aiaas_magics.packing.checks.exactness import announcements
from tests.packing.checks import joining
from tests.support import lanes

pytestmark = pytest.mark.slow

SIZE = re.compile(r"differs? by ([0-9.e+-]+) of (?:its|their) (?:norm|size)")
SPMD = "--strategy spmd (exact there)"


def size_in(text: str) -> float:
    found = SIZE.search(text)
    assert found is not None, text
    return float(found[1])


def mse(y: Any, p: Any) -> Any:
    return keras.losses.MeanSquaredError()(y, p)


JOINING: dict[str, tuple[Callable[[], Any], Any, Callable[[], dict[str, Any]], str]] = {
    "own Dice": (lambda: joining.segmenting(joining.dice_loss), joining.dice_loss, joining.images, "The loss dice_loss joins"),
    "Dice": (lambda: joining.segmenting(keras.losses.Dice()), keras.losses.Dice(), joining.images, "The loss dice joins"),
    "dice": (lambda: joining.segmenting("dice"), keras.losses.Dice(), joining.images, "The loss dice joins"),
    "Tversky": (lambda: joining.segmenting(keras.losses.Tversky()), keras.losses.Tversky(), joining.images, "The loss tversky joins"),
    "lambda": (
        lambda: joining.with_layers(layers.Lambda(lambda t: ops.softmax(t, axis=0), name="soft")),
        mse,
        joining.table,
        "The layer soft joins",
    ),
    "stock softmax over rows": (lambda: joining.with_layers(layers.Softmax(axis=0, name="soft")), mse, joining.table, "joins"),
    "own layer": (lambda: joining.with_layers(joining.Centred(name="centred")), mse, joining.table, "The layer centred joins"),
    "branch": (lambda: joining.subclassed(joining.Branching), mse, joining.table, "The call of Branching joins"),
}


@pytest.mark.parametrize(
    "name", lanes.thinned(JOINING, keep={"own Dice", "Dice", "stock softmax over rows", "own layer", "branch"}.__contains__)
)
def test_what_joins_rows_is_announced_with_the_size_that_two_halves_have(name: str) -> None:
    build, loss, given, words = JOINING[name]
    model = build()

    [said] = announcements(model, given(), 2)

    assert words in said
    assert size_in(said) == pytest.approx(joining.gradient_gap(model, loss, given()), rel=0.2)


def test_circle_loss_is_announced() -> None:
    given = joining.table()
    model = joining.with_layers(loss=keras.losses.Circle())
    labels = (np.arange(len(given["x"])) % 3).astype("int32")

    [said] = announcements(model, given | {"y": labels}, 2)

    assert said.startswith("The loss circle joins")


def test_spmd_is_offered_where_jax_can_train_the_model() -> None:
    [portable] = announcements(joining.segmenting(joining.dice_loss), joining.images(), 2)
    [tied] = announcements(joining.subclassed(joining.Branching), joining.table(), 2)
    [in_parts] = announcements(joining.segmenting(joining.dice_loss), joining.images(), 1, Execution(accumulate=2))

    assert f"Use {SPMD}, -n 1, or a loss per row." in portable
    assert SPMD not in tied
    assert in_parts.startswith("The loss dice_loss joins the rows of a batch: in 2 parts")
    assert in_parts.endswith("Leave --accumulate out, or use a loss per row.")


def test_a_bare_variable_is_announced_with_the_size_of_worker_0s() -> None:
    x = joining.table()["x"][: joining.ROWS]
    whole, half = x.max(axis=0), x[: joining.ROWS // 2].max(axis=0)

    [said] = announcements(joining.subclassed(joining.Remembering), joining.table(), 2)

    assert "worker 0's comes back" in said
    assert size_in(said) == pytest.approx(np.linalg.norm(whole - half) / np.linalg.norm(whole), rel=0.2)


def test_a_variable_of_the_model_itself_is_announced() -> None:
    said = announcements(joining.subclassed(joining.Counting), joining.table(), 2)

    assert any("The call of Counting joins" in text for text in said)
    assert any(text.startswith("Non-trainable variables of counting") for text in said)


def test_a_queue_of_keys_is_announced_and_no_sentence_calls_it_exact() -> None:
    said = announcements(joining.subclassed(joining.Contrasting), {"x": joining.table()["x"], "batch_size": joining.ROWS}, 2)

    [queue] = [text for text in said if "queue" in text]
    assert size_in(queue) > 0.1
    [own] = [text for text in said if "own train_step" in text]
    assert "no variable keeps what rows leave in it" in own


def test_a_mean_over_all_rows_is_not_spoken_of_but_with_weights_of_rows() -> None:
    weights = np.linspace(0.2, 2.0, 2 * joining.ROWS).astype("float32")

    def mean(y: Any, p: Any) -> Any:
        return ops.mean(ops.square(y - p))

    model = joining.with_layers(loss=mean)

    assert announcements(model, joining.table(), 2) == ()
    assert "The loss mean joins" in announcements(model, joining.table() | {"sample_weight": weights}, 2)[0]


class Sampling(layers.Layer):
    def __init__(self) -> None:
        super().__init__(name="sampling")
        self.generator = keras.random.SeedGenerator(1)

    def call(self, x: Any) -> Any:
        return x + keras.random.normal(ops.shape(x), seed=self.generator)


@pytest.mark.parametrize(
    ("model", "others"),
    [
        (lambda: joining.with_layers(loss=joining.row_loss), ()),
        (lambda: joining.with_layers(layers.Dropout(0.5), loss=joining.row_loss), ("Random numbers",)),
        (lambda: joining.with_layers(layers.BatchNormalization(), loss=joining.row_loss), ("BatchNormalization",)),
        (lambda: joining.with_layers(Sampling(), loss=joining.row_loss), ("Random numbers",)),
    ],
)
@pytest.mark.parametrize("rows", [16, 15])
def test_own_code_that_computes_rows_apart_is_not_spoken_of(model: Any, others: tuple[str, ...], rows: int) -> None:
    weights = np.linspace(0.2, 2.0, 2 * joining.ROWS).astype("float32")

    said = announcements(model(), joining.table() | {"batch_size": rows, "sample_weight": weights}, 2)

    assert [text.split(" (")[0] for text in said] == list(others)


def test_other_denominators_are_those_of_the_batch() -> None:
    given = {
        "x": np.tile(np.arange(7), (32, 1)) * (np.arange(32)[:, None] % 5 > np.arange(7) - 2),
        "y": np.ones((32, 7, 1)),
        "batch_size": 16,
    }
    for reduction in ("sum_over_batch_size", "sum", "mean_with_sample_weight"):
        words = keras.Input((7,), dtype="int32")
        outputs = layers.Dense(1)(layers.Embedding(9, 4, mask_zero=True)(words))
        model = keras.Model(words, layers.Activation(lambda t: ops.tanh(t))(outputs))
        model.compile("sgd", keras.losses.MeanSquaredError(reduction=reduction))

        assert announcements(model, given, 2) == ()


@pytest.mark.parametrize("loss", ["mse", "binary_crossentropy", keras.losses.Huber(), "sparse_categorical_crossentropy"])
def test_stock_models_and_losses_cost_nothing(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = joining.with_layers(layers.LayerNormalization(), layers.Dropout(0.0), loss=loss), []
    stock = layers.Dense.call

    def counted(self: Any, *args: Any, **more: Any) -> Any:
        calls.append(self)
        return stock(self, *args, **more)

    monkeypatch.setattr(layers.Dense, "call", counted)

    assert announcements(model, joining.table(), 2) == ()
    assert calls == []


class Eventful(keras.Model):
    """Moves everything that a step can move."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.drop, self.calls = layers.Dense(1), layers.Dropout(0.5), 0
        self.seen = tf.Variable(tf.zeros(8), trainable=False)
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x: Any) -> Any:
        self.calls += 1
        self.seen.assign_add(tf.reduce_sum(x, axis=0))
        self.count.assign_add(1.0)
        noise = random.random() + np.random.random() + keras.random.normal(()) + tf.random.normal(())
        self.add_loss(0.0 * ops.mean(x))
        return self.last(self.drop(x)) + 0.0 * noise


def seed() -> None:
    """Everything begins anew, Keras' general generator too, which its first use makes."""
    keras.utils.set_random_seed(5)
    keras.random.normal(())


def test_a_trial_leaves_everything_as_it_was() -> None:
    model = joining.subclassed(Eventful)
    model.compile("adam", joining.row_loss, metrics=["mae", keras.metrics.AUC()])
    model.fit(ops.convert_to_numpy(joining.table()["x"]), (joining.table()["y"] > 0).astype("float32"), batch_size=16, verbose=0)
    seed()
    given = joining.table() | {"y": (joining.table()["y"] > 0).astype("float32")}

    general = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)

    def values() -> list[bytes]:
        held = [*model.variables, *model.optimizer.variables, *model.metrics_variables, model.seen, general.state]
        return [np.asarray(v.numpy()).tobytes() for v in held] + [repr(random.getstate()).encode(), repr(np.random.get_state()).encode()]

    def draws() -> list[float]:
        return [
            float(tf.random.normal(())),
            float(tf.random.normal(())),
            random.random(),
            np.random.random(),
        ]

    before, losses, calls = values(), list(model.losses), model.calls
    said = announcements(model, given, 2)
    after = values()
    drawn = draws()
    seed()

    assert any("seen" in text for text in said), "the trial ran"
    assert after == before
    assert model.calls == calls
    assert len(model.losses) == len(losses)
    assert drawn == draws()
    assert {name for name in vars(model) if name in {"call", "compute_loss", "compute_metrics"}} == set()


def test_code_that_fails_on_values_is_said_to_be_uncompared() -> None:
    def odd(y: Any, p: Any) -> Any:
        raise RuntimeError("only in a graph")

    [said] = announcements(joining.with_layers(loss=odd), joining.table(), 2)

    assert said == "The loss odd could not be compared on a batch's parts (RuntimeError): exact where no row depends on another."


def test_a_model_too_large_to_try_is_said_to_be_uncompared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_check, "WORK", 100.0)

    [said] = announcements(joining.with_layers(loss=joining.row_loss), joining.table(), 2)

    assert said == "The loss row_loss was not compared on a batch's parts, for its size: exact where no row depends on another."


def test_one_worker_and_whole_batches_try_nothing() -> None:
    assert announcements(joining.segmenting(joining.dice_loss), joining.images(), 1) == ()
