"""An epoch's end on disk, so that an attempt can go on where another was lost.

Owns the folder's form: written beside its place and renamed, so that it is whole or not there;
its files are named with their hashes, so that one torn by a power cut is passed over. No pickle:
arrays are safetensors, the rest is JSON. When to write is `loop`'s, which one to resume the server's.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash
from safetensors.numpy import load_file, save_file

Array = npt.NDArray[Any]

KEPT: Final = 2  # the newest, and one more for when the newest is torn
FORMAT: Final = 1
VARIABLES, STATE, MANIFEST = "variables.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where training stands after an epoch. `epoch` is the one to go on with.

    `callbacks` has the plain attributes of each callback of the user's, in their order.
    """

    epoch: int
    variables: Sequence[Array]
    history: Mapping[str, list[float]] = field(default_factory=dict)
    epochs_done: Sequence[int] = ()
    callbacks: Sequence[Mapping[str, Any]] = ()
    stopped: bool = False  # a callback ended the training here


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` below `folder` and remove all but the newest few. Returns its own folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    final = folder / f"epoch-{checkpoint.epoch:05d}"
    partial = folder / f".{final.name}.{os.getpid()}.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    arrays: dict[str, Array] = {}
    dtypes = [_store(arrays, f"variable/{place}", value) for place, value in enumerate(checkpoint.variables)]
    state = {
        "format": FORMAT,
        "epoch": checkpoint.epoch,
        "variables": dtypes,
        "history": {name: list(values) for name, values in checkpoint.history.items()},
        "epochs_done": list(checkpoint.epochs_done),
        "callbacks": [plain_to_json(dict(state), arrays) for state in checkpoint.callbacks],
        "stopped": checkpoint.stopped,
    }
    save_file(arrays, partial / VARIABLES)
    (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
    hashes = {name: _hash(partial / name) for name in (VARIABLES, STATE)}
    (partial / MANIFEST).write_text(json.dumps(hashes), encoding="utf-8")
    if final.exists():  # of an attempt that was lost before it could say so
        shutil.rmtree(final)
    partial.rename(final)
    _prune(folder)
    return final


def load(path: Path) -> Checkpoint | None:
    """The checkpoint in the folder `path`; when that is torn, the newest whole one before it; None when there is none."""
    for candidate in [path, *(other for other in _newest_first(path.parent) if other.name < path.name)]:
        if is_whole(candidate):
            return _load(candidate)
    return None


def is_whole(path: Path) -> bool:
    try:
        hashes = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return bool(hashes) and all(_hash(path / name) == found for name, found in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _load(path: Path) -> Checkpoint:
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    arrays = load_file(path / VARIABLES)
    return Checkpoint(
        epoch=state["epoch"],
        variables=[_restore(arrays, f"variable/{place}", dtype) for place, dtype in enumerate(state["variables"])],
        history=state["history"],
        epochs_done=state["epochs_done"],
        callbacks=[json_to_plain(callback, arrays) for callback in state["callbacks"]],
        stopped=state["stopped"],
    )


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("epoch-*") if path.is_dir()), reverse=True)


def _prune(folder: Path) -> None:
    for old in _newest_first(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    for partial in folder.glob(".epoch-*.part"):
        shutil.rmtree(partial, ignore_errors=True)


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _store(arrays: dict[str, Array], name: str, value: Array) -> str:
    """Put `value` under `name`; returns its dtype's name, which the file's own may not say (bfloat16 travels as bits)."""
    value = np.ascontiguousarray(value) if value.ndim else value
    kind = value.dtype.name
    plain = value.dtype.kind in "biuf" and value.dtype.isbuiltin == 1
    arrays[name] = value if plain else value.view(f"u{value.dtype.itemsize}")
    return kind


def _restore(arrays: Mapping[str, Array], name: str, kind: str) -> Array:
    value = arrays[name]
    if value.dtype.name == kind:
        return value
    if not hasattr(np, kind):
        import ml_dtypes  # comes with TensorFlow, and knows bfloat16 and its relatives

        return value.view(getattr(ml_dtypes, kind))
    return value.view(kind)


# --------------------------------------------------------------------------- plain data of callbacks


class NotPlain(TypeError):
    """A value that is neither numbers, text, arrays, nor lists and dicts of them."""


def plain_attributes(thing: Any, *, leave_out: frozenset[str]) -> dict[str, Any]:
    """The attributes of `thing` that are plain data, through and through."""
    found = {}
    for name, value in vars(thing).items():
        if name in leave_out:
            continue
        try:
            plain_to_json(value, {})
        except NotPlain:
            continue
        found[name] = value
    return found


def plain_to_json(value: Any, arrays: dict[str, Array], depth: int = 0) -> Any:
    """`value` for JSON; arrays in it go to `arrays` and leave their name behind.

    Raises:
        NotPlain: when something in it is not plain data.
    """
    if depth > 16:
        raise NotPlain("nested too deeply")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic | np.ndarray):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise NotPlain(str(array.dtype))
        name = f"plain/{len(arrays)}"
        return {"array": name, "dtype": _store(arrays, name, array), "scalar": isinstance(value, np.generic)}
    if type(value) in (list, tuple, set):
        return {type(value).__name__: [plain_to_json(item, arrays, depth + 1) for item in value]}
    if type(value) is dict:
        return {"dict": [[plain_to_json(k, arrays, depth + 1), plain_to_json(v, arrays, depth + 1)] for k, v in value.items()]}
    raise NotPlain(type(value).__name__)


def json_to_plain(value: Any, arrays: Mapping[str, Array]) -> Any:
    """What `plain_to_json` was given."""
    if not isinstance(value, dict):
        return value
    if "array" in value:
        array = _restore(arrays, value["array"], value["dtype"])
        return array[()] if value["scalar"] else array
    [(kind, items)] = value.items()
    if kind == "dict":
        return {json_to_plain(k, arrays): json_to_plain(v, arrays) for k, v in items}
    made = {"list": list, "tuple": tuple, "set": set}[kind]
    return made(json_to_plain(item, arrays) for item in items)
