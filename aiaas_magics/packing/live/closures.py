"""Closures: state that callbacks change outside of themselves, which does not come back.

Owns finding it, as far as byte code tells. Saying so belongs to the preflight.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator, Sequence
from typing import Any, Final

_CHANGING: Final = frozenset(
    {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear", "appendleft", "put"}
)
_STORES: Final = frozenset({"STORE_SUBSCR", "DELETE_SUBSCR"})


def notes(callbacks: Sequence[Any]) -> tuple[str, ...]:
    """One sentence that names the variables, or none."""
    names = dict.fromkeys(f"{name!r} ({where})" for index, callback in enumerate(callbacks) for name, where in _changed(index, callback))
    if not names:
        return ()
    return (
        f"State changed through closures does not come back: {', '.join(names)} will stay as it is here. "
        "Keep it in an attribute of the callback, self.values say, which does come back.",
    )


def _changed(index: int, callback: Any) -> Iterator[tuple[str, str]]:
    for label, function in own_functions(callback):
        yield from ((name, f"callbacks[{index}], {label}") for name in changed_names(function))


def own_functions(thing: Any) -> Iterator[tuple[str, types.FunctionType]]:
    """The functions that an object, or a class of the user's, has as attributes, with their names."""
    for name, value in vars(thing).items():
        # The type, and not `isinstance`: a value may be anything, and asking it runs its code.
        function = value.__func__ if type(value) is types.MethodType else value
        if type(function) is types.FunctionType and name != "_model":
            yield name, function
    for cls in type(thing).__mro__:
        if cls.__module__.partition(".")[0] in {"keras", "builtins"}:
            continue
        for name, value in vars(cls).items():
            if isinstance(value, types.FunctionType):
                yield name, value


def changed_names(function: types.FunctionType) -> tuple[str, ...]:
    """Closure and global variables that `function` rebinds, or holds something changeable in and changes."""
    if function.__module__ is not None and function.__module__.partition(".")[0] == "keras":
        return ()
    names: dict[str, None] = {}
    for code in codes(function.__code__):
        steps = list(dis.get_instructions(code))
        changes = any(step.opname in _STORES or step.argval in _CHANGING for step in steps if isinstance(step.argval, (str, type(None))))
        for step in steps:
            if (
                step.opname in {"STORE_GLOBAL", "DELETE_GLOBAL"}
                or (step.opname == "STORE_DEREF" and step.argval in code.co_freevars)
                or (
                    changes
                    and step.opname in {"LOAD_GLOBAL", "LOAD_DEREF", "LOAD_NAME"}
                    and _is_changeable(value_of_name(function, str(step.argval)))
                )
            ):
                names[str(step.argval)] = None
    return tuple(names)


def value_of_name(function: types.FunctionType, name: str) -> Any:
    """What a global or closure variable of `function` holds now."""
    if name in function.__code__.co_freevars:
        try:
            return (function.__closure__ or ())[function.__code__.co_freevars.index(name)].cell_contents
        except (ValueError, IndexError):
            return None
    return function.__globals__.get(name)


def _is_changeable(value: Any) -> bool:
    return issubclass(type(value), (list, dict, set, bytearray)) or str(type(value).__module__).partition(".")[0] in {
        "numpy",
        "pandas",
        "collections",
    }


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """`code` and what is defined inside it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from codes(inner)
