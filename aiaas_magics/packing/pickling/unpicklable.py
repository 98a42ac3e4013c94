"""Unpicklable objects: what cannot travel, where it is, and what to do about it.

Owns the kinds, the search for the path ("callbacks[1].log") and the sentences.
"""

from __future__ import annotations

import functools
import io
import socket
import subprocess
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from aiaas_magics.core.errors import CannotTravel
from aiaas_magics.packing.live import probing, user_modules

_LOCK: Final = type(threading.Lock())
_RLOCK: Final = type(threading.RLock())
SEARCH_LIMIT: Final = 200_000  # guess: objects looked at before the path is given up
DEPTH: Final = 4  # guess: steps from a root that still say something to the user
TRIED: Final = 200  # guess: objects that are pickled by themselves in search of the one that fails
ANY_MOVE: Final = "Make it where it is used, in on_train_begin say, or leave it out."
LIBRARY_MOVES: Final[Mapping[str, str]] = {
    "TFSMLayer": "A loaded SavedModel lives in this process: build the model from Keras layers, or load one that was saved as .keras.",
}
_MISSING: Final = object()


def why_not(obj: Any) -> str | None:
    """What `obj` is, if it is of a kind that cannot travel."""
    return probing.ask(lambda: _kind(obj), None)


def _kind(obj: Any) -> str | None:
    for kinds, name in _KINDS:
        if isinstance(obj, kinds):
            return name(obj)
    return _library_kind(obj)


def next_move(obj: Any) -> str:
    if isinstance(obj, io.IOBase):
        return "Open it where it is used, in on_train_begin say, by its path."
    if isinstance(obj, (types.GeneratorType, types.AsyncGeneratorType)):
        return "Keep its values in a list."
    if isinstance(obj, (_LOCK, _RLOCK)):
        return "Let go of it before fit."
    if _belongs_to(obj, "matplotlib"):
        return "Make it after fit, from the history."
    return ANY_MOVE


def refuse(culprit: Any, roots: Mapping[str, Any], why: Exception, *, fails: Callable[[Any], bool] = lambda _: False) -> CannotTravel:
    """The error that names `culprit` by its path from one of `roots`.

    Args:
        fails: whether an object by itself cannot be pickled; asked where `culprit` was made on the way and has no path.
    """
    place = find_place(roots, lambda obj: obj is culprit) or _failing_place(roots, fails)
    named = why_not(culprit)
    if named is None:
        named = f"{_a(type(culprit))} ({_first_line(why)})"
    if place is None:
        return CannotTravel("Something in this fit call", named, probing.ask(lambda: next_move(culprit), ANY_MOVE))
    if place.inside is None:
        return CannotTravel(place.path, named, probing.ask(lambda: next_move(culprit), ANY_MOVE))
    return CannotTravel(f"{place.path} ({place.inside})", f"it holds {named}", LIBRARY_MOVES.get(place.inside, _library_move(place)))


def _library_move(place: ObjectPath) -> str:
    if place.path.startswith("callbacks["):
        return f"Give a new {place.inside} for each fit, or leave it out."
    return f"Leave the {place.inside} out, or use one that holds no open resources."


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """Where an object was found: its path, and the library's class whose inside the path ends at.

    What a library keeps inside its objects says nothing to a user, so the path ends at the object: "callbacks[0]" (TqdmCallback).
    """

    path: str
    inside: str | None = None

    def step(self, parent: Any, step: str, child: Any) -> ObjectPath:
        if is_users(child):
            return ObjectPath(self.full + step)
        if self.inside is None and _is_of_library(parent):
            return _Inner(_shown(self.path, parent), type(parent).__name__, self.full + step)
        return _Inner(self.path, self.inside, self.full + step) if self.inside is not None else ObjectPath(self.path + step)

    @property
    def full(self) -> str:
        """The path to the very object."""
        return self.path


@dataclass(frozen=True, slots=True)
class _Inner(ObjectPath):
    """A place inside a library's object."""

    whole: str = ""

    @property
    def full(self) -> str:
        return self.whole


def _shown(path: str, obj: Any) -> str:
    """A layer by its name: its place in Keras' lists says nothing."""
    import keras

    return f"layer {obj.name!r}" if isinstance(obj, keras.Layer) else path


