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

from aiaas_magics.packing import plain

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
    arrays = list(checkpoint.variables)
    callbacks = [plain.encode(dict(state), arrays) for state in checkpoint.callbacks]
    state = {
        "format": FORMAT,
        "epoch": checkpoint.epoch,
        "variables": len(checkpoint.variables),
        "dtypes": [array.dtype.name for array in arrays],
        "history": {name: list(values) for name, values in checkpoint.history.items()},
        "epochs_done": list(checkpoint.epochs_done),
        "callbacks": callbacks,
        "stopped": checkpoint.stopped,
    }
    save_file({str(place): _bits(array) for place, array in enumerate(arrays)}, partial / VARIABLES)
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
    files = load_file(path / VARIABLES)
    arrays = [_from_bits(files[str(place)], dtype) for place, dtype in enumerate(state["dtypes"])]
    return Checkpoint(
        epoch=state["epoch"],
        variables=arrays[: state["variables"]],
        history=state["history"],
        epochs_done=state["epochs_done"],
        callbacks=[plain.decode(callback, arrays) for callback in state["callbacks"]],
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


def _bits(array: Array) -> Array:
    """What safetensors can keep: its numpy side does not know bfloat16 and its relatives, which travel as integers."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


def _from_bits(array: Array, dtype: str) -> Array:
    if array.dtype.name == dtype:
        return array
    import ml_dtypes  # comes with TensorFlow

    return array.view(getattr(ml_dtypes, dtype))


def plain_attributes(thing: Any, *, leave_out: frozenset[str]) -> dict[str, Any]:
    """The attributes of `thing` that are plain data through and through: numbers, text, arrays, lists and dicts of them."""
    arrays: list[Array] = []
    found = plain.plain_attributes(thing, arrays)
    return {name: plain.decode(value, arrays) for name, value in found.items() if name not in leave_out}
