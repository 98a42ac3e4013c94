"""State pickle: live objects to bytes and back, by state.

Owns the two picklers. Variables and big arrays leave a number behind and travel apart;
Keras objects travel as shells, with their state in records of their own after the first
one (see `state`); the user's classes, functions and helper modules travel by value.
What cannot travel is named by `unpicklable`. Loading happens in workers only.

The bytes are a pickle of `(format, preamble, head, body)`: `preamble` holds texts that a worker
needs first, `head` the variables and small facts, `body` a run of pickles: the root, then
`(object, state)` pairs, then the end.
Behind them a fit call for another backend may have parts of its own (see `portable_call`).
"""

from __future__ import annotations

import io
import pickle
import types
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import cloudpickle
import numpy as np

from aiaas_magics.core.errors import AiaasBug
from aiaas_magics.packing.live import user_modules
from aiaas_magics.packing.live.model_variables import VariableSpec, build_variable, spec_of, value_of
from aiaas_magics.packing.pickling import unpicklable
from aiaas_magics.packing.pickling.keras_state import is_functional, is_keras_object, put_state, settle, shell, state_of
from aiaas_magics.packing.pickling.preamble import Preamble
from aiaas_magics.packing.pickling.reducers import code_from, helper_module, reducers

FORMAT: Final = 2
APART_BYTES: Final = 64 * 1024  # guess: below it, a file of its own costs more than the bytes
_END: Final = "end of the records"


class Failed(Exception):
    """Pickling stopped at `culprit`."""

    def __init__(self, culprit: Any, why: Exception) -> None:
        super().__init__(culprit, why)
        self.culprit, self.why = culprit, why


class OutOfBand:
    """What was met while pickling: the things that travel apart, and the code that travels by value."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self.variables: list[Any] = []
        self.code: dict[int, Any] = {}  # by id, in order of meeting: classes, functions, modules
        self.settled: list[Any] = []  # objects with state keyed by ids
        self.registered: list[tuple[str, Any]] = []  # names under which Keras' serialization knows them
        self.modules: dict[str, types.ModuleType] = {}  # imported inside function bodies
        self.codes: dict[int, types.CodeType] = {}  # by id: all code that travels by value
        self.pending: deque[Any] = deque()
        self._array_places: dict[int, int] = {}
        self._alive: list[np.ndarray] = []  # alive, so that no id comes twice
        self._variable_places: dict[int, int] = {}

    def place_of_array(self, array: np.ndarray) -> tuple[int, str | None]:
        """Where `array` stands, and its dtype where numpy's file format does not know it (bfloat16, float8): it travels as bits then."""
        foreign = array.dtype.isbuiltin == 2
        if id(array) not in self._array_places:
            self._array_places[id(array)] = len(self.arrays)
            self.arrays.append(array.view(f"u{array.dtype.itemsize}") if foreign else array)
            self._alive.append(array)
        return self._array_places[id(array)], array.dtype.name if foreign else None

    def texts_in_code(self) -> set[str]:
        """Texts that stand in the code itself, such as the name of an environment variable that it reads."""
        consts = [const for code in self.codes.values() for const in code.co_consts]
        flat = [*consts, *(item for const in consts if isinstance(const, (tuple, frozenset)) for item in const)]
        return {text for text in flat if isinstance(text, str)}

    def place_of_variable(self, variable: Any) -> int:
        if id(variable) not in self._variable_places:
            self._variable_places[id(variable)] = len(self.variables)
            self.variables.append(variable)
        return self._variable_places[id(variable)]


def dumps(root: Any) -> tuple[bytes, OutOfBand]:
    """`root` as bytes, and what travels apart from them.

    Raises:
        Failed: naming the object that cannot be pickled.
    """
    out_of_band = OutOfBand()
    registered: list[types.ModuleType] = []
    body = io.BytesIO()
    try:
        write(Pickler(body, out_of_band, registered), root)
        head = io.BytesIO()
        facts = [(spec_of(variable), value_of(variable)) for variable in out_of_band.variables]
        Pickler(head, out_of_band, registered).write(facts)
    finally:
        unregister(registered)
    return _joined(Preamble(), [head.getvalue(), body.getvalue()]), out_of_band


