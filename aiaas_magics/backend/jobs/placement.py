"""Placement: which devices a job's workers get, and which jobs wait.

Owns the choice only. Between users it is dominant resource fairness (Ghodsi et al., NSDI 2011): the next job is of the user who holds
the smallest share of what they hold most of, devices or memory; of equals, of the one whose last job began the longest ago. Each
user's own jobs go in their order, and the job whose turn it is makes all behind it wait, so that a large one is not starved by
small ones. With one user that is first come, first served. Starting processes on the devices belongs to `workers`, deciding what
then becomes of the job to `machine`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aiaas_magics.core.errors import NotEnoughDevices


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRequest:
    """What a job wants. `workers` of None: one worker with everything; `alone`: the machine to itself.

    `together`: one process drives the devices of all workers. `memory_share` is what it needs of the machine's memory, 0 to 1.
    """

    job: str
    workers: int | None
    oversubscribe: bool = False
    alone: bool = False
    together: bool = False
    owner: str = ""
    memory_share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UserTurn:
    """What counts for a user's turn: what running jobs hold, when the last one began (unix time), and quotas (0: none)."""

    devices: int = 0
    jobs: int = 0
    memory_share: float = 0.0
    last_start_s: float = -math.inf
    most_devices: int = 0
    most_jobs: int = 0

    def dominant_share(self, devices: int) -> float:
        """
        >>> UserTurn(devices=1, memory_share=0.4).dominant_share(4)
        0.4
        """
        return max(self.devices / devices, self.memory_share)

    def has_quota_for(self, slots: Slots) -> bool:
        is_within_devices = not self.most_devices or self.devices + len(slots.held) <= self.most_devices
        return is_within_devices and (not self.most_jobs or self.jobs + 1 <= self.most_jobs)

    def having(self, ask: DeviceRequest, slots: Slots, began_s: float) -> UserTurn:
        """The user's turn after this job has been placed."""
        return replace(
            self,
            devices=self.devices + len(slots.held),
            jobs=self.jobs + 1,
            memory_share=self.memory_share + ask.memory_share,
            last_start_s=began_s,
        )


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
    waiting: Sequence[DeviceRequest],
    *,
    devices: int,
    busy: Mapping[str, frozenset[int]],
    one_each: bool = False,
    turns: Mapping[str, UserTurn] = {},
    now_s: float = 0.0,
) -> list[tuple[DeviceRequest, Slots]]:
    """Those of `waiting`, oldest first, that can start now, in the order in which they start.

    Whoever's turn it is makes all behind them wait when the devices are not free. A user at a quota makes nobody else wait.

    Args:
        turns: of each user; one who is not here holds nothing and has no quota.
        now_s: unix time, which the jobs that are placed begin at.
    """
    reserved: frozenset[int] = frozenset().union(*busy.values())
    states = {ask.owner: turns.get(ask.owner, UserTurn()) for ask in waiting}
    queues: dict[str, deque[tuple[int, DeviceRequest]]] = {}
    for age, ask in enumerate(waiting):
        queues.setdefault(ask.owner, deque()).append((age, ask))
    placed: list[tuple[DeviceRequest, Slots]] = []
    while queues:
        owner = min(queues, key=lambda user: (states[user].dominant_share(devices), states[user].last_start_s, queues[user][0][0]))
        ask = queues[owner][0][1]
        slots = slots_for(ask, devices=devices, busy=reserved, one_each=one_each)
        if slots is None and waits_for_quota(ask, states[owner], devices=devices, one_each=one_each):
            del queues[owner]
            continue
        if slots is None:
            break
        if not states[owner].has_quota_for(slots):
            del queues[owner]
            continue
        reserved |= slots.held
        # A little later each: of those that are placed in one go, the first has begun the longest ago.
        states[owner] = states[owner].having(ask, slots, now_s + 1e-6 * len(placed))
        placed.append((ask, slots))
        queues[owner].popleft()
        if not queues[owner]:
            del queues[owner]
    return placed


def waits_for_quota(ask: DeviceRequest, turn: UserTurn, *, devices: int, one_each: bool = False) -> bool:
    """Whether the job would wait even if all devices were free, for other jobs of its user to end."""
    slots = slots_for(ask, devices=devices, busy=frozenset(), one_each=one_each)
    return slots is not None and not turn.has_quota_for(slots)


def why_waiting(
    ask: DeviceRequest,
    *,
    devices: int,
    busy: Mapping[str, frozenset[int]],
    before: Sequence[str],
    noun: str,
    owners: Mapping[str, str] = {},
) -> str:
    """One clause for the user: what the job waits for. `owners` say whose each job is; another user's is not told by its number."""
    count = devices if ask.workers is None or ask.alone else min(ask.workers, devices)
    amount = f"{count} {noun}{'' if count == 1 else 's'}"

    def shown(jobs: Sequence[str]) -> str:
        own = [job for job in jobs if owners.get(job, "") == ask.owner]
        others = "another user's jobs" if len(own) < len(jobs) else ""
        return " and ".join(filter(None, (_jobs(own) if own else "", others)))

    holders = sorted(busy, key=_number)
    if holders:
        is_one = len(holders) == 1 and owners.get(holders[0], "") == ask.owner
        return f"waiting for {amount}; {shown(holders)} {'holds' if is_one else 'hold'} devices" + (
            f", and {shown(before)} came first" if before else ""
        )
    return f"waiting for {amount}" + (f" behind {shown(before)}" if before else "")


def why_quota(turn: UserTurn) -> str:
    """One clause for a user whose jobs wait for each other."""
    quotas = [f"{turn.most_jobs} running jobs"] if turn.most_jobs else []
    quotas += [f"{turn.most_devices} devices"] if turn.most_devices else []
    return f"waiting for your own jobs: your quota is {' and '.join(quotas)}"


def _jobs(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    return ("job " if len(ids) == 1 else "jobs ") + shown


def _number(job: str) -> tuple[int, str]:
    return (int(job), job) if job.isdigit() else (0, job)
