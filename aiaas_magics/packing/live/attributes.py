"""Plain attributes of layers and datasets that training changes: read in a worker, set in the kernel.

Owns which of them come back: numbers, texts, arrays and collections of these, under public names, and whether a layer
trains. Attributes of callbacks come back by themselves (`fit_result`).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from aiaas_magics.packing.live import plain_json
from aiaas_magics.packing.live.model_state import attributes_of_keras

TRAINABLE: Final = "_trainable"
# Set by `fit` itself; the result has them in places of their own.
OF_FIT: Final = frozenset({"stop_training", "history", "optimizer", "loss", "metrics"})
MOST_BYTES: Final = 16 * 1024 * 1024  # of one attribute; guess: an order of a million rows has 8 MB, the rows themselves do not change
Marks = dict[str, tuple[str, tuple[bytes, ...]]]  # by attribute: what identifies its value


def owners(model: Any, datasets: Sequence[Any]) -> list[Any]:
    """The objects, in one order on both sides."""
    return [*model._flatten_layers(), *datasets]


def marks_of(objects: Sequence[Any]) -> list[Marks]:
    """The values before training, as far as a comparison needs them."""
    return [{name: mark for name, value in _public(obj) if (mark := _mark(value)) is not None} for obj in objects]


def changed(objects: Sequence[Any], before: Sequence[Marks], arrays: list[np.ndarray]) -> list[dict[str, Any]]:
    """By object, the attributes that are new or have another value, encoded; arrays are appended to `arrays`."""
    changes = []
    for obj, marks in zip(objects, before, strict=False):
        values = {name: value for name, value in _public(obj) if (mark := _mark(value)) is not None and mark != marks.get(name)}
        changes.append({name: plain_json.encode(_bare(value), arrays) for name, value in values.items()})
    return changes


def put_back(objects: Sequence[Any], attributes: Sequence[Mapping[str, Any]]) -> None:
    """Set what `changed` found. A list or dict that is there already is changed in place, so that other names for it see it.

    What a backend says beyond that is not set: private names, Keras' own, methods and paths (`plain_json.trusted`).
    """
    for obj, values in zip(objects, attributes, strict=False):
        for name, value in plain_json.trusted(obj, {name: value for name, value in values.items() if _comes_back(name)}).items():
            current = vars(obj).get(name)
            if name == TRAINABLE:
                obj.trainable = bool(value)
            elif isinstance(current, list) and isinstance(value, list):
                list.__setitem__(current, slice(None), value)  # past a tracked list's own, which would look for layers in it
            elif isinstance(current, dict) and isinstance(value, dict):
                dict.clear(current)
                dict.update(current, value)
            else:
                vars(obj)[name] = value


@contextmanager
def counts_kept(model: Any) -> Iterator[None]:
    """Numbers and collections that the model counts in are the same at the end: a trial of its step is no training.

    Flags and texts stay as the trial leaves them, since a model may know by them that it has made its layers.
    """
    names = {name for name, _ in _public(model)}
    before = {name: (value, _copy(value)) for name, value in _public(model) if _counts(value) or _is_symbolic(value)}
    try:
        yield
    finally:
        for name, value in list(_public(model)):
            original, copied = before.get(name, (None, None))
            if name in before and (value is original or _counts(value) or _is_symbolic(value)):
                vars(model)[name] = original
                if isinstance(original, list):
                    list.__setitem__(original, slice(None), copied)
                elif isinstance(original, dict):
                    dict.clear(original)
                    dict.update(original, copied)
            elif name not in names and (_is_symbolic(value) or (type(value) in (int, float) and hasattr(type(model), name))):
                del vars(model)[name]  # a number: its class has what it begins with


def _is_symbolic(value: Any) -> bool:
    """A tensor of a trace has no value, and goes nowhere."""
    return str(type(value).__module__).partition(".")[0] == "tensorflow" and type(value).__name__ == "SymbolicTensor"


def _counts(value: Any) -> bool:
    return type(value) in (int, float) or (isinstance(value, (list, dict)) and _mark(value) is not None)


def _copy(value: Any) -> Any:
    return list(value) if isinstance(value, list) else dict(value) if isinstance(value, dict) else value


def generators_of(obj: Any) -> list[str]:
    """Names of the random generators that `obj` holds: their state does not come back."""
    kinds = (np.random.Generator, np.random.RandomState, random.Random)
    return [name for name, value in vars(obj).items() if isinstance(value, kinds)]


def _public(obj: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(obj).items():
        if _comes_back(name):
            yield name, value


def _comes_back(name: str) -> bool:
    return name == TRAINABLE or not (name.startswith("_") or name in attributes_of_keras() or name in OF_FIT)


def _bare(value: Any) -> Any:
    """A list or dict that Keras tracks as Python's own."""
    if not str(type(value).__module__).startswith("keras."):
        return value
    return list(value) if isinstance(value, list) else dict(value) if isinstance(value, dict) else value


def _mark(value: Any) -> tuple[str, tuple[bytes, ...]] | None:
    """None for what does not come back."""
    arrays: list[np.ndarray] = []
    if _holds_tensors(_bare(value)):
        return None
    try:
        text = json.dumps(plain_json.encode(_bare(value), arrays))
    except (plain_json.NotPlain, TypeError):
        return None
    if sum(array.nbytes for array in arrays) > MOST_BYTES:
        return None
    return text, tuple(
        hashlib.blake2b(f"{array.dtype}{array.shape}".encode() + array.tobytes(), digest_size=16).digest() for array in arrays
    )


def _holds_tensors(value: Any, depth: int = 0) -> bool:
    """Tensors and variables of TensorFlow have an identity: a variable must not become an array."""
    if str(type(value).__module__).partition(".")[0] in {"tensorflow", "keras"} or depth > plain_json.DEPTH:
        return True
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
    return any(_holds_tensors(item, depth + 1) for item in inner)