def fails(obj: Any) -> bool:
    """Whether `obj` cannot be pickled by itself."""
    try:
        dumps(obj)
    except Failed:
        return True
    return False


def _joined(preamble: Preamble, parts: Sequence[bytes]) -> bytes:
    return pickle.dumps((FORMAT, dict(preamble.environment), dict(preamble.sources), *parts), protocol=5)


def _taken_apart(payload: bytes) -> tuple[Preamble, list[bytes]]:
    number, *parts = pickle.loads(payload)
    if number != FORMAT:
        raise AiaasBug(f"a fit call of format {number} reached a worker that reads format {FORMAT}")
    environment, sources, *rest = parts
    return Preamble(environment=environment, sources=sources), rest


def unregister(modules: Sequence[types.ModuleType]) -> None:
    """Take back what a pickler told cloudpickle for the time of its work."""
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)


def write(pickler: Pickler, root: Any) -> None:
    """`root` as a run of records: the other half of `read`."""
    pickler.write(root)
    pickler.write_pending()
    pickler.write((_END, pickler.out_of_band.settled, pickler.out_of_band.registered))
    pickler.write_pending()


def loads(payload: bytes, arrays: Sequence[np.ndarray]) -> tuple[Any, list[Any]]:
    """The root, and the variables in the order of `OutOfBand.variables`. In workers only: this runs the user's code."""
    preamble, (head, body, *_) = _taken_apart(payload)
    preamble.put_in_place()
    variables = [build_variable(spec, value) for spec, value in facts_in(head, arrays)]
    return read(Unpickler(io.BytesIO(body), arrays, variables)), variables


def parts_of(payload: bytes) -> list[bytes]:
    """Head and body, and what was put behind them (see `portable`)."""
    return _taken_apart(payload)[1]


def joined(parts: Sequence[bytes]) -> bytes:
    """A fit call of these parts, head and body first, with nothing to put in place before them."""
    return _joined(Preamble(), parts)


def with_parts(payload: bytes, *more: bytes) -> bytes:
    """`payload` with `more` behind its parts."""
    preamble, parts = _taken_apart(payload)
    return _joined(preamble, [*parts, *more])


def preamble_of(payload: bytes) -> Preamble:
    """What is put in place before the objects are made."""
    return _taken_apart(payload)[0]


def with_preamble(payload: bytes, preamble: Preamble) -> bytes:
    """`payload` with this preamble in place of its own."""
    return _joined(preamble, parts_of(payload))


def facts_in(head: bytes, arrays: Sequence[np.ndarray]) -> list[tuple[VariableSpec, np.ndarray]]:
    """What every variable is, and its value."""
    facts: list[tuple[VariableSpec, np.ndarray]] = Unpickler(io.BytesIO(head), arrays, []).load()
    return facts


