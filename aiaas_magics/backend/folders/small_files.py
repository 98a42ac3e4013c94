"""Small files: written whole or not at all, and opened only if they are plain files.

Owns the one way to write them, and the one way to open a file that somebody else wrote: a worker runs the user's code,
which may leave a link, a pipe or a device where a file is expected. Blobs and checkpoints, which are large, are written
in their own ways.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

T = TypeVar("T")

ROOM_LOOK_S = 0.2
NO_ROOM = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
NO_ROOM_WORDS = ("No space left on device", "Disk quota exceeded", "database or disk is full", "no space left on its disk")
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a pipe waits for its other end


class NotPlainFile(Exception):
    """A file that is not what it should be. The argument is a clause with the file as its subject."""


def open_plain(path: Path, flags: int = os.O_RDONLY, *, most_bytes: int | None = None, links: int | None = 1) -> BinaryIO:
    """The regular file `path`, open for reading; never a link, pipe or device, and nothing waits for it.

    Args:
        most_bytes: the file may not be larger.
        links: how many names the file may have; None for any number.

    Raises:
        NotPlain: it is something else, is too large, or has other names.
        OSError: it cannot be opened.
    """
    try:
        if not NO_LINK and os.path.islink(path):
            raise NotPlainFile("is a link")
        descriptor = os.open(path, flags | NO_LINK | NO_WAIT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if os.path.islink(path):
            raise NotPlainFile("is a link") from error
        raise
    file = open(descriptor, "rb" if flags == os.O_RDONLY else "r+b", buffering=0)  # noqa: SIM115 - it is the caller's to close
    try:
        _check_plain(os.fstat(descriptor), most_bytes, links)
    except BaseException:
        file.close()
        raise
    return file


def _check_plain(status: os.stat_result, most_bytes: int | None, links: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotPlainFile("is not a regular file")
    if links is not None and status.st_nlink > links:  # 0 of a file that was removed since
        raise NotPlainFile("has another name elsewhere (a hard link)")
    if most_bytes is not None and status.st_size > most_bytes:
        raise NotPlainFile(f"has {status.st_size:,} bytes, and {most_bytes:,} are the most")


def read_plain(path: Path, *, most_bytes: int, links: int | None = 1) -> bytes:
    """What the regular file `path` holds; see `open_plain`."""
    with open_plain(path, most_bytes=most_bytes, links=links) as file:
        data = b""
        while piece := file.read(most_bytes + 1 - len(data)):
            data += piece
    if len(data) > most_bytes:  # it grows while it is read
        raise NotPlainFile(f"has more than {most_bytes:,} bytes")
    return data


def is_no_room(error: BaseException) -> bool:
    """Whether `error` says that a disk, or the account's part of it, is full."""
    return getattr(error, "errno", None) in NO_ROOM or says_no_room(str(error))


def says_no_room(text: str) -> bool:
    """The same of the text of an error; libraries keep no more than that (safetensors, TensorFlow, HDF5)."""
    return any(words in text for words in NO_ROOM_WORDS)


def when_there_is_room(work: Callable[[], T]) -> T:
    """What `work` gives; on a full disk it is tried again until there is room."""
    while True:
        try:
            return work()
        except OSError as error:
            if not is_no_room(error):
                raise
            time.sleep(ROOM_LOOK_S)


def write_private(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write `path`, 0600, so that a reader sees the old bytes or the new ones, never half.

    Args:
        durable: the bytes outlive a power cut when this returns.
    """
    # Two threads may write the same file at once.
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    fresh.replace(path)
