"""Records of another version, and damaged ones."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from aiaas_magics import cli
from aiaas_magics.backend.server.storage.migrations import SCHEMA
from aiaas_magics.backend.server.storage.records import NewEntry, Store, tables
from aiaas_magics.core.errors import InvalidSpec, RecordsUnreadable
from aiaas_magics.core.events import AnyEvent, Crashed, EpochEnded, Notice, StateChanged, StepsDone
from aiaas_magics.core.spec import JobState
from tests.backend.server.served import served

pytestmark = pytest.mark.process

FIRST = Path(__file__).with_name("records_1.sql")


def schema_of(path: Path) -> tuple[int, set[str]]:
    with sqlite3.connect(path) as connection:
        columns = {f"{table}.{row[1]}" for table in tables.tables for row in connection.execute(f"PRAGMA table_info({table})")}
        indices = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")}
        return connection.execute("PRAGMA user_version").fetchone()[0], columns | indices


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """Records as the first version left them, which had no number."""
    path = tmp_path / "records.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(FIRST.read_text())
    return path


def test_records_of_the_first_version_are_brought_up_to_today_with_everything_in_them(first: Path, tmp_path: Path) -> None:
    assert schema_of(first)[0] == 0

    store = Store(first)

    Store(tmp_path / "new.sqlite").close()
    assert schema_of(first) == schema_of(tmp_path / "new.sqlite")
    assert schema_of(first)[0] == SCHEMA
    records = store.jobs()
    assert [record.job.state for record in records] == [JobState.SUCCEEDED, JobState.FAILED, JobState.QUEUED, JobState.QUEUED]
    assert [record.removed_s for record in records] == [None] * 4
    assert len(records[0].result or "") == 64
    assert [type(entry.event) for entry in store.entries("2", after=0)][-2:] == [Crashed, StateChanged]
    assert [record.view.version for record in store.versions()] == [1]
    assert set(store.routings()) == {"churn"}
    assert store.add_job(records[0].spec, key="k", at_s=1.0) == ("5", True)
    store.close()
    Store(first).close()  # and a second time there is nothing to do


def test_a_server_takes_up_records_of_the_first_version(first: Path) -> None:
    with served(first.parent, "--pool", "stub") as server:
        assert server.view("1").state is JobState.SUCCEEDED
        assert server.view("2").reason == "ValueError: no such column"
        assert server.result(server.submit()) == b"result of attempt 1"


def test_a_migration_that_fails_leaves_the_records_as_they_were(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = schema_of(first)
    monkeypatch.setattr(
        "aiaas_magics.backend.server.storage.migrations.STEPS", {1: ("ALTER TABLE jobs ADD COLUMN removed_s FLOAT", "nonsense")}
    )

    with pytest.raises(Exception, match="nonsense"):
        Store(first)

    assert schema_of(first) == before


def newer(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")


def no_database(path: Path) -> None:
    path.write_bytes(b"this is no database, and longer than the header of one, which has a hundred bytes. " * 3)


def destroyed_pages(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(FIRST.read_text())
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 8192)


def destroyed_value(path: Path) -> None:
    store = Store(path)
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO jobs (spec, state, reason, attempt, lost, ranks, created_s) VALUES (x'7b', 'queued', '', 0, 0, 0, 1)"
        )


@pytest.mark.parametrize("damage", [newer, no_database, destroyed_pages, destroyed_value])
def test_records_that_cannot_be_used_are_told_in_one_sentence_and_can_be_set_aside(tmp_path: Path, damage: object) -> None:
    state = tmp_path / "state"
    (state / "jobs" / "7" / "files").mkdir(parents=True)
    damage(state / "records.sqlite")  # type: ignore[operator]
    before = (state / "records.sqlite").read_bytes()
    untouched = damage in (no_database, destroyed_pages)  # of the others what lay beside the file is in it now

    command = [sys.executable, "-m", "aiaas_magics.testing.scripted_server", "--state", str(state)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 2
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith(f"The records in {state} cannot be used: ")
    assert f"aiaas storage --set-aside-records --state {state}" in last
    assert "Traceback" not in ended.stderr
    assert (state / "records.sqlite").read_bytes() == before or not untouched

    done = CliRunner().invoke(cli.main, ["storage", "--set-aside-records", "--state", str(state)])

    assert done.exit_code == 0, done.output
    [aside] = state.glob("set-aside-*")
    assert (aside / "records.sqlite").read_bytes() == before or not untouched
    assert (aside / "jobs" / "7").exists()
    with served(state, "--pool", "stub") as server:
        assert server.submit() == "1"
        server.end("1")


def test_records_are_not_set_aside_under_a_server(tmp_path: Path) -> None:
    with served(tmp_path / "state", "--pool", "stub") as server:
        server.submit()
        refused = CliRunner().invoke(cli.main, ["storage", "--set-aside-records", "--state", str(server.folder)])

    assert refused.exit_code == 2
    assert "Stop it with `aiaas stop`" in refused.output
    nothing = CliRunner().invoke(cli.main, ["storage", "--set-aside-records", "--state", str(tmp_path / "elsewhere")])
    assert (nothing.exit_code, "There are no records in" in nothing.output) == (2, True)
    assert not (tmp_path / "elsewhere").exists()


def said(*words: AnyEvent) -> list[NewEntry]:
    return [NewEntry(at_s=float(number), attempt=1, rank=0, event=word) for number, word in enumerate(words)]


def steps(number: int) -> StepsDone:
    return StepsDone(epoch=0, step=number, steps=10**6, rows=1, seconds=1.0, logs={"loss": 1.0})


def epoch(number: int) -> EpochEnded:
    return EpochEnded(epoch=number, epochs=10**6, rows=1, seconds=1.0, logs={})


def test_a_long_log_loses_progress_within_epochs_first_and_then_its_middle(first: Path) -> None:
    store = Store(first)
    store.append("3", said(*(word for n in range(300) for word in (steps(n), epoch(n))), StateChanged(state=JobState.FAILED)))
    before = store.entries("3", after=0, limit=10_000)

    store.thin_log("3", keep=400)

    kept = store.entries("3", after=0, limit=10_000)
    assert not [entry for entry in kept if isinstance(entry.event, StepsDone)]
    assert [entry for entry in kept if isinstance(entry.event, EpochEnded)] == [e for e in before if isinstance(e.event, EpochEnded)]
    assert (kept[0], kept[-1]) == (before[0], before[-1])

    store.thin_log("3", keep=100)

    thinner = store.entries("3", after=0, limit=10_000)
    assert (thinner[:10], thinner[10:]) == (kept[:10], kept[-90:])
    assert store.append("3", said(Notice(text="one more"))) == before[-1].seq + 1
    assert store.unused_bytes() > 0
    store.compact()
    assert store.unused_bytes() == 0
    store.close()


def test_a_removed_result_leaves_that_there_was_a_job_and_how_it_ended(first: Path) -> None:
    store = Store(first)

    store.remove_results(["1", "2"], at_s=5.0)

    for job, state in (("1", JobState.SUCCEEDED), ("2", JobState.FAILED)):
        record = store.job(job)
        assert (record.job.state, record.result, record.files, record.removed_s) == (state, None, (), 5.0)
        assert {type(entry.event) for entry in store.entries(job, after=0)} == {StateChanged}
        assert store.entries(job, after=0)[-1].event.state is state  # type: ignore[union-attr]
    assert store.entries("3", after=0)
    store.close()


def test_a_damaged_value_is_told_when_it_is_read(first: Path) -> None:
    store = Store(first)
    with sqlite3.connect(first) as connection:
        connection.execute("UPDATE events SET event = x'00ff' WHERE job = 1 AND seq = 2")

    with pytest.raises(RecordsUnreadable, match="a value in them is damaged"):
        store.entries("1", after=0)

    assert not issubclass(RecordsUnreadable, InvalidSpec)
    store.close()
