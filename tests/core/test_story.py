"""The fold of a job's log."""

from __future__ import annotations

from hypothesis import given
from hypothesis.strategies import integers, lists
from msgspec import structs

from aiaas_magics.core.events import (
    AnyEvent,
    AttemptStarted,
    Crashed,
    Entry,
    EpochEnded,
    Notice,
    Phase,
    PhaseEntered,
    RowsExplained,
    StateChanged,
    StepsDone,
    WorkerLost,
)
from aiaas_magics.core.remote_error import ErrorReport, Frame
from aiaas_magics.core.spec import JobState
from aiaas_magics.core.story import JobStory, fold
from aiaas_magics.core.training_logs import logs_of, numbers


def log(*events: AnyEvent, rank: int | None = 0) -> list[Entry]:
    return [Entry(seq=i, at_s=100.0 + i, attempt=1, rank=rank, event=event) for i, event in enumerate(events, 1)]


def epoch(number: int, loss: float = 0.5) -> EpochEnded:
    return EpochEnded(epoch=number, epochs=4, rows=100, seconds=2.0, logs=logs_of({"loss": loss}))


def test_epochs_become_a_history_in_the_words_of_keras() -> None:
    story = fold(log(epoch(0, 0.9), epoch(1, 0.4)))

    assert story.history() == {"loss": [0.9, 0.4]}
    assert story.rows_per_s == 50.0
    assert story.seconds_left() == 4.0


def test_a_new_attempt_forgets_the_epochs_that_it_runs_again() -> None:
    story = fold(log(epoch(0), epoch(1), epoch(2), AttemptStarted(ranks=2, from_epoch=1, why="worker 1 was lost")))

    assert [row.epoch for row in story.rows] == [0]
    assert "worker 1 was lost" in story.notices


def test_equal_errors_of_several_ranks_are_one() -> None:
    frames = (Frame(file="a", line=1, function="f"),)
    report = ErrorReport(type="Enough", message="no", bases=("__main__.Enough", "ValueError"), frames=frames, traceback="...")
    entries = [Entry(seq=1 + rank, at_s=0.0, attempt=1, rank=rank, event=Crashed(report=report)) for rank in range(3)]

    story = fold(entries)

    assert story.error == structs.replace(report, ranks=(0, 1, 2)), "nothing of it is lost: the cell catches it by its bases"


def test_the_first_error_is_kept_when_another_follows_from_it() -> None:
    first = Crashed(report=ErrorReport(type="ValueError", message="the cause"))
    second = Crashed(report=ErrorReport(type="TimeoutError", message="rank 1 did not come"))

    story = fold(log(first, second))

    assert story.error is not None
    assert story.error.type == "ValueError"


def test_phases_end_where_the_next_begins_and_close_with_the_job() -> None:
    story = fold(
        log(PhaseEntered(phase=Phase.WAITING), PhaseEntered(phase=Phase.TRAINING), StateChanged(state=JobState.SUCCEEDED)),
    )

    assert story.phase_seconds() == {Phase.WAITING: 1.0, Phase.TRAINING: 1.0}


def test_a_lost_worker_is_seen_in_its_lane() -> None:
    story = fold(log(AttemptStarted(ranks=1, from_epoch=0), WorkerLost(how="killed by signal 9")))

    assert [(lane.state, lane.detail) for lane in story.lanes] == [("lost", "killed by signal 9")]


def test_nan_survives_the_wire() -> None:
    from aiaas_magics.core import wire

    entry = log(StepsDone(epoch=0, step=1, steps=2, rows=3, seconds=0.1, logs=logs_of({"loss": float("nan"), "name": "x"})))[0]

    event = wire.decode(wire.encode(entry), Entry).event

    assert isinstance(event, StepsDone)
    assert str(numbers(event.logs)) == "{'loss': nan}"


@given(lists(integers(0, 3), max_size=20), integers(0, 20))
def test_folding_in_two_pieces_is_folding_at_once(kinds: list[int], cut: int) -> None:
    events = [
        (epoch(i), Notice(text=str(kind)), PhaseEntered(phase=Phase.TRAINING), WorkerLost(how="x"))[kind] for i, kind in enumerate(kinds)
    ]
    entries = log(*events)

    in_pieces = fold(entries[max(0, cut - 2) :], fold(entries[:cut]))  # overlapping: what was seen is passed over

    assert in_pieces == fold(entries, JobStory())


def test_rows_that_ranks_explain_add_up_and_a_lost_workers_rows_stay_explained() -> None:
    def told(rows: int, *, rank: int, seconds: float = 2.0, before: int = 0) -> Entry:
        event = RowsExplained(rows=rows, of=40, seconds=seconds, evaluations=10 * rows, rows_before=before)
        return Entry(seq=0, at_s=100.0, attempt=1, rank=rank, event=event)

    def numbered(*entries: Entry) -> list[Entry]:
        return [structs.replace(entry, seq=seq) for seq, entry in enumerate(entries, 1)]

    began = Entry(seq=0, at_s=100.0, attempt=1, rank=None, event=AttemptStarted(ranks=2, from_epoch=0))
    story = fold(numbered(began, told(4, rank=0), told(6, rank=1, seconds=4.0), told(10, rank=0, seconds=5.0)))

    assert story.explained == RowsExplained(rows=16, of=40, seconds=5.0, evaluations=160)
    assert story.fraction_done() == 16 / 40
    assert story.seconds_left() == 24 * 5.0 / 16

    again = Entry(seq=9, at_s=101.0, attempt=2, rank=None, event=AttemptStarted(ranks=2, from_epoch=0))
    story = fold([again, structs.replace(told(2, rank=1, before=16), seq=10)], story)

    assert story.fraction_done() == 18 / 40
