"""Jobs on a real server whose workers play scripts."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from aiaas_magics.backend.folders import checkpoint_folder
from aiaas_magics.backend.server import job_files
from aiaas_magics.backend.server.storage.state_folder import StateFolder
from aiaas_magics.client.training import job as jobs
from aiaas_magics.client.training.job import Job
from aiaas_magics.core import errors, settings
from aiaas_magics.core.events import (
    AttemptStarted,
    Checkpointed,
    Crashed,
    EpochEnded,
    FigureShown,
    Notice,
    Output,
    Phase,
    PhaseEntered,
    StateChanged,
    WorkerLost,
    WorkerStarted,
)
from aiaas_magics.core.spec import About, CheckpointView, FitSpec, JobState, JobView, MeasureSpec
from tests.backend.server.served import Served, served
from tests.support import shared_memory

LONG = {"do": "wait", "seconds": 600}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("jobs") / "state", AIAAS_SIMULATED_DEVICES="4") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left(server: Served) -> Iterator[None]:
    """After each test: no attempt on disk, no worker alive, and every log without a gap."""
    yield
    for view in server.transport.get("/v1/jobs", list[JobView]):
        if not view.state.final:
            server.transport.post(f"/v1/jobs/{view.id}/cancel", None, JobView)
            server.end(view.id)
        entries = server.entries(view.id)
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert list(server.folder.glob("jobs/*/attempt-*")) == []
    assert [process for process in server.leftovers() if "attempt-" in process] == []


def test_a_job_goes_through_its_states_and_leaves_its_result(server: Served) -> None:
    job = server.submit({"do": "epochs", "count": 2}, workers=2)

    assert server.result(job) == b"result of attempt 1"

    assert [event.state for event in server.events(job, StateChanged)] == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]
    assert server.events(job, AttemptStarted) == [AttemptStarted(ranks=2, from_epoch=0)]
    assert [event.device for event in server.events(job, WorkerStarted)] == ["simulated device 0", "simulated device 1"]
    assert len(server.events(job, EpochEnded)) == 4
    view = server.view(job)
    assert view.created_s <= view.started_s <= view.ended_s  # type: ignore[operator]
    assert view.last_seq == server.entries(job)[-1].seq


def test_what_was_announced_before_the_run_stands_in_the_log(server: Served) -> None:
    job = server.submit(notes=("BatchNorm is averaged.",))

    server.end(job)

    assert server.events(job, Notice) == [Notice(text="BatchNorm is averaged.")]


def test_output_comes_with_its_rank(server: Served) -> None:
    job = server.submit({"do": "say", "text": "hello\n", "ranks": [1]}, workers=2)

    server.end(job)

    assert [(entry.rank, entry.event) for entry in server.entries(job) if isinstance(entry.event, Output)] == [(1, Output(text="hello"))]


def test_files_of_rank_0_come_back_and_links_and_others_files_do_not(server: Served) -> None:
    secret = server.folder / "token"
    job = server.submit(
        {"do": "write", "path": "deep/best file.keras", "text": "weights", "ranks": [0]},
        {"do": "write", "path": "mine.txt", "ranks": [1]},
        {"do": "link", "path": "stolen", "to": str(secret), "ranks": [0]},
        {"do": "link", "path": "folder", "to": str(server.folder), "ranks": [0]},
        workers=2,
    )

    assert server.end(job).files == ("deep/best file.keras",)

    assert server.transport.read(f"/v1/jobs/{job}/files/deep/best%20file.keras") == b"weights"
    for path in ("stolen", "folder/token", "mine.txt", "../../../token", "..%2f..%2f..%2ftoken", "%2e%2e/%2e%2e/%2e%2e/token", "", "deep"):
        status, body, _ = server.raw("GET", f"/v1/jobs/{job}/files/{path}")
        assert status == 404, path
        assert server.token.encode() not in body


def test_a_callback_that_prints_long_lines_holds_up_neither_the_server_nor_the_job(server: Served) -> None:
    """Of 100 lines of 1 MB the pattern that looked for progress bars would have taken hours."""
    job = server.submit({"do": "python", "text": "for _ in range(100): print('x' * 1_000_000, flush=True)"}, {"do": "epochs", "count": 1})

    assert server.result(job) == b"result of attempt 1"

    output = [event.text for event in server.events(job, Output)]
    assert 1_000_000 < sum(map(len, output)) < 1_200_000
    assert output[-1].endswith("(more than 1 MB were printed; the rest is left out)")


ODD_FILES = """
import os
os.mkfifo("pipe")
os.symlink("/dev/zero", "endless")
os.link(play.command.payload, "other name")
open(b"\\xff\\xfe.txt", "w").close()
open("plain.txt", "w").write("plain")
"""


def test_odd_files_of_a_callback_are_left_out_and_the_rest_comes_back(server: Served) -> None:
    job = server.submit({"do": "python", "text": ODD_FILES})

    assert server.end(job).files == ("plain.txt",)

    assert server.transport.read(f"/v1/jobs/{job}/files/plain.txt") == b"plain"
    for name in ("pipe", "endless", "other%20name", "%FF%FE.txt"):
        assert server.raw("GET", f"/v1/jobs/{job}/files/{name}")[0] == 404


def test_a_file_that_became_a_pipe_after_it_was_listed_is_not_there(server: Served) -> None:
    job = server.submit({"do": "write", "path": "a.txt", "text": "a"})
    assert server.end(job).files == ("a.txt",)
    path = server.folder / "jobs" / job / "files" / "a.txt"
    path.unlink()
    os.mkfifo(path)

    assert server.raw("GET", f"/v1/jobs/{job}/files/a.txt")[0] == 404


FIGURES = """
import os
from aiaas_magics.core.events import FigureShown
folder = os.path.join(play.command.job_dir, "figures")
os.mkdir(folder)
open(os.path.join(folder, "1-1.png"), "wb").write(b"a figure")
os.symlink("/etc/hostname", os.path.join(folder, "1-2.png"))
os.mkfifo(os.path.join(folder, "1-3.png"))
os.truncate(os.open(os.path.join(folder, "1-4.png"), os.O_RDWR | os.O_CREAT), 6_000_000)
play.send(FigureShown(number=1))
"""


def test_a_figure_is_there_while_the_job_runs_and_after_it_and_nothing_else_in_its_place(server: Served) -> None:
    job = server.submit({"do": "python", "text": FIGURES}, LONG)
    server.wait_for(job, FigureShown)

    assert server.transport.read(f"/v1/jobs/{job}/figures/1/1") == b"a figure"

    server.transport.post(f"/v1/jobs/{job}/cancel", None, JobView)
    server.end(job)
    assert server.transport.read(f"/v1/jobs/{job}/figures/1/1") == b"a figure"
    for place in ("1/2", "1/3", "1/4", "1/5", "2/1", "1/-1", "1/..%2f1-1", "x/1"):
        assert server.raw("GET", f"/v1/jobs/{job}/figures/{place}")[0] == 404, place
    path = server.folder / "jobs" / job / "figures"
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))
    assert server.raw("GET", f"/v1/jobs/{job}/figures/1/1")[0] == 404, "of a folder that is a link"
    with pytest.raises(errors.UnknownName, match="figure"):
        Job(server.transport, server.view(job)).figure(1, 1)


def test_what_a_backend_calls_a_figure_and_is_no_picture_is_not_shown(server: Served) -> None:
    job = server.submit({"do": "python", "text": FIGURES})
    server.end(job)

    with pytest.raises(errors.BackendRefused, match="is no PNG of at most 5 MB"):
        Job(server.transport, server.view(job)).figure(1, 1)


PLANTED_CHECKPOINT = """
import json, os
folder = os.path.join(play.command.job_dir, "checkpoints", "epoch-00009")
os.makedirs(folder)
open(os.path.join(folder, "manifest.json"), "w").write(json.dumps({"/dev/zero": "x", "../../files": "y"}))
"""


def test_a_checkpoint_whose_manifest_names_a_device_is_passed_over(server: Served) -> None:
    job = server.submit(
        {"do": "epochs", "count": 1, "attempts": [1]},
        {"do": "python", "text": PLANTED_CHECKPOINT, "attempts": [1]},
        {"do": "kill", "attempts": [1]},
    )

    assert server.result(job) == b"result of attempt 2"

    assert server.events(job, AttemptStarted)[1].from_epoch == 1


RESULT_ELSEWHERE = """
import os
from aiaas_magics.core.events import Finished
result = os.path.join(play.command.attempt_dir, "result.safetensors")
{make}
play.send(Finished())
code = 0
"""


@pytest.mark.parametrize(
    ("make", "why"),
    [
        ("os.symlink('/dev/zero', result)", "is a link"),
        ("os.mkfifo(result)", "is not a regular file"),
        (
            "os.link(play.command.job_dir + '/../../token', result)",
            "has another name elsewhere",
        ),
    ],
    ids=["link", "pipe", "hard link"],
)
def test_a_result_that_is_no_plain_file_is_not_kept_and_the_reason_is_told(server: Served, make: str, why: str) -> None:
    job = server.submit({"do": "python", "text": RESULT_ELSEWHERE.format(make=make)}, retries=0)

    view = server.end(job)

    assert view.state is JobState.FAILED
    assert why in view.reason


def test_an_exception_of_the_user_fails_the_job_at_once_and_every_rank_may_tell(server: Served) -> None:
    job = server.submit({"do": "crash", "type": "LookupError", "message": "no such column"}, workers=2)

    view = server.end(job)

    assert (view.state, view.reason, view.attempt) == (JobState.FAILED, "LookupError: no such column", 1)
    assert len(server.events(job, Crashed)) == 2
    assert server.events(job, WorkerLost) == []


def test_a_rank_that_waits_for_one_that_crashed_is_ended(server: Served) -> None:
    job = server.submit({"do": "crash", "ranks": [1]}, LONG, workers=2)

    assert server.end(job).state is JobState.FAILED


@pytest.mark.parametrize(("step", "how"), [({"do": "kill"}, "was killed by signal 9"), ({"do": "exit", "code": 0}, "exited with code 0")])
def test_a_lost_worker_costs_an_attempt_and_the_next_goes_on_from_the_checkpoint(server: Served, step: dict[str, object], how: str) -> None:
    job = server.submit(
        {"do": "epochs", "count": 2},
        {**step, "ranks": [1], "attempts": [1]},
        {**LONG, "attempts": [1]},
        {"do": "epochs", "count": 4, "attempts": [2]},
        workers=2,
    )

    assert server.result(job) == b"result of attempt 2"

    (lost,) = server.events(job, WorkerLost)
    assert how in lost.how
    second = server.events(job, AttemptStarted)[1]
    assert second.from_epoch in (1, 2)  # the ranks are scripted, not in step: rank 1 may go while rank 0 saves its second
    assert "worker 1" in second.why.lower()
    assert how in second.why
    assert second.why.endswith(f"Attempt 2 goes on from epoch {second.from_epoch + 1}.")


def test_a_stopped_worker_costs_an_attempt_and_one_that_goes_on_in_time_costs_nothing(server: Served) -> None:
    stop, wait = {"do": "kill", "signal": int(signal.SIGSTOP)}, {**LONG, "attempts": [1]}
    alone = server.submit({"do": "epochs", "count": 2}, {**stop, "attempts": [1]}, {"do": "epochs", "count": 3})
    together = server.submit({**stop, "ranks": [1], "attempts": [1]}, wait, {"do": "epochs", "count": 2, "attempts": [2]}, workers=2)
    slowed = server.submit(stop, {"do": "epochs", "count": 2})
    pid = server.wait_for(slowed, WorkerStarted)[0].pid
    [notice] = server.wait_for(slowed, Notice)
    os.kill(pid, signal.SIGCONT)

    assert "Worker 0 is stopped (SIGSTOP)" in notice.text
    assert (server.end(slowed).state, server.view(slowed).attempt) == (JobState.SUCCEEDED, 1)
    for job, rank in ((alone, 0), (together, 1)):
        assert server.result(job) == b"result of attempt 2"
        assert [event.how for event in server.events(job, WorkerLost)] == ["was stopped (SIGSTOP) for 10 s"]
        assert server.events(job, AttemptStarted)[1].why.startswith(f"Worker {rank} was stopped (SIGSTOP) for 10 s. Attempt 2")


def test_a_torn_checkpoint_is_passed_over_and_the_log_names_the_epoch_that_it_really_goes_on_from(server: Served) -> None:
    job = server.submit(
        {"do": "epochs", "count": 3, "attempts": [1]},
        {"do": "tear", "attempts": [1]},
        {"do": "kill", "attempts": [1]},
        {"do": "epochs", "count": 4, "attempts": [2]},
    )

    server.result(job)

    second = server.events(job, AttemptStarted)[1]
    assert second.from_epoch == 2
    assert second.why.endswith("Attempt 2 goes on from epoch 3.")
    assert [event.epoch for event in server.events(job, EpochEnded)] == [0, 1, 2, 2, 3]


def test_a_job_that_ended_badly_leaves_its_last_checkpoint_and_another_goes_on_from_it(server: Served) -> None:
    failed = server.submit({"do": "epochs", "count": 3}, {"do": "crash"})
    server.end(failed)
    assert server.transport.get(f"/v1/jobs/{failed}/checkpoint", CheckpointView).epoch == 3
    assert [path.name for path in (server.folder / "jobs" / failed / "checkpoints").iterdir()] == ["epoch-00003"]

    job = server.submit({"do": "epochs", "count": 5}, {"do": "kill", "attempts": [1], "ranks": [0]}, resume_job=failed, workers=2)

    assert server.end(job).state is JobState.SUCCEEDED
    assert [event.from_epoch for event in server.events(job, AttemptStarted)] == [3, 5]
    assert {event.epoch for event in server.events(job, EpochEnded)} == {3, 4}
    assert not (server.folder / "jobs" / job).exists()
    assert (server.folder / "jobs" / failed / "checkpoints").exists()


def test_a_job_without_anything_to_go_on_from_is_refused_in_words(server: Served) -> None:
    well, early, running = server.submit({"do": "epochs", "count": 1}), server.submit({"do": "crash"}), server.submit(LONG)
    server.end(well)
    server.end(early)

    for job, said in ((well, "has succeeded"), (early, "left no checkpoint"), (running, "cancel it first")):
        with pytest.raises(errors.InvalidSpec, match=said):
            server.submit(resume_job=job)
    with pytest.raises(errors.UnknownName, match="no job '99999'"):
        server.submit(resume_job="99999")


def test_only_the_newest_jobs_that_ended_badly_keep_their_checkpoints(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    jobs = [str(number) for number in range(1, job_files.KEPT_JOBS + 4)]
    for job in jobs:
        with checkpoint_folder.written(state.job(job).checkpoints, checkpoint_folder.TrainingPosition(1)) as folder:
            (folder / checkpoint_folder.STATE).write_text("{}")

    job_files.forget_checkpoints(state, jobs, needed={"2"})

    assert [job for job in jobs if state.job(job).path.exists()] == ["2", *jobs[3:]]


def test_a_job_that_loses_workers_each_time_fails_after_its_retries(server: Served) -> None:
    job = server.submit({"do": "kill"}, retries=2)

    view = server.end(job)

    assert (view.state, view.attempt, view.reason) == (JobState.FAILED, 3, "worker 0 was killed by signal 9")


def test_cancelling_ends_a_running_job_and_its_workers(server: Served) -> None:
    job = server.submit({"do": "epochs", "count": 100_000}, workers=2)
    server.wait_for(job, Checkpointed)

    view = server.transport.post(f"/v1/jobs/{job}/cancel", None, JobView)

    assert view.state in {JobState.STOPPING, JobState.CANCELLED}
    assert server.end(job).state is JobState.CANCELLED
    assert server.transport.post(f"/v1/jobs/{job}/cancel", None, JobView).state is JobState.CANCELLED


def test_jobs_wait_their_turn_and_say_why(server: Served) -> None:
    first = server.submit(LONG, workers=3)
    second = server.submit({"do": "epochs", "count": 1}, workers=None)
    third = server.submit({"do": "epochs", "count": 1}, workers=1)  # there is a device for it, and nobody overtakes
    server.wait_for(first, WorkerStarted, 3)

    waits = server.wait_for(second, PhaseEntered)
    assert waits[-1] == PhaseEntered(phase=Phase.WAITING, detail=f"waiting for 4 cores; job {first} holds devices")
    assert server.view(third).state is JobState.QUEUED

    server.transport.post(f"/v1/jobs/{first}/cancel", None, JobView)
    assert server.end(second).state is JobState.SUCCEEDED
    assert server.end(third).state is JobState.SUCCEEDED
    assert server.view(second).started_s < server.view(third).started_s  # type: ignore[operator]


def test_a_waiting_job_can_be_cancelled(server: Served) -> None:
    first = server.submit(LONG, workers=None)
    second = server.submit(workers=None)

    assert server.transport.post(f"/v1/jobs/{second}/cancel", None, JobView).state is JobState.CANCELLED

    server.transport.post(f"/v1/jobs/{first}/cancel", None, JobView)
    assert server.view(second).started_s is None


def test_a_measured_job_has_the_machine_to_itself(server: Served) -> None:
    first = server.submit({"do": "wait", "seconds": 0.3}, workers=1, measure=MeasureSpec())
    second = server.submit(workers=1)

    server.end(second)

    assert server.view(first).ended_s <= server.view(second).started_s  # type: ignore[operator]


def test_more_workers_than_devices_are_refused_unless_they_may_share(server: Served) -> None:
    before = len(server.transport.get("/v1/jobs", list[JobView]))

    with pytest.raises(errors.NotEnoughDevices, match=r".* has 4 devices, fewer than the 5 workers requested"):
        server.submit(workers=5)

    assert len(server.transport.get("/v1/jobs", list[JobView])) == before
    job = server.submit(workers=5, oversubscribe=True)
    server.end(job)
    assert len(server.events(job, WorkerStarted)) == 5


def test_the_same_key_is_the_same_job(server: Served) -> None:
    key = secrets.token_hex(8)

    with ThreadPoolExecutor(8) as pool:
        jobs = set(pool.map(lambda _: server.submit(key=key), range(16)))

    assert len(jobs) == 1


@pytest.mark.parametrize("what", ["python", "keras", "tensorflow", "aiaas_magics"])
def test_other_versions_are_refused_by_name(server: Served, what: str) -> None:
    skewed = msgspec.structs.replace(settings.versions(), **{what: "9.9.1"})

    with pytest.raises(errors.VersionSkew, match=rf"(?i){what} is 9\.9\.1 here"):
        server.transport.post("/v1/jobs", msgspec.structs.replace(server.spec(), versions=skewed), JobView)


def test_another_bugfix_version_is_no_other_version(server: Served) -> None:
    versions = settings.versions()
    patched = msgspec.structs.replace(versions, keras=".".join(versions.keras.split(".")[:2]) + ".99")

    view = server.transport.post("/v1/jobs", msgspec.structs.replace(server.spec(), versions=patched), JobView)

    assert server.end(view.id).state is JobState.SUCCEEDED


def test_a_job_whose_blobs_were_not_sent_is_refused(server: Served) -> None:
    spec = msgspec.structs.replace(server.spec(), arrays=("0" * 64,))

    with pytest.raises(errors.UnknownName, match="no blob '0000"):
        server.transport.post("/v1/jobs", spec, JobView)


def test_a_long_poll_is_answered_when_something_happens(server: Served) -> None:
    job = server.submit({"do": "wait", "seconds": 0.5})
    seen = 0
    while not server.view(job).state.final:
        entries = server.entries(job, after=seen, wait_s=20)
        assert entries, "a poll of 20 s ended empty while things happened"
        assert entries[0].seq == seen + 1
        seen = entries[-1].seq

    assert server.entries(job, after=seen, wait_s=0) == []


def test_a_log_is_read_in_portions(server: Served) -> None:
    job = server.submit({"do": "epochs", "count": 700, "seconds": 0})
    server.end(job)

    first = server.entries(job)
    second = server.entries(job, after=first[-1].seq)

    assert len(first) == 1000
    assert second[0].seq == 1001
    assert isinstance(second[-1].event, StateChanged)


def test_what_a_worker_scribbles_into_its_channel_is_passed_over(server: Served) -> None:
    forged = '{"at_s": 1.0, "event": {"kind": "state", "state": "failed"}}\n'
    job = server.submit({"do": "scribble", "text": "no event\n" + forged}, {"do": "epochs", "count": 1})

    assert server.end(job).state is JobState.SUCCEEDED
    assert JobState.FAILED not in [event.state for event in server.events(job, StateChanged)]


def test_the_backend_says_what_it_is(server: Served) -> None:
    about = server.transport.get("/v1/about", About)

    assert [device.simulated for device in about.devices] == [True] * 4
    assert about.hardware.startswith("4 simulated devices on ")
    assert about.versions == settings.versions()
    assert about.dropbox is None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "Could not read the request"),
        (b"{", "Could not read the request"),
        (b'{"name": "x"}', "payload"),
        (b"[" * 100_000, "Could not read the request"),
        (b'{"name": "\xff"}', "Could not read the request"),
    ],
)
def test_a_body_that_is_no_fit_call_gets_one_sentence(server: Served, body: bytes, text: str) -> None:
    status, answer, _ = server.raw("POST", "/v1/jobs", body)

    assert status == 400
    assert text in msgspec.json.decode(answer)["error"]


def test_a_wrong_value_in_a_fit_call_is_named(server: Served) -> None:
    spec = msgspec.json.decode(msgspec.json.encode(server.spec()))
    with pytest.raises(errors.InvalidSpec, match="workers=0"):
        server.transport.post("/v1/jobs", {**spec, "workers": 0}, FitSpec)
    with pytest.raises(errors.InvalidSpec, match="not a SHA-256"):
        server.transport.post("/v1/jobs", {**spec, "payload": "../../token"}, FitSpec)


@pytest.mark.parametrize("query", ["after=-1", "after=x", "wait_s=nan", "after=1e400", "wait_s=-1"])
def test_odd_numbers_in_a_query_are_refused(server: Served, query: str) -> None:
    job = server.submit()
    server.end(job)

    status, _, _ = server.raw("GET", f"/v1/jobs/{job}/events?{query}")

    assert status == 400


@pytest.mark.parametrize("job", ["nope", "0", "%2e%2e", "1%00", "x" * 5000])
def test_an_unknown_job_is_unknown_whatever_its_name(server: Served, job: str) -> None:
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("GET", "/files/a")):
        status, _, _ = server.raw(method, f"/v1/jobs/{job}{path}")
        assert status == 404


def test_a_link_in_the_place_of_a_jobs_folder_is_not_followed(server: Served, tmp_path: Path) -> None:
    job = server.submit({"do": "write", "path": "kept.txt", "text": "mine", "ranks": [0]})
    server.end(job)
    elsewhere, folder = tmp_path / "elsewhere", server.folder / "jobs" / job / "files"
    elsewhere.mkdir()
    (elsewhere / "kept.txt").write_text("another's")
    assert server.raw("GET", f"/v1/jobs/{job}/files/kept.txt")[:2] == (200, b"mine")

    folder.rename(tmp_path / "moved")
    folder.symlink_to(elsewhere)

    status, body, _ = server.raw("GET", f"/v1/jobs/{job}/files/kept.txt")
    assert status == 404
    assert b"another's" not in body


def test_folders_that_nothing_was_written_into_go_with_the_job(server: Served) -> None:
    job = server.submit({"do": "write", "path": "kept/one.txt", "ranks": [0]}, folders=("kept", "made/within"))

    assert server.end(job).files == ("kept/one.txt",)

    assert sorted(path.name for path in (server.folder / "jobs" / job / "files").iterdir()) == ["kept"]


def test_a_finished_job_leaves_only_its_files(server: Served, tmp_path: Path) -> None:
    before = shared_memory.segments()
    job = server.submit({"do": "epochs", "count": 2}, {"do": "share"}, workers=2)
    server.end(job)

    assert not (server.folder / "jobs" / job).exists()
    shared_memory.wait_until_none_is_left(before)


def test_the_end_is_heard_when_it_comes_however_long_a_view_stands(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 3600.0)
    shown: list[JobState] = []
    job = Job(server.transport, server.view(server.submit({"do": "epochs", "count": 2}, workers=1)))

    job.follow(lambda story: shown.append(story.state))

    assert len(shown) == 2  # as it was, and as it ended
    assert shown[-1] is JobState.SUCCEEDED
