"""Live objects to bytes and back, by state.

Owns the two picklers. Variables and big arrays leave a number behind and travel apart;
Keras objects travel as shells, with their state in records of their own after the first
one (see `state`); the user's classes, functions and helper modules travel by value.
What cannot travel is named by `refusals`. Loading happens in workers only.

The bytes are a pickle of `(format, head, body)`: `head` holds the variables and small
facts, `body` a run of pickles: the root, then `(object, state)` pairs, then the end.
"""

from __future__ import annotations

import importlib
import io
import pickle
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import cloudpickle
import numpy as np

from aiaas_magics.errors import AiaasBug
from aiaas_magics.packing import helpers, refusals
from aiaas_magics.packing.state import is_keras_object, put_state, settle, shell, state_of
from aiaas_magics.packing.variables import VariableSpec, build_variable, spec_of, value_of

FORMAT: Final = 1
APART_BYTES: Final = 64 * 1024  # guess: below it, a file of its own costs more than the bytes
_END: Final = "end of the records"


class Failed(Exception):
    """Pickling stopped at `culprit`."""

    def __init__(self, culprit: Any, why: Exception) -> None:
        super().__init__(culprit, why)
        self.culprit, self.why = culprit, why


class Luggage:
    """What was met while pickling: the things that travel apart, and the code that travels by value."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self.variables: list[Any] = []
        self.code: dict[int, Any] = {}  # by id, in order of meeting: classes, functions, modules
        self.settled: list[Any] = []  # objects with state keyed by ids
        self.registered: list[tuple[str, Any]] = []  # names under which Keras' serialization knows them
        self.modules: dict[str, types.ModuleType] = {}  # imported inside function bodies
        self.pending: deque[Any] = deque()
        self._array_places: dict[int, int] = {}
        self._kept: list[np.ndarray] = []  # alive, so that no id comes twice
        self._variable_places: dict[int, int] = {}

    def place_of_array(self, array: np.ndarray) -> tuple[int, str | None]:
        """Where `array` stands, and its dtype where numpy's file format does not know it (bfloat16, float8): it travels as bits then."""
        foreign = array.dtype.isbuiltin == 2
        if id(array) not in self._array_places:
            self._array_places[id(array)] = len(self.arrays)
            self.arrays.append(array.view(f"u{array.dtype.itemsize}") if foreign else array)
            self._kept.append(array)
        return self._array_places[id(array)], array.dtype.name if foreign else None

    def place_of_variable(self, variable: Any) -> int:
        if id(variable) not in self._variable_places:
            self._variable_places[id(variable)] = len(self.variables)
            self.variables.append(variable)
        return self._variable_places[id(variable)]


def dumps(root: Any) -> tuple[bytes, Luggage]:
    """`root` as bytes, and what travels apart from them.

    Raises:
        Failed: naming the object that cannot be pickled.
    """
    luggage = Luggage()
    registered: list[types.ModuleType] = []
    body = io.BytesIO()
    pickler = _Pickler(body, luggage, registered)
    try:
        pickler.write(root)
        pickler.write_pending()
        pickler.write((_END, luggage.settled, luggage.registered))
        pickler.write_pending()
        head = io.BytesIO()
        facts = [(spec_of(variable), value_of(variable)) for variable in luggage.variables]
        _Pickler(head, luggage, registered).write(facts)
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)
    return pickle.dumps((FORMAT, head.getvalue(), body.getvalue()), protocol=5), luggage


