"""Training state: what a rank must have again to go on as if nothing had happened, taken and put back.

Owns which state that is: every variable of the fit call, those that the worker added (the scale of a loss), Python's and
numpy's random numbers, Keras' generator for random ops without a seed. Ranks share most of it bit for bit; what is a rank's own (its
seeds, statistics and sums within an epoch; of a replica likewise) is found by comparing, so that nothing has to be known of
what the variables mean. How it stands on disk belongs to `checkpoint_contents`.

Not in it, because nobody can ask for it: `tf.random`'s own counters, and whatever a generator holds.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import xxhash

from aiaas_magics.backend.training.checkpoint.checkpoint_contents import decode_own, encode_own
from aiaas_magics.backend.training.comm.process_group import ProcessGroup
from aiaas_magics.backend.training.unpacked_fit import Unpacked
from aiaas_magics.backend.training.variable_roles import copies_of, metric_variables, offset_replicas, offset_seeds
from aiaas_magics.core.internals.keras_internals import GLOBAL_SEED_GENERATOR, global_seed_generator, global_state
from aiaas_magics.core.spec import TensorSpec
from aiaas_magics.packing.live.model_variables import check_kept, tensorflow_variable

Array = npt.NDArray[Any]


def take(call: Unpacked, group: ProcessGroup | None) -> tuple[list[Array], list[bytes]]:
    """This rank's variables, and what each rank keeps of its own. Every rank calls it at the same point."""
    copies = [[np.asarray(copy.numpy()) for copy in copies_of(variable)] for variable in call.variables]
    values = [of_each[0] for of_each in copies]
    if group is None:
        differ = [
            {place: of_each[replica] for place, of_each in enumerate(copies) if of_each[replica].tobytes() != of_each[0].tobytes()}
            for replica in range(_replicas(call))
        ]
        return values, [_own(call, differing, replica) for replica, differing in enumerate(differ)]
    prints = np.array([_fingerprint(value) for value in values], dtype=np.int64).reshape(-1, 2)
    everyone = group.all_gather(prints, site="checkpoint-prints")
    differing = np.flatnonzero((everyone[group.rank] != everyone[0]).any(axis=1)) if values else ()
    own_bytes = np.frombuffer(_own(call, {int(place): values[place] for place in differing}), dtype=np.uint8)
    sizes = group.all_gather(np.array([own_bytes.size]), site="checkpoint-sizes").reshape(-1)
    together = group.concatenate(own_bytes, site="checkpoint-own")
    return values, [part.tobytes() for part in np.split(together, np.cumsum(sizes)[:-1])]


def put_back(call: Unpacked, values: Sequence[Array], own: Sequence[bytes], *, rank: int, ranks: int) -> None:
    """Give this rank what it had, or, where there were more or fewer ranks, its part of what they had together.

    Raises:
        InvalidSpec: the checkpoint is of another model; nothing was changed then.
    """
    check_fits(call, values)
    for variable, value in zip(call.variables, values, strict=True):
        for copy in copies_of(variable):
            copy.assign(value)
    for variable, value in zip(_added(call), decode_own(own[0]).get("added", ()), strict=False):  # a checkpoint of before has none
        for copy in copies_of(variable):
            copy.assign(value)
    replicas = _replicas(call)
    if len(own) == ranks * replicas:
        states = [decode_own(data) for data in own[rank : rank + replicas]]
        for replica, state in enumerate(states):
            for place, value in state["values"].items():
                copies_of(call.variables[place])[replica].assign(value)
        _put_back_random(states[0], [state["keras"] for state in states])
        return
    _share_out(call, values, [decode_own(data)["values"] for data in own], rank=rank)
    if rank == 0:
        state = decode_own(own[0])
        _put_back_random(state, [state["keras"]] * replicas)
    offset_replicas(call.model)


def check_fits(call: Unpacked, values: Sequence[Array]) -> None:
    """Raises `InvalidSpec` when these are another model's."""
    check_kept(call.paths, call.variables, [TensorSpec(name="", dtype=value.dtype.name, shape=value.shape) for value in values])


def _share_out(call: Unpacked, values: Sequence[Array], differing: Sequence[Mapping[int, Array]], *, rank: int) -> None:
    """State of other ranks, for this one: metrics are sums, so one rank gets all of them; statistics are averaged."""
    metrics = {id(tensorflow_variable(variable)): variable for variable in metric_variables(call.model)}
    for place, variable in enumerate(call.variables):
        metric = metrics.get(id(variable))
        if metric is None and not any(place in own for own in differing):
            continue
        everyone = np.stack([own.get(place, values[place]) for own in differing])
        how = "mean" if metric is None else getattr(metric, "aggregation", "sum")
        if how == "sum":
            variable.assign(everyone.sum(axis=0) if rank == 0 else np.zeros_like(everyone[0]))
        elif how == "mean" and keras.backend.is_float_dtype(variable.dtype.name):
            variable.assign(everyone.mean(axis=0, dtype=np.float64).astype(everyone.dtype))
    offset_seeds(call.model, rank)


def _replicas(call: Unpacked) -> int:
    return max((len(copies_of(variable)) for variable in call.variables), default=1)


def _added(call: Unpacked) -> list[Any]:
    """Variables of the optimizer that did not come with the fit call: those of a `LossScaleOptimizer` that `precision` put around it.

    They are the same on every rank.
    """
    came = {id(tensorflow_variable(variable)) for variable in call.variables}
    optimizer = getattr(call.model, "optimizer", None)
    return [] if optimizer is None else [v for v in optimizer.variables if id(tensorflow_variable(v)) not in came]


def _own(call: Unpacked, values: Mapping[int, Array], replica: int = 0) -> bytes:
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    return encode_own(
        {
            "values": dict(values),
            "added": [np.asarray(copies_of(variable)[0].numpy()) for variable in _added(call)],
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "keras": None if generator is None else np.asarray(copies_of(generator.state)[replica].numpy()),
        }
    )


def _put_back_random(state: Mapping[str, Any], of_replicas: Sequence[Array | None]) -> None:
    if state["keras"] is not None:
        generator = global_seed_generator()  # draws from Python's where there is none yet: first
        for copy, saved_state in zip(copies_of(generator.state), of_replicas, strict=True):
            copy.assign(saved_state)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])


def _fingerprint(value: Array) -> tuple[int, int]:
    digest = xxhash.xxh3_128_digest(value.tobytes())
    return int.from_bytes(digest[:8], "little", signed=True), int.from_bytes(digest[8:], "little", signed=True)
