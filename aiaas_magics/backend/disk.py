"""Small files of ours: read whole or not at all, and by nobody else.

Owns the one way to write them. Blobs and checkpoints, which are large, have their own.
"""

from __future__ import annotations

import os
from pathlib import Path


def write_private(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write `path`, 0600, so that a reader sees the old bytes or the new ones, never half.

    Args:
        durable: the bytes outlive a power cut when this returns.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    fresh.replace(path)
