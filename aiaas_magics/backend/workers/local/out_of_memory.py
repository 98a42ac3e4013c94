"""Out of memory: counts the processes that the kernel killed for memory.

Owns reading the kernel's counters. The kernel kills with the same signal as anybody
else; only its count of such kills tells the difference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")


def kills() -> int:
    """How many processes the kernel has ended for memory so far, here; 0 where it does not tell."""
    return sum(_counter(path) for path in (Path("/proc/vmstat"), *_cgroup_files()))


def _cgroup_files() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        inside = path.lstrip("/")
        if controllers == "":
            files.append(_nearest(CGROUPS, inside, "memory.events"))
        elif "memory" in controllers.split(","):
            files.append(_nearest(CGROUPS / "memory", inside, "memory.oom_control"))
    return [file for file in files if file is not None]


def _nearest(root: Path, inside: str, name: str) -> Path | None:
    """In a container the path in /proc is the host's, and the group itself is mounted at the root."""
    return next((file for file in (root / inside / name, root / name) if file.exists()), None)


def _counter(path: Path) -> int:
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    except (OSError, ValueError):
        pass
    return 0
