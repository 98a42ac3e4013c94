"""What the state folder holds, and what is given back of it."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from aiaas_magics import cli
from aiaas_magics.backend.server.storage import retention
from aiaas_magics.backend.server.storage.retention import DAY_S, DAYS, NEWEST, SPARED_S, Ended, expired
from aiaas_magics.client.backend import Backend
from aiaas_magics.client.training import job as client_job
from aiaas_magics.client.training.job import Job
from aiaas_magics.core import errors, wire
from aiaas_magics.core.events import AttemptStarted, WorkerStarted
from aiaas_magics.core.spec import DeploySpec, EndpointView, Freed, JobState, StorageView, TensorSpec
from tests.backend.server.served import Served, served, until

pytestmark = pytest.mark.process

NOW_S = 1000 * DAY_S


@given(ages=st.lists(st.floats(0, 100 * DAY_S), max_size=300), missing=st.integers(-5, 500))
def test_what_goes_is_the_oldest_and_never_what_is_new(ages: list[float], missing: int) -> None:
    ended = [Ended(job=str(n), ended_s=NOW_S - age, bytes=10) for n, age in enumerate(ages)]

    gone = expired(ended, now_s=NOW_S, missing_bytes=missing)

    left = [one for one in ended if one.job not in gone]
    going = [one for one in ended if one.job in gone]
    assert all(NOW_S - one.ended_s > SPARED_S for one in going)
    assert not going or not left or max(one.ended_s for one in going) <= min(one.ended_s for one in left)
    assert len(left) >= min(len(ended), NEWEST) or missing > 0
    assert all(NOW_S - one.ended_s <= DAYS * DAY_S for one in sorted(left, key=lambda one: one.ended_s)[:-NEWEST])


def test_the_sentence_about_a_removed_result_says_what_the_rule_does() -> None:
    assert f"newest {retention.NEWEST} jobs" in client_job.KEPT_RESULTS
    assert f"last {retention.DAYS} days" in client_job.KEPT_RESULTS


def age(path: Path, seconds: float = 2 * DAY_S) -> None:
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def blob(server: Served, sha: str) -> Path:
    return server.folder / "blobs" / sha[:2] / sha


def deployed(server: Served) -> DeploySpec:
    shape = TensorSpec(name="x", dtype="float32", shape=(-1, 3))
    spec = DeploySpec(
        name="churn", artefact=server.put(b"artefact"), format="onnx", samples=server.put(b"samples"), inputs=(shape,), outputs=(shape,)
    )
    server.transport.post("/v1/endpoints", spec, EndpointView)
    return spec


def parts_of(view: StorageView) -> dict[str, int]:
    return {part.contents: part.bytes for part in view.parts}


def test_nothing_that_is_needed_is_freed_and_all_that_is_not(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server:
        done = server.submit({"do": "write", "path": "kept.txt", "text": "x" * 1000})
        failed = server.submit({"do": "epochs", "count": 3}, {"do": "crash"})
        result = server.end(done).result or ""
        server.end(failed)
        arrays = (server.put(b"an array of a job that runs" * 100),)
        running = server.submit({"do": "epochs", "count": 2}, {"do": "wait", "seconds": 600}, arrays=arrays)
        queued = server.submit({"do": "epochs", "count": 1}, workers=None, oversubscribe=True, resume_job=failed)
        server.wait_for(running, WorkerStarted)
        spec = deployed(server)
        unneeded, fresh = server.put(b"unneeded" * 100_000), server.put(b"just sent, and about to be named by a job")
        (server.folder / "dropbox" / "left").write_bytes(b"x" * 1000)
        (server.folder / "jobs" / "999" / "files").mkdir(parents=True)
        for path in (*(server.folder / "blobs").glob("??/*"), server.folder / "dropbox" / "left", server.folder / "jobs" / "999"):
            if not path.name.startswith(fresh):
                age(path)
        before = server.transport.get("/v1/storage", StorageView)

        freed = server.transport.post("/v1/storage/free", None, Freed)

        after = server.transport.get("/v1/storage", StorageView)
        inputs = [sha for job in (running, queued) for sha in (server.view(job).spec.payload, *server.view(job).spec.arrays)]
        for sha in (result, spec.artefact, spec.samples, fresh, *inputs):
            assert blob(server, sha).is_file()
            assert blob(server, sha).with_name(f"{sha}.xxh3").is_file()
        for path in (blob(server, unneeded), server.folder / "dropbox" / "left", server.folder / "jobs" / "999"):
            assert not path.exists()
        assert freed.bytes > 790_000
        assert (freed.blobs >= 1, freed.results) == (True, 0)
        assert parts_of(before)["data kept for the next run"] - parts_of(after)["data kept for the next run"] >= 800_000
        [kept] = [part for part in before.parts if part.contents == "data kept for the next run"]
        assert kept.freeable_bytes >= 800_000
        assert parts_of(after)["checkpoints"] > 0
        assert parts_of(after)["files of callbacks"] >= 1000
        assert parts_of(after)["data of jobs that are not over"] >= 2700
        assert server.transport.read(f"/v1/jobs/{done}/files/kept.txt") == b"x" * 1000
        server.raw("POST", f"/v1/jobs/{running}/cancel")
        assert server.end(queued).state is JobState.SUCCEEDED
        assert server.events(queued, AttemptStarted)[0].from_epoch == 3


def test_on_a_disk_that_is_too_full_results_of_more_than_a_day_go_and_it_is_told(tmp_path: Path) -> None:
    server = Served(tmp_path / "state", environment={"AIAAS_KEEP_FREE": "0"})
    server.start()
    drawing = {"do": "write", "path": "../figures/1-1.png"}
    old, new = (server.submit({"do": "write", "path": "a.txt"}, drawing, {"do": "finish", "result": f"result {n}"}) for n in range(2))
    results = [server.end(job).result or "" for job in (old, new)]
    assert server.stop() == 0
    with sqlite3.connect(server.folder / "records.sqlite") as connection:
        connection.execute("UPDATE jobs SET ended_s = ended_s - ? WHERE number = ?", (2 * DAY_S, old))
    for sha in results:
        age(blob(server, sha))

    server.environment["AIAAS_KEEP_FREE"] = "100%"
    server.start()
    try:
        until(lambda: server.view(old).removed_s, "the old result was not removed")
        until(lambda: not blob(server, results[0]).exists(), "its bytes were not removed")

        until(lambda: not (server.folder / "jobs" / old / "figures").exists(), "its figures were not removed")
        assert server.view(new).result == results[1]
        assert (server.folder / "jobs" / new / "figures" / "1-1.png").exists()
        assert server.transport.read(f"/v1/blobs/{results[1]}").startswith(b"result")
        job = Job(server.transport, server.view(old))
        assert (job.follow().state, server.view(old).files) == (JobState.SUCCEEDED, ())
        with pytest.raises(
            errors.ResultRemoved, match=f"The result of job {old} was removed to make room: kept are those of the newest 100"
        ):
            job.result_bytes()
        with pytest.raises(errors.StoreNotWritable, match="are missing"):
            server.submit()
    finally:
        assert server.stop() == 0


def test_storage_is_shown_and_freed_from_a_terminal(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server:
        age(blob(server, server.put(b"x" * 2_000_000)))

        shown = CliRunner().invoke(cli.main, ["storage", "--state", str(server.folder)])
        freed = CliRunner().invoke(cli.main, ["storage", "--free", "--state", str(server.folder)])

    assert "data kept for the next run" in shown.output
    assert "2.0" in shown.output
    assert "is kept free" in shown.output
    assert "Freed 2.0 MB: 1 arrays and models, the results of 0 jobs." in freed.output


def test_a_backend_of_another_protocol_is_refused_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(tmp_path / "state") as server:
        Backend(server.transport)
        monkeypatch.setattr(wire, "PROTOCOL", 99)

        with pytest.raises(errors.VersionSkew, match="protocol is 99 here and 1 on the backend"):
            Backend(server.transport)


def test_many_events_of_an_ended_job_are_thinned(tmp_path: Path) -> None:
    text = """
from aiaas_magics.core.events import StepsDone
for n in range(12_000):
    play.send(StepsDone(epoch=0, step=n, steps=12_000, rows=1, seconds=1.0, logs={}))
"""
    with served(tmp_path / "state") as server:
        job = server.submit({"do": "python", "text": text}, {"do": "epochs", "count": 2})
        server.end(job)
        last = server.view(job).last_seq
        assert last > 12_000
        assert server.stop() == 0
        with sqlite3.connect(server.folder / "records.sqlite") as connection:
            connection.execute("UPDATE jobs SET ended_s = ended_s - 7200")
        server.start()

        def count() -> int:
            with sqlite3.connect(server.folder / "records.sqlite") as connection:
                return int(connection.execute("SELECT count(*) FROM events").fetchone()[0])

        until(lambda: count() < 100, "the log was not thinned")
        job_again = Job(server.transport, server.view(job))
        assert job_again.follow().state is JobState.SUCCEEDED
        assert len(job_again.history["loss"]) == 2
        assert job_again.story().last_seq == last
