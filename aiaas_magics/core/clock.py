"""The time, as an argument.

Whoever needs to know or to wait takes a `Clock`, so that tests do not sleep.
The stub is `aiaas_magics.testing.FakeClock`.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_s(self) -> float:
        """Unix time, for records that people read."""

    def monotonic_s(self) -> float:
        """Never goes back; the only source of durations."""


class SystemClock:
    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()
