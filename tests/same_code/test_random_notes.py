"""Only a function that draws TensorFlow's own random numbers is told of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiaas_magics.packing.checks import randomness
from tests.support.packed import Namespace

Cell = Callable[..., Namespace]


@pytest.mark.parametrize(
    ("body", "draws"),
    [
        ("tf.reduce_mean(x) + keras.random.normal((1,), seed=seed)", False),
        ("tf.cast(x, 'float32') + np.random.normal()", False),
        ("tf.random.stateless_normal((1,), seed=(1, 2))", False),
        ("tf.random.normal((1,))", True),
        ("tf.nn.dropout(x, 0.5)", True),
        ("tf.image.random_flip_left_right(x)", True),
        ("normal((1,)) + tf.zeros((1,))", True),
        ("draw.uniform((1,))", True),
    ],
)
def test_the_note_on_tf_random_comes_with_tf_random_alone(body: str, draws: bool, cell: Cell) -> None:
    made = cell(
        "from tensorflow.random import normal\nfrom tensorflow import random as draw\nseed = keras.random.SeedGenerator(1)\n"
        f"class Draws(keras.callbacks.Callback):\n    def on_epoch_end(self, epoch, logs=None): return {body}\n"
        "model = keras.Sequential([keras.Input((6,)), layers.Dense(1)])"
    )

    notes = randomness.notes(made["model"], [made["Draws"]()])

    assert bool(notes) is draws
