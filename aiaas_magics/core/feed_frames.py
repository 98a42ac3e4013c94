"""Feed frames: the batches that a kernel sends to a job as bytes, and how far the job has read.

Owns the layout: a letter for what it is, then the tensors it consists of, each with its length. Whoever sends
tensors serializes each of them by itself; how they lie in an element is known beforehand.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from aiaas_magics.core.value import Value

_COUNT: Final = struct.Struct("<cI")
_LENGTH: Final = struct.Struct("<Q")


class FrameKind(StrEnum):
    BATCH = "b"
    END = "e"  # of a pass over the data
    FAILED = "f"  # the data raised; the one part is the sentence


class FeedView(Value, frozen=True, kw_only=True):
    """How a job reads data that a kernel sends it batch by batch."""

    open: bool  # whether the job may still read any
    reading: int  # which pass over the data it is in, from 0; -1 before the first
    waiting: int  # batches of that pass that it has not read yet

    def __str__(self) -> str:
        return f"{self.reading}.{self.waiting}" if self.open else "closed"


def encode(kind: FrameKind, parts: Sequence[bytes] = ()) -> bytes:
    """
    >>> decode(encode(FrameKind.BATCH, [b"x", b""]))
    (<FrameKind.BATCH: 'b'>, [b'x', b''])
    """
    lengths = b"".join(_LENGTH.pack(len(part)) for part in parts)
    return b"".join((_COUNT.pack(kind.value.encode(), len(parts)), lengths, *parts))


def decode(frame: bytes) -> tuple[FrameKind, list[bytes]]:
    letter, count = _COUNT.unpack_from(frame)
    begin = _COUNT.size + count * _LENGTH.size
    parts = []
    for place in range(count):
        (length,) = _LENGTH.unpack_from(frame, _COUNT.size + place * _LENGTH.size)
        parts.append(frame[begin : begin + length])
        begin += length
    return FrameKind(letter.decode()), parts
