"""Process identity: a pid together with the mark of its start, since a pid alone may be another process tomorrow.

Owns the mark, and whether the process with a pid and a mark still runs. Where they are kept belongs to whoever asks.
"""

from __future__ import annotations

import functools
import sys
import zlib
from pathlib import Path
from typing import Final

import msgspec
import psutil

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
TICK_BITS: Final = 40  # 348 years at 100 ticks a second; a mark, with 23 bits of the boot, is a positive int64


class ProcessId(msgspec.Struct, frozen=True, kw_only=True):
    """A process of this boot: a pid alone may be another process tomorrow."""

    pid: int
    started: int  # see `start_mark`

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The identity of a living process; raises `psutil.NoSuchProcess`."""
        return cls(pid=pid, started=start_mark(pid))

    def is_alive(self) -> bool:
        """Whether this very process still runs; one that is dead but not yet reaped does not."""
        return is_alive(self.pid, started=self.started)

    def stopped_after_s(self) -> float | None:
        """The CPU time it had when somebody stopped it (SIGSTOP), so that it does nothing until it is told to go on.

        None of one that is not stopped. A debugger's stop is none.
        """
        try:
            process = psutil.Process(self.pid)
            return sum(process.cpu_times()[:2]) if process.status() == psutil.STATUS_STOPPED else None
        except psutil.Error:
            return None


def start_mark(pid: int) -> int:
    """A number that no other process with this pid has, the same for whoever asks and whenever.

    On Linux the ticks since the boot at which it started, and which boot that was. psutil's create time moves there
    whenever somebody sets the clock, since it rests on a boot time that is worked out from the clock.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    return _looked_at(pid)[0]


def is_alive(pid: int, *, started: int) -> bool:
    """Whether the process with this pid and this mark of its start runs; one that is dead but not yet reaped does not."""
    try:
        mark, ended = _looked_at(pid)
    except psutil.Error:
        return False
    return mark == started and not ended


def _looked_at(pid: int) -> tuple[int, bool]:
    """The mark of its start, and whether it has ended and waits to be reaped."""
    if sys.platform != "linux":
        process = psutil.Process(pid)
        return round(process.create_time() * 1000), process.status() == psutil.STATUS_ZOMBIE  # the system keeps it as a time
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error
    fields = line.rpartition(b")")[2].split()  # from the third on (proc(5)); the second is a name, which may hold spaces and parentheses
    return _boot() << TICK_BITS | int(fields[19]), fields[0] in (b"Z", b"X")


@functools.cache
def _boot() -> int:
    """Which boot this is: every boot starts the same daemons, with much the same pids, after much the same time."""
    try:
        return zlib.crc32(BOOT_ID.read_bytes()) >> 9
    except OSError:  # some sandboxes do not show it
        return 0
