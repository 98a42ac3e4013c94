"""Checkpoint contents: the files of a checkpoint, written and read.

Owns the files' contents. No pickle: arrays are safetensors, the rest is JSON. The folder around them
is `checkpoint_folder`'s, what to put in is `training_state`'s, when to write is `checkpoint_callback`'s, and which one to
go on from the server's.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError
from safetensors.numpy import load_file, save, save_file

from aiaas_magics.backend.folders import checkpoint_folder
from aiaas_magics.backend.folders.checkpoint_folder import STATE, TrainingPosition
from aiaas_magics.backend.folders.small_files import says_no_room
from aiaas_magics.packing.live import plain_json

Array = npt.NDArray[Any]

FORMAT: Final = 3
VARIABLES: Final = "variables.safetensors"
NATIVE: Final = frozenset({"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float32", "float64"})
TOLD: Final = "told"  # the JSON of a rank's own state, among its arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackState:
    """The plain attributes of a callback of the user's; `left` names those that are not plain and were left."""

    kind: str  # the class' name
    attributes: Mapping[str, Any]
    left: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where training stands. `variables` are rank 0's, `callbacks` are in the order of the user's.

    `ranks` has what each rank keeps of its own, as bytes that `encode_own` made.
    """

    place: TrainingPosition
    variables: Sequence[Array]
    paths: Sequence[str] = ()  # a name for each variable
    history: Mapping[str, list[Any]] = field(default_factory=dict)
    epochs_done: Sequence[int] = ()
    callbacks: Sequence[CallbackState] = ()
    ranks: Sequence[bytes] = ()
    stopped: bool = False  # a callback ended the training here


def write(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` below `folder` and remove all but the newest few. Returns its own folder.

    Raises:
        OSError: it could not be written; those before it are as they were.
    """
    arrays = list(checkpoint.variables)
    callbacks = [
        {"kind": state.kind, "attributes": plain_json.encode(dict(state.attributes), arrays), "left": list(state.left)}
        for state in checkpoint.callbacks
    ]
    history = plain_json.encode_history(checkpoint.history, arrays)
    state = {
        "format": FORMAT,
        "epoch": checkpoint.place.epoch,
        "step": checkpoint.place.step,
        "variables": [
            {"name": path, "dtype": array.dtype.name, "shape": list(array.shape)}
            for path, array in zip(checkpoint.paths or [""] * len(checkpoint.variables), checkpoint.variables, strict=True)
        ],
        "dtypes": [_name(array.dtype) for array in arrays],
        "history": history,
        "epochs_done": list(checkpoint.epochs_done),
        "callbacks": callbacks,
        "ranks": len(checkpoint.ranks),
        "stopped": checkpoint.stopped,
    }
    with checkpoint_folder.written(folder, checkpoint.place) as path:
        try:
            save_file({str(place): _bits(array) for place, array in enumerate(arrays)}, path / VARIABLES)
        except SafetensorError as error:  # of a full disk it speaks in its own class
            raise OSError(errno.ENOSPC if says_no_room(str(error)) else errno.EIO, str(error)) from error
        (path / STATE).write_text(json.dumps(state), encoding="utf-8")
        for rank, own in enumerate(checkpoint.ranks):
            (path / _own(rank)).write_bytes(own)
    return folder / checkpoint.place.name


def load(path: Path) -> Checkpoint | None:
    """The checkpoint in the folder `path`; None when it is damaged, or not one of ours."""
    if not checkpoint_folder.is_whole(path):
        return None
    state = checkpoint_folder.state_in(path)
    if state["format"] != FORMAT:
        return None
    files = load_file(path / VARIABLES)
    arrays = [_from_bits(files[str(place)], dtype) for place, dtype in enumerate(state["dtypes"])]
    return Checkpoint(
        place=TrainingPosition(state["epoch"], state["step"]),
        variables=arrays[: len(state["variables"])],
        paths=[variable["name"] for variable in state["variables"]],
        history=plain_json.decode_history(state["history"], arrays),
        epochs_done=state["epochs_done"],
        callbacks=[
            CallbackState(kind=callback["kind"], attributes=plain_json.decode(callback["attributes"], arrays), left=callback["left"])
            for callback in state["callbacks"]
        ],
        ranks=[(path / _own(rank)).read_bytes() for rank in range(state["ranks"])],
        stopped=state["stopped"],
    )


def encode_own(state: Mapping[str, Any]) -> bytes:
    """What one rank keeps of its own, as bytes: plain data with arrays in it."""
    arrays: list[Array] = []
    text = json.dumps({"state": plain_json.encode(dict(state), arrays), "dtypes": [_name(array.dtype) for array in arrays]})
    numbered = {str(place): _bits(array) for place, array in enumerate(arrays)}
    data: bytes = save({TOLD: np.frombuffer(text.encode(), dtype=np.uint8), **numbered})
    return data


def decode_own(data: bytes) -> dict[str, Any]:
    """What `encode_own` was given."""
    files = safetensors.numpy.load(data)
    header = json.loads(files[TOLD].tobytes())
    arrays = [_from_bits(files[str(place)], dtype) for place, dtype in enumerate(header["dtypes"])]
    state: dict[str, Any] = plain_json.decode(header["state"], arrays)
    return state


def _own(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def _bits(array: Array) -> Array:
    """What safetensors can keep: other kinds (bfloat16, texts, times) go in as their bytes."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.name in NATIVE:
        return array
    return np.frombuffer(array.tobytes(), np.uint8).reshape(*array.shape, array.dtype.itemsize)


def _from_bits(array: Array, dtype: str) -> Array:
    if array.dtype.name == dtype:
        return array
    return np.frombuffer(array.tobytes(), _named(dtype)).reshape(array.shape[:-1]).copy()


def _name(dtype: np.dtype[Any]) -> str:
    return dtype.str if dtype.kind in "SUMm" else dtype.name


def _named(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes  # comes with TensorFlow

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return dtype


def plain_attributes(thing: Any, *, leave_out: frozenset[str]) -> dict[str, Any]:
    """The attributes of `thing` that are plain data through and through: numbers, text, arrays, lists and dicts of them."""
    arrays: list[Array] = []
    attributes = plain_json.plain_attributes(thing, arrays)
    return {name: plain_json.decode(value, arrays) for name, value in attributes.items() if name not in leave_out}
