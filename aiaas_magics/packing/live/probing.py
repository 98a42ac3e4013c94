"""Probing: questions to objects of the user's and of any library, which may answer with any exception.

Owns the border: `getattr`, `isinstance`, `repr` and the like run the object's own code, and a search
for the thing at fault must not die of a bystander.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

T = TypeVar("T")
_MISSING: Final = object()


def ask(question: Callable[[], T], otherwise: T) -> T:
    """The answer, or `otherwise` where the object raises anything."""
    try:
        return question()
    except Exception:  # noqa: BLE001 - border: the object's own code runs, and may raise anything
        return otherwise


def attribute(obj: Any, name: str, otherwise: Any = None) -> Any:
    """The attribute, or `otherwise` where it is not there or cannot be had."""
    return ask(lambda: getattr(obj, name), otherwise)


def has(obj: Any, name: str) -> bool:
    """Whether the attribute can be had."""
    return attribute(obj, name, _MISSING) is not _MISSING


def items_of(values: Callable[[], Iterable[T]]) -> list[T]:
    """What `values` yields, up to where it raises."""
    items: list[T] = []
    try:
        for value in values():
            items.append(value)  # noqa: PERF402 - what came before an exception is kept
    except Exception:  # noqa: BLE001 - border: as above
        return items
    return items
