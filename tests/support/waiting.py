"""Waiting for what other processes do, with an end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

LOOK_S = 0.02


def until(there: Callable[[], Any], otherwise: str, wait_s: float) -> Any:
    """What `there` returns once it is true; fails with the sentence `otherwise` after `wait_s`."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if found := there():
            return found
        time.sleep(LOOK_S)
    raise AssertionError(otherwise)
