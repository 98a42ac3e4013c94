"""Randomness notes: random numbers that no checkpoint holds.

Owns finding them, as far as byte code tells. Keras' seed generators, Python's and numpy's numbers go on
where they were (`training_state`); the counters of `tf.random` are out of anybody's reach.
"""

from __future__ import annotations

import dis
import hashlib
import random
import types
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from aiaas_magics.packing.live import probing
from aiaas_magics.packing.live.closures import codes, own_functions, value_of_name


def kernel_seed() -> int | None:
    """What `tf.random.set_seed` was given last, as `keras.utils.set_random_seed` gives it; None before."""
    from aiaas_magics.core.internals.tensorflow_internals import context

    seed = context.global_seed()
    return None if seed is None or not 0 <= int(seed) < 2**62 else int(seed)


def fingerprints() -> dict[str, str]:
    """Of each global generator of this process a hash of its state, or its seed; "" for one that was not seeded or not used."""
    from aiaas_magics.packing.live.seed_states import keras_state

    seed = kernel_seed()
    numpy_state: Any = np.random.get_state(legacy=True)
    return {
        "python": _hash(repr(random.getstate()).encode()),
        "numpy": _hash(numpy_state[1].tobytes() + repr(numpy_state[2:]).encode()),
        "tensorflow": "" if seed is None else f"seed {seed}",
        "keras": _hash(state) if (state := keras_state()) else "",
    }


def _hash(state: bytes) -> str:
    return hashlib.sha256(state).hexdigest()[:16]


def notes(model: Any, callbacks: Sequence[Any]) -> tuple[str, ...]:
    """One sentence that names who draws them, or none."""
    things = (model, *model._flatten_layers(include_self=False), *callbacks)
    functions = ((f"{type(thing).__name__}.{name}", function) for thing in things for name, function in own_functions(thing))
    names = dict.fromkeys(name for name, function in functions if _draws(function))
    if not names:
        return ()
    return (
        f"{', '.join(names)} draws TensorFlow's own random numbers (tf.random), whose counters no checkpoint can hold: an attempt that "
        "goes on after a lost worker draws other numbers. keras.random with a SeedGenerator goes on exactly.",
    )


def _draws(function: types.FunctionType) -> bool:
    if str(function.__module__).partition(".")[0] in {"keras", "tensorflow"}:
        return False
    return any(_draws_in(function, code) for code in codes(function.__code__))


def _draws_in(function: types.FunctionType, code: types.CodeType) -> bool:
    """Whether `code` reaches a random operation through a name of TensorFlow's: tf.random.normal, tf.nn.dropout, normal of tf.random."""
    return any(
        not any(name.startswith("stateless") for name in chain) and any("random" in name or name == "dropout" for name in chain)
        for chain in _tensorflow_chains(function, code)
    )


def _tensorflow_chains(function: types.FunctionType, code: types.CodeType) -> Iterator[list[str]]:
    """For each name of TensorFlow's that is loaded: the module that it comes from, and the attributes that follow it."""
    chain: list[str] | None = None
    for step in dis.get_instructions(code):
        if step.opname in {"LOAD_ATTR", "LOAD_METHOD"} and chain is not None:
            chain.append(str(step.argval))
            continue
        if chain is not None:
            yield chain
        chain = None
        if step.opname in {"LOAD_GLOBAL", "LOAD_DEREF", "LOAD_NAME"}:
            value = value_of_name(function, str(step.argval))
            is_module = type(value) is types.ModuleType
            home = str(value.__name__ if is_module else probing.attribute(value, "__module__", ""))
            if home.partition(".")[0] == "tensorflow":
                own = "" if is_module else str(probing.attribute(value, "__name__", ""))
                chain = [home, own]
