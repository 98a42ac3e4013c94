"""Quota: how much of the disk the state folder may use.

Owns the quota, which leaves a part of the disk free for the records and for everybody else, and the words about a disk that
is full. What is removed to make room belongs to `usage`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiaas_magics.backend.folders.small_files import says_no_room, write_private
from aiaas_magics.core.errors import InvalidSpec, StoreNotWritable

# What stays free by default: whichever is less. Guess: records, logs and checkpoints of running jobs find room in it.
KEEP_FREE_BYTES: Final = 1024**3
KEEP_FREE_SHARE: Final = 0.05
RESERVE_BYTES: Final = 1024**2  # guess: the ends of some hundred jobs
START_BYTES: Final = 512 * 1024  # guess: an attempt's commands, pids and first events
UNITS: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(%|[KMGT]?B|)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class KeepFree:
    """What is to stay free of a disk: so many bytes, and of a small disk no more than this share."""

    bytes: float = KEEP_FREE_BYTES
    share: float = KEEP_FREE_SHARE

    @classmethod
    def parse(cls, text: str) -> KeepFree:
        """An amount ("2GB", "500 MB") or a share ("5%").

        >>> KeepFree.parse("2GB").of(10**12), KeepFree.parse("5%").of(10**12)
        (2000000000, 50000000000)

        Raises:
            InvalidSpec: it is neither.
        """
        match = AMOUNT.fullmatch(text.strip())
        if match is None or (match[2] == "%" and float(match[1]) > 100):
            raise InvalidSpec(f"{text[:40]!r} is not an amount of disk space. Use one like 2GB or 5%.")
        if match[2] == "%":
            return cls(float("inf"), float(match[1]) / 100)
        return cls(float(match[1]) * UNITS[match[2].upper()], 1.0)

    def of(self, total_bytes: int) -> int:
        return int(min(self.bytes, self.share * total_bytes))


@dataclass(frozen=True, slots=True)
class Room:
    """The disk that `folder` is on."""

    folder: Path
    keep_free: KeepFree = KeepFree()

    def free_bytes(self) -> int:
        """What may still be written, beyond what is to stay free; negative when that is touched already."""
        usage = shutil.disk_usage(self.folder)
        return usage.free - self.keep_free.of(usage.total)

    def hold_reserve(self) -> None:
        """Keep some of the disk for what must be recorded when it is full: that somebody cancelled a job, or stopped the server."""
        with contextlib.suppress(OSError):  # without it a full disk costs more, and nothing else
            if not self._reserve.exists() and self.free_bytes() > RESERVE_BYTES:
                write_private(self._reserve, os.urandom(RESERVE_BYTES))  # no file system makes that smaller

    def give_reserve(self) -> None:
        with contextlib.suppress(OSError):
            self._reserve.unlink(missing_ok=True)

    @property
    def _reserve(self) -> Path:
        return self.folder / "reserve"

    def check(self, wanted_bytes: int = 0) -> None:
        """Raises `StoreNotWritable` when so many bytes find no room, saying how many are missing."""
        usage = shutil.disk_usage(self.folder)
        keep = self.keep_free.of(usage.total)
        missing = wanted_bytes + keep - usage.free
        if missing > 0:
            request_text = f"{megabytes(wanted_bytes)} are wanted, " if wanted_bytes else ""
            raise StoreNotWritable(
                str(self.folder),
                f"no space left on its disk: {request_text}{megabytes(usage.free)} are free and {megabytes(keep)} are to stay free, "
                f"so {megabytes(missing)} are missing",
            )

    def check_start(self) -> None:
        """Raises `StoreNotWritable` when the first files of an attempt find no room; the quota is for what may wait, not for this."""
        free = shutil.disk_usage(self.folder).free
        if free < START_BYTES:
            why = f"no space left on its disk: {megabytes(free)} are free, {megabytes(START_BYTES)} are needed"
            raise StoreNotWritable(str(self.folder), why)


def megabytes(count: float) -> str:
    """>>> megabytes(1_500_000), megabytes(3_000_000_000), megabytes(4096)
    ('1.5 MB', '3 GB', '0 MB')
    """
    return f"{count / 1e9:,.3g} GB" if count >= 1e9 else f"{round(count / 1e6, 1):,g} MB"


def not_writable(folder: Path, why: str) -> StoreNotWritable:
    """The error for what the disk or the database said; of a full disk with how much is free."""
    if says_no_room(why):
        with contextlib.suppress(OSError):  # the folder is gone
            why += f" ({megabytes(shutil.disk_usage(folder).free)} are free there)"
    return StoreNotWritable(str(folder), why)
