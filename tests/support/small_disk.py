"""A small disk of its own for a test, and filling it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MOUNTS = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="a small disk is mounted, which only root may")


@contextmanager
def small_disk(folder: Path, *, megabytes: int = 40) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Inside, not one byte finds room on the disk, as long as nothing on it is removed."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
        try:
            yield
        finally:
            filler.unlink()
            file.truncate(0)
