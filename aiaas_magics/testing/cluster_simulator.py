"""Cluster simulator: up to 1,024 devices that train together, message by message.

Owns when each device computes, sends and waits; nothing is trained. It knows no law of `projection`,
which is checked against it. The same seed gives the same times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from aiaas_magics.core.events import Measured

Times = npt.NDArray[np.float64]  # a clock a device


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Devices of one kind and what connects them.

    Args:
        serial_s: computing that every device does in a step, whatever n.
        parallel_s: computing of one global batch, shared by n; of weak scaling what each device has by itself.
        jitter: standard deviation of a device's computing, as a share.
        stalls: share of a device's steps that take `stall_times` as long: stragglers with a heavy tail.
        knee: more devices than these share the bandwidth that these have.
        collective: "ring" | "shared memory".
    """

    serial_s: float
    parallel_s: float
    latency_s: float
    byte_s: float
    exchange_bytes: int
    jitter: float = 0.0
    stalls: float = 0.0
    stall_times: float = 10.0
    knee: int = 1024
    collective: str = "ring"

    def measure(self, devices: int, *, weak: bool = False, rows: int = 1024, steps: int = 20, repeats: int = 3, seed: int = 0) -> Measured:
        """What a study would have measured on `devices`; `rows` are those of a step, of weak scaling those of one device."""
        random = np.random.default_rng([seed, devices])
        exchange = EXCHANGES[self.collective]
        seconds, exchanging = [], 0.0
        clocks = np.zeros(devices)
        for _ in range(repeats):
            began = clocks[0]
            for _ in range(steps):
                ready = clocks + self._computing(devices, random, weak=weak)
                clocks = exchange(self, ready, self.exchange_bytes) if devices > 1 else ready
                exchanging += clocks[0] - ready[0]
            seconds.append(float(clocks[0] - began))
        measured = Measured(steps=steps, rows_per_step=rows * (devices if weak else 1), seconds=tuple(seconds), compile_s=0.0)
        return measured if devices == 1 else self._with_exchange(measured, devices, float(exchanging) / (steps * repeats))

    def _computing(self, devices: int, random: np.random.Generator, *, weak: bool) -> Times:
        mean = self.serial_s + self.parallel_s / (1 if weak else devices)
        share = np.maximum(0.1, 1 + self.jitter * random.standard_normal(devices))
        return mean * np.where(random.random(devices) < self.stalls, self.stall_times, share)

    def _with_exchange(self, measured: Measured, devices: int, exchange_s: float) -> Measured:
        exchange, together = EXCHANGES[self.collective], np.zeros(devices)
        return msgspec.structs.replace(
            measured,
            exchange_s=exchange_s,
            exchanges=1,
            exchange_bytes=self.exchange_bytes,
            latency_s=float(exchange(self, together, 0)[0]),
            transfer_s=float(exchange(self, together, self.exchange_bytes)[0]),
        )

    def moving_s(self, nbytes: float, devices: int) -> float:
        """Of bytes that every device moves at the same time."""
        return nbytes * self.byte_s * max(1.0, devices / self.knee)


def ring(cluster: Cluster, clocks: Times, nbytes: int) -> Times:
    """Reduce-scatter, then all-gather: in each round everyone sends a slice to the right and waits for the left one's."""
    devices = len(clocks)
    message_s = cluster.latency_s + cluster.moving_s(nbytes / devices, devices)
    clocks, neighbour = clocks.copy(), np.empty(devices)
    for _ in range(2 * (devices - 1)):
        neighbour[0], neighbour[1:] = clocks[-1], clocks[:-1]
        np.maximum(clocks, neighbour, out=clocks)
        clocks += message_s
    return clocks


def shared_memory(cluster: Cluster, clocks: Times, nbytes: int) -> Times:
    """Write, meet, and read all; from four devices on read a slice of all, write its sum, meet, and read the others' sums."""
    devices = len(clocks)

    def met(clocks: Times) -> Times:
        return np.full(devices, clocks.max() + cluster.latency_s * (devices - 1))  # each looks at every other

    clocks = met(clocks + cluster.moving_s(nbytes, devices))
    if devices < 4:
        return clocks + cluster.moving_s(nbytes * devices, devices)
    slice_bytes = nbytes / devices
    clocks = met(clocks + cluster.moving_s(nbytes + slice_bytes, devices))
    return clocks + cluster.moving_s(nbytes - slice_bytes, devices)


EXCHANGES: Final[dict[str, Callable[[Cluster, Times, int], Times]]] = {"ring": ring, "shared memory": shared_memory}
