"""Monkeypatch: attributes of Keras, replaced inside a worker process for the time of one `fit`.

Owns putting them back as they were, and which of Keras' iterators are ours.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Iterator
from types import ModuleType
from typing import Any

_ABSENT = object()


@contextlib.contextmanager
def monkeypatched(*swaps: tuple[Any, str, Any]) -> Iterator[None]:
    """Inside, for each `(owner, name, value)`, `owner.name` is `value`.

    What an owner had itself it gets back; what it had from a class or did not have is looked up there again. Owners that
    are instances are set past their own `__setattr__`: Keras' objects track what they are given, and this is no part of them.
    """
    before = [(owner, name, vars(owner).get(name, _ABSENT)) for owner, name, _ in swaps]
    try:
        for owner, name, value in swaps:
            _set(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            _set(owner, name, value)


def iterators_of(model: Any, methods: Collection[str], *, own: Callable[..., Any], stock: Callable[..., Any]) -> Callable[..., Any]:
    """Takes the place of Keras' iterator class: `own` in these methods of `model`, `stock` in all others and in other models.

    Keras names the class in a global of its module, so a callback that predicts, or fits a second model, comes here too; only
    the method that makes the iterator knows whose it is.
    """

    def make(*args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        is_ours = frame.f_code.co_name in methods and frame.f_locals.get("self") is model
        return (own if is_ours else stock)(*args, **kwargs)

    return make


def _set(owner: Any, name: str, value: Any) -> None:
    plain = isinstance(owner, type | ModuleType)
    if value is _ABSENT:
        (delattr if plain else object.__delattr__)(owner, name)
    else:
        (setattr if plain else object.__setattr__)(owner, name, value)
