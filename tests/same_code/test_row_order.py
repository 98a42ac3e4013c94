"""After `set_random_seed` rows come in the order in which plain `fit` shuffles them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from aiaas_magics.backend.training.batch_partition import Shuffle
from aiaas_magics.backend.training.tensorflow.keras_order import order_of_keras
from aiaas_magics.core import row_order
from tests.same_code.fits import fit

ROWS = 37
X = np.arange(ROWS, dtype="float32")[:, None]


class Seen(keras.Sequential):  # type: ignore[misc]
    def train_step(self, data: Any) -> Any:
        self.seen += data[0].numpy().ravel().astype(int).tolist()
        return super().train_step(data)


def seen(shuffle: Shuffle, *, epochs: int, validation_split: float = 0.0) -> list[int]:
    model = Seen([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    model.seen = []
    model.fit(X, X, batch_size=8, epochs=epochs, shuffle=shuffle, validation_split=validation_split, verbose=0)
    return list(model.seen)


@pytest.mark.parametrize("shuffle", [True, "batch"])
def test_every_pass_has_the_order_of_plain_fit(shuffle: Shuffle) -> None:
    keras.utils.set_random_seed(11)
    tf.random.normal((3,))  # what was drawn before plays no part

    plain = seen(shuffle, epochs=2)

    order = order_of_keras(11, rows=ROWS, batch=8, shuffle=shuffle)
    assert plain == [*order, *order]
    assert order.tolist() != list(range(ROWS))


def test_a_worker_goes_through_the_rows_as_plain_fit_does(tmp_path: Path) -> None:
    def made() -> Any:
        keras.utils.set_random_seed(11)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(1e-4), "mse")
        return model

    plain, ours = made(), made()
    expected = plain.fit(X, X, batch_size=8, epochs=2, verbose=0)

    history = fit(tmp_path, ours, seed=row_order.as_in_plain_fit(11), x=X, y=X, batch_size=8, epochs=2)

    np.testing.assert_allclose(history.history["loss"], expected.history["loss"], rtol=1e-5)
    for mine, theirs in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def test_the_workers_own_seed_stays_as_it_is() -> None:
    keras.utils.set_random_seed(12)

    order_of_keras(13, rows=9, batch=2, shuffle=True)

    assert context.global_seed() == 12


def test_a_seed_says_whose_order_it_is() -> None:
    seeds = {row_order.as_in_plain_fit(seed): seed for seed in (0, 7, 2**40)}

    assert {made: row_order.kernel_seed_of(made) for made in seeds} == seeds
    assert row_order.kernel_seed_of(0) is None
    assert row_order.described(5) == "seed 5"
    assert row_order.described(row_order.as_in_plain_fit(5)) == "rows in the order of plain fit with seed 5"
