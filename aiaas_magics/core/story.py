"""Job story: a job's event log, folded into one value that every view is drawn from.

Owns the fold only: the log in, a `JobStory` out. Every view, the `History` of a running
job and the text of `%aiaas_attach` are drawn from it, so that they agree whoever looks
and whenever. Fetching the log belongs to `backend`, drawing it to `notebook` and `plots`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from msgspec import structs

from aiaas_magics.core.events import (
    AttemptStarted,
    Candidate,
    Checkpointed,
    Compiled,
    Crashed,
    Entry,
    EpochEnded,
    FigureShown,
    Finished,
    Measured,
    Notice,
    Output,
    Phase,
    PhaseEntered,
    Planned,
    RowsExplained,
    StateChanged,
    StepsDone,
    WorkerLost,
    WorkerStarted,
)
from aiaas_magics.core.remote_error import ErrorReport
from aiaas_magics.core.spec import JobState
from aiaas_magics.core.training_logs import numbers

OUTPUT_LINES: Final = 200  # kept in the picture; the whole text stays in the log (guess)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSpan:
    """One phase and when it was entered; it ends where the next begins."""

    phase: Phase
    detail: str
    start_s: float
    end_s: float | None = None

    def seconds(self, now_s: float) -> float:
        return max(0.0, (now_s if self.end_s is None else self.end_s) - self.start_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One worker, as far as the log knows it."""

    rank: int
    device: str = ""
    pid: int = 0
    state: str = "starting"  # starting | training | explaining | done | lost
    detail: str = ""
    epoch: int = 0
    step: int = 0
    rows_per_s: float = 0.0
    explained: RowsExplained | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRow:
    epoch: int
    seconds: float
    rows: int
    logs: dict[str, float]

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds if self.seconds > 0 else 0.0


def epochs_of(rows: Sequence[EpochRow]) -> int:
    """How many epochs ended. Of thousands of short ones not each has a row, the first and the last have."""
    return rows[-1].epoch - rows[0].epoch + 1 if rows else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStory:
    """A job's log as one picture. `at_s` is the time of the newest entry, unix."""

    state: JobState = JobState.QUEUED
    reason: str = ""
    attempt: int = 0
    ranks: int = 0
    epochs: int = 0
    epoch: int = 0  # the epoch that is running, from 0
    step: int = 0
    steps: int = 0
    rows_per_s: float = 0.0
    logs: dict[str, float] = field(default_factory=dict)
    rows: tuple[EpochRow, ...] = ()
    phases: tuple[PhaseSpan, ...] = ()
    lanes: tuple[Lane, ...] = ()
    notices: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    compile_s: float = 0.0
    plan: Planned | None = None
    candidates: tuple[Candidate, ...] = ()
    measured: Measured | None = None
    error: ErrorReport | None = None
    last_seq: int = 0
    at_s: float = 0.0
    begun_s: float = 0.0

    @property
    def phase(self) -> PhaseSpan | None:
        return self.phases[-1] if self.phases else None

    @property
    def epochs_done(self) -> int:
        return epochs_of(self.rows)

    @property
    def training_s(self) -> float:
        """Seconds that the epochs took; where not each has a row, those of the training phase, starts of further attempts included."""
        if len(self.rows) < self.epochs_done:
            return self.phase_seconds().get(Phase.TRAINING, 0.0)
        return sum(row.seconds for row in self.rows)

    @property
    def explained(self) -> RowsExplained | None:
        """All ranks of the attempt: their rows and evaluations together, the seconds of the slowest; None for a fit."""
        parts = [lane.explained for lane in self.lanes if lane.explained is not None]
        if not parts:
            return None
        return RowsExplained(
            rows=sum(part.rows for part in parts),
            of=parts[0].of,
            seconds=max(part.seconds for part in parts),
            evaluations=sum(part.evaluations for part in parts),
            rows_before=parts[0].rows_before,
        )

    def fraction_done(self) -> float:
        """Share of all epochs, or of the rows to explain, that is done, between 0 and 1."""
        if self.state is JobState.SUCCEEDED:
            return 1.0
        if (explained := self.explained) is not None:
            return min(1.0, (explained.rows_before + explained.rows) / explained.of)
        if not self.epochs:
            return 0.0
        within = self.step / self.steps if self.steps else 0.0
        return min(1.0, (self.epoch + within) / self.epochs)

    def seconds_left(self) -> float | None:
        """Time to the last epoch's end at the pace of the epochs so far, or to the last row's; None while that is unknown."""
        if not self.state.final and (explained := self.explained) is not None and explained.rows:
            rows_left = explained.of - explained.rows_before - explained.rows
            return max(0.0, rows_left * explained.seconds / explained.rows)
        if self.state.final or not self.rows or not self.epochs:
            return None
        pace_s = sum(row.seconds for row in self.rows[-5:]) / len(self.rows[-5:])
        within = self.step / self.steps if self.steps else 0.0
        return max(0.0, (self.epochs - self.epoch - within) * pace_s)

    def history(self) -> dict[str, list[float]]:
        """As `keras.callbacks.History.history`: one list a metric, one number an epoch."""
        table: dict[str, list[float]] = {}
        for row in self.rows:
            for name, value in row.logs.items():
                table.setdefault(name, []).append(value)
        return table

    def phase_seconds(self) -> dict[Phase, float]:
        """Time spent in each phase so far, repeated phases added up."""
        spent: dict[Phase, float] = {}
        for span in self.phases:
            spent[span.phase] = spent.get(span.phase, 0.0) + span.seconds(self.at_s)
        return spent

    def with_phase(self, phase: Phase, *, at_s: float, detail: str = "") -> JobStory:
        """The same story, now in `phase`; entering the phase one is in changes its detail only."""
        spans = list(self.phases)
        if spans and spans[-1].end_s is None:
            if spans[-1].phase is phase:
                spans[-1] = replace(spans[-1], detail=detail or spans[-1].detail)
                return replace(self, phases=tuple(spans), at_s=max(at_s, self.at_s))
            spans[-1] = replace(spans[-1], end_s=at_s)
        spans.append(PhaseSpan(phase=phase, detail=detail, start_s=at_s))
        return replace(self, phases=tuple(spans), at_s=max(at_s, self.at_s))

    def with_phases_closed(self, *, at_s: float) -> JobStory:
        if not self.phases or self.phases[-1].end_s is not None:
            return self
        return replace(self, phases=(*self.phases[:-1], replace(self.phases[-1], end_s=at_s)), at_s=max(at_s, self.at_s))


