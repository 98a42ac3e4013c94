"""Random numbers that no checkpoint holds.

Owns finding them, as far as byte code tells. Keras' seed generators, Python's and numpy's numbers go on
where they were (`training.snapshot`); the counters of `tf.random` are out of anybody's reach.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Any

from aiaas_magics.packing import probing
from aiaas_magics.packing.closures import codes, own_functions, value_of_name


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
    homes = list(_tensorflow_homes(function, code))
    if any("random" in home for home in homes):  # from tensorflow.random import normal
        return True
    if not homes or any(name.startswith("stateless") for name in code.co_names):
        return False
    return any(name.startswith("random") or name == "dropout" for name in code.co_names)


def _tensorflow_homes(function: types.FunctionType, code: types.CodeType) -> Iterator[str]:
    """Where those names of `code` come from that TensorFlow has made."""
    for name in (*code.co_names, *code.co_freevars):
        value = value_of_name(function, name)
        home = str(value.__name__ if type(value) is types.ModuleType else probing.attribute(value, "__module__", ""))
        if home.partition(".")[0] == "tensorflow":
            yield home
