"""TensorFlow gradients: calls and derivatives of a Keras model on TensorFlow.

Owns the arithmetic. The same functions for JAX are in `jax_gradients`; who calls them is `model_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.explain import model_structure
from aiaas_magics.explain.players import is_text


def tensor_of(array: np.ndarray) -> Any:
    return tf.constant(array.astype(object), dtype=tf.string) if is_text(array) else tf.constant(array)


def call_once(model: Any, inputs: Sequence[np.ndarray]) -> Any:
    """The model's outputs, computed eagerly, so that taps see values."""
    return model(model_structure.packed(model, [tensor_of(array) for array in inputs]), training=False)


def outputs_of(model: Any, flat: Callable[[Any], Any]) -> Callable[[list[np.ndarray]], np.ndarray]:
    def run(inputs: list[Any]) -> Any:
        return flat(model(model_structure.packed(model, list(inputs)), training=False))

    call = _Compiled(run)

    def outputs(inputs: list[np.ndarray]) -> np.ndarray:
        return np.asarray(call([tensor_of(array) for array in inputs]).numpy())

    return outputs


def differentiator(model: Any, forward: Callable[..., Any]) -> model_structure.Differentiate:
    """Outputs and gradients of the target column."""

    def call(inputs: list[Any]) -> Any:
        return model(model_structure.packed(model, inputs), training=False)

    def run(values: list[Any], raw: list[Any], targets: Any) -> tuple[Any, list[Any]]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            outputs = tf.cast(forward(list(values), list(raw), call), tf.float32)
            score = tf.reduce_sum(tf.gather(outputs, targets, axis=1, batch_dims=1))
        gradients = tape.gradient(score, values)
        return outputs, [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in gradients]

    compiled = _Compiled(run)

    def differentiate(values: list[np.ndarray], raw: list[np.ndarray], targets: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        points = [tf.constant(value, dtype=tf.float32) for value in values]
        outputs, gradients = compiled(points, [tensor_of(array) for array in raw], tf.constant(targets, dtype=tf.int64))
        if any(gradient is None for gradient in gradients):
            raise InvalidSpec(f"The output does not depend on an input in a way that has a gradient. {model_structure.INSTEAD}")
        return np.asarray(outputs.numpy()), [np.asarray(gradient.numpy()) for gradient in gradients]

    return differentiate


class _Compiled:
    """A function of tensors, traced once for any number of rows.

    A `tf.function` that is made anew for each explanation would warn of retracing.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = tf.function(function)
        self._concrete: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self._concrete is None:
            specs = tf.nest.map_structure(lambda tensor: tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype), arguments)
            self._concrete = self._function.get_concrete_function(*specs)
        return self._concrete(*arguments)
