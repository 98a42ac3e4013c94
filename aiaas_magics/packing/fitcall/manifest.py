"""Manifest of a fit call: everything that will be sent, for showing before anything is.

Owns the list and making it of what was pickled. Drawing it belongs to the notebook.
"""

from __future__ import annotations

import hashlib
import io
import marshal
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from aiaas_magics.core.errors import AiaasBug
from aiaas_magics.packing.data import batch_sources
from aiaas_magics.packing.data.fit_data import all_leaves
from aiaas_magics.packing.pickling.state_pickle import OutOfBand


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestItem:
    """One thing that will be sent. `bytes` of code are those of its byte code."""

    kind: str  # "model" | "dataset" | "array" | "class" | "function" | "module" | "variable"
    name: str
    bytes: int
    detail: str = ""
    sha256: str = ""  # of the `.npy` file of an array that travels within the payload; those apart are blobs of that name


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


def manifest_of(
    model: Any, arguments: Mapping[str, Any], out_of_band: OutOfBand, *, payload: bytes, environment: Mapping[str, str]
) -> Manifest:
    """The list for a pickled fit call.

    Args:
        out_of_band: what was met while pickling.
        environment: the variables that go along.
    """
    names = {id(array): path for path, array in all_leaves(arguments)}
    items = [ManifestItem(kind="model", name=str(model.name), bytes=len(payload), detail=_described(model))]
    items += [_array_item(names.pop(id(array), "in the model"), array) for array in out_of_band.arrays]
    items[1:1] = [_dataset_item(name, source) for name, source in batch_sources.in_arguments(arguments).items()]
    items += [_array_item(path, array, note="sent within the model") for path, array in all_leaves(arguments) if id(array) in names]
    for obj in out_of_band.code.values():
        if isinstance(obj, ModuleType):
            items.append(ManifestItem(kind="module", name=obj.__name__, bytes=0, detail=str(getattr(obj, "__file__", ""))))
        else:
            items.append(_class_item(obj) if isinstance(obj, type) else _function_item(obj))
    items += [ManifestItem(kind="variable", name=name, bytes=len(value), detail="environment") for name, value in environment.items()]
    return Manifest(tuple(items))


def _array_item(name: str, array: np.ndarray[Any, Any], *, note: str = "") -> ManifestItem:
    detail = f"{array.dtype} {array.shape}".replace(",)", ")")
    sha256 = _npy_hash(array) if note else ""
    return ManifestItem(kind="array", name=name, bytes=array.nbytes, detail=f"{detail}, {note}" if note else detail, sha256=sha256)


def _npy_hash(array: np.ndarray[Any, Any]) -> str:
    """SHA-256 of the array as `np.save` writes it, which is what the blob of a larger one is named by; "" for objects."""
    file = io.BytesIO()
    try:
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    except ValueError:
        return ""
    return hashlib.sha256(file.getvalue()).hexdigest()


def _function_item(function: FunctionType) -> ManifestItem:
    return ManifestItem(
        kind="function", name=function.__qualname__, bytes=len(marshal.dumps(function.__code__)), detail=f"from {function.__module__}"
    )


def _class_item(cls: type) -> ManifestItem:
    size = sum(len(marshal.dumps(code)) for value in vars(cls).values() for code in _codes(value))
    return ManifestItem(kind="class", name=cls.__qualname__, bytes=size, detail=f"from {cls.__module__}")


def _codes(value: Any) -> Iterator[CodeType]:
    if isinstance(value, property):
        for part in (value.fget, value.fset, value.fdel):
            yield from _codes(part)
    code = getattr(getattr(value, "__func__", value), "__code__", None)
    if isinstance(code, CodeType):
        yield code


def _dataset_item(name: str, source: batch_sources.BatchSource) -> ManifestItem:
    shapes = batch_sources.described(source.spec)
    match source:
        case batch_sources.GraphSource():
            apart = f", {len(source.captured)} arrays apart" if source.captured else ""
            return ManifestItem(kind="dataset", name=name, bytes=len(source.graph), detail=f"as a graph{apart}: {shapes}")
        case batch_sources.PickledSource():
            return ManifestItem(kind="dataset", name=name, bytes=0, detail=f"pickled ({type(source.dataset).__name__}): {shapes}")
        case batch_sources.StreamedSource():
            return ManifestItem(kind="dataset", name=name, bytes=0, detail=f"streamed from this kernel: {shapes}")
        case _:
            raise AiaasBug(f"{name} is a {type(source).__name__}, which no way of travelling is known of")


def _described(model: Any) -> str:
    # Not by `count_params`, which refuses a model that only its own train_step calls the layers of.
    parameters = sum(math.prod(variable.shape) for variable in model.weights)
    return f"{type(model).__name__}, {len(model.layers)} layers, {parameters:,} parameters"
