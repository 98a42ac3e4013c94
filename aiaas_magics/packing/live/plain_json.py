"""Plain JSON: numbers, texts, lists, dicts and numpy arrays to JSON and back, without pickle.

Owns the tags that JSON lacks words for. Arrays leave their number behind and travel apart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

TAG: Final = "$"
PATH: Final = re.compile(r"[/\\~]|\.[A-Za-z][A-Za-z0-9]{0,7}$", re.ASCII)  # a folder's separator, or a suffix: what may name a file
PATH_NAME: Final = re.compile(r"path|file|dir|folder|root|url", re.IGNORECASE | re.ASCII)  # of attributes that hold one
DEPTH: Final = 20  # guess: deeper than any record of numbers, less deep than a cycle


class NotPlain(Exception):
    """The value is not plain data."""


def encode(value: Any, arrays: list[np.ndarray], depth: int = 0) -> Any:
    """`value` as JSON knows it; arrays are appended to `arrays`.

    Raises:
        NotPlain: for anything else than plain data.
    """
    if depth > DEPTH:
        raise NotPlain("nested too deep")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        return {TAG: "scalar", "at": _apart(np.asarray(value), arrays)}
    if type(value) is np.ndarray and not value.dtype.hasobject:
        return {TAG: "array", "at": _apart(value, arrays)}
    if _is_tensor(value):
        return {TAG: "array", "at": _apart(np.asarray(value.numpy()), arrays)}
    return _encode_collection(value, arrays, depth + 1)


def _encode_collection(value: Any, arrays: list[np.ndarray], depth: int) -> Any:
    name = _COLLECTIONS.get(type(value))
    if name == "list":
        return [encode(item, arrays, depth) for item in value]
    if name in {"tuple", "set"}:
        return {TAG: name, "items": [encode(item, arrays, depth) for item in value]}
    if name == "dict":
        return {TAG: name, "items": [[encode(key, arrays, depth), encode(item, arrays, depth)] for key, item in value.items()]}
    raise NotPlain(type(value).__name__)


def encode_history(history: Mapping[str, Iterable[Any]], arrays: list[np.ndarray]) -> dict[str, list[Any]]:
    """As `encode`, for what `fit` has collected: a metric may give an array, and a callback may add anything to the logs.

    What is not plain goes as its text: no training is lost by it.
    """
    return {str(name): [_logged(value, arrays) for value in values] for name, values in history.items()}


def decode_history(history: Mapping[str, Iterable[Any]], arrays: list[np.ndarray]) -> dict[str, list[Any]]:
    """What `encode_history` was given."""
    return {name: [decode(value, arrays) for value in values] for name, values in history.items()}


def _logged(value: Any, arrays: list[np.ndarray]) -> Any:
    before = len(arrays)
    try:
        return encode(value.item() if isinstance(value, np.generic) else value, arrays)
    except NotPlain:
        del arrays[before:]
        return str(value)


def decode(value: Any, arrays: list[np.ndarray]) -> Any:
    """What `encode` was given; tensors come back as arrays."""
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    match value[TAG]:
        case "scalar":
            return arrays[value["at"]][()]
        case "array":
            return arrays[value["at"]]
        case "dict":
            return {decode(key, arrays): decode(item, arrays) for key, item in value["items"]}
        case "tuple":
            return tuple(decode(item, arrays) for item in value["items"])
        case _:
            return {decode(item, arrays) for item in value["items"]}


def plain_attributes(obj: Any, arrays: list[np.ndarray]) -> dict[str, Any]:
    """Those attributes of `obj` that are plain data, encoded; the others are left out."""
    plain = {}
    for name, value in vars(obj).items():
        before = len(arrays)
        try:
            plain[name] = encode(value, arrays)
        except NotPlain:
            del arrays[before:]
    return plain


def put_attribute(obj: Any, name: str, value: Any) -> None:
    """Set an attribute. A list, dict, set or array that is there already is changed in place, so that other names for it see it."""
    current = vars(obj).get(name)
    if type(current) is not type(value):
        setattr(obj, name, value)
    elif isinstance(value, list):
        current[:] = value
    elif isinstance(value, (dict, set)):
        current.clear()
        current.update(value)
    elif isinstance(value, np.ndarray) and current.shape == value.shape and current.dtype == value.dtype and current.flags.writeable:
        np.copyto(current, value)
    else:
        setattr(obj, name, value)


def put_back(callback: Any, state: Mapping[str, Any]) -> None:
    """Give a callback the plain attributes that it had elsewhere: in a worker, or before a restart.

    Keras turns the sign of `min_delta` when a callback finds out what "better" means, and one whose `monitor_op`
    is still None will do so: it keeps its own.
    """
    again = {"min_delta"} if vars(callback).get("monitor_op", callback) is None else set()
    for name, value in state.items():
        if name not in again:
            put_attribute(callback, name, value)


def trusted(callback: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Those attributes of `state`, which a backend sent, that a live callback may be given.

    Data come back. What decides which code runs or where files go does not: a name that the class has for a method or property, a path
    that is another one here, and a new absolute path.
    """
    current = vars(callback)
    return {name: value for name, value in state.items() if _is_trusted(callback, name, value, current)}


def _is_trusted(callback: Any, name: str, value: Any, current: Mapping[str, Any]) -> bool:
    of_class = getattr(type(callback), name, None)
    if name.startswith("__") or callable(of_class) or hasattr(of_class, "__get__") or callable(current.get(name)):
        return False
    if name not in current:
        return not (isinstance(value, str) and _is_path(value) and (os.path.isabs(value) or ".." in value or value.startswith("~")))
    before = current[name]
    if isinstance(before, os.PathLike) or (isinstance(before, str) and (_is_path(before) or PATH_NAME.search(name))):
        return bool(type(value) is type(before) and value == before)
    return not (isinstance(value, str) and _is_path(value))


def _is_path(text: str) -> bool:
    return bool(PATH.search(text))


_COLLECTIONS: Final[dict[type, str]] = {list: "list", tuple: "tuple", set: "set", dict: "dict"}


def _apart(array: np.ndarray, arrays: list[np.ndarray]) -> int:
    arrays.append(array)
    return len(arrays) - 1


def _is_tensor(value: Any) -> bool:
    return str(type(value).__module__).startswith("tensorflow") and hasattr(value, "numpy") and hasattr(value, "dtype")
