"""What this machine can give to workers.

Owns counting cores, GPUs and memory as this process may use them (affinity, cgroup quota).
Who gets which belongs to `jobs.placement`.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from aiaas_magics.core.engines import ONE_PROCESS
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.spec import Device, FitSpec

SIMULATED: Final = "AIAAS_SIMULATED_DEVICES"
CGROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """The devices, and for each the cores that a worker on it is pinned to (none for a GPU)."""

    devices: tuple[Device, ...]
    cores: tuple[int, ...]
    hardware: str
    memory_bytes: int

    @property
    def one_each(self) -> bool:
        """Whether a worker drives one device only."""
        return self.devices[0].kind == "gpu"

    def cores_of(self, positions: tuple[int, ...]) -> tuple[int, ...]:
        """The cores to pin to; empty where pinning would say nothing: GPUs, or more quota-less cores than asked."""
        if self.one_each or not self.cores:
            return ()
        return tuple(dict.fromkeys(self.cores[position % len(self.cores)] for position in positions))

    def gpus_of(self, positions: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.devices[position].index for position in positions) if self.one_each else ()

    def execution_of(self, spec: FitSpec) -> Execution:
        """How `spec` is carried out on this machine: "auto" resolved."""
        everything = len(self.devices) if self.one_each else 1
        return spec.execution.resolved(devices=spec.workers or everything, gpus=self.one_each)

    def label(self, positions: tuple[int, ...], execution: Execution) -> str:
        """What a worker on these devices is shown to run on."""
        devices = [self.devices[position] for position in positions]
        if len(devices) == 1:
            return devices[0].name
        if execution.strategy in ONE_PROCESS and not self.one_each:
            return f"{len(devices)} simulated devices on {_count(len(self.cores_of(positions)), 'core')}"
        return f"{len(devices)} {devices[0].kind} devices" if self.one_each else f"{len(devices)} cores"


def find() -> Machine:
    cores = usable_cores()
    cpu = cpu_name()
    memory = memory_bytes()
    simulated = _simulated()
    if simulated:
        devices = tuple(Device(kind="cpu", index=i, name=f"simulated device {i}", simulated=True) for i in range(simulated))
        return Machine(devices, cores, f"{simulated} simulated devices on {_count(len(cores), 'core')}, {cpu}", memory)
    gpus = find_gpus()
    if gpus:
        return Machine(gpus, (), f"{len(gpus)} x {gpus[0].name}, {_count(len(cores), 'core')}, {cpu}", memory)
    devices = tuple(Device(kind="cpu", index=core, name=f"core {core}") for core in cores)
    return Machine(devices, cores, f"{_count(len(cores), 'core')}, {cpu}", memory)


def _simulated() -> int:
    text = os.environ.get(SIMULATED, "")
    return max(0, min(int(text), 1024)) if text.isdigit() else 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def usable_cores() -> tuple[int, ...]:
    """The cores this process may run on, as many of them as its quota is worth; at least one."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    quota = cpu_quota()
    count = len(allowed) if quota is None else max(1, min(len(allowed), math.floor(quota + 0.01)))
    return tuple(allowed[:count])


def cpu_quota(root: Path = CGROUPS) -> float | None:
    """How many cores' worth of time the cgroup grants (v2, then v1); None without a limit."""
    with contextlib.suppress(OSError, ValueError):
        limit, period = (root / "cpu.max").read_text(encoding="ascii").split()
        return None if limit == "max" else int(limit) / int(period)
    with contextlib.suppress(OSError, ValueError):
        limit_us = int((root / "cpu" / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period_us = int((root / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return None if limit_us <= 0 else limit_us / period_us
    return None


def memory_bytes(root: Path = CGROUPS) -> int:
    """The machine's memory, or the cgroup's limit where that is less."""
    total = int(psutil.virtual_memory().total)
    for file in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(file.read_text(encoding="ascii")))
    return total


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].replace("(R)", "").replace("(TM)", "").split())
    return platform.processor() or platform.machine() or "unknown processor"


def find_gpus() -> tuple[Device, ...]:
    """NVIDIA's GPUs that CUDA_VISIBLE_DEVICES leaves us; none where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - border: a missing, old or broken driver all mean the same here, no GPU
        return ()
    try:
        count = pynvml.nvmlDeviceGetCount()
        names = [pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)]
    except pynvml.NVMLError:
        return ()
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    visible = _visible(count)
    return tuple(Device(kind="gpu", index=index, name=_text(names[index])) for index in visible)


def _visible(count: int) -> list[int]:
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is None:
        return list(range(count))
    return [int(part) for part in told.split(",") if part.strip().isdigit() and int(part) < count]


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
