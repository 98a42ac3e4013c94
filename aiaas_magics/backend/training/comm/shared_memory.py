"""Shared memory: a segment that several processes of one machine map.

Owns making, finding and unnaming it. POSIX shared memory where there is enough of it
(`/dev/shm` is 64 MB in many containers), a mapped file in the attempt's folder otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from pathlib import Path
from typing import Final

SHARED_MEMORY: Final = Path("/dev/shm")  # where POSIX shared memory is files (Linux)


class Segment:
    """A mapped file. It stays mapped after `forget`, and goes with the last process that has it."""

    def __init__(self, path: Path, nbytes: int, descriptor: int) -> None:
        self._path = path
        self._map = mmap.mmap(descriptor, nbytes)
        self.view = memoryview(self._map)

    def forget(self) -> None:
        """Take the name away, so that nothing is left when the processes end, however they end."""
        with contextlib.suppress(FileNotFoundError, PermissionError):  # Windows keeps the name of what is mapped
            self._path.unlink()


def create_segment(name: str, nbytes: int, *, fallback: Path) -> Segment:
    """A segment of zeros, whole when others see it. Its pages exist: there is no fault for want of memory later."""
    error: OSError | None = None
    for folder in _folders(fallback):
        partial = folder / f"{name}.part"
        try:
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as problem:
            error = problem
            continue
        try:
            _allocate(descriptor, nbytes)
            segment = Segment(folder / name, nbytes, descriptor)
            partial.rename(folder / name)
            return segment
        except OSError as problem:
            partial.unlink(missing_ok=True)
            if problem.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
                raise
            error = problem
        finally:
            os.close(descriptor)
    assert error is not None
    raise error


def find_segment(name: str, nbytes: int, *, fallback: Path) -> Segment | None:
    """The segment that another process made under `name`; None while there is none."""
    for folder in _folders(fallback):
        try:
            descriptor = os.open(folder / name, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            return Segment(folder / name, nbytes, descriptor)
        finally:
            os.close(descriptor)
    return None


def _folders(fallback: Path) -> list[Path]:
    return [SHARED_MEMORY, fallback] if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK) else [fallback]


def _allocate(descriptor: int, nbytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, nbytes)
    else:
        os.ftruncate(descriptor, nbytes)
