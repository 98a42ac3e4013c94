"""Sightings: the news of an attempt, in words of the log and of the machine.

Owns the translation only. Noticing belongs to the pool, deciding to `jobs.machine`, keeping to `conductor`.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiaas_magics.backend.jobs.machine_events import Event, RankCrashed, RankEnded, RankFinished, RankStuck
from aiaas_magics.backend.server.storage.records import NewEntry
from aiaas_magics.backend.workers.attempt import AttemptNews
from aiaas_magics.core.events import AttemptStarted, Crashed, Finished, Notice, StateChanged, WorkerStarted


def inputs_of(news: AttemptNews, *, attempt: int, labels: Sequence[str], now_s: float) -> list[NewEntry | Event]:
    """In the order in which it happened. `labels` name the ranks' devices."""

    def word(event: WorkerStarted | Notice, rank: int) -> NewEntry:
        return NewEntry(at_s=now_s, attempt=attempt, rank=rank, event=event)

    inputs: list[NewEntry | Event] = [word(WorkerStarted(pid=pid, device=labels[rank]), rank) for rank, pid in news.began]
    for rank, line in news.lines:
        # The server's own words are not a worker's to say.
        if isinstance(line.event, StateChanged | AttemptStarted | WorkerStarted):
            continue
        inputs.append(NewEntry(at_s=line.at_s, attempt=attempt, rank=rank, event=line.event))
        if isinstance(line.event, Finished):
            inputs.append(RankFinished(attempt, rank))
        elif isinstance(line.event, Crashed):
            report = line.event.report
            inputs.append(RankCrashed(attempt, rank, f"{report.type}: {report.message}"[:500]))
    inputs += [word(Notice(text=text), rank) for rank, text in news.notices]
    inputs += [RankStuck(attempt, rank, how) for rank, how in news.stuck]
    inputs += [
        RankEnded(
            attempt=attempt,
            rank=rank,
            how=ending.how,
            out_of_memory=ending.out_of_memory,
            alone=ending.alone,
            by_stop=ending.by_stop,
        )
        for rank, ending in news.ended
    ]
    return inputs