def is_users(obj: Any) -> bool:
    """Whether this is code of the user's, or an object of a class of the user's."""
    code = obj if isinstance(obj, (type, types.FunctionType)) else obj.__func__ if isinstance(obj, types.MethodType) else type(obj)
    module = probing.attribute(code, "__module__", "")
    return module == "__main__" or user_modules.users_module(module if isinstance(module, str) else None) is not None


def _is_of_library(obj: Any) -> bool:
    """Whether this is an object of an installed library: Python's own are plain, and a model's parts are the user's."""
    import keras

    module = str(probing.attribute(type(obj), "__module__", "builtins")).partition(".")[0]
    plain = (keras.Model, list, tuple, dict, set, types.FunctionType, types.MethodType, type)
    return not (is_users(obj) or module in sys.stdlib_module_names or isinstance(obj, plain))


def find_place(roots: Mapping[str, Any], is_wanted: Callable[[Any], bool]) -> ObjectPath | None:
    """The shortest path from `roots` to an object that is `wanted`."""
    queue: deque[tuple[ObjectPath, Any]] = deque((ObjectPath(path), obj) for path, obj in roots.items())
    visited: set[int] = set()
    alive: list[Any] = []  # keeps what was made on the way alive, so that no id comes twice
    while queue and len(visited) < SEARCH_LIMIT:
        place, obj = queue.popleft()
        if id(obj) in visited:
            continue
        visited.add(id(obj))
        alive.append(obj)
        if is_wanted(obj):
            return place
        queue.extend(
            (probing.ask(partial(place.step, obj, step, child), ObjectPath(place.full + step)), child) for step, child in _children(obj)
        )
    return None


def _failing_place(roots: Mapping[str, Any], fails: Callable[[Any], bool]) -> ObjectPath | None:
    """The object that `fails` by itself, nearest to where the failure is, at most `DEPTH` steps from a root."""
    inner: list[tuple[ObjectPath, Any]] = [(ObjectPath(path), obj) for path, obj in roots.items()]
    place: ObjectPath | None = None
    for _ in range(DEPTH):
        failing = next(((path, obj) for path, obj in inner[:TRIED] if fails(obj)), None)
        if failing is None:
            break
        place, obj = failing
        if place.path not in roots and probing.ask(partial(_is_of_library, obj), True):
            break
        inner = [(ObjectPath(place.path + step), child) for step, child in _children(obj) if step and not _is_wrapper(child)]
    return place


def _is_wrapper(obj: Any) -> bool:
    """Whether this is a function that a library has put on the object, as Keras does with `build`."""
    return type(obj) is types.FunctionType and _is_library(obj.__module__)


def _children(obj: Any) -> list[tuple[str, Any]]:
    if type(obj) in (str, bytes, int, float, type(None), types.ModuleType):
        return []
    if issubclass(type(obj), type):
        return probing.items_of(partial(_inside_of_class, obj))
    return [pair for look in (_items, _parts, _attributes) for pair in probing.items_of(partial(look, obj))]


def _inside_of_class(cls: type) -> Iterator[tuple[str, Any]]:
    if not _is_library(cls.__module__):
        yield from ((f".{name}", value) for name, value in vars(cls).items())
        yield from (("", base) for base in cls.__bases__)


def _items(obj: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, Mapping):
        for key, value in list(obj.items()):
            yield f"[{key!r}]" if type(key) in (str, int) else f"[{type(key).__name__}]", value
    elif isinstance(obj, (list, tuple)):
        yield from ((f"[{index}]", value) for index, value in enumerate(obj))
    elif isinstance(obj, (set, frozenset)):
        yield from (("{}", value) for value in obj)


def _parts(obj: Any) -> Iterator[tuple[str, Any]]:
    """What a callable or descriptor is made of."""
    if isinstance(obj, types.FunctionType):
        yield from _reach_of_function(obj)
    elif isinstance(obj, types.MethodType):
        yield ".__self__", obj.__self__
        yield "", obj.__func__
    elif isinstance(obj, functools.partial):
        yield from ((" (partial)", value) for value in (obj.func, *obj.args, *obj.keywords.values()))
    elif isinstance(obj, (classmethod, staticmethod)):
        yield "", obj.__func__
    elif isinstance(obj, property):
        yield from (("", part) for part in (obj.fget, obj.fset) if part is not None)


