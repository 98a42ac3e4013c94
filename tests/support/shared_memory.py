"""Shared memory: which segments of jobs stand on this machine, and a check that a test left none."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Final

from tests.support import waiting

FOLDER: Final = Path("/dev/shm")  # not there on macOS and Windows, where segments are no files
WAIT_S: Final = 60.0  # jobs of the tests that run beside this one end meanwhile


def segments() -> set[Path]:
    """Those of every job on this machine, also of tests that run beside this one."""
    return set(FOLDER.glob("aiaas-*"))


def wait_until_none_is_left(before: Set[Path]) -> None:
    """Whatever began after `before` is gone in the end; only a leak stays."""
    left = segments() - before
    waiting.until(lambda: not left & segments(), f"shared memory was left behind: {left}", wait_s=WAIT_S)
