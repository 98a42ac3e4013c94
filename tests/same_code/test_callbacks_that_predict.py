"""What a callback does with models (predict, evaluate, fit another one) gives what it gives in plain `fit`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.same_code.fits import fit

pytestmark = pytest.mark.slow  # each compiles several fits

X = np.random.default_rng(1).normal(size=(96, 4)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("float32")[:, None]


def small() -> Any:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([layers.Input((4,)), layers.Dense(5, activation="tanh"), layers.Dense(1, activation="sigmoid")])
    model.compile("adam", "binary_crossentropy")
    return model


class Look(keras.callbacks.Callback):  # type: ignore[misc]
    """Predicts and evaluates on the way, and trains another model at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen.append(self.model.predict(X[:40], batch_size=16, verbose=0))

    def on_train_end(self, logs: Any = None) -> None:
        self.seen.append(self.model.predict(X[:40], verbose=0))
        self.seen.append(np.array(self.model.evaluate(X[:40], Y[:40], batch_size=16, verbose=0)))
        other = small()
        self.seen.append(np.array(other.fit(X, Y, batch_size=16, shuffle=False, verbose=0).history["loss"]))


@pytest.mark.parametrize(
    "given",
    [lambda: {"x": X, "y": Y, "batch_size": 16}, lambda: {"x": tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)}],
    ids=["arrays", "a dataset"],
)
def test_a_callback_that_uses_models_sees_what_it_sees_in_plain_fit(given: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    plain, ours = Look(), Look()
    small().fit(**given(), epochs=2, shuffle=False, callbacks=[plain], verbose=0)

    fit(tmp_path, small(), **given(), epochs=2, shuffle=False, callbacks=[ours])

    assert len(ours.seen) == len(plain.seen) == 5
    for one, other in zip(ours.seen, plain.seen, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