def loads(payload: bytes, arrays: Sequence[np.ndarray]) -> tuple[Any, list[Any]]:
    """The root, and the variables in the order of `Luggage.variables`. In workers only: this runs the user's code."""
    number, head, body = pickle.loads(payload)
    if number != FORMAT:
        raise AiaasBug(f"a fit call of format {number} reached a worker that reads format {FORMAT}")
    facts: list[tuple[VariableSpec, np.ndarray]] = _Unpickler(io.BytesIO(head), arrays, []).load()
    variables = [build_variable(spec, value) for spec, value in facts]
    unpickler = _Unpickler(io.BytesIO(body), arrays, variables)
    root = unpickler.load()
    settled: list[Any] = []
    while True:
        try:
            first, *rest = unpickler.load()
        except EOFError:
            break
        if isinstance(first, str) and first == _END:
            settled, registrations = rest
            _register(registrations)
        elif first is not None:
            put_state(first, rest[0])
    for obj in settled:
        settle(obj)
    return root, variables


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, luggage: Luggage, registered: list[types.ModuleType]) -> None:
        super().__init__(file, protocol=5)
        self.luggage = luggage
        self._registered = registered
        self._last: Any = None
        self._reducers = _reducers()

    def write(self, obj: Any) -> None:
        try:
            self.dump(obj)
        except Failed:
            raise
        except Exception as error:
            raise Failed(self._last, error) from error

    def write_pending(self) -> None:
        while self.luggage.pending or self.luggage.modules:
            if self.luggage.modules:
                _, module = self.luggage.modules.popitem()
                self.write((None, module))  # its state follows
                continue
            obj = self.luggage.pending.popleft()
            self.write((obj, _state(obj)))

    def persistent_id(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is np.ndarray or kind is np.memmap:
            if obj.nbytes < APART_BYTES or obj.dtype.hasobject:
                return None
            return "array", *self.luggage.place_of_array(obj)
        if kind in _PLAIN:
            return None
        if _is_variable(obj):
            return "variable", self.luggage.place_of_variable(obj)
        return None

    def reducer_override(self, obj: Any) -> Any:
        self._last = obj
        why = refusals.why_not(obj)
        if why is not None:
            raise Failed(obj, TypeError(why))
        if is_keras_object(obj):
            self.luggage.pending.append(obj)
            self._remember_settled(obj)
            return shell, (type(obj),)
        for kind, reduce in self._reducers:
            if isinstance(obj, kind):
                return reduce(self, obj)
        if isinstance(obj, (type, types.FunctionType, types.ModuleType)):
            self._note_code(obj)
            if isinstance(obj, types.ModuleType) and helpers.users_module(obj.__name__) is obj:
                self.luggage.pending.append(obj)
                return _module, (obj.__name__, obj.__doc__)
        return super().reducer_override(obj)

    def _note_code(self, obj: Any) -> None:
        name = obj.__name__ if isinstance(obj, types.ModuleType) else getattr(obj, "__module__", None)
        module = helpers.users_module(name)
        if module is not None and module.__name__ not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(module)
            self._registered.append(module)
        if not (module is not None or name in {"__main__", None} or "<locals>" in getattr(obj, "__qualname__", "")):
            return
        if _is_library_code(name):
            return
        self.luggage.code.setdefault(id(obj), obj)
        if isinstance(obj, types.FunctionType):
            for imported in helpers.modules_imported_by(obj):
                if id(imported) not in self.luggage.code:
                    self.luggage.modules[imported.__name__] = imported
        known_as = _registered_name(obj)
        if known_as:
            self.luggage.registered.append((known_as, obj))

    def _remember_settled(self, obj: Any) -> None:
        self.luggage.settled.append(obj)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, arrays: Sequence[np.ndarray], variables: Sequence[Any]) -> None:
        super().__init__(file)
        self._arrays, self._variables = arrays, variables

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case ("variable", int(place)):
                return self._variables[place]
            case ("array", int(place), None):
                return self._arrays[place]
            case ("array", int(place), str(dtype)):
                import tensorflow as tf

                return np.asarray(self._arrays[place]).view(tf.as_dtype(dtype).as_numpy_dtype)
            case _:
                raise AiaasBug(f"a fit call refers to {pid!r}, which is neither an array nor a variable")


_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None), tuple, list, dict, set, frozenset, types.FunctionType, type})


def _state(obj: Any) -> dict[str, Any]:
    if isinstance(obj, types.ModuleType):
        return {name: value for name, value in vars(obj).items() if name not in {"__builtins__", "__loader__", "__spec__", "__cached__"}}
    return state_of(obj)


