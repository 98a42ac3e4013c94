"""Recording: how much of an endpoint's traffic is kept, and a kept request as bytes.

Owns the policy, the counts, and the frames that the inference process appends to files, the server sends on and the client reads.
A frame has its length and a checksum in front, so that a reader finds where a file was cut off. Files belong to
`backend.folders.record_folder`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Final

import msgspec

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.value import Value

MB: Final = 1_000_000
DAY_S: Final = 86_400.0
LEAST_BYTES: Final = MB
MOST_BYTES: Final = 100_000 * MB
LEAST_AGE_S: Final = 60.0
MOST_AGE_S: Final = 3_660 * DAY_S
PARTS: Final = 16  # files that the bound on size is divided into: the oldest of them goes at once
_SIZES: Final = {"kb": 1_000, "mb": MB, "gb": 1_000 * MB}
_AGES: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": DAY_S}
_HEAD: Final = struct.Struct("<II")  # length, CRC-32


class RecordingPolicy(Value, frozen=True, kw_only=True):
    """What is kept of an endpoint's requests and answers.

    Args:
        share: The share of the requests, from 0 (off) to 1.
        most_bytes: Size of the files, in bytes. The oldest requests make room.
        most_age_s: Age of a request, in seconds, after which it is removed.

    Raises:
        InvalidSpec: a number out of range.

    >>> str(RecordingPolicy(share=0.01))
    '1% of requests, at most 64 MB and 30 days'
    """

    share: float = 0.0
    most_bytes: int = 64 * MB
    most_age_s: float = 30 * DAY_S

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InvalidSpec(f"share={self.share}: a share of the requests is between 0 and 1. Use 0.01 to start with.")
        if not LEAST_BYTES <= self.most_bytes <= MOST_BYTES:
            raise InvalidSpec(f"most_bytes={self.most_bytes}: between {LEAST_BYTES} and {MOST_BYTES} are possible. Use {64 * MB}.")
        if not LEAST_AGE_S <= self.most_age_s <= MOST_AGE_S:
            raise InvalidSpec(f"most_age_s={self.most_age_s}: between {LEAST_AGE_S:g} and {MOST_AGE_S:g} are possible. Use {30 * DAY_S:g}.")

    @property
    def is_on(self) -> bool:
        return self.share > 0

    @property
    def part_bytes(self) -> int:
        """Of a file, and the most of one request."""
        return self.most_bytes // PARTS

    def __str__(self) -> str:
        if not self.is_on:
            return "off"
        return f"{100 * self.share:.3g}% of requests, at most {self.most_bytes / MB:,.3g} MB and {_age_words(self.most_age_s)}"


def _age_words(age_s: float) -> str:
    for unit_s, unit in ((DAY_S, "day"), (3_600.0, "hour"), (60.0, "minute")):
        if age_s >= unit_s:
            return f"{age_s / unit_s:.3g} {unit}{'' if age_s == unit_s else 's'}"
    return f"{age_s:.3g} s"


def policy_of(text: str, before: RecordingPolicy | None = None) -> RecordingPolicy:
    """A policy as it is typed: a share of the requests, and after commas bounds on size and age; or "off".

    Args:
        before: the policy whose bounds hold where `text` names none; None for the defaults.

    Raises:
        InvalidSpec: it is none of these.

    >>> policy_of("1%,256MB,7d")
    RecordingPolicy(share=0.01, most_bytes=256000000, most_age_s=604800.0)
    """
    before = before or RecordingPolicy()
    share, *bounds = text.strip().lower().split(",")
    changes: dict[str, float | int] = {"share": 0.0 if share == "off" else _share(share, text)}
    for bound in bounds:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(kb|mb|gb|s|m|h|d)", bound, re.ASCII)
        if match is None:
            raise _not_understood(text)
        number, unit = float(match[1]), match[2]
        changes |= {"most_bytes": int(number * _SIZES[unit])} if unit in _SIZES else {"most_age_s": number * _AGES[unit]}
    return msgspec.structs.replace(before, **changes)


def _share(share: str, text: str) -> float:
    try:
        fraction = float(share.removesuffix("%")) / (100 if share.endswith("%") else 1)
    except ValueError:
        fraction = -1.0
    if not 0 < fraction <= 1:
        raise _not_understood(text)
    return fraction


def _not_understood(text: str) -> InvalidSpec:
    return InvalidSpec(f"{text[:80]!r} does not say what to record. Use a share of the requests such as 1%, or 1%,256MB,7d, or off.")


class RecordingCounts(Value, frozen=True, kw_only=True):
    """What is recorded of an endpoint now. `dropped` and `too_large` count since its process began."""

    policy: RecordingPolicy = RecordingPolicy()
    requests: int = 0
    rows: int = 0
    bytes: int = 0  # of the files
    oldest_s: float | None = None  # unix time
    newest_s: float | None = None  # unix time
    dropped: int = 0  # chosen, and not written: too many were waiting, or the disk was full
    too_large: int = 0  # chosen, and a single row is larger than a file may be

    def __str__(self) -> str:
        lost = [f"{self.dropped:,} dropped"] if self.dropped else []
        lost += [f"{self.too_large:,} too large"] if self.too_large else []
        return ", ".join([f"{self.requests:,} requests with {self.rows:,} rows in {self.bytes / MB:.3g} MB", *lost])


class RecordedTensor(msgspec.Struct, frozen=True, array_like=True):
    """An array of one request. `dtype` is numpy's name, or "string" with the texts one after the other as `lengths` says."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes
    lengths: tuple[int, ...] = ()


class RecordedRequest(msgspec.Struct, frozen=True, array_like=True):
    """A request with its answer. Nothing of its head is here: no header, no token, no address."""

    time_s: float  # unix time of the answer
    version: int
    id: str  # the caller's own, where the protocol has one
    rows: int  # that are here
    rows_of: int  # that the request had
    inputs: tuple[RecordedTensor, ...]
    outputs: tuple[RecordedTensor, ...]


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(RecordedRequest)


def frame_of(request: RecordedRequest) -> bytes:
    """
    >>> frame = frame_of(RecordedRequest(0.0, 1, "a", 0, 0, (), ()))
    >>> [request.id for request, _ in requests_in(frame + frame[:-1])]
    ['a']
    """
    payload = _encoder.encode(request)
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def frames_in(data: bytes | memoryview) -> Iterator[memoryview]:
    """The whole frames at the start of `data`, each with its head; what comes behind the first that is cut off or damaged is left."""
    view, place = memoryview(data), 0
    while place + _HEAD.size <= len(view):
        length, checksum = _HEAD.unpack_from(view, place)
        end = place + _HEAD.size + length
        if length == 0 or end > len(view) or zlib.crc32(view[place + _HEAD.size : end]) != checksum:
            return
        yield view[place:end]
        place = end


def requests_in(data: bytes | memoryview) -> Iterator[tuple[RecordedRequest, int]]:
    """The requests in the whole frames at the start of `data`, each with its frame's bytes."""
    for frame in frames_in(data):
        try:
            yield _decoder.decode(frame[_HEAD.size :]), len(frame)
        except msgspec.MsgspecError:  # of another release
            continue
