"""Rates: how often something may happen.

Owns the arithmetic (a token bucket), and the one of wrong tokens by address. What is refused, and how, belongs to whoever asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# Of 256 random bits nobody guesses one: this keeps a loop with an old token from costing others their time, and makes it seen.
WRONG_BURST: Final = 120
WRONG_PER_S: Final = 1.0  # guess: a client that asks again each second goes on reading what is wrong
ADDRESSES: Final = 1000  # guess: that many addresses at once are a flood, and one more costs no memory


class Rate:
    """A token bucket: `per_s` on average, and up to `burst` at once. It is full to begin with."""

    __slots__ = ("_burst", "_clock", "_last_s", "_left", "_per_s")

    def __init__(self, per_s: float, *, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._left, self._last_s = burst, clock()

    def take(self) -> bool:
        """Whether one more is within the rate; it counts."""
        now_s = self._clock()
        self._left = min(self._burst, self._left + (now_s - self._last_s) * self._per_s)
        self._last_s = now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Rates:
    """A rate for each name. Of too many names the ones that began first are forgotten, which gives them a fresh one."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, most: int = ADDRESSES) -> None:
        self._clock, self._most = clock, most
        self._rates: dict[str, tuple[float, Rate]] = {}

    def take(self, name: str, per_s: float, *, burst: float | None = None) -> bool:
        """Whether `name` may once more. A rate that differs from last time begins anew."""
        entry = self._rates.get(name)
        if entry is None or entry[0] != per_s:
            while len(self._rates) >= self._most:
                self._rates.pop(next(iter(self._rates)))
            rate = Rate(per_s, burst=max(1.0, per_s if burst is None else burst), clock=self._clock)
            entry = self._rates[name] = per_s, rate
        return entry[1].take()


class WrongTokens:
    """Slows wrong tokens down, by address. Right ones from the same address are not asked."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = Rates(clock=clock)

    def take(self, address: str) -> bool:
        """Whether this wrong token is answered as one; if not, its sender is to wait."""
        return self._rates.take(address, WRONG_PER_S, burst=WRONG_BURST)
