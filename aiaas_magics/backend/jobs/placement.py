"""Placement: which devices a job's workers get, and which jobs wait.

Owns the choice only: first come, first served, nobody overtakes. Starting processes on
the devices belongs to `workers`, deciding what then becomes of the job to `machine`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiaas_magics.core.errors import NotEnoughDevices


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRequest:
    """What a job wants. `workers` of None: one worker with everything; `alone`: the machine to itself.

    `together`: one process drives the devices of all workers.
    """

    job: str
    workers: int | None
    oversubscribe: bool = False
    alone: bool = False
    together: bool = False


@dataclass(frozen=True, slots=True)
class Slots:
    """Positions of devices: those that the job holds, and for each rank those that it runs on."""

    held: frozenset[int]
    ranks: tuple[tuple[int, ...], ...]


def check(ask: DeviceRequest, *, devices: int, backend: str) -> None:
    """Raises `NotEnoughDevices` for what these devices can never give."""
    if ask.workers is not None and ask.workers > devices and not ask.oversubscribe:
        raise NotEnoughDevices(ask.workers, devices, backend)


def slots_for(ask: DeviceRequest, *, devices: int, busy: frozenset[int], one_each: bool = False) -> Slots | None:
    """The slots that `ask` can have now; None when it must wait.

    `one_each` is for devices of which a worker drives only one (GPUs): one worker with everything is
    then one worker a device, which computes the same.
    """
    if ask.workers is None and one_each:
        ranks: tuple[tuple[int, ...], ...] = tuple((device,) for device in range(devices))
    elif ask.workers is None:
        ranks = (tuple(range(devices)),)
    elif ask.workers > devices:
        ranks = tuple((rank % devices,) for rank in range(ask.workers))
    else:
        free = range(devices) if ask.alone else [device for device in range(devices) if device not in busy]
        if len(free) < ask.workers:
            return None
        ranks = tuple((device,) for device in list(free)[: ask.workers])
    if ask.together:
        ranks = (tuple(device for slot in ranks for device in slot),)
    devices_needed = frozenset(range(devices)) if ask.alone else frozenset(device for slot in ranks for device in slot)
    return None if devices_needed & busy else Slots(devices_needed, ranks)


def place(
    waiting: Sequence[DeviceRequest], *, devices: int, busy: Mapping[str, frozenset[int]], one_each: bool = False
) -> list[tuple[DeviceRequest, Slots]]:
    """Those of `waiting`, oldest first, that can start now. The first that cannot makes all behind it wait."""
    reserved: frozenset[int] = frozenset().union(*busy.values())
    placed = []
    for ask in waiting:
        slots = slots_for(ask, devices=devices, busy=reserved, one_each=one_each)
        if slots is None:
            break
        reserved |= slots.held
        placed.append((ask, slots))
    return placed


def why_waiting(ask: DeviceRequest, *, devices: int, busy: Mapping[str, frozenset[int]], before: Sequence[str], noun: str) -> str:
    """One clause for the user: what the job waits for."""
    count = devices if ask.workers is None or ask.alone else min(ask.workers, devices)
    amount = f"{count} {noun}{'' if count == 1 else 's'}"
    holders = sorted(busy, key=_number)
    if holders:
        return f"waiting for {amount}; {_jobs(holders)} {'holds' if len(holders) == 1 else 'hold'} devices" + (
            f", and {_jobs(before)} came first" if before else ""
        )
    return f"waiting for {amount}" + (f" behind {_jobs(before)}" if before else "")


def _jobs(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    return ("job " if len(ids) == 1 else "jobs ") + shown


def _number(job: str) -> tuple[int, str]:
    return (int(job), job) if job.isdigit() else (0, job)