def _is_variable(obj: Any) -> bool:
    import tensorflow as tf

    return isinstance(obj, tf.Variable)


def _is_library_code(module: str | None) -> bool:
    return str(module).partition(".")[0] in {"keras", "tensorflow", "numpy", "pandas", "aiaas_magics"}


def _registered_name(obj: Any) -> str | None:
    from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES

    return GLOBAL_CUSTOM_NAMES.get(obj) if isinstance(obj, (type, types.FunctionType)) else None


def _register(registrations: Sequence[tuple[str, Any]]) -> None:
    from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES, GLOBAL_CUSTOM_OBJECTS

    for name, obj in registrations:
        GLOBAL_CUSTOM_OBJECTS[name] = obj
        GLOBAL_CUSTOM_NAMES[obj] = name


# --------------------------------------------------------------------------- one reducer a kind


def _module(name: str, doc: str | None) -> types.ModuleType:
    """A helper module where it arrives: found by the imports inside functions, too."""
    module = sys.modules.get(name)
    if module is None:
        module = sys.modules[name] = types.ModuleType(name, doc)
        parent, _, last = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], last, module)
    return module


def _lock(kind: str) -> Any:
    return threading.RLock() if kind == "RLock" else threading.Lock()


def _dead_reference() -> Any:
    class Gone:
        pass

    return weakref.ref(Gone())


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
    from keras.src.utils.backend_utils import DynamicBackend

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


def _reduce_collection(_: _Pickler, obj: Any) -> Any:
    base = next(base for base in (list, dict, set) if isinstance(obj, base))
    return _empty, (type(obj),), (base, base(obj), dict(obj.__dict__)), None, None, _fill


def _reduce_reference(_: _Pickler, obj: Any) -> Any:
    target = obj()
    return (_dead_reference, ()) if target is None else (weakref.ref, (target,))


def _reduce_tensor(_: _Pickler, obj: Any) -> Any:
    return _tensor, (obj.numpy(), obj.dtype.name)


def _reduce_tf_function(_: _Pickler, obj: Any) -> Any:
    options = {
        "input_signature": obj.input_signature,
        "autograph": obj._autograph,
        "jit_compile": obj._jit_compile,
        "reduce_retracing": obj._reduce_retracing,
    }
    return _tf_function, (obj.python_function, options)


def _reduce_tracker(pickler: _Pickler, obj: Any) -> Any:
    pickler._remember_settled(obj)
    return object.__new__, (type(obj),), {name: value for name, value in obj.__dict__.items() if name != "stored_ids"}


def _reduce_wrapped_list(_: _Pickler, obj: Any) -> Any:
    return _wrapped, (type(obj).__module__, type(obj).__name__, list(obj))


def _reduce_wrapped_dict(_: _Pickler, obj: Any) -> Any:
    return _wrapped, (type(obj).__module__, type(obj).__name__, dict(obj))


def _reduce_table(make: Callable[..., Any]) -> Callable[[_Pickler, Any], Any]:
    """A lookup table lives in TensorFlow's runtime: its content travels."""
    return lambda _, obj: (make, (*obj.export(), obj._default_value))


def _reducers() -> list[tuple[Any, Callable[[_Pickler, Any], Any]]]:
    import tensorflow as tf
    from keras.src.utils.backend_utils import DynamicBackend
    from keras.src.utils.tracking import TrackedDict, TrackedList, TrackedOrderedDict, TrackedSet, Tracker
    from tensorflow.python.eager.polymorphic_function.polymorphic_function import Function as TfFunction
    from tensorflow.python.trackable.data_structures import ListWrapper, _DictWrapper

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
        (io.TextIOBase, lambda pickler, obj: _reduce_stream(pickler, obj)),
    ]


def _reduce_stream(pickler: _Pickler, obj: Any) -> Any:
    for name in ("stdout", "stderr"):
        if obj is getattr(sys, name):
            return _stream, (name,)
    return super(_Pickler, pickler).reducer_override(obj)
