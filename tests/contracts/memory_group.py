"""A control group of Linux whose processes get little memory, so that the kernel really ends one that takes more."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CGROUPS = Path("/sys/fs/cgroup")
REMOVE_S = 10.0


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """A group below this process' own; whoever writes its pid into `cgroup.procs` there may take `limit_bytes` more.

    Skips the test, with the reason, where none can be made.
    """
    own, limit = _own_group()
    group = own / f"aiaas-test-{secrets.token_hex(4)}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory group can be made below {own}: {error.strerror}")
    try:
        if not (group / limit).exists():
            pytest.skip(f"groups below {own} have no memory controller")
        (group / limit).write_text(str(limit_bytes))
        for swap in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
            if (group / swap).exists():
                (group / swap).write_text(str(limit_bytes if "memsw" in swap else 0))
        yield group
    finally:
        _remove(group)


def _own_group() -> tuple[Path, str]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        pytest.skip("this system has no control groups")
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return CGROUPS / "memory" / path.lstrip("/"), "memory.limit_in_bytes"
        if controllers == "" and (CGROUPS / "cgroup.controllers").exists():
            return CGROUPS / path.lstrip("/"), "memory.max"
    pytest.skip("no memory controller is mounted")


def _remove(group: Path) -> None:
    deadline = time.monotonic() + REMOVE_S
    while True:
        try:
            return group.rmdir()
        except OSError:  # a process of it is about to be reaped
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
