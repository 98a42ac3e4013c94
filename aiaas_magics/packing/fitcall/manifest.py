"""What a fit call consists of, for showing before anything is sent.

Owns the list. Filling it belongs to `state_pickle`, drawing it to the notebook.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestItem:
    """One thing that will be sent. `bytes` of code are those of its byte code."""

    kind: str  # "model" | "dataset" | "array" | "class" | "function" | "module" | "variable"
    name: str
    bytes: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that will be sent: the model first, then datasets, arrays and code."""

    items: tuple[ManifestItem, ...]

    def __iter__(self) -> Iterator[ManifestItem]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def of_kind(self, kind: str) -> tuple[ManifestItem, ...]:
        return tuple(item for item in self.items if item.kind == kind)


def array_item(name: str, array: np.ndarray[Any, Any], *, note: str = "") -> ManifestItem:
    detail = f"{array.dtype} {array.shape}".replace(",)", ")")
    return ManifestItem(kind="array", name=name, bytes=array.nbytes, detail=f"{detail}, {note}" if note else detail)


def function_item(function: FunctionType) -> ManifestItem:
    return ManifestItem(
        kind="function", name=function.__qualname__, bytes=len(marshal.dumps(function.__code__)), detail=f"from {function.__module__}"
    )


def class_item(cls: type) -> ManifestItem:
    size = sum(len(marshal.dumps(code)) for value in vars(cls).values() for code in _codes(value))
    return ManifestItem(kind="class", name=cls.__qualname__, bytes=size, detail=f"from {cls.__module__}")


def _codes(value: Any) -> Iterator[CodeType]:
    if isinstance(value, property):
        for part in (value.fget, value.fset, value.fdel):
            yield from _codes(part)
    code = getattr(getattr(value, "__func__", value), "__code__", None)
    if isinstance(code, CodeType):
        yield code
