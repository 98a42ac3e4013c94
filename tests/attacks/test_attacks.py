"""Attacks: a model that remembers is told from one that does not, intervals hold, and gradients are those of the loss."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas_magics.attacks import adversarial_rows
from aiaas_magics.attacks.adversarial_rows import Bounds
from aiaas_magics.attacks.attack_gradients import loss_gradient
from aiaas_magics.attacks.attack_run import attack
from aiaas_magics.attacks.model_losses import LabelledRows, loss_of, outputs_and_losses
from aiaas_magics.core import errors, roc_curve

pytestmark = pytest.mark.slow  # each trains a model


def rows(count: int, seed: int, columns: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """A label that has little to do with the row: what a model learns of it is by heart."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(count, columns)).astype("float32")
    return x, (x[:, 0] + 2.0 * draw.normal(size=count) > 0).astype("int64")


def classifier(*, epochs: int, members: tuple[np.ndarray, np.ndarray], width: int = 128) -> Any:
    import keras

    keras.utils.set_random_seed(1)
    layers = [
        keras.Input((members[0].shape[1],)),
        keras.layers.Dense(width, activation="tanh"),
        keras.layers.Dense(2, activation="softmax"),
    ]
    model = keras.Sequential(layers)
    model.compile(optimizer=keras.optimizers.Adam(0.02), loss="sparse_categorical_crossentropy")
    model.fit(*members, epochs=epochs, batch_size=100, verbose=0)
    return model


@pytest.fixture(scope="module")
def members() -> tuple[np.ndarray, np.ndarray]:
    return rows(400, 1)


@pytest.fixture(scope="module")
def others() -> tuple[np.ndarray, np.ndarray]:
    return rows(600, 2)


@pytest.fixture(scope="module")
def remembering(members: tuple[np.ndarray, np.ndarray]) -> Any:
    return classifier(epochs=40, members=members)


# --------------------------------------------------------------------------- the curve


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    draw = np.random.default_rng(1)
    positives, negatives = draw.normal(0.5, 1, 60).round(1), draw.normal(0, 1, 80).round(1)  # with ties

    value, low, high = roc_curve.area(positives, negatives)

    pairs = (positives[:, None] > negatives).mean() + 0.5 * (positives[:, None] == negatives).mean()
    assert value == pytest.approx(pairs)
    assert low < value < high


def test_the_interval_of_the_area_holds_the_truth_95_times_of_100() -> None:
    draw, hits = np.random.default_rng(2), 0
    for _ in range(800):
        _, low, high = roc_curve.area(draw.normal(1, 1, 100), draw.normal(0, 1, 120))
        hits += low <= 0.7602 <= high  # Phi(1 / sqrt(2))

    assert 0.93 <= hits / 800 <= 0.97


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_a_curve_rises_from_0_to_1(positives: list[int], negatives: list[int]) -> None:
    points = roc_curve.curve(np.array(positives, float), np.array(negatives, float))

    assert points[0] == (0.0, 0.0)
    assert points[-1] == (1.0, 1.0)
    assert all(a[0] <= b[0] and a[1] <= b[1] + 1e-12 for a, b in itertools.pairwise(points))


def test_the_rate_is_that_of_the_threshold_which_so_few_others_pass() -> None:
    others = np.arange(1000.0)

    share, low, high = roc_curve.true_rate_at(np.array([999.5] * 30 + [0.0] * 70), others, 0.01)

    assert share == 0.3
    assert low < 0.3 < high
    assert roc_curve.true_rate_at(others, others, 0.01)[0] <= 0.01


# --------------------------------------------------------------------------- membership


def test_a_model_that_remembers_its_rows_is_told_and_one_that_never_saw_them_is_not(
    remembering: Any, members: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray]
) -> None:
    elsewhere = classifier(epochs=40, members=rows(400, 3))

    report = attack(remembering, members, others, against=[("elsewhere", elsewhere)], black_box=False).report

    told, blind = report.models
    assert told.strongest.auc > 0.75
    assert told.strongest.succeeds
    assert {found.name for found in told.membership} == {"loss", "confidence"}
    assert "better than a guess" in told.facts()["membership inference"]
    assert told.accuracy_members is not None
    assert told.accuracy_others is not None
    assert told.accuracy_members > told.accuracy_others + 0.2
    for found in blind.membership:
        assert not found.succeeds, "it has seen neither side"
        assert abs(found.auc - 0.5) < 0.08
    assert [rate.false_rate for rate in told.membership[0].rates] == [0.01], "600 others say nothing of one in a thousand"