def _attributes(obj: Any) -> Iterator[tuple[str, Any]]:
    attributes = probing.attribute(obj, "__dict__")
    if isinstance(attributes, dict):
        # Names of the user's own first: "callbacks[0].log" says more than "callbacks[0]._model.layers[0]".
        named = ((f".{name}", value) for name, value in list(attributes.items()))
        yield from sorted(named, key=lambda item: item[0].startswith("._"))
    slots = probing.attribute(type(obj), "__slots__", ())
    for name in (slots,) if isinstance(slots, str) else tuple(slots):
        value = probing.attribute(obj, name, _MISSING) if isinstance(name, str) and name != "__dict__" else _MISSING
        if value is not _MISSING:
            yield f".{name}", value
    if not isinstance(obj, types.FunctionType):
        yield f" (class {type(obj).__name__})", type(obj)


def _reach_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    if _is_library(function.__module__) and "<locals>" not in function.__qualname__:
        return
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f" (variable {name!r} of {function.__name__})", cell.cell_contents
        except ValueError:  # an empty cell
            continue
    yield from ((f" (global variable {name!r})", function.__globals__[name]) for name in _global_names(function))
    yield from ((f" (default of {function.__name__})", value) for value in (function.__defaults__ or ()))


def _global_names(function: types.FunctionType) -> Iterator[str]:
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        yield from (name for name in code.co_names if name in function.__globals__)
        codes.extend(inner for inner in code.co_consts if isinstance(inner, types.CodeType))


# --------------------------------------------------------------------------- kinds


def _file(obj: Any) -> str | None:
    if obj is sys.stdout or obj is sys.stderr or obj.closed:
        return None
    if isinstance(obj, (io.StringIO, io.BytesIO)) or type(obj).__module__.partition(".")[0] in {"ipykernel", "_pytest"}:
        return None
    return f"an open file {str(getattr(obj, 'name', ''))!r}"


def _held_lock(obj: Any) -> str | None:
    if isinstance(obj, _LOCK):
        return "a lock that is held" if obj.locked() else None
    return "a lock that is held" if "owner=0" not in repr(obj) else None


_KINDS: Final[tuple[tuple[Any, Callable[[Any], str | None]], ...]] = (
    (io.IOBase, _file),
    (socket.socket, lambda _: "an open socket"),
    ((types.GeneratorType, types.AsyncGeneratorType, types.CoroutineType), lambda obj: f"a generator ({obj.__qualname__})"),
    (threading.Thread, lambda _: "a thread"),
    (subprocess.Popen, lambda _: "a process"),
    ((_LOCK, _RLOCK), _held_lock),
    (types.FrameType, lambda _: "a frame of a running function"),
)

_LIBRARY_KINDS: Final[Mapping[tuple[str, str], str]] = {
    ("matplotlib", "Figure"): "a matplotlib figure",
    ("matplotlib", "Axes"): "axes of a matplotlib figure",
    ("sqlite3", "Connection"): "an open database",
}


def _library_kind(obj: Any) -> str | None:
    if isinstance(obj, type):
        return None
    for cls in type(obj).__mro__:
        kind = _LIBRARY_KINDS.get((str(cls.__module__).partition(".")[0], cls.__name__))
        if kind:
            return kind
    if _belongs_to(obj, "tensorflow"):
        import tensorflow as tf

        if isinstance(obj, tf.data.Dataset):
            return "a tf.data.Dataset"
        if isinstance(obj, tf.Tensor) and not hasattr(obj, "numpy"):
            return "a symbolic tensor of a traced function"
    return None


def _belongs_to(obj: Any, library: str) -> bool:
    return any(str(cls.__module__).partition(".")[0] == library for cls in type(obj).__mro__)


def _is_library(module: str | None) -> bool:
    top = str(module).partition(".")[0]
    return top in {"keras", "tensorflow", "numpy", "pandas", "builtins"} or top in sys.stdlib_module_names


def _a(cls: type) -> str:
    module = probing.attribute(cls, "__module__", "")
    name = cls.__name__ if module in {"builtins", "__main__"} else f"{module}.{cls.__name__}"
    return f"an object of type {name}"


def _first_line(error: Exception) -> str:
    text = probing.ask(lambda: str(error).strip().partition("\n")[0], "")
    return text.rstrip(".") or type(error).__name__
