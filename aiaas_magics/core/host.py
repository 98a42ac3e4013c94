"""Host: the cores and the memory that this process may use, and the name of the processor.

Owns reading them, cgroup limits included. Which worker gets which core belongs to `jobs.placement`.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
from pathlib import Path
from typing import Final

import psutil

CGROUPS: Final = Path("/sys/fs/cgroup")


def usable_cores() -> tuple[int, ...]:
    """The cores that this process may run on, as many of them as its quota is worth; at least one."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    quota = cpu_quota()
    count = len(allowed) if quota is None else max(1, min(len(allowed), math.floor(quota + 0.01)))
    return tuple(allowed[:count])


def cpu_quota(root: Path = CGROUPS) -> float | None:
    """How many cores' worth of time the cgroup grants (v2, then v1); None without a limit."""
    with contextlib.suppress(OSError, ValueError):
        limit, period = (root / "cpu.max").read_text(encoding="ascii").split()
        return None if limit == "max" else int(limit) / int(period)
    with contextlib.suppress(OSError, ValueError):
        limit_us = int((root / "cpu" / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period_us = int((root / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return None if limit_us <= 0 else limit_us / period_us
    return None


def memory_bytes(root: Path = CGROUPS) -> int:
    """The machine's memory, or the cgroup's limit where that is less."""
    total = int(psutil.virtual_memory().total)
    for file in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(file.read_text(encoding="ascii")))
    return total


def cpu_name() -> str:
    """The processor in one line, as the system names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].replace("(R)", "").replace("(TM)", "").split())
    return platform.processor() or platform.machine() or "unknown processor"
