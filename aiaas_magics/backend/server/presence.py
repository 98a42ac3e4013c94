"""Whether anybody still needs this server.

Owns the kernels that said they are here and the time of the last request. What follows
from it belongs to `main`.
"""

from __future__ import annotations

from aiaas_magics.backend.workers.attempt import ProcessId
from aiaas_magics.clock import Clock


class Presence:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kernels: set[ProcessId] = set()
        self._heard_s = clock.monotonic_s()

    def heard(self) -> None:
        """A request came."""
        self._heard_s = self._clock.monotonic_s()

    def add(self, pid: int, started: int) -> None:
        """A kernel is here for as long as its process lives."""
        self._kernels.add(ProcessId(pid=pid, started=started))

    def quiet_s(self) -> float:
        """For how long nobody was here: 0 while a kernel lives, otherwise since the last request or the last kernel seen."""
        self._kernels = {kernel for kernel in self._kernels if kernel.is_alive()}
        if self._kernels:
            self.heard()
        return self._clock.monotonic_s() - self._heard_s
