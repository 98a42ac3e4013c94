"""What breaks the guarantee is refused with the next move; what it does not cover is announced. Fits of a model add up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import msgspec
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from aiaas_magics.client.training import private_training
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.privacy import Privacy, PrivateSteps
from aiaas_magics.core.privacy_accountant import epsilon_of
from aiaas_magics.core.spec import FitShape, FitSpec, Versions
from aiaas_magics.packing.fitcall import fit_call

ROWS, BATCH = 64, 16
PRIVACY = Privacy(epsilon=2.0, delta=1e-3, noise=1.0)
X = np.random.default_rng(1).normal(size=(ROWS, 6)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("float32")


def dense(*inner: Any, loss: Any = "binary_crossentropy", optimizer: Any = "sgd") -> Any:
    model = keras.Sequential([layers.Input((6,)), *inner, layers.Dense(1, activation="sigmoid")])
    model.compile(optimizer, loss)
    return model


def notes_of(model: Any, **arguments: Any) -> tuple[str, ...]:
    given = {"x": X, "y": Y, "batch_size": BATCH, "epochs": 2} | arguments
    return fit_call.pack(fit_call.FitCall(model, given), execution=Execution(private=PRIVACY)).notes


class OwnStep(keras.Model):
    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


class Table(layers.Layer):
    def build(self, shape: Any) -> None:
        self.seen = self.add_weight(shape=(1,), trainable=False)

    def call(self, x: Any) -> Any:
        return x + self.seen


class Looks(keras.callbacks.Callback):
    pass


def own_step() -> Any:
    x = keras.Input((6,))
    model = OwnStep(x, layers.Dense(1, activation="sigmoid")(x))
    model.compile("sgd", "binary_crossentropy")
    return model


def of_fixed_batches() -> Any:
    model = keras.Sequential([layers.Input(batch_shape=(BATCH, 6)), layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        (lambda: dense(layers.BatchNormalization(name="norm")), {}, "BatchNormalization (norm) mixes the rows of a batch"),
        (lambda: dense(layers.SpectralNormalization(layers.Dense(3))), {}, "SpectralNormalization"),
        (own_step, {}, "OwnStep has a train_step of its own"),
        (of_fixed_batches, {}, f"takes batches of {BATCH} rows only"),
        (lambda: dense(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())), {}, "takes no scaled loss"),
        (lambda: dense(loss=keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")), {}, "'mean_with_sample_weight'"),
        (lambda: dense(loss=keras.losses.Circle()), {}, "Circle compares the rows"),
        (dense, {"callbacks": [keras.callbacks.EarlyStopping("loss")]}, "EarlyStopping decides by 'loss'"),
        (dense, {"callbacks": [keras.callbacks.ReduceLROnPlateau("loss")]}, "ReduceLROnPlateau decides by 'loss'"),
        (
            dense,
            {"callbacks": [keras.callbacks.ModelCheckpoint("w.weights.h5", monitor="loss", save_best_only=True, save_weights_only=True)]},
            "ModelCheckpoint decides by 'loss'",
        ),
        (dense, {"x": tf.data.Dataset.from_tensor_slices((X, Y[:, None])).batch(BATCH), "y": None}, "x yields batches"),
    ],
)
def test_what_breaks_the_guarantee_is_refused_with_the_next_move(model: Callable[[], Any], arguments: dict[str, Any], words: str) -> None:
    if "x" in arguments:
        arguments = {"batch_size": None, **arguments}

    with pytest.raises(InvalidSpec) as refused:
        notes_of(model(), **arguments)

    assert words in str(refused.value)
    assert any(move in str(refused.value) for move in ("Use ", "Give ", "Let ", "Leave ", "Make "))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "mirrored"}, "no strategy mirrored"),
        ({"engine": "jax", "model_parallel": 2}, "keeps the whole model on each device"),
        ({"accumulate": 2}, "computes each batch in parts by itself"),
        ({"precision": "mixed_float16"}, "no scaled loss"),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        Execution(private=PRIVACY, **options)


def test_what_keeps_the_guarantee_passes() -> None:
    frozen = layers.BatchNormalization()
    frozen.trainable = False
    stopping = keras.callbacks.EarlyStopping("val_loss"), keras.callbacks.EarlyStopping("privacy_epsilon", mode="min", baseline=1.0)

    notes_of(dense(frozen, layers.LayerNormalization(), layers.GroupNormalization(2)), callbacks=list(stopping), validation_split=0.5)


def test_steps_and_what_is_not_covered_are_announced() -> None:
    notes = " ".join(notes_of(dense()))

    assert "each step draws each of 64 rows with probability 0.25, 16 on average" in notes
    assert "clipped to 1, noise multiplier 1." in notes
    assert "loss and metrics of the training rows" in notes
    assert "validation" not in notes
    assert "delta=0.001 is more than" not in notes, "it is less than 1 / 64"


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        (dense, {"validation_data": (X, Y)}, "validation rows. Their metrics are shown as they are"),
        (dense, {"class_weight": {0: 1.0, 1: 2.0}}, "Weights multiply the loss of a row before"),
        (dense, {"callbacks": [Looks()]}, "what Looks writes or decides"),
        (lambda: dense(Table(name="seen")), {}, "Non-trainable variables of seen stay as they are"),
        (lambda: dense(Table(name="seen")), {}, "Each row is computed by itself: seen"),
        (lambda: dense(layers.Dense(3, kernel_regularizer="l2")), {}, "Regularization is a part of each row's gradient"),
        (lambda: dense(loss=keras.losses.MeanSquaredError(reduction="sum")), {}, "averaged over the expected batch"),
        (lambda: dense(layers.Normalization(name="scaled")), {}, "what scaled took from the data in adapt()"),
    ],
)
def test_what_is_not_covered_is_said(model: Callable[[], Any], arguments: dict[str, Any], words: str) -> None:
    assert words in " ".join(notes_of(model(), **arguments))


def test_a_seed_for_tests_takes_the_guarantee_away() -> None:
    execution = Execution(private=msgspec.structs.replace(PRIVACY, noise_seed=1))

    notes = fit_call.pack(fit_call.FitCall(dense(), {"x": X, "y": Y}), execution=execution).notes

    assert "this fit has no guarantee" in " ".join(notes)
    assert "this fit has no guarantee" not in " ".join(notes_of(dense()))


def test_what_is_slow_on_tensorflow_is_said() -> None:
    model = keras.Sequential([layers.Input((6, 1)), layers.Conv1D(2, 3, name="filters"), layers.GRU(2, name="memory"), layers.Dense(1)])
    model.compile("sgd", "mse")

    notes = " ".join(notes_of(model, x=X[..., None], y=Y[:, None]))

    assert "filters, memory: TensorFlow computes the gradients of their rows one after the other" in notes
    assert "one after the other" not in " ".join(notes_of(dense()))


def test_a_delta_that_may_publish_a_row_is_warned_of() -> None:
    execution = Execution(private=msgspec.structs.replace(PRIVACY, delta=0.1))

    notes = fit_call.pack(fit_call.FitCall(dense(), {"x": X, "y": Y}), execution=execution).notes

    assert "delta=0.1 is more than 1 / 64 rows" in " ".join(notes)


def test_nothing_is_said_of_a_fit_that_is_not_private() -> None:
    assert fit_call.pack(fit_call.FitCall(dense(), {"x": X, "y": Y}), execution=Execution()).notes == ()


# --------------------------------------------------------------------------- the account of a model


SHAPE = FitShape(rows=1000, global_batch=50, steps_per_epoch=20, initial_epoch=0, epochs=5, parameters=10, model="m")


def spec_of(execution: Execution, shape: FitShape = SHAPE) -> FitSpec:
    nothing = "0" * 64
    versions = Versions(python="3", keras="3", tensorflow="2", aiaas_magics="0")
    return FitSpec(name="m", payload=nothing, arrays=(), shape=shape, versions=versions, seed=1, execution=execution)


def settled(privacy: Privacy, model: Any, **more: Any) -> Privacy:
    private = private_training.calibrated(Execution(private=privacy), model, SHAPE, **more).private
    assert private is not None
    return private


def test_the_noise_of_a_budget_is_settled_before_anything_is_sent() -> None:
    private = settled(Privacy(epsilon=1.0, delta=1e-5), dense())

    assert 0.98 < private_training.guarantee(private, SHAPE).epsilon <= 1.0


def test_a_second_fit_of_a_model_is_added_to_the_first() -> None:
    model = dense()
    first = settled(Privacy(epsilon=1.0, delta=1e-5), model)
    private_training.record(model, spec_of(Execution(private=first)), epochs=3)

    second = settled(Privacy(noise=2.0, delta=1e-5), model)

    before = PrivateSteps(sampling=0.05, noise=first.noise, steps=60)  # three of five epochs were made
    assert second.earlier == (before,)
    total = private_training.guarantee(second, SHAPE)
    assert total.epsilon == pytest.approx(epsilon_of([before, PrivateSteps(sampling=0.05, noise=2.0, steps=100)], 1e-5))
    (sentence,) = private_training.totals(Execution(private=second), model, SHAPE, resumed=False)
    assert f"trained privately 1 time before: with this fit the total is epsilon={total.epsilon:.4g}" in sentence


def test_steps_made_without_noise_are_named() -> None:
    model = dense()
    model.train_on_batch(X, Y)

    sentences = private_training.totals(Execution(private=PRIVACY), model, SHAPE, resumed=False)

    assert sentences[-1] == "Not covered by the guarantee: 1 step that the optimizer has made before."


def test_a_resumed_job_keeps_its_noise_and_counts_all_steps() -> None:
    before = settled(Privacy(epsilon=1.0, delta=1e-5), dense())

    resumed = settled(Privacy(epsilon=1.0, delta=1e-5), dense(), resumed=spec_of(Execution(private=before)))

    assert resumed.noise == before.noise
    assert private_training.guarantee(resumed, SHAPE, epochs=5).epsilon <= 1.0


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (None, PRIVACY, "was trained without --private"),
        (PRIVACY, None, "The job to resume is private, and this fit is not"),
        (msgspec.structs.replace(PRIVACY, clip=2.0), PRIVACY, "resumes with the clip, rows and batch_size"),
    ],
)
def test_a_job_resumes_with_the_guarantee_that_it_began_with(before: Privacy | None, now: Privacy | None, words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        private_training.calibrated(Execution(private=now), dense(), SHAPE, resumed=spec_of(Execution(private=before)))


def test_private_steps_go_to_jax_where_nobody_names_an_engine() -> None:
    private = Execution(private=PRIVACY)

    assert private_training.on_engine(private, installed={"tensorflow": "2", "jax": "0"}).engine == "jax"
    assert private_training.on_engine(private, installed={"tensorflow": "2"}) is private
    named = Execution(private=PRIVACY, engine="tensorflow")
    assert private_training.on_engine(named, installed={"tensorflow": "2", "jax": "0"}) is named
