"""Presence: keeps track of whether anyone still needs this server.

Owns the kernels that said they are here and when somebody asked for something. What follows
from it belongs to `main`.
"""

from __future__ import annotations

from aiaas_magics.core.clock import Clock
from aiaas_magics.core.process_id import ProcessId


class Presence:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kernels: set[ProcessId] = set()
        self._needed_s = clock.monotonic_s()
        self._has_request = False

    def on_request(self) -> None:
        """A request came."""
        self._has_request = True
        self.needed()

    def needed(self) -> None:
        """Something needs the server, whether anybody asks or not."""
        self._needed_s = self._clock.monotonic_s()

    def was_asked(self) -> bool:
        """Whether a request came since this was asked last. A kernel that lives and asks for nothing is none."""
        result, self._has_request = self._has_request, False
        return result

    def add(self, kernel: ProcessId) -> None:
        """A kernel is here for as long as its process lives."""
        self._kernels.add(kernel)

    def quiet_s(self) -> float:
        """For how long nobody was here: 0 while a kernel lives, otherwise since the last request, kernel or need."""
        self._kernels = {kernel for kernel in self._kernels if kernel.is_alive()}
        if self._kernels:
            self.needed()
        return self._clock.monotonic_s() - self._needed_s
