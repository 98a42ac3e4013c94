"""Wire format: values to bytes and back.

Owns the encoding (JSON, through msgspec) and the protocol's number. What a value
means belongs to `spec`; how bytes travel belongs to `client.transport` and `backend.server`.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

PROTOCOL: Final = 1

T = TypeVar("T")


class Malformed(ValueError):
    """Bytes that are not the value they should be. The text names the field."""


def encode(value: Any) -> bytes:
    """`value` as JSON bytes; raises `TypeError` for what is no value of `spec`."""
    return msgspec.json.encode(value)


def decode(data: bytes | memoryview, of: type[T]) -> T:
    """The value of type `of` that `data` holds.

    Raises:
        Malformed: naming the first field that is wrong.
    """
    try:
        return msgspec.json.decode(data, type=of)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"{of}: {error}") from error
