"""Attack gradients: how the loss changes with the numbers of a row.

Owns one function per library that computes; the attacks that follow a gradient belong to `adversarial_rows`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from aiaas_magics.attacks.model_losses import loss_of
from aiaas_magics.core.errors import InvalidSpec

Gradient = Callable[[np.ndarray, np.ndarray], np.ndarray]


def loss_gradient(model: Any) -> Gradient:
    """A function of rows and targets that gives the gradient of each row's loss with respect to the row, of the rows' shape.

    The model answers as in inference (no dropout, moving statistics), so that rows do not depend on one another.

    Raises:
        InvalidSpec: Keras computes with a library whose gradients are not taken here.
    """
    import keras

    backends: dict[str, Callable[[Any], Gradient]] = {"tensorflow": _by_tensorflow, "jax": _by_jax}
    name = keras.backend.backend()
    if name not in backends:
        raise InvalidSpec(f"Keras computes with {name} here. Adversarial rows need its gradients on TensorFlow or JAX: set KERAS_BACKEND.")
    return backends[name](model)


def _by_tensorflow(model: Any) -> Gradient:
    import tensorflow as tf

    per_row = loss_of(model)

    def compute(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(per_row(y, model(x, training=False)))
        return tape.gradient(loss, x)

    traced = tf.function(compute, reduce_retracing=True)

    def gradient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.asarray(traced(tf.convert_to_tensor(x), tf.convert_to_tensor(y)))

    return gradient


def _by_jax(model: Any) -> Gradient:
    import jax

    per_row = loss_of(model)
    trainable = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]

    def total(x: Any, y: Any) -> Any:
        outputs, _ = model.stateless_call(trainable, others, x, training=False)
        return per_row(y, outputs).sum()

    compute = jax.jit(jax.grad(total))
    return lambda x, y: np.asarray(compute(x, y))
