"""What cannot travel, where it hides, and what to do about it.

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
from typing import Any, Final

from aiaas_magics.errors import CannotTravel

_LOCK: Final = type(threading.Lock())
_RLOCK: Final = type(threading.RLock())
SEARCH_LIMIT: Final = 200_000  # guess: objects looked at before the path is given up


def why_not(obj: Any) -> str | None:
    """What `obj` is, if it is of a kind that cannot travel."""
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
    return "Make it where it is used, in on_train_begin say, or leave it out."


def refuse(culprit: Any, roots: Mapping[str, Any], why: Exception) -> CannotTravel:
    """The error that names `culprit` by its path from one of `roots`."""
    path = find_path(roots, lambda obj: obj is culprit)
    named = why_not(culprit)
    if named is None:
        named = f"{_a(type(culprit))} ({_first_line(why)})"
    if path is None:
        path = "Something in this fit call"
    return CannotTravel(path, named, next_move(culprit))


def find_path(roots: Mapping[str, Any], wanted: Callable[[Any], bool]) -> str | None:
    """The shortest path from `roots` to an object that is `wanted`."""
    queue: deque[tuple[str, Any]] = deque(roots.items())
    seen: set[int] = set()
    kept: list[Any] = []  # keeps what was made on the way alive, so that no id comes twice
    while queue and len(seen) < SEARCH_LIMIT:
        path, obj = queue.popleft()
        if id(obj) in seen:
            continue
        seen.add(id(obj))
        kept.append(obj)
        if wanted(obj):
            return path
        queue.extend((path + step, child) for step, child in _children(obj))
    return None


def _children(obj: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, (str, bytes, int, float, type(None), types.ModuleType)):
        return
    if isinstance(obj, type):
        if not _is_library(obj.__module__):
            yield from ((f".{name}", value) for name, value in vars(obj).items())
            yield from (("", base) for base in obj.__bases__)
        return
    yield from _items(obj)
    yield from _parts(obj)
    yield from _attributes(obj)


def _items(obj: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, Mapping):
        try:
            for key, value in list(obj.items()):
                yield f"[{key!r}]" if isinstance(key, (str, int)) else f"[{type(key).__name__}]", value
        except Exception:  # noqa: BLE001 - border: a mapping of the user's may fail in any way
            return
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
    attributes = getattr(obj, "__dict__", None)
    if isinstance(attributes, dict):
        # Names of the user's own first: "callbacks[0].log" says more than "callbacks[0]._model.layers[0]".
        yield from sorted(((f".{name}", value) for name, value in attributes.items()), key=lambda item: item[0].startswith("._"))
    for name in getattr(type(obj), "__slots__", ()):
        if isinstance(name, str) and hasattr(obj, name):
            yield f".{name}", getattr(obj, name)
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
        found = _LIBRARY_KINDS.get((str(cls.__module__).partition(".")[0], cls.__name__))
        if found:
            return found
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
    name = cls.__name__ if cls.__module__ in {"builtins", "__main__"} else f"{cls.__module__}.{cls.__name__}"
    return f"an object of type {name}"


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__
