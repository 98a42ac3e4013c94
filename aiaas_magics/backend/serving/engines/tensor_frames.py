"""Tensor frames: tensors through a socket, a JSON header and then raw bytes.

Owns the frame that a SavedModel's process and its parent exchange. Nothing here is ever
executed on arrival: numbers travel as they lie in memory, strings as base64, and a frame that
lies about its sizes is refused.

    <4 bytes: length of the header, little-endian> <header> <the tensors' bytes, one after the other>
    header: {"say": "...", "text": "...", "tensors": [{"name", "dtype", "shape", "strings"?}]}
"""

from __future__ import annotations

import base64
import math
import socket
import struct
from collections.abc import Mapping
from typing import Final

import numpy as np

from aiaas_magics.core import wire
from aiaas_magics.core.value import Value

HEADER_BYTES: Final = 256 * 1024 * 1024  # guess: strings travel in the header; four times the largest body
NUMERIC: Final = frozenset("biufc")


class Tensor(Value, frozen=True, kw_only=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    strings: tuple[str, ...] | None = None  # base64


class Header(Value, frozen=True, kw_only=True):
    say: str
    text: str = ""
    tensors: tuple[Tensor, ...] = ()


class BrokenFrame(Exception):
    """The other end is gone, or does not speak this language."""


def send(to: socket.socket, say: str, *, text: str = "", tensors: Mapping[str, np.ndarray] | None = None) -> None:
    described, raw = [], []
    for name, tensor in (tensors or {}).items():
        array = np.asarray(tensor)
        if array.dtype.kind in "OSU":
            strings = tuple(base64.b64encode(v if isinstance(v, bytes) else str(v).encode()).decode() for v in array.ravel())
            described.append(Tensor(name=name, dtype="string", shape=array.shape, strings=strings))
        else:
            described.append(Tensor(name=name, dtype=array.dtype.name, shape=array.shape))
            raw.append(np.ascontiguousarray(array))
    header = wire.encode(Header(say=say, text=text, tensors=tuple(described)))
    try:
        to.sendall(struct.pack("<I", len(header)) + header)
        for array in raw:
            to.sendall(array.reshape(-1).view(np.uint8).data)
    except OSError as error:
        raise BrokenFrame(str(error)) from error


def receive(source: socket.socket) -> tuple[str, str, dict[str, np.ndarray]]:
    """What is said, its text, and the tensors.

    Raises:
        BrokenFrame: the connection ended, or what came is no frame.
    """
    (length,) = struct.unpack("<I", _exactly(source, 4))
    if length > HEADER_BYTES:
        raise BrokenFrame(f"a header of {length} bytes")
    try:
        header = wire.decode(bytes(_exactly(source, length)), Header)
    except wire.Malformed as error:
        raise BrokenFrame(str(error)) from error
    return header.say, header.text, {tensor.name: _tensor(source, tensor) for tensor in header.tensors}


def _tensor(source: socket.socket, tensor: Tensor) -> np.ndarray:
    count = math.prod(tensor.shape)
    if tensor.strings is not None:
        if len(tensor.strings) != count:
            raise BrokenFrame(f"{tensor.name} has {len(tensor.strings)} strings for the shape {tensor.shape}")
        strings = np.empty(count, dtype=object)
        strings[:] = [base64.b64decode(text) for text in tensor.strings]
        return strings.reshape(tensor.shape)
    dtype = np.dtype(tensor.dtype)
    if dtype.kind not in NUMERIC:
        raise BrokenFrame(f"{tensor.name} is of dtype {tensor.dtype}")
    return np.frombuffer(_exactly(source, count * dtype.itemsize), dtype).reshape(tensor.shape)


def _exactly(source: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        try:
            received = source.recv_into(view)
        except OSError as error:
            raise BrokenFrame(str(error)) from error
        if received == 0:
            raise BrokenFrame("the other end is gone")
        view = view[received:]
    return data
