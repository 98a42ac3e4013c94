"""Variable roles: a model's variables of metrics and of random generators, whatever Keras runs on.

Owns finding them, and giving each rank and replica random numbers of its own. What becomes of them belongs to the engines.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from aiaas_magics.core.internals.keras_internals import GLOBAL_SEED_GENERATOR, global_state


def metric_variables(model: Any) -> list[Any]:
    """The variables of all metrics that `fit` resets and reads, each once, in an order that all ranks share."""
    by_id: dict[int, Any] = {}
    for metric in model.metrics:
        for variable in metric.variables:
            by_id.setdefault(id(variable), variable)
    return list(by_id.values())


def offset_seeds(model: Any, rank: int) -> None:
    """Other random numbers on each rank; rank 0 keeps its own, which is the state that returns."""
    if rank == 0:
        return
    for generator in seed_generators(model):
        generator.state.assign(_state_of_rank(np.array(keras.ops.convert_to_numpy(generator.state.value)), rank))


def offset_replicas(model: Any) -> None:
    """Other random numbers on each replica of a process; the first keeps its own."""
    of_keras = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    for generator in (*seed_generators(model), *([] if of_keras is None else [of_keras])):
        first, *other_replicas = copies_of(generator.state)
        for place, copy in enumerate(other_replicas, start=1):
            copy.assign(_state_of_rank(first.numpy(), place))


def copies_of(variable: Any) -> tuple[Any, ...]:
    """The variable of each replica; of one that is not mirrored, itself."""
    value = variable.value if isinstance(variable, keras.Variable) else variable
    return tuple(getattr(value, "values", ())) or (variable,)


def _state_of_rank(state: npt.NDArray[Any], rank: int) -> npt.NDArray[Any]:
    state = state.copy()
    # Any odd step gives other streams; this one is 2**32 / golden ratio, far from small seeds and their neighbours.
    moved = int(state[0]) + rank * 0x9E3779B1
    state[0] = moved % 2**32 if state.dtype.itemsize <= 4 else moved
    return state


def seed_generators(model: Any) -> list[Any]:
    by_id: dict[int, Any] = {}
    for layer in model._flatten_layers():
        for generator in getattr(layer, "_seed_generators", ()):
            by_id.setdefault(id(generator), generator)
    return list(by_id.values())
