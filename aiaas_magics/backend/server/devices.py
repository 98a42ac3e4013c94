"""Devices: the GPUs and cores of this machine, as workers can get them.

Owns finding GPUs, and the list of devices. Cores and memory are read by `core.host`; who gets which belongs to `jobs.placement`.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Final

from aiaas_magics.core.engines import ONE_PROCESS
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.host import cpu_name, memory_bytes, usable_cores
from aiaas_magics.core.spec import Device, FitSpec

SIMULATED: Final = "AIAAS_SIMULATED_DEVICES"


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
        all_devices = len(self.devices) if self.one_each else 1
        return spec.execution.resolved(devices=spec.workers or all_devices, gpus=self.one_each)

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
    simulated = _simulated()
    if simulated:
        devices = tuple(Device(kind="cpu", index=i, name=f"simulated device {i}", simulated=True) for i in range(simulated))
        return Machine(devices, cores, f"{simulated} simulated devices on {_count(len(cores), 'core')}, {cpu}", memory_bytes())
    gpus = find_gpus()
    if gpus:
        return Machine(gpus, (), f"{len(gpus)} x {gpus[0].name}, {_count(len(cores), 'core')}, {cpu}", memory_bytes())
    devices = tuple(Device(kind="cpu", index=core, name=f"core {core}") for core in cores)
    return Machine(devices, cores, f"{_count(len(cores), 'core')}, {cpu}", memory_bytes())


def _simulated() -> int:
    text = os.environ.get(SIMULATED, "")
    return max(0, min(int(text), 1024)) if text.isdigit() else 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


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
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if variable is None:
        return list(range(count))
    return [int(part) for part in variable.split(",") if part.strip().isdigit() and int(part) < count]


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
