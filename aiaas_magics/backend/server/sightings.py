"""What a look into an attempt's folder brought, in words of the log and of the machine.

Owns the translation only. Looking belongs to `attempt_watch`, deciding to `jobs.machine`, keeping to `conductor`.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Final

from aiaas_magics.backend.jobs.machine_events import Event, RankCrashed, RankEnded, RankFinished, RankStuck
from aiaas_magics.backend.server.storage.records import NewEntry
from aiaas_magics.backend.workers.local.attempt_folder import EXIT_ALONE
from aiaas_magics.backend.workers.local.attempt_watch import STOPPED_S, AttemptNews
from aiaas_magics.core.events import AttemptStarted, Crashed, Finished, Notice, StateChanged, WorkerStarted

PAUSED: Final = f"is stopped (SIGSTOP) and the others wait for it. The attempt is given up in {STOPPED_S:g} s; kill -CONT lets it go on."


def inputs_of(seen: AttemptNews, *, attempt: int, labels: Sequence[str], stopping: bool, now_s: float) -> list[NewEntry | Event]:
    """In the order in which it happened. `labels` name the ranks' devices; `stopping` says that we told the attempt to end."""

    def word(event: WorkerStarted | Notice, rank: int) -> NewEntry:
        return NewEntry(at_s=now_s, attempt=attempt, rank=rank, event=event)

    inputs: list[NewEntry | Event] = [word(WorkerStarted(pid=process.pid, device=labels[rank]), rank) for rank, process in seen.began]
    for rank, line in seen.lines:
        # The server's own words are not a worker's to say.
        if isinstance(line.event, StateChanged | AttemptStarted | WorkerStarted):
            continue
        inputs.append(NewEntry(at_s=line.at_s, attempt=attempt, rank=rank, event=line.event))
        if isinstance(line.event, Finished):
            inputs.append(RankFinished(attempt, rank))
        elif isinstance(line.event, Crashed):
            report = line.event.report
            inputs.append(RankCrashed(attempt, rank, f"{report.type}: {report.message}"[:500]))
    inputs += [word(Notice(text=f"Worker {rank} {PAUSED}"), rank) for rank in seen.stopped]
    inputs += [RankStuck(attempt, rank, f"was stopped (SIGSTOP) for {STOPPED_S:g} s") for rank in seen.stuck]
    inputs += [
        RankEnded(
            attempt=attempt,
            rank=rank,
            how=ending.how,
            out_of_memory=ending.out_of_memory,
            alone=ending.code == EXIT_ALONE,
            told=stopping and ending.signal == signal.SIGTERM,
        )
        for rank, ending in seen.ended
    ]
    return inputs
