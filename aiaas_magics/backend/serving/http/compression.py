"""Compression: large answers for callers who accept it, and compressed bodies of requests.

Owns when that pays, the encodings that both sides know, and how large a body may become.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import Final

import msgspec

from aiaas_magics.backend.serving.protocols import BadValue, Request, Response

# Measured on one core: level 1 packs 100 MB of JSON floats a second to 0.47 of their size (level 6: 15 MB to 0.42), which pays on
# a line slower than some 400 Mbit/s. Below this size an answer is a few packets, and the line's latency is what counts: guess.
LARGE: Final = 64 * 1024
LEVEL: Final = 1
PROBE: Final = 16 * 1024  # guess: enough to see whether the bytes shrink
WORTH: Final = 0.8  # random floats in binary keep 0.9 of their size at 40 MB a second, which pays nowhere
WINDOWS: Final[Mapping[str, int]] = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
ACCEPTED: Final = re.compile(r"\s*([\w*-]+)\s*(?:;\s*q=([0-9.]+)\s*)?", re.ASCII)


class TooLarge(Exception):
    """A body that would take more memory than may be used for it."""


def encoding_for(request: Request, response: Response) -> str | None:
    """What to compress the answer with; None for a small one, and for a caller who does not ask."""
    if len(response.body) < LARGE:
        return None
    accepted = request.header(b"accept-encoding")
    if accepted is None:
        return None
    matches = [ACCEPTED.fullmatch(word) for word in accepted.decode("latin-1").lower().split(",")]
    willing = {match[1] for match in matches if match is not None and match[2] not in ("0", "0.0", "0.00", "0.000")}
    return next((name for name in WINDOWS if name in willing), None)


def compressed(response: Response, encoding: str) -> Response:
    """The answer in this encoding, or as it is where that saves nothing. Takes milliseconds: not for the event loop."""
    if len(_packed(response.body[:PROBE], encoding)) > WORTH * PROBE:
        return response
    headers = (*response.headers, (b"content-encoding", encoding.encode()), (b"vary", b"accept-encoding"))
    return msgspec.structs.replace(response, body=_packed(response.body, encoding), headers=headers)


def unpacked(body: bytes, encoding: bytes, *, most: int, move: str = "Send fewer rows at once.") -> bytes:
    """A request's body as it was before it was encoded. May take a while: not for the event loop.

    Raises:
        BadValue: it is not in that encoding, or the encoding is not known here.
        TooLarge: it would become larger than `most` bytes.
    """
    name = encoding.decode("latin-1").strip().lower()
    if name == "identity":
        return body
    window = WINDOWS.get(name)
    if window is None:
        raise BadValue(f"Content-Encoding {name[:40]!r} is not read here. Send gzip, deflate, or the body as it is.", 415)
    unpacker = zlib.decompressobj(window)
    try:
        whole = unpacker.decompress(body, most + 1)
    except zlib.error as fault:
        raise BadValue(f"The body is not {name}: {fault}") from fault
    if len(whole) > most:
        raise TooLarge(f"The body has more than {most} bytes when it is unpacked. {move}")
    if not unpacker.eof or unpacker.unused_data:
        raise BadValue(f"The body is not one whole {name} stream. Check how it was compressed.")
    return whole


def _packed(data: bytes, encoding: str) -> bytes:
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, WINDOWS[encoding])
    return packer.compress(data) + packer.flush()
