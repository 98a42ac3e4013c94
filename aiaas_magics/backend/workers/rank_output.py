"""Rank output: streams for what a rank prints, onto a disk that may be full.

Owns the streams. `print` of the user's, or of Keras' progress bar, must not end a training because a line of it finds no room.
"""

from __future__ import annotations

import io
from typing import TextIO

from aiaas_magics.backend.folders.small_files import is_no_room


class _Lossy(io.FileIO):
    """A file that takes what finds no room, and loses it."""

    def write(self, data, /) -> int:  # type: ignore[no-untyped-def]
        try:
            return super().write(data)
        except OSError as error:
            if not is_no_room(error):
                raise
            return len(memoryview(data).cast("B"))


def text_output(descriptor: int) -> TextIO:
    """Standard output or error, line by line."""
    raw = _Lossy(descriptor, "wb", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
