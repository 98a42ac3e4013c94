"""Private steps on JAX: the gradient of each row clipped, their sum with noise, in the place of the gradient of the batch.

Owns the arithmetic of one step of DP-SGD (Abadi et al. 2016) and its compiled loop. The rows come from `jax_batches`, the optimizer's
update is Keras' own. It is the program of one device over the whole batch, as all steps here: noise is drawn once, however many
devices share the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras

from aiaas_magics.backend.training.jax import jax_steps
from aiaas_magics.backend.training.private_fit import SEED_STRIDE, PrivateFit
from aiaas_magics.backend.training.variable_roles import seed_generators
from aiaas_magics.core.internals.keras_internals import data_adapter_utils, tree


def train_function(model: Any, private: PrivateFit) -> Callable[[Any, Any], Any]:
    """Takes the place of Keras' own, as `jax_steps.train_function` does: batches come with the mask of what was drawn."""
    return PrivateJaxSteps(model, private).function()


class PrivateJaxSteps:
    """The steps of one `fit` of `model`."""

    def __init__(self, model: Any, private: PrivateFit) -> None:
        self._model, self._private = model, private
        self._iterations = next(
            place for place, variable in enumerate(model.optimizer.variables) if variable is model.optimizer._iterations
        )
        seeds = {id(generator.state) for generator in seed_generators(model)}
        self._seeds = [id(variable) in seeds for variable in model.non_trainable_variables]
        word, other_word = private.noise_key
        self._key = jax.random.fold_in(jax.random.key(word), other_word)

    def function(self) -> Callable[[Any, Any], Any]:
        chunk = self._private.chunk

        def step(state: Any, data: Any) -> Any:
            batch, mask = data
            if len(mask) <= 4 * chunk:  # about as many as are expected: at once
                return self._step(state, lambda _: (batch, mask), 1, len(mask))
            return self._step(state, lambda at: _rows_of((batch, mask), at * chunk, chunk), len(mask) // chunk, chunk)

        def step_at(state: Any, arrays: Any, line: Any) -> Any:
            def rows_of_chunk(at: Any) -> Any:
                rows = jax.lax.dynamic_slice_in_dim(line, at * chunk, chunk)
                batch = tree.map_structure(lambda x: jnp.take(x, jnp.maximum(rows, 0), axis=0), arrays, none_is_leaf=False)
                return jax_steps.cut((batch, rows >= 0))

            return self._step(state, rows_of_chunk, -(-jnp.sum(line >= 0) // chunk), chunk)

        return jax_steps.loop_function(self._model, step, step_at, lambda shardings: shardings)

    def _step(self, state: Any, rows_of_chunk: Callable[[Any], Any], chunks: Any, rows: int) -> Any:
        """One step over `chunks` chunks of `rows` rows."""
        model, private = self._model, self._private
        trainable, fixed, optimizer, metrics = state
        iteration = optimizer[self._iterations]

        def add(at: Any, sums: Any) -> Any:
            batch, mask = rows_of_chunk(at)
            grads, counts, used = self.clipped_sums((trainable, fixed, optimizer, metrics), batch, mask, first=at * rows)
            return [*map(jnp.add, sums[0], grads)], [*map(jnp.add, sums[1], counts)], used

        nothing = (
            [jnp.zeros(v.shape, jnp.float32) for v in trainable],
            [jnp.zeros_like(v) for v in metrics],
            [jnp.zeros_like(v) for v, is_seed in zip(fixed, self._seeds, strict=True) if is_seed],
        )
        sums, counts, used = add(0, nothing) if isinstance(chunks, int) and chunks == 1 else jax.lax.fori_loop(0, chunks, add, nothing)
        noisy = [
            ((total + noise) / private.batch).astype(variable.dtype)
            for total, noise, variable in zip(sums, self._noise(sums, iteration), trainable, strict=True)
        ]
        trainable, optimizer = model.optimizer.stateless_apply(optimizer, noisy, trainable)
        metrics = [*map(jnp.add, metrics, counts)]
        advance = iter(used)
        fixed = [value + next(advance) if is_seed else value for value, is_seed in zip(fixed, self._seeds, strict=True)]
        return self._logs(metrics), (trainable, fixed, optimizer, metrics)

    def clipped_sums(self, state: Any, batch: Any, mask: Any, *, first: Any = 0) -> tuple[list[Any], list[Any], list[Any]]:
        """Over the rows of `mask`: the sum of their clipped gradients, what they add to the metrics, and how far a row's seeds went.

        Args:
            first: number of the first row within the step, by which rows draw different random numbers.
        """
        trainable, fixed, optimizer, metrics = state
        empty = [jnp.zeros_like(v) for v in metrics]
        clip = self._private.privacy.clip

        def of_row(number: Any, row: Any) -> Any:
            x, y, sample_weight = data_adapter_utils.unpack_x_y_sample_weight(
                tree.map_structure(lambda leaf: leaf[None], row, none_is_leaf=False)
            )
            own = [_moved(v, number) if is_seed else v for v, is_seed in zip(fixed, self._seeds, strict=True)]
            (_, (loss, outputs, after, counts)), grads = jax.value_and_grad(self._model.compute_loss_and_updates, has_aux=True)(
                trainable, own, empty, x, y, sample_weight, training=True, optimizer_variables=optimizer
            )
            _, counts = self._model._update_metrics_variables(counts, loss, x, y, outputs, sample_weight)
            used = [new - old for new, old, is_seed in zip(after, own, self._seeds, strict=True) if is_seed]
            return grads, counts, used

        grads, counts, used = jax.vmap(of_row)(first + jnp.arange(len(mask)), batch)
        grads = [grad.astype(jnp.float32) for grad in grads]
        norms = jnp.sqrt(sum(jnp.sum(jnp.square(grad.reshape(len(mask), -1)), axis=1) for grad in grads))
        # A gradient that is no number has no norm to clip to: the row counts as one that was not drawn.
        finite = jnp.isfinite(norms)
        factors = jnp.where(mask & finite, jnp.minimum(1.0, clip / jnp.maximum(norms, 1e-12)), 0.0)
        sums = [jnp.tensordot(factors, jnp.where(_as_column(finite, grad), grad, 0.0), axes=1) for grad in grads]
        counted = [jnp.sum(jnp.where(_as_column(mask, value), value, 0), axis=0).astype(value.dtype) for value in counts]
        return sums, counted, [value[0] for value in used]

    def _noise(self, like: Any, iteration: Any) -> list[Any]:
        key = jax.random.fold_in(self._key, iteration)
        return [
            self._private.deviation * jax.random.normal(jax.random.fold_in(key, place), value.shape, jnp.float32)
            for place, value in enumerate(like)
        ]

    def _logs(self, metrics: Any) -> Any:
        with keras.StatelessScope(state_mapping=[*zip(self._model.metrics_variables, metrics, strict=True)]):
            return self._model.get_metrics_result()


def _as_column(mask: Any, values: Any) -> Any:
    return mask.reshape(-1, *[1] * (values.ndim - 1))


def _moved(seed: Any, number: Any) -> Any:
    """A generator's state for row `number`; the first row's is the state itself."""
    return seed.at[0].add((jnp.asarray(number, jnp.uint32) * jnp.uint32(SEED_STRIDE)).astype(seed.dtype))


def _rows_of(data: Any, start: Any, rows: int) -> Any:
    return tree.map_structure(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, rows), data, none_is_leaf=False)
