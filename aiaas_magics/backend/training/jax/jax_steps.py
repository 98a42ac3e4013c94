"""Steps on JAX: the place of their data, and many of them in one call.

Owns placing batches on devices, and the compiled loop that takes the place of Keras' train and test
functions: the stock `train_step` in a loop of XLA's, with rows gathered from arrays that lie on the
devices. What a step computes is not touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import jax
import keras
import psutil

from aiaas_magics.backend.training.batch_partition import BatchPartition, Indices
from aiaas_magics.core.internals.keras_internals import CONVOLUTIONS, tree

MEMORY_SHARE: Final = 0.2  # of what is free when training begins, for data on all devices together (guess)


def placed(batch: Any) -> Any:
    """A batch on the devices: cut where it can be cut evenly, otherwise whole on each, which computes the same."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return batch
    return tree.map_structure(lambda leaf: _put(leaf, _sharding(distribution, len(leaf))), batch, none_is_leaf=False)


def _put(array: Any, sharding: Any) -> Any:
    """The parts of `array`, which every process has, on the devices of this one."""
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _sharding(distribution: Any, rows: int) -> Any:
    axes = (distribution.batch_dim_name,) if rows % distribution.num_model_replicas == 0 else ()
    return jax.sharding.NamedSharding(distribution.device_mesh.backend_mesh, jax.sharding.PartitionSpec(*axes))


@dataclass(frozen=True, slots=True, eq=False)
class JaxChunk:
    """Steps `start` up to `stop`, each with one line of `positions`: the rows of `arrays` that it reads. Stands for an iterator."""

    arrays: Any
    positions: Any
    start: int
    stop: int


def resident(sliceable: Any) -> Any:
    """The arrays on every device, or None where they would take too much of its memory."""
    arrays = tree.map_structure(lambda x: x.convert_to_jax_compatible(x[:]), sliceable, none_is_leaf=False)
    nbytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in tree.flatten(arrays) if x is not None)
    distribution = keras.distribution.distribution()
    copies = 1 if distribution is None else distribution.device_mesh.devices.size
    if nbytes * copies > MEMORY_SHARE * free_bytes():
        return None
    return tree.map_structure(_everywhere, arrays, none_is_leaf=False)


def free_bytes() -> float:
    """Of the memory that the devices compute in."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats["bytes_in_use"]) * len(jax.devices())
    memory = psutil.virtual_memory()
    # What is available each of several processes would find another amount of, and they have to decide alike.
    return float(memory.total / 2 if jax.process_count() > 1 else memory.available)


def positions(order: Indices, plan: BatchPartition) -> Any:
    """The rows of every full batch of a pass, on the devices."""
    return _everywhere(plan.lines(order).astype(plan.index_dtype))


def _everywhere(array: Any) -> Any:
    distribution = keras.distribution.distribution()
    if distribution is None:
        return jax.device_put(array)
    return _put(array, everywhere(distribution))


def everywhere(distribution: Any) -> Any:
    """Whole on every device."""
    return jax.sharding.NamedSharding(distribution.device_mesh.backend_mesh, jax.sharding.PartitionSpec())


def why_one_by_one(model: Any) -> str:
    """Why steps are not put into a loop; empty when they are.

    Measured on one core: a small CNN's epoch takes 4 s step by step and 14 s in a loop, since XLA calls its library of
    convolutions outside of loops only. An MLP's takes 0.65 s and 0.08 s.
    """
    if jax.default_backend() == "cpu":
        for layer in model._flatten_layers():
            if any(cls.__module__.startswith(CONVOLUTIONS) for cls in type(layer).__mro__):
                return f"convolutions ({layer.name}) are slower in a loop on a CPU"
    return ""


def train_function(model: Any) -> Callable[[Any, Any], Any]:
    return _function(model, model.train_step, lambda shardings: shardings)


def test_function(model: Any) -> Callable[[Any, Any], Any]:
    return _function(model, model.test_step, lambda shardings: (shardings[0], shardings[1], shardings[3]))


def _function(model: Any, step: Any, part: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """`loop_function` of a step that takes a batch."""

    def step_at(state: Any, arrays: Any, rows: Any) -> Any:
        return step(state, cut(tree.map_structure(lambda x: jax.numpy.take(x, rows, axis=0), arrays, none_is_leaf=False)))

    return loop_function(model, step, step_at, part)


def loop_function(model: Any, step: Any, step_at: Any, part: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """Takes the place of Keras' own: a `JaxChunk` is one call, anything else as Keras does; of a tuple one after the other.

    Args:
        step: takes the state and a batch.
        step_at: takes the state, the arrays of all rows, and the positions of one batch.
        part: of the state's shardings, those that the step returns.
    """
    out = None if keras.distribution.distribution() is None else (None, part(model._get_state_sharding_spec()))
    single_step = model._make_function(jax.jit(step, donate_argnums=0, out_shardings=out))

    def many(state: Any, arrays: Any, positions: Any, start: Any, stop: Any) -> Any:
        def body(at: Any, carried: Any) -> Any:
            return step_at(carried[1], arrays, positions[at])

        logs, _ = jax.eval_shape(body, start, (None, state))
        empty = tree.map_structure(lambda x: jax.numpy.zeros(x.shape, x.dtype), logs)
        return jax.lax.fori_loop(start, stop, body, (empty, state))

    compiled = jax.jit(many, donate_argnums=0, out_shardings=out)

    def function(state: Any, data: Any) -> Any:
        if isinstance(data, tuple):
            for part in data:
                logs, state = function(state, part)
            return logs, state
        if isinstance(data, JaxChunk):
            return compiled(state, data.arrays, data.positions, data.start, data.stop)
        return single_step(state, data)

    return function


def cut(batch: Any) -> Any:
    """Inside a compiled step: a batch cut as `placed` cuts it."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return batch
    return tree.map_structure(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, _sharding(distribution, len(leaf))), batch, none_is_leaf=False
    )