def test_the_loss_of_a_row_is_what_keras_computes(remembering: Any, members: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = members

    _, losses = outputs_and_losses(remembering, LabelledRows(x, y))

    probabilities = remembering.predict(x, verbose=0)
    np.testing.assert_allclose(losses, -np.log(probabilities[np.arange(len(y)), y]), rtol=1e-3, atol=1e-5)
    assert losses.mean() == pytest.approx(remembering.evaluate(x, y, verbose=0), rel=1e-3)


@pytest.mark.parametrize("loss", ["binary_crossentropy", "mse", "hinge", "categorical_crossentropy"])
def test_every_stock_loss_gives_a_number_per_row(loss: str) -> None:
    import keras

    x, y = rows(64, 4)
    target = np.eye(2, dtype="float32")[y] if loss.startswith("cat") else y
    outputs = 2 if loss.startswith("cat") else 1
    activation = "softmax" if outputs == 2 else "sigmoid"
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(outputs, activation=activation)])
    model.compile(loss=loss)

    found = attack(model, (x, target), (x, target), black_box=False).report.models[0]

    assert found.loss_members == pytest.approx(model.evaluate(x, target, verbose=0), rel=1e-4)
    assert all(attacked.auc == 0.5 for attacked in found.membership), "the same rows on both sides"
    assert (found.accuracy_members is None) == (loss == "mse")


# --------------------------------------------------------------------------- adversarial rows


def test_the_gradient_is_that_of_the_loss(remembering: Any, others: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = others[0][:5].astype("float64"), others[1][:5]
    per_row, step = loss_of(remembering), 1e-3

    found = loss_gradient(remembering)(x.astype("float32"), y)

    def losses(moved: np.ndarray) -> np.ndarray:
        return np.asarray(per_row(y, remembering(moved.astype("float32"), training=False)), dtype="float64")

    for column in range(4):
        direction = np.zeros_like(x)
        direction[:, column] = step
        np.testing.assert_allclose(found[:, column], (losses(x + direction) - losses(x - direction)) / (2 * step), rtol=0.05, atol=2e-3)


def test_attacks_stay_near_and_hurt_more_than_chance_the_more_the_stronger(
    remembering: Any, members: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray]
) -> None:
    found = attack(remembering, members, others, epsilons=(0.05, 0.3), black_box=False).report.models[0]

    clean, small, large = found.adversarial
    assert clean.fgsm == clean.pgd == clean.noise
    assert clean.pgd > small.pgd > large.pgd
    assert large.pgd <= large.fgsm + 0.01
    assert large.fgsm < large.noise - 0.2
    rows_then = LabelledRows(*others)
    for moved in (
        adversarial_rows.fgsm(loss_gradient(remembering), rows_then, 0.3, Bounds(-2, 2)),
        adversarial_rows.pgd(loss_gradient(remembering), rows_then, 0.3, Bounds(-2, 2), steps=3),
        adversarial_rows.noisy(rows_then, 0.3, Bounds(-2, 2)),
    ):
        assert np.abs(moved - np.clip(others[0], -2.3, 2.3)).max() <= 0.3 + 1e-5
        assert (moved.min(), moved.max()) >= (-2.0, -2.0)
        assert moved.max() <= 2.0
        assert moved.dtype == others[0].dtype


