"""Reducers: one way of pickling for each kind of object that Python's own does not fit.

Owns the pairs of functions: what is taken here, what is made of it where it arrives. When
each is used belongs to `state_pickle`.
"""

from __future__ import annotations

import importlib
import io
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np


class Pickling(Protocol):
    """What a way of pickling may ask of the pickler."""

    def remember_settled(self, obj: Any) -> None: ...
    def one_of(self, function: Any) -> Any: ...


def helper_module(name: str, doc: str | None) -> types.ModuleType:
    """A helper module where it arrives: found by the imports inside functions, too."""
    module = sys.modules.get(name)
    if module is None:
        module = sys.modules[name] = types.ModuleType(name, doc)
        parent, _, last = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], last, module)
    return module


def code_from(filename: str, make: Callable[..., types.CodeType], fields: tuple[Any, ...]) -> types.CodeType:
    return make(*fields).replace(co_filename=filename)


def _lock(kind: str) -> Any:
    return threading.RLock() if kind == "RLock" else threading.Lock()


def _dead_reference() -> Any:
    class Referent:
        pass

    return weakref.ref(Referent())


def _closed_file() -> Any:
    file = io.StringIO()
    file.close()
    return file


def _stream(name: str) -> Any:
    return getattr(sys, name)


def _tensor(value: np.ndarray, dtype: str) -> Any:
    import tensorflow as tf

    return tf.constant(value, dtype=dtype)


def _strategy() -> Any:
    import tensorflow as tf

    return tf.distribute.get_strategy()


def _tf_function(python_function: Callable[..., Any], options: dict[str, Any]) -> Any:
    import tensorflow as tf

    return tf.function(python_function, **options)


def _dynamic_backend(name: str) -> Any:
    from aiaas_magics.core.internals.keras_internals import DynamicBackend

    return DynamicBackend(name)


def _static_table(keys: Any, values: Any, default: Any) -> Any:
    import tensorflow as tf

    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), default)


def _mutable_table(keys: Any, values: Any, default: Any) -> Any:
    import tensorflow as tf

    table = tf.lookup.experimental.MutableHashTable(keys.dtype, values.dtype, default)
    table.insert(keys, values)
    return table


def _empty(cls: Any) -> Any:
    return cls.__new__(cls)


def _fill(collection: Any, state: tuple[Any, Any, dict[str, Any]]) -> None:
    """Tracked collections are filled past their own methods, which would track every item a second time."""
    base, items, attributes = state
    collection.__dict__.update(attributes)
    if base is list:
        list.extend(collection, items)
    else:
        base.update(collection, items)


def _wrapped(module: str, name: str, items: Any) -> Any:
    return getattr(importlib.import_module(module), name)(items)


def _reduce_collection(_: Pickling, obj: Any) -> Any:
    base = next(base for base in (list, dict, set) if isinstance(obj, base))
    return _empty, (type(obj),), (base, base(obj), dict(obj.__dict__)), None, None, _fill


def _reduce_reference(_: Pickling, obj: Any) -> Any:
    target = obj()
    return (_dead_reference, ()) if target is None else (weakref.ref, (target,))


def _reduce_tensor(_: Pickling, obj: Any) -> Any:
    return _tensor, (obj.numpy(), obj.dtype.name)


def _reduce_tf_function(_: Pickling, obj: Any) -> Any:
    options = {
        "input_signature": obj.input_signature,
        "autograph": obj._autograph,
        "jit_compile": obj._jit_compile,
        "reduce_retracing": obj._reduce_retracing,
    }
    return _tf_function, (obj.python_function, options)


def _reduce_tracker(pickler: Pickling, obj: Any) -> Any:
    pickler.remember_settled(obj)
    state = {name: value for name, value in obj.__dict__.items() if name != "stored_ids"}
    # Each layer has a tracker with lambdas of its own, all alike: one of each is enough.
    state["config"] = {name: (pickler.one_of(test), store) for name, (test, store) in obj.config.items()}
    return object.__new__, (type(obj),), state


def _reduce_wrapped_list(_: Pickling, obj: Any) -> Any:
    return _wrapped, (type(obj).__module__, type(obj).__name__, list(obj))


def _reduce_wrapped_dict(_: Pickling, obj: Any) -> Any:
    return _wrapped, (type(obj).__module__, type(obj).__name__, dict(obj))


def _reduce_table(make: Callable[..., Any]) -> Callable[[Pickling, Any], Any]:
    """A lookup table lives in TensorFlow's runtime: its content travels."""
    return lambda _, obj: (make, (*obj.export(), obj._default_value))


def _reduce_tensorboard(_: Pickling, obj: Any) -> Any:
    """A TensorBoard opens its writers at the beginning of a fit: those of the fit before belong to this process, as its model does."""
    state = {name: value for name, value in vars(obj).items() if name not in TENSORBOARD_RUN}
    as_made = {"_writers": {}, "_prev_summary_state": [], "_previous_epoch_iterations": 0, "_summary_module": None}
    return object.__new__, (type(obj),), {**state, **as_made}


# Of the fit before; `set_model` and `on_train_begin` make them anew.
TENSORBOARD_RUN: Final = frozenset({"_model", "_batch_trace_context", "_summary_module"})


def reducers() -> list[tuple[Any, Callable[[Pickling, Any], Any]]]:
    import keras
    import tensorflow as tf

    from aiaas_magics.core.internals.keras_internals import (
        DynamicBackend,
        TrackedDict,
        TrackedList,
        TrackedOrderedDict,
        TrackedSet,
        Tracker,
    )
    from aiaas_magics.core.internals.tensorflow_internals import ListWrapper, TfFunction, _DictWrapper

    return [
        ((TrackedList, TrackedDict, TrackedOrderedDict, TrackedSet), _reduce_collection),
        (ListWrapper, _reduce_wrapped_list),
        (_DictWrapper, _reduce_wrapped_dict),
        (Tracker, _reduce_tracker),
        (weakref.ref, _reduce_reference),
        (weakref.WeakKeyDictionary, lambda _, obj: (weakref.WeakKeyDictionary, (dict(obj),))),
        (weakref.WeakValueDictionary, lambda _, obj: (weakref.WeakValueDictionary, (dict(obj),))),
        (type(threading.Lock()), lambda _, __: (_lock, ("Lock",))),
        (type(threading.RLock()), lambda _, __: (_lock, ("RLock",))),
        (tf.Tensor, _reduce_tensor),
        (tf.distribute.Strategy, lambda _, __: (_strategy, ())),
        (TfFunction, _reduce_tf_function),
        (DynamicBackend, lambda _, obj: (_dynamic_backend, (obj._backend,))),
        (tf.lookup.StaticHashTable, _reduce_table(_static_table)),
        (tf.lookup.experimental.MutableHashTable, _reduce_table(_mutable_table)),
        (io.IOBase, _reduce_stream),
        (keras.callbacks.TensorBoard, _reduce_tensorboard),
    ]


def _reduce_stream(pickler: Pickling, obj: Any) -> Any:
    for name in ("stdout", "stderr"):
        if obj is getattr(sys, name):
            return _stream, (name,)
    if obj.closed:
        return _closed_file, ()
    return NotImplemented