def read(unpickler: Unpickler) -> Any:
    """The root of a run of records, with all that follows it put in its place."""
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
    return root


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, out_of_band: OutOfBand, registered: list[types.ModuleType]) -> None:
        super().__init__(file, protocol=5)
        self.out_of_band = out_of_band
        self._registered = registered
        self._last: Any = None
        self._reducers = reducers()
        self._functions: dict[Any, Any] = {}

    def write(self, obj: Any) -> None:
        try:
            self.dump(obj)
        except Failed:
            raise
        except Exception as error:
            raise Failed(self._last, error) from error

    def write_pending(self) -> None:
        while self.out_of_band.pending or self.out_of_band.modules:
            if self.out_of_band.modules:
                _, module = self.out_of_band.modules.popitem()
                self.write((None, module))  # its state follows
                continue
            obj = self.out_of_band.pending.popleft()
            self.write((obj, self.state(obj)))

    def state(self, obj: Any) -> dict[str, Any]:
        """What of a module or a Keras object is written."""
        return _state(obj)

    def persistent_id(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is np.ndarray or kind is np.memmap:
            if obj.nbytes < APART_BYTES or obj.dtype.hasobject:
                return None
            return "array", *self.out_of_band.place_of_array(obj)
        if kind in _PLAIN:
            return None
        if _is_variable(obj):
            return "variable", self.out_of_band.place_of_variable(obj)
        return None

    def reducer_override(self, obj: Any) -> Any:
        self._last = obj
        why = unpicklable.why_not(obj)
        if why is not None:
            raise Failed(obj, TypeError(why))
        if is_keras_object(obj):
            self.out_of_band.pending.append(obj)
            self.remember_settled(obj)
            return shell, (type(obj), is_functional(obj))
        for kind, reduce in self._reducers:
            if isinstance(obj, kind):
                reduced = reduce(self, obj)
                return super().reducer_override(obj) if reduced is NotImplemented else reduced
        if isinstance(obj, (type, types.FunctionType, types.ModuleType)):
            self._note_code(obj)
            if isinstance(obj, types.ModuleType) and user_modules.users_module(obj.__name__) is obj:
                self.out_of_band.pending.append(obj)
                return helper_module, (obj.__name__, obj.__doc__)
        if isinstance(obj, types.CodeType):
            self.out_of_band.codes[id(obj)] = obj
            # cloudpickle may leave out where code stands (3.1.3 does); an error in it could not be shown at the cell's line.
            make, fields = self.dispatch_table[types.CodeType](obj)
            return code_from, (obj.co_filename, make, fields)
        return super().reducer_override(obj)

    def _note_code(self, obj: Any) -> None:
        name = obj.__name__ if isinstance(obj, types.ModuleType) else getattr(obj, "__module__", None)
        module = user_modules.users_module(name)
        if module is not None and module.__name__ not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(module)
            self._registered.append(module)
        if not (module is not None or name in {"__main__", None} or "<locals>" in getattr(obj, "__qualname__", "")):
            return
        if _is_library_code(name):
            return
        self.out_of_band.code.setdefault(id(obj), obj)
        if isinstance(obj, types.FunctionType):
            for imported in user_modules.modules_imported_by(obj):
                if id(imported) not in self.out_of_band.code:
                    self.out_of_band.modules[imported.__name__] = imported
        known_as = _registered_name(obj)
        if known_as:
            self.out_of_band.registered.append((known_as, obj))

    def one_of(self, function: Any) -> Any:
        """The first function met with this very code, where nothing else distinguishes the two."""
        code = getattr(function, "__code__", None)
        if code is None or function.__closure__ or function.__defaults__:
            return function
        return self._functions.setdefault((code, id(function.__globals__)), function)

    def remember_settled(self, obj: Any) -> None:
        self.out_of_band.settled.append(obj)


class Unpickler(pickle.Unpickler):
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
                import ml_dtypes  # comes with TensorFlow and with JAX

                return np.asarray(self._arrays[place]).view(getattr(ml_dtypes, dtype))
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
    from aiaas_magics.core.internals.keras_internals import GLOBAL_CUSTOM_NAMES

    return GLOBAL_CUSTOM_NAMES.get(obj) if isinstance(obj, (type, types.FunctionType)) else None


def _register(registrations: Sequence[tuple[str, Any]]) -> None:
    from aiaas_magics.core.internals.keras_internals import GLOBAL_CUSTOM_NAMES, GLOBAL_CUSTOM_OBJECTS

    for name, obj in registrations:
        GLOBAL_CUSTOM_OBJECTS[name] = obj
        GLOBAL_CUSTOM_NAMES[obj] = name
