"""Which variables of a model are its metrics' and its random generators', whatever Keras runs on.

Owns finding them, and giving each rank random numbers of its own. What becomes of them belongs to the engines.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


def metric_variables(model: Any) -> list[Any]:
    """The variables of all metrics that `fit` resets and reads, each once, in an order that all ranks share."""
    found: dict[int, Any] = {}
    for metric in model.metrics:
        for variable in metric.variables:
            found.setdefault(id(variable), variable)
    return list(found.values())


def offset_seeds(model: Any, rank: int) -> None:
    """Other random numbers on each rank; rank 0 keeps its own, which is the state that returns."""
    if rank == 0:
        return
    for generator in seed_generators(model):
        state = np.array(keras.ops.convert_to_numpy(generator.state.value))
        # Any odd step gives other streams; this one is 2**32 / golden ratio, far from small seeds and their neighbours.
        state[0] = (int(state[0]) + rank * 0x9E3779B1) % 2**32 if state.dtype.itemsize <= 4 else int(state[0]) + rank * 0x9E3779B1
        generator.state.assign(state)


def seed_generators(model: Any) -> list[Any]:
    found: dict[int, Any] = {}
    for layer in model._flatten_layers():
        for generator in getattr(layer, "_seed_generators", ()):
            found.setdefault(id(generator), generator)
    return list(found.values())
