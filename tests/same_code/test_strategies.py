"""Models that were made under a strategy of the user's, and models that cannot be compared for JAX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from aiaas_magics.core.execution import Execution
from aiaas_magics.packing.fitcall.fit_call import FitCall, pack
from aiaas_magics.packing.live.model_variables import steps_made
from tests.same_code.fits import fit

X = np.random.default_rng(1).normal(size=(48, 4)).astype("float32")
Y = X[:, :1] - X[:, 1:2]


def mirrored() -> Any:
    keras.utils.set_random_seed(3)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = keras.Sequential([layers.Input((4,)), layers.Dense(1)])
        model.compile("adam", "mse")
    return model


def test_a_model_compiled_in_the_scope_of_a_strategy_is_fitted_outside_of_it(tmp_path: Path) -> None:
    plain, ours = mirrored(), mirrored()
    expected = plain.fit(X, Y, batch_size=16, shuffle=False, verbose=0).history["loss"]

    history = fit(tmp_path, ours, x=X, y=Y, batch_size=16, shuffle=False).history["loss"]

    np.testing.assert_allclose(history, expected, rtol=1e-5)
    assert int(ours.optimizer.iterations.numpy()) == 3
    assert steps_made(ours) == 3, "what a card says of it"
    np.testing.assert_allclose(ours.get_weights()[0], plain.get_weights()[0], rtol=1e-4)


def test_a_model_whose_gradients_fail_outside_of_a_step_stays_on_tensorflow() -> None:
    layer = layers.Dense(4)
    layer.build((None, 4))
    layer.quantize("float8")
    model = keras.Sequential([layer])
    model.compile("sgd", "mse")

    packed = pack(FitCall(model, {"x": X, "y": X}), execution=Execution(engine="jax", may_fall_back=True, strategy="spmd"))

    assert not packed.execution.runs_on.ported
    assert packed.notes[0].startswith("This fit stays on TensorFlow: what it computes cannot be compared: ValueError: ")
