"""Plain text: other people's text made safe to show, its control characters visible.

Owns which characters those are and how they are written. A terminal obeys ESC, CSI and their kin: a job's name could set its title, write
its clipboard or clear it; characters that turn the direction of writing make one name look like another. Newlines and tabs stay.
"""

from __future__ import annotations

import logging
import re
from typing import Final, TextIO

# C0 but tab and newline, DEL, C1; line and paragraph separators, embeddings, overrides and isolates of direction (UAX 9).
_CONTROLS: Final = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
_UNSAFE: Final = re.compile(f"[{_CONTROLS}]")
_RAW: Final = rb"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]"  # in UTF-8; C0 in a string is no JSON
_UNSAFE_BYTES: Final = re.compile(_RAW + rb"|\\(?:[bfr]|u00[0189]|u007[fF]|u20[26])")
# One character of a JSON string that may have to be written in another way: an escape, whole, so that an escaped backslash is passed over.
_TOKEN: Final = re.compile(rb"\\(?:u[0-9a-fA-F]{4}|.)|" + _RAW, re.DOTALL)
_SHORT: Final = {b"\\b": "\b", b"\\f": "\f", b"\\r": "\r"}
_ENDS: Final = (b'"', b"\\n")  # of a line: a carriage return before them moves nothing that matters


def visible(text: str) -> str:
    """
    >>> visible("churn\\x1b]0;OWNED\\x07")
    'churn\\\\x1b]0;OWNED\\\\x07'
    """
    return _UNSAFE.sub(lambda match: _escaped(match[0]), text)


def visible_json(data: bytes) -> bytes:
    """The same for every string in JSON, before it is decoded. What has no such character is given back as it is.

    >>> visible_json(b'["a\\\\u001b[2J", "b\\\\\\\\u001b"]')
    b'["a\\\\\\\\x1b[2J", "b\\\\\\\\u001b"]'
    """
    if _UNSAFE_BYTES.search(data) is None:
        return data

    def rewritten(match: re.Match[bytes]) -> bytes:
        token = match[0]
        if token[:1] != b"\\":
            character = token.decode(errors="replace")
        elif token[1:2] == b"u":
            character = chr(int(token[2:], 16))
        else:
            character = _SHORT.get(token, "")
        if character == "\r" and data.startswith(_ENDS, match.end()):
            return b""
        return b"\\" + _escaped(character).encode() if character and _UNSAFE.fullmatch(character) else token

    return _TOKEN.sub(rewritten, data)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Formatter(logging.Formatter):
    """A log's lines: each message is one line, whatever paths and names are in it. Tracebacks keep theirs."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = visible(record.message).replace("\n", "\\n")
        return super().formatMessage(record)


def log_to(stream: TextIO, format: str) -> None:
    """Log from INFO up to `stream`, in `format`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Formatter(format))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