def fold(entries: Iterable[Entry], story: JobStory | None = None) -> JobStory:
    """The story after `entries`; entries it has seen already are passed over."""
    story = story or JobStory()
    for entry in entries:
        if entry.seq <= story.last_seq:
            continue
        story = replace(
            _after(story, entry),
            last_seq=entry.seq,
            at_s=max(story.at_s, entry.at_s),
            begun_s=story.begun_s or entry.at_s,
        )
    return story


def _after(story: JobStory, entry: Entry) -> JobStory:  # noqa: C901 - one case an event, in the order of `spec`
    event, rank, at_s = entry.event, entry.rank, entry.at_s
    match event:
        case StateChanged(state=state, reason=reason):
            changed = replace(story, state=state, reason=reason)
            return changed.with_phases_closed(at_s=at_s) if state.final else changed
        case PhaseEntered(phase=phase, detail=detail):
            return story if rank else story.with_phase(phase, at_s=at_s, detail=detail)
        case AttemptStarted(ranks=ranks, from_epoch=epoch, from_step=step, why=why):
            earlier_rows = tuple(row for row in story.rows if row.epoch < epoch)
            lanes = tuple(Lane(rank=r) for r in range(ranks))
            notices = (*story.notices, why) if why else story.notices
            return replace(
                story, attempt=entry.attempt, ranks=ranks, lanes=lanes, rows=earlier_rows, epoch=epoch, step=step, notices=notices
            )
        case WorkerStarted(pid=pid, device=device):
            return _lane(story, rank, pid=pid, device=device)
        case WorkerLost(how=how):
            return _lane(story, rank, state="lost", detail=how)
        case Compiled(seconds=seconds):
            return story if rank else replace(story, compile_s=seconds)
        case Planned():
            return replace(story, plan=event)
        case Candidate():
            return replace(story, candidates=(*story.candidates, event))
        case StepsDone():
            return _steps(story, rank, event)
        case EpochEnded():
            return _epoch(story, rank, event)
        case RowsExplained():
            rate = event.rows / event.seconds if event.seconds > 0 else 0.0
            return _lane(story, rank, state="explaining", rows_per_s=rate, explained=event)
        case Measured():
            return story if rank else replace(story, measured=event)
        case Notice(text=text):
            return story if text in story.notices else replace(story, notices=(*story.notices, text))
        case Output(text=text):
            return replace(story, output=(*story.output, *text.splitlines())[-OUTPUT_LINES:])
        case Crashed(report=report):
            return _crash(story, rank, report)
        case Finished():
            return _lane(story, rank, state="done")
        case Checkpointed() | FigureShown():
            return story


def _lane(story: JobStory, rank: int | None, **changes: object) -> JobStory:
    lanes = {lane.rank: lane for lane in story.lanes}
    if rank is None:
        return story
    lanes[rank] = replace(lanes.get(rank, Lane(rank=rank)), **changes)  # type: ignore[arg-type]
    return replace(story, lanes=tuple(lanes[r] for r in sorted(lanes)))


def _steps(story: JobStory, rank: int | None, event: StepsDone) -> JobStory:
    rate = event.rows / event.seconds if event.seconds > 0 else 0.0
    story = _lane(story, rank, state="training", epoch=event.epoch, step=event.step, rows_per_s=rate)
    if rank:
        return story
    return replace(story, epoch=event.epoch, step=event.step, steps=event.steps, rows_per_s=rate, logs=numbers(event.logs))


def _epoch(story: JobStory, rank: int | None, event: EpochEnded) -> JobStory:
    rate = event.rows / event.seconds if event.seconds > 0 else 0.0
    story = _lane(story, rank, state="training", epoch=event.epoch + 1, step=0, rows_per_s=rate)
    if rank:
        return story
    row = EpochRow(epoch=event.epoch, seconds=event.seconds, rows=event.rows, logs=numbers(event.logs))
    other_rows = tuple(old for old in story.rows if old.epoch != event.epoch)
    return replace(
        story,
        rows=(*other_rows, row),
        epochs=event.epochs,
        epoch=event.epoch + 1,
        step=0,
        rows_per_s=rate,
        logs=row.logs,
    )


def _crash(story: JobStory, rank: int | None, report: ErrorReport) -> JobStory:
    """Equal errors of several ranks are one error that names them all; a different one does not hide the first."""
    story = _lane(story, rank, state="lost", detail=f"{report.type}: {report.message.splitlines()[0] if report.message else ''}")
    ranks = (rank,) if rank is not None else report.ranks
    if story.error is None:
        return replace(story, error=structs.replace(report, ranks=ranks))
    if (story.error.type, story.error.message) == (report.type, report.message):
        merged = tuple(sorted({*story.error.ranks, *ranks}))
        return replace(story, error=structs.replace(story.error, ranks=merged))
    return story