ON_JAX = """
import keras, numpy as np
from aiaas_magics.attacks.attack_gradients import loss_gradient
assert keras.backend.backend() == "jax"
keras.utils.set_random_seed(1)
layers = [keras.Input((6,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(3, activation="softmax")]
model = keras.Sequential(layers)
model.compile(loss="sparse_categorical_crossentropy")
x, y = np.random.default_rng(1).normal(size=(5, 6)).astype("float32"), np.array([0, 1, 2, 1, 0])
found, step = loss_gradient(model)(x, y), 1e-2
for column in range(6):
    direction = np.zeros_like(x)
    direction[:, column] = step
    up, down = (-np.log(np.asarray(model(moved))[np.arange(5), y]) for moved in (x + direction, x - direction))
    np.testing.assert_allclose(found[:, column], (up - down) / (2 * step), rtol=0.02, atol=2e-3)
"""


@pytest.mark.nightly
def test_the_gradient_is_that_of_the_loss_on_jax_too() -> None:
    pytest.importorskip("jax", reason="pip install 'aiaas_magics[jax]'")

    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run([sys.executable, "-c", ON_JAX], capture_output=True, text=True, check=False, timeout=200, env=environment)

    assert ended.returncode == 0, ended.stderr[-2000:]


# --------------------------------------------------------------------------- what is refused


def test_what_cannot_be_attacked_is_said_with_the_next_move(
    remembering: Any, members: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray]
) -> None:
    import keras

    naked = keras.Sequential([keras.Input((20,)), keras.layers.Dense(1)])
    regression = keras.Sequential([keras.Input((20,)), keras.layers.Dense(1)])
    regression.compile(loss="mse")

    with pytest.raises(errors.NotCompiled):
        attack(naked, members, others)
    with pytest.raises(errors.DataMismatch, match="Give two arrays"):
        attack(remembering, members[0], others)
    with pytest.raises(errors.DataMismatch, match="20 are the least"):
        attack(remembering, rows(5, 1), others)
    with pytest.raises(errors.DataMismatch, match="Give as many"):
        attack(remembering, (members[0], members[1][:9]), others)
    with pytest.raises(errors.InvalidSpec, match=r"Use 0\.03"):
        attack(remembering, members, others, epsilons=(0.0,))
    with pytest.raises(errors.InvalidSpec, match="classifies nothing"):
        attack(regression, members, others, epsilons=(0.1,))
    if importlib.util.find_spec("art") is None:
        with pytest.raises(errors.InvalidSpec, match=r"aiaas_magics\[attacks\]"):
            attack(remembering, members, others, black_box=True)


# --------------------------------------------------------------------------- beside the adversarial-robustness-toolbox


@pytest.mark.nightly
def test_attacks_find_what_the_adversarial_robustness_toolbox_finds(
    remembering: Any, members: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray]
) -> None:
    pytest.importorskip("art", reason="pip install 'aiaas_magics[attacks]'")
    import keras
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
    from art.estimators.classification import TensorFlowV2Classifier

    x, y = others[0][:300], others[1][:300]
    given = LabelledRows(x, y)
    loss = keras.losses.SparseCategoricalCrossentropy(reduction="sum")
    theirs = TensorFlowV2Classifier(remembering, nb_classes=2, input_shape=(20,), loss_object=loss, clip_values=(-4.0, 4.0))
    classes = np.eye(2, dtype="float32")[y]
    bounds, gradient = Bounds(-4.0, 4.0), loss_gradient(remembering)

    np.testing.assert_allclose(gradient(x, y), theirs.loss_gradient(x, classes), rtol=1e-3, atol=1e-5)
    theirs_fgsm = FastGradientMethod(theirs, eps=0.1).generate(x, classes)
    np.testing.assert_allclose(adversarial_rows.fgsm(gradient, given, 0.1, bounds), theirs_fgsm, atol=1e-6)
    ours = adversarial_rows.pgd(gradient, given, 0.1, bounds)
    descent = ProjectedGradientDescent(theirs, eps=0.1, eps_step=0.0125, max_iter=20, num_random_init=1, verbose=False)
    attacked = descent.generate(x, classes)
    accuracies = [(remembering.predict(moved, verbose=0).argmax(1) == y).mean() for moved in (ours, attacked)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)

    found = attack(remembering, members, others, black_box=True).report.models[0]
    black_box = next(each for each in found.membership if each.name.startswith("black box"))
    assert black_box.succeeds
    assert (black_box.auc, found.strongest.auc) > (0.7, 0.7)
