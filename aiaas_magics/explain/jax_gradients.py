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

    sizes = CompiledSizes()

    def outputs(inputs: list[np.ndarray]) -> np.ndarray:
        rows = len(inputs[0])
        full = sizes.size_for(rows)
        return np.asarray(run(*_state(model), [tensor_of(padded(array, full)) for array in inputs]))[:rows]

    return outputs


def differentiator(model: Any, forward: Callable[..., Any]) -> model_structure.Differentiate:
    """Outputs and gradients of the target column, compiled for few numbers of rows."""

    def score(values: list[Any], raw: list[Any], targets: Any, trainable: list[Any], others: list[Any]) -> tuple[Any, Any]:
        def call(inputs: list[Any]) -> Any:
            return model.stateless_call(trainable, others, model_structure.packed(model, inputs), training=False)[0]

        outputs = forward(values, raw, call).astype(jnp.float32)
        return jnp.take_along_axis(outputs, targets[:, None], axis=1).sum(), outputs

    run = jax.jit(jax.value_and_grad(score, has_aux=True))
    sizes = CompiledSizes()

    def differentiate(values: list[np.ndarray], raw: list[np.ndarray], targets: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        rows = len(targets)
        full = sizes.size_for(rows)
        points = [jnp.asarray(padded(value, full), dtype=jnp.float32) for value in values]
        inputs = [tensor_of(padded(array, full)) for array in raw]
        (_, outputs), gradients = run(points, inputs, jnp.asarray(padded(targets, full)), *_state(model))
        return np.asarray(outputs)[:rows], [np.asarray(gradient)[:rows] for gradient in gradients]

    return differentiate


class CompiledSizes:
    """Numbers of rows that a function was compiled for, since JAX compiles anew for each.

    >>> sizes = CompiledSizes()
    >>> [sizes.size_for(rows) for rows in (100, 100, 60, 7)]
    [100, 100, 100, 7]
    """

    def __init__(self) -> None:
        self._sizes: set[int] = set()

    def size_for(self, rows: int) -> int:
        """The smallest size so far that is at most twice as large, or else `rows`."""
        size = min((size for size in self._sizes if rows <= size <= 2 * rows), default=rows)
        self._sizes.add(size)
        return size


def padded(array: np.ndarray, rows: int) -> np.ndarray:
    """`array` with its first row repeated at the end; no row's result depends on the others."""
    return array if len(array) == rows else np.concatenate([array, np.repeat(array[:1], rows - len(array), axis=0)])
