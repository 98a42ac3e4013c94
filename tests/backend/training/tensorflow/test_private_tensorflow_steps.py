"""Private steps on TensorFlow: clipped sums against a loop over rows, metrics of the drawn rows, and the noise that is added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from aiaas_magics.backend.training.tensorflow.parallel.reductions import Scope
from aiaas_magics.backend.training.tensorflow.private_tensorflow_steps import DRAWN, ROWS, PrivateTensorFlowSteps, read_drawn
from tests.backend.training.private_models import ROW_COUNT, convolution, dense, private, several, words

pytestmark = pytest.mark.slow  # each compiles steps

MODELS = [dense, *(pytest.param(case, marks=pytest.mark.nightly) for case in (convolution, words, several))]


def built(case: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    keras.utils.set_random_seed(4)
    model, data = case()
    x, y, weight = (*data, None)[:3]
    model.train_on_batch(x, y, weight)  # builds metrics and the optimizer
    model.reset_metrics()
    return model, keras.tree.map_structure(tf.constant, data)


def by_hand(model: Any, data: Any, *, clip: float, rows: Any) -> list[np.ndarray]:
    """The sum of clipped gradients, one row after the other, by Keras' own calls."""
    total = [np.zeros(v.shape, np.float64) for v in model.trainable_variables]
    for row in rows:
        x, y, weight = (*keras.tree.map_structure(lambda leaf, at=row: leaf[at : at + 1], data), None)[:3]
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True), weight)
        grads = [tf.convert_to_tensor(grad).numpy().astype(np.float64) for grad in tape.gradient(loss, model.trainable_weights)]
        factor = min(1.0, clip / np.sqrt(sum((grad**2).sum() for grad in grads)))
        total = [before + factor * grad for before, grad in zip(total, grads, strict=True)]
    return total


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("clip", [0.05, 1e6], ids=["all clipped", "none clipped"])
def test_the_clipped_sum_is_that_of_a_loop_over_the_rows(case: Callable[[], tuple[Any, Any]], clip: float) -> None:
    model, data = built(case)
    drawn = np.array([True] * 7 + [False] * 4)
    steps = PrivateTensorFlowSteps(model, private(clip=clip), Scope(), rank=0)

    sums, _, _ = tf.function(steps.clipped_sums)(data, tf.constant(drawn))

    for ours, theirs in zip(sums, by_hand(model, data, clip=clip, rows=range(7)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", MODELS)
def test_a_step_without_noise_and_without_clipping_is_the_stock_step(case: Callable[[], tuple[Any, Any]]) -> None:
    """Chunk by chunk, places that nobody was drawn for left out; the metrics too."""
    model, data = built(case)
    other, _ = built(case)
    other.set_weights(model.get_weights())
    model.reset_metrics()
    x, y, weight = (*keras.tree.map_structure(lambda leaf: leaf[:8], data), None)[:3]
    positions = tf.constant([*range(8), -1, -1, -1, -1])
    quiet = PrivateTensorFlowSteps(model, private(clip=1e6, noise=1e-12), Scope(), rank=0)

    logs = tf.function(quiet.step)(read_drawn(data, positions))

    expected = other.train_on_batch(x, y, weight, return_dict=True)
    assert logs.keys() == expected.keys()
    for name, value in expected.items():
        assert float(logs[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_row_whose_gradient_is_no_number_counts_as_not_drawn() -> None:
    model, data = built(dense)
    x, y, weight = data
    broken = tf.tensor_scatter_nd_update(x, [[2, 0]], [np.inf])
    steps = PrivateTensorFlowSteps(model, private(clip=0.1), Scope(), rank=0)

    sums, _, _ = steps.clipped_sums((broken, y, weight), tf.ones(ROW_COUNT, tf.bool))

    rows = [row for row in range(ROW_COUNT) if row != 2]
    for ours, theirs in zip(sums, by_hand(model, data, clip=0.1, rows=rows), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_rows_have_dropout_of_their_own() -> None:
    model = keras.Sequential([layers.Input((50,)), layers.Dropout(0.5, seed=1), layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    model.train_on_batch(np.ones((2, 50)), np.zeros((2, 1)))
    steps = PrivateTensorFlowSteps(model, private(clip=1e9), Scope(), rank=0)
    generator = model.layers[0].seed_generator
    before = generator.state.numpy().copy()

    masks = [
        (steps.clipped_sums((tf.ones((1, 50)), tf.constant([[1e3]])), tf.constant([True]), first=row)[0][0].numpy() != 0).ravel()
        for row in range(3)
    ]
    steps.step({ROWS: (tf.ones((4, 50)), tf.ones((4, 1))), DRAWN: tf.ones(4, tf.bool)})

    assert len({mask.tobytes() for mask in masks}) == 3
    assert all(10 < mask.sum() < 40 for mask in masks)
    assert (generator.state.numpy() - before).tolist() == [0, 1], "a step goes on by one, as in the stock step"


def silent(noise: float, clip: float, batch: int, secret: int = 9) -> tuple[np.ndarray, Any]:
    """What ten steps add to the weights of a model whose gradients are zero."""
    model = keras.Sequential([layers.Input((40,)), layers.Dense(25)])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.train_on_batch(np.zeros((1, 40)), np.zeros((1, 25)))
    model.set_weights([np.zeros((40, 25)), np.zeros(25)])
    steps = PrivateTensorFlowSteps(model, private(noise=noise, clip=clip, batch=batch, secret=secret), Scope(), rank=0)
    step = tf.function(steps.step)
    nobody = {ROWS: (tf.zeros((4, 40)), tf.zeros((4, 25))), DRAWN: tf.zeros(4, tf.bool)}
    added, before = [], np.concatenate([w.ravel() for w in model.get_weights()])
    for _ in range(10):
        step(nobody)
        after = np.concatenate([w.ravel() for w in model.get_weights()])
        added.append(after - before)
        before = after
    return np.stack(added), model


def test_the_noise_is_gaussian_of_the_promised_deviation() -> None:
    """Where no row was drawn a step is noise alone. The sum of squares lies within what chi-square does in all but 1e-9 of cases."""
    noise, clip, batch = 1.3, 0.7, 16

    added, _ = silent(noise, clip, batch)

    scaled = added / (noise * clip / batch)
    count = scaled.size
    assert abs((scaled**2).sum() - count) < 6 * np.sqrt(2 * count)
    assert abs(scaled.mean()) < 6 / np.sqrt(count)
    assert abs((scaled**4).mean() - 3) < 6 * np.sqrt(96 / count)
    assert np.abs(np.corrcoef(scaled) - np.eye(10)).max() < 6 / np.sqrt(added.shape[1]), "each step draws its own"


def test_another_secret_draws_other_noise() -> None:
    first, _ = silent(1.0, 1.0, 1, secret=9)
    again, _ = silent(1.0, 1.0, 1, secret=9)
    other, _ = silent(1.0, 1.0, 1, secret=10)

    assert np.array_equal(first, again)
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 6 / np.sqrt(first.size)
