"""Model state: a snapshot of what calling a model changes in it, put back afterwards.

Owns the snapshot of a live model around an export: variables that no training moves (counters, states of
recurrent layers, seed generators, wherever they hang), plain attributes of layers, and the global random
states. Weights that train are not copied: a call in inference mode leaves them alone.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from aiaas_magics.packing.live.model_variables import tensorflow_variable

PLAIN: Final = (int, float, bool, str, bytes, type(None), tuple)


@dataclass(frozen=True, slots=True)
class _VariableSnapshot:
    """A variable that a call may move, with its value before and what to call it."""

    path: str
    variable: Any
    value: np.ndarray


class ModelState:
    """The state of a model at the time of making this."""

    def __init__(self, model: Any) -> None:
        keras_names = attributes_of_keras()
        self._snapshots: list[_VariableSnapshot] = []
        self._attributes: list[tuple[Any, dict[str, Any]]] = []
        for path, obj in _objects_in(model):
            if _is_variable(obj):
                variable = tensorflow_variable(obj)
                self._snapshots.append(_VariableSnapshot(path, variable, np.array(variable.numpy())))
            elif vars(obj).get("built", True):  # else the call builds it, and what `build` sets stays
                plain = {name: value for name, value in vars(obj).items() if type(value) in PLAIN and name not in keras_names}
                self._attributes.append((obj, plain))

    def moved(self) -> tuple[str, ...]:
        """Names of the variables that have another value by now."""
        return tuple(dict.fromkeys(snapshot.path for snapshot in self._snapshots if not _same(snapshot)))

    def variables(self) -> tuple[tuple[str, Any], ...]:
        """TensorFlow's variables that a call may move, each with what to call it."""
        return tuple((snapshot.path, snapshot.variable) for snapshot in self._snapshots)

    def put_back(self) -> None:
        for snapshot in self._snapshots:
            if not _same(snapshot):
                snapshot.variable.assign(snapshot.value)
        for obj, plain in self._attributes:
            changed = {name: value for name, value in plain.items() if vars(obj).get(name, plain) is not value}
            vars(obj).update({name: value for name, value in changed.items() if type(vars(obj).get(name)) in PLAIN})


@functools.cache
def attributes_of_keras() -> frozenset[str]:
    """What Keras itself keeps on a layer or model; a first call builds it, and that stays."""
    import keras

    # With a name, so that no number of an automatic one is used up.
    return frozenset(vars(keras.Layer(name="any"))) | frozenset(vars(keras.Model(name="any")))


@contextmanager
def scopes_kept() -> Iterator[None]:
    """Keras' open name scopes are the same at the end, also after a failure.

    Keras 3.15 pushes a scope before TensorFlow refuses its name (backend/tensorflow/core.py, name_scope.__enter__), and never
    takes it away: every variable that the kernel makes afterwards would have the refused name in its own.
    """
    from aiaas_magics.core.internals.keras_internals import global_state

    stack: list[Any] = global_state.get_global_attribute("name_scope_stack", default=[], set_to_default=True)
    before = list(stack)
    try:
        yield
    finally:
        stack[:] = before


@contextmanager
def restored_after(model: Any) -> Iterator[ModelState]:
    """The model's state, put back at the end, also after a failure; Python's and numpy's random numbers go on where they were."""
    python_state, numpy_drawn = random.getstate(), np.random.get_state()
    state = ModelState(model)
    try:
        with scopes_kept():
            yield state
    finally:
        state.put_back()
        random.setstate(python_state)
        np.random.set_state(numpy_drawn)


def seed_generators(model: Any) -> list[Any]:
    """Keras' generators of random numbers below `model`, and the global one."""
    import keras

    return [obj for _, obj in _objects_in(model) if isinstance(obj, keras.random.SeedGenerator)]


def _same(snapshot: _VariableSnapshot) -> bool:
    now = np.asarray(snapshot.variable.numpy())
    if snapshot.value.dtype.kind in "fc":
        return np.array_equal(now, snapshot.value, equal_nan=True)
    return bool((now == snapshot.value).all())


def _is_variable(obj: Any) -> bool:
    import keras
    import tensorflow as tf

    return isinstance(obj, (tf.Variable, keras.Variable))


def _objects_in(model: Any) -> Iterator[tuple[str, Any]]:
    """Keras objects below `model`, and the variables that hang on them and are none that training moves."""
    import keras

    from aiaas_magics.core.internals.keras_internals import GLOBAL_SEED_GENERATOR, global_state

    parts = (keras.Layer, keras.random.SeedGenerator)
    trained = {id(variable) for layer in model._flatten_layers() for variable in layer._trainable_variables}
    trained |= {id(tensorflow_variable(variable)) for layer in model._flatten_layers() for variable in layer._trainable_variables}
    queue: list[tuple[str, Any]] = [(str(model.name), model)]
    general = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    if general is not None:
        queue.append(("the global seed generator", general))
    visited: set[int] = set()
    while queue:
        path, obj = queue.pop()
        if id(obj) in visited or id(obj) in trained:
            continue
        visited.add(id(obj))
        if _is_variable(obj):
            yield path, obj
        elif isinstance(obj, parts):
            path = str(obj.name) if isinstance(obj, keras.Layer) else path
            yield path, obj
            queue += [(_path(path, name, value), value) for name, value in vars(obj).items()]
        elif isinstance(obj, Mapping):
            queue += [(path, value) for value in obj.values()]
        elif type(obj) in (list, tuple, set) or (isinstance(obj, (list, set)) and type(obj).__module__.startswith("keras.")):
            queue += [(path, value) for value in obj]


def _path(path: str, name: str, value: Any) -> str:
    """Keras' own path of a variable, else its owner and attribute."""
    if _is_variable(value) and (own := getattr(value, "path", None)) is not None:
        return str(own)
    return path if name.startswith("_") else f"{path}.{name}"
