"""Compute deadlines: one thread ends computations that take too long.

Owns that thread. What a computation is, and how it is ended, belongs to the engine that has begun it.

Nothing is woken when a computation begins or ends: that would cost each of them more than a small model computes. So a
deadline is kept within `LOOK_S`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

LOOK_S: Final = 0.25  # guess: a deadline is a minute


class Computation:
    """One that has begun, and what ends it."""

    __slots__ = ("end", "is_over", "until_s")

    def __init__(self, until_s: float, end: Callable[[], None]) -> None:
        self.until_s, self.end, self.is_over = until_s, end, False


class Deadlines:
    """Computations under way. `begin` and `finish` are called by the threads that compute."""

    def __init__(self) -> None:
        self._running: set[Computation] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._never = threading.Event()

    def begin(self, limit_s: float, end: Callable[[], None]) -> Computation:
        """`end` is called by another thread if this does not finish within `limit_s`."""
        computation = Computation(time.monotonic() + limit_s, end)
        with self._lock:
            self._running.add(computation)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="aiaas-deadlines", daemon=True)
                self._thread.start()
        return computation

    def finish(self, computation: Computation) -> bool:
        """Whether it was ended because its time was over."""
        with self._lock:
            self._running.discard(computation)
        return computation.is_over

    def _look(self) -> None:
        while True:
            self._never.wait(LOOK_S)
            now_s = time.monotonic()
            with self._lock:
                for computation in [running for running in self._running if running.until_s < now_s]:
                    self._running.discard(computation)
                    computation.is_over = True
                    computation.end()


DEADLINES: Final = Deadlines()
