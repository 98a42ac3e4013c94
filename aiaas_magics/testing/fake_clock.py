"""Fake clock: moves only when it is told to."""

from __future__ import annotations


class FakeClock:
    """See `aiaas_magics.core.clock.Clock`.

    >>> clock = FakeClock()
    >>> clock.pass_s(2.5)
    >>> clock.monotonic_s()
    2.5
    """

    def __init__(self, *, now_s: float = 1_700_000_000.0) -> None:
        self._began_s = now_s
        self._passed_s = 0.0

    def now_s(self) -> float:
        return self._began_s + self._passed_s

    def monotonic_s(self) -> float:
        return self._passed_s

    def pass_s(self, seconds: float) -> None:
        self._passed_s += seconds
