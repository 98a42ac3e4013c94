"""The server is killed, stopped, started twice; its jobs go on and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from aiaas_magics.core import process_id
from aiaas_magics.core.events import AttemptStarted, Checkpointed, EpochEnded, Notice, Output, StateChanged, WorkerLost, WorkerStarted
from aiaas_magics.core.spec import About, JobState, JobView
from tests.backend.server.served import Served, served, until
from tests.conftest import processes_of

pytestmark = pytest.mark.process

LONG = {"do": "wait", "seconds": 600}


def gapless(server: Served, job: str) -> bool:
    entries = server.entries(job)
    return [entry.seq for entry in entries] == list(range(1, len(entries) + 1))


def test_a_killed_server_comes_back_and_its_job_has_not_noticed(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server:
        job = server.submit({"do": "epochs", "count": 40, "seconds": 0.05}, workers=2, oversubscribe=True)
        server.wait_for(job, Checkpointed)
        url, token = server.url, server.token

        server.kill()
        server.start()

        assert (server.url, server.token) == (url, token)
        assert server.result(job) == b"result of attempt 1"
        assert len(server.events(job, AttemptStarted)) == 1
        epochs = [entry.event.epoch for entry in server.entries(job) if isinstance(entry.event, EpochEnded) and entry.rank == 0]
        assert epochs == list(range(40))
        assert gapless(server, job)


def test_a_job_that_ended_while_no_server_was_there_is_found_ended(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server:
        job = server.submit({"do": "epochs", "count": 3, "seconds": 0.2})
        (started,) = server.wait_for(job, WorkerStarted)
        server.kill()
        until(lambda: not psutil.pid_exists(started.pid), "the worker did not end")

        server.start()

        assert server.result(job) == b"result of attempt 1"


def test_after_a_power_cut_a_job_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server:
        job = server.submit({"do": "epochs", "count": 20, "seconds": 0.05})
        server.wait_for(job, Checkpointed, 3)
        server.kill()
        for process in processes_of(server.folder):
            process.kill()

        server.start()

        assert server.result(job) == b"result of attempt 2"
        assert server.events(job, AttemptStarted)[1].from_epoch >= 3
        assert gapless(server, job)


def test_a_cancelled_job_whose_server_died_is_cancelled_by_the_next(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server:
        job = server.submit({"do": "stubborn"}, {"do": "epochs", "count": 1}, LONG)
        server.wait_for(job, Checkpointed)
        server.transport.post(f"/v1/jobs/{job}/cancel", None, JobView)
        server.kill()

        server.start()

        assert server.end(job).state is JobState.CANCELLED


def test_a_launcher_that_is_killed_costs_a_running_job_nothing(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server:
        job = server.submit({"do": "epochs", "count": 20, "seconds": 0.05})
        (started,) = server.wait_for(job, WorkerStarted)
        psutil.Process(started.pid).parent().kill()  # type: ignore[union-attr]

        assert server.result(job) == b"result of attempt 1"
        assert server.result(server.submit()) == b"result of attempt 1"


def test_a_server_that_is_stopped_ends_its_workers_and_takes_its_jobs_up_again(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server:
        running = server.submit({"do": "epochs", "count": 10, "seconds": 0.2}, workers=None, retries=0)
        waiting = server.submit(workers=None)
        server.wait_for(running, Checkpointed)

        assert server.stop() == 0
        assert server.leftovers() == []
        server.start()

        assert server.result(running) == b"result of attempt 2"
        assert server.events(running, AttemptStarted)[1].why.startswith("The server was stopped")
        assert server.events(running, WorkerLost) == []
        assert server.end(waiting).state is JobState.SUCCEEDED


def test_asked_to_stop_over_http_the_server_ends_everything(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server:
        job = server.submit(LONG)
        server.wait_for(job, WorkerStarted)

        assert server.raw("POST", "/v1/stop")[0] == 202

        assert server.process.wait(20) == 0
        assert not (server.folder / "server.json").exists()


def test_a_long_poll_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server:
        job = server.submit(LONG)
        server.wait_for(job, WorkerStarted)
        last = server.view(job).last_seq + 1000  # beyond what the job may say meanwhile: the poll has to wait
        poll = subprocess.Popen(
            [sys.executable, "-c", POLL, server.url, server.token, job, str(last)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        until(lambda: any(c.status == "ESTABLISHED" for c in psutil.Process(poll.pid).net_connections()), "it did not connect")

        server.stop()

        out, err = poll.communicate(timeout=10)
        assert out.strip() == b"200", err


POLL = """
import sys, urllib.request
url, token, job, last = sys.argv[1:]
request = urllib.request.Request(f"{url}/v1/jobs/{job}/events?after={last}&wait_s=30", headers={"Authorization": "Bearer " + token})
print(urllib.request.urlopen(request, timeout=60).status)
"""


def test_a_second_server_on_the_same_folder_is_refused_and_names_the_first(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server:
        second = subprocess.run(
            [sys.executable, "-m", "aiaas_magics", "serve", "--state", str(server.folder)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

        assert second.returncode == 2
        assert f"Process {server.process.pid} already serves" in second.stderr
        assert "--state" in second.stderr
        assert server.raw("GET", "/v1/health")[0] == 200


def test_orphans_of_an_attempt_that_is_over_are_ended_at_the_next_start(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server:
        job = server.submit(LONG)
        (started,) = server.wait_for(job, WorkerStarted)
        server.kill()
        records = server.folder / "records.sqlite"
        # As if the end had been recorded and the machine had lost power before the workers were ended.
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(\"update jobs set state = 'failed'\"); c.commit()",
                str(records),
            ],
            check=True,
        )

        server.start()

        until(lambda: not psutil.pid_exists(started.pid), "the orphan lives")
        assert not list(server.folder.glob("jobs/*/attempt-*"))


def test_the_state_folder_is_private(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server:
        job = server.submit({"do": "epochs", "count": 1}, {"do": "write", "path": "a.txt"})
        server.end(job)

        for path in [server.folder, *server.folder.rglob("*")]:
            mode = path.lstat().st_mode
            assert not mode & (stat.S_IRWXG | stat.S_IRWXO), path


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")

    told = subprocess.run(
        [sys.executable, "-m", "aiaas_magics", "serve", "--state", str(tmp_path / "file" / "state")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert told.returncode == 2
    assert "cannot be written" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_server_that_nobody_needs_ends_by_itself(tmp_path: Path) -> None:
    with served(tmp_path / "state", "--idle-minutes", "0.01") as server:
        assert server.process.wait(20) == 0
        assert "nobody was here" in server.log


def test_a_living_kernel_or_a_job_keeps_the_server(tmp_path: Path) -> None:
    kernel = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with served(tmp_path / "state", "--idle-minutes", "0.01") as server:
            started = process_id.start_mark(kernel.pid)
            server.transport.post("/v1/kernels", {"pid": kernel.pid, "started": started}, type(None))
            with pytest.raises(subprocess.TimeoutExpired):
                server.process.wait(2)
            job = server.submit({"do": "wait", "seconds": 2}, {"do": "epochs", "count": 1})
            kernel.kill()
            kernel.wait()
            server.wait_for(job, Checkpointed)

            assert server.process.wait(20) == 0
    finally:
        kernel.kill()
        kernel.wait()


def test_the_memory_of_the_libraries_is_let_go_when_nobody_asks_and_the_next_job_runs_all_the_same(tmp_path: Path) -> None:
    told = tmp_path / "state" / "launcher" / "launcher.json"

    def launcher() -> int | None:
        with contextlib.suppress(OSError):
            return int(json.loads(told.read_bytes())["process"]["pid"])
        return None

    # The server looks four times within its idle time, and lives for a kernel that asks for nothing.
    with served(tmp_path / "state", "--idle-minutes", "0.05", "--launcher-idle-s", "1.5") as server:
        server.transport.post("/v1/kernels", {"pid": os.getpid(), "started": process_id.start_mark(os.getpid())}, type(None))
        first = until(launcher, "the launcher was not warmed")
        began = time.monotonic()
        while time.monotonic() - began < 4:
            server.transport.get("/v1/about", About)
            time.sleep(0.1)
        assert launcher() == first, "it is kept for whoever asks"

        until(lambda: not psutil.pid_exists(first), "the launcher stayed")
        assert server.process.poll() is None
        server.result(server.submit({"do": "epochs", "count": 1}))

        assert launcher() not in (None, first)


def test_workers_inherit_no_secret(tmp_path: Path) -> None:
    secrets = {"AIAAS_TOKEN": "another-backends-token", "OTEL_EXPORTER_OTLP_HEADERS": "api-key=of-a-receiver"}
    with served(tmp_path / "state", **secrets) as server:
        job = server.submit({"do": "say", "text": "up\n"}, LONG)
        server.wait_for(job, Output)  # a process is told of when it is forked, and closes what it inherited just after that
        (started,) = server.wait_for(job, WorkerStarted)

        environment = Path(f"/proc/{started.pid}/environ").read_bytes()
        files = [os.readlink(link) for link in Path(f"/proc/{started.pid}/fd").iterdir()]

        assert b"another-backends-token" not in environment
        assert b"of-a-receiver" not in environment
        assert [name for name in files if "sqlite" in name or "socket" in name or name.endswith("lock")] == []


def test_a_worker_may_be_killed_for_memory_before_the_server(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server:
        job = server.submit(LONG)
        (started,) = server.wait_for(job, WorkerStarted)

        worker, own = (int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (started.pid, server.process.pid))

        assert worker > own


def test_ten_jobs_and_a_server_that_is_killed_among_them(tmp_path: Path) -> None:
    with served(tmp_path / "state", AIAAS_SIMULATED_DEVICES="3") as server:
        jobs = [server.submit({"do": "epochs", "count": 4, "seconds": 0.05}, workers=1 + i % 3) for i in range(10)]
        for _ in range(4):
            until(lambda: sum(server.view(job).state.final for job in jobs) or True, "")
            server.kill()
            server.start()

        for job in jobs:
            assert server.end(job).state is JobState.SUCCEEDED
            assert gapless(server, job)
            assert server.events(job, StateChanged)[-1].state is JobState.SUCCEEDED
            assert server.events(job, Notice) == []


def test_sigint_ends_the_server_like_sigterm(tmp_path: Path) -> None:
    with served(tmp_path / "state") as server:
        server.process.send_signal(signal.SIGINT)

        assert server.process.wait(20) == 0
