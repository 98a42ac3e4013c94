"""JAX gradients: calls and derivatives of a Keras model on JAX.

Owns the arithmetic. The same functions for TensorFlow are in `tensorflow_gradients`; who calls them is `model_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.explain import model_structure
from aiaas_magics.explain.players import is_text


def tensor_of(array: np.ndarray) -> Any:
    if is_text(array):
        raise InvalidSpec(f"Text cannot be differentiated on JAX. {model_structure.INSTEAD}")
    return jnp.asarray(array)


def call_once(model: Any, inputs: Sequence[np.ndarray]) -> Any:
    """The model's outputs, computed eagerly, so that taps see values."""
    return model(model_structure.packed(model, [tensor_of(array) for array in inputs]), training=False)


def _state(model: Any) -> tuple[list[Any], list[Any]]:
    return [variable.value for variable in model.trainable_variables], [variable.value for variable in model.non_trainable_variables]


def outputs_of(model: Any, flat: Callable[[Any], Any]) -> Callable[[list[np.ndarray]], np.ndarray]:
    @jax.jit  # type: ignore[untyped-decorator]
    def run(trainable: list[Any], others: list[Any], inputs: list[Any]) -> Any:
        return flat(model.stateless_call(trainable, others, model_structure.packed(model, inputs), training=False)[0])

    def outputs(inputs: list[np.ndarray]) -> np.ndarray:
        rows = len(inputs[0])
        full = 1 << (rows - 1).bit_length()  # few shapes are compiled, whatever the sizes of batches
        padded = [np.concatenate([array, np.repeat(array[:1], full - rows, axis=0)]) for array in inputs]
        return np.asarray(run(*_state(model), [tensor_of(array) for array in padded]))[:rows]

    return outputs


def differentiator(model: Any, forward: Callable[..., Any]) -> model_structure.Differentiate:
    """Outputs and gradients of the target column, compiled once per shape."""

    def score(values: list[Any], raw: list[Any], targets: Any, trainable: list[Any], others: list[Any]) -> tuple[Any, Any]:
        def call(inputs: list[Any]) -> Any:
            return model.stateless_call(trainable, others, model_structure.packed(model, inputs), training=False)[0]

        outputs = forward(values, raw, call).astype(jnp.float32)
        return jnp.take_along_axis(outputs, targets[:, None], axis=1).sum(), outputs

    run = jax.jit(jax.value_and_grad(score, has_aux=True))

    def differentiate(values: list[np.ndarray], raw: list[np.ndarray], targets: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        points = [jnp.asarray(value, dtype=jnp.float32) for value in values]
        (_, outputs), gradients = run(points, [tensor_of(array) for array in raw], jnp.asarray(targets), *_state(model))
        return np.asarray(outputs), [np.asarray(gradient) for gradient in gradients]

    return differentiate
