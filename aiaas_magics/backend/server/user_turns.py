"""User turns: what a server's records say about whose turn it is, and which quotas a new job would pass.

Owns the translation from records to the values of `jobs.placement`. Whose turn it is, is decided there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from aiaas_magics.backend.jobs import placement
from aiaas_magics.backend.jobs.placement import DeviceRequest, Slots, UserTurn
from aiaas_magics.backend.server import attempt_order
from aiaas_magics.backend.server.devices import Machine
from aiaas_magics.backend.server.storage.records import JobRecord
from aiaas_magics.core.accounts import Quotas
from aiaas_magics.core.errors import QuotaExceeded
from aiaas_magics.core.spec import JobState


def turns_of(
    records: Iterable[JobRecord],
    slots: Mapping[str, Slots],
    machine: Machine,
    *,
    quotas_of: Callable[[str], Quotas],
    now_s: float,
) -> dict[str, UserTurn]:
    """Each user's turn. `slots` are those of jobs that hold devices; one that has not been recorded as running begins now."""
    turns: dict[str, UserTurn] = {}
    for record in records:
        turn = turns.get(record.owner)
        if turn is None:
            quotas = quotas_of(record.owner)
            turn = UserTurn(most_devices=quotas.devices, most_jobs=quotas.running_jobs)
        if (job_slots := slots.get(record.job.id)) is not None:
            ask = attempt_order.ask_of(record.job.id, record.spec, machine, owner=record.owner)
            turn = turn.having(ask, job_slots, max(turn.last_start_s, record.started_s or now_s))
        elif record.started_s is not None and record.started_s > turn.last_start_s:
            turn = replace(turn, last_start_s=record.started_s)
        turns[record.owner] = turn
    return turns


def why_each_waits(
    asks: Sequence[DeviceRequest],
    busy: Mapping[str, frozenset[int]],
    machine: Machine,
    *,
    owners: Mapping[str, str],
    turns: Mapping[str, UserTurn],
) -> dict[str, str]:
    """For each waiting job the clause that its user reads."""
    devices, noun = len(machine.devices), "GPU" if machine.one_each else "core"
    reasons: dict[str, str] = {}
    for position, ask in enumerate(asks):
        turn = turns.get(ask.owner, UserTurn())
        if placement.waits_for_quota(ask, turn, devices=devices, one_each=machine.one_each):
            reasons[ask.job] = placement.why_quota(turn)
        else:
            before = [other.job for other in asks[:position]]
            reasons[ask.job] = placement.why_waiting(ask, devices=devices, busy=busy, before=before, noun=noun, owners=owners)
    return reasons


def check_quotas(ask: DeviceRequest, quotas: Quotas, records: Iterable[JobRecord], machine: Machine) -> None:
    """Raises `QuotaExceeded` for what no waiting would help: more devices than the user may have, or one more waiting job."""
    needed = placement.slots_for(ask, devices=len(machine.devices), busy=frozenset(), one_each=machine.one_each)
    if quotas.devices and needed is not None and len(needed.held) > quotas.devices:
        raise QuotaExceeded("devices", quotas.devices, len(needed.held))
    waiting = sum(record.owner == ask.owner and record.job.state is JobState.QUEUED for record in records)
    if quotas.waiting_jobs and waiting >= quotas.waiting_jobs:
        raise QuotaExceeded("waiting jobs", quotas.waiting_jobs, waiting + 1)
