"""Real processes killed with real signals: the job goes on, and nothing is left behind."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from msgspec.structs import replace

import aiaas_magics
from aiaas_magics.backend.workers.local.attempt_folder import RunningLauncher, read_value
from aiaas_magics.client import local_server
from aiaas_magics.client.training import private_training
from aiaas_magics.client.training.job import Job
from aiaas_magics.core.events import AttemptStarted, Checkpointed, Entry, WorkerLost, WorkerStarted
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.privacy import Privacy
from aiaas_magics.core.privacy_accountant import epsilon_of
from aiaas_magics.core.spec import JobState
from tests.conftest import processes_of
from tests.contracts.recipes import gap, small_model, table
from tests.support import shared_memory, waiting
from tests.support.launchers import ROOT

WAIT_S = 90.0
WITHIN_EPOCHS = Execution(checkpoint_epochs=0, checkpoint_s=0.1)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A local server of this module's own, so that killing it hurts nobody else. Its launcher outlives it, and is imported once."""
    folder = tmp_path_factory.mktemp("faults") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIAAS_HOME", str(folder))
        yield folder
        local_server.stop_local()
        wait_until(lambda: not processes_of(folder), f"left behind: {processes_of(folder)}")


@pytest.fixture
def own_home(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of that server; after the test no worker is left."""
    monkeypatch.chdir(tmp_path)
    yield state
    wait_until(lambda: not workers_in(state), "workers were left behind")


def workers_in(folder: Path) -> list[psutil.Process]:
    """Living children of the launchers in `folder`, but for those that stand by: they have no folder of a job yet."""
    workers: list[psutil.Process] = []
    for file in folder.rglob("launcher.json"):
        running = read_value(file, RunningLauncher)
        with contextlib.suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(running.process.pid) if running is not None else None
            workers += [worker for worker in launcher.children() if is_working(worker, launcher)] if launcher is not None else []
    return workers


def is_working(worker: psutil.Process, launcher: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return worker.status() != psutil.STATUS_ZOMBIE and worker.cwd() != launcher.cwd()
    return False


wait_until = functools.partial(waiting.until, wait_s=WAIT_S)


def first(job: Job, kind: type) -> Entry | None:
    return next((entry for entry in job.entries() if isinstance(entry.event, kind)), None)


def worker_pids(job: Job) -> dict[int, int]:
    """The newest pid of each rank."""
    return {entry.rank or 0: entry.event.pid for entry in job.entries() if isinstance(entry.event, WorkerStarted)}


def long_job(backend: aiaas_magics.Backend, *, workers: int | None, epochs: int = 60, execution: Execution | None = None):  # type: ignore[no-untyped-def]
    """A job that lasts some seconds, past its first checkpoint, and the model and plain `fit` to compare it with."""
    x, y = table(rows=4096)
    model, plain = small_model(), small_model()
    arguments = {"epochs": epochs, "batch_size": 16, "shuffle": False}
    job = backend.train(model, x, y, workers=workers, oversubscribe=True, execution=execution, **arguments)
    wait_until(lambda: first(job, Checkpointed), "no checkpoint was written")
    return job, model, lambda: plain.fit(x, y, verbose=0, **arguments), plain


@pytest.mark.parametrize(
    ("sent", "how"),
    [(signal.SIGKILL, "was killed by signal 9"), pytest.param(signal.SIGSTOP, "was stopped (SIGSTOP) for 10 s", marks=pytest.mark.nightly)],
)
def test_a_worker_killed_or_stopped_mid_epoch_costs_one_attempt_and_nothing_else(own_home: Path, sent: signal.Signals, how: str) -> None:
    with aiaas_magics.connect() as backend:
        segments = shared_memory.segments()
        job, model, fit_plain, plain = long_job(backend, workers=2, epochs=12, execution=WITHIN_EPOCHS)
        first_two = worker_pids(job)
        os.kill(first_two[1], sent)

        history = job.result(WAIT_S)

        fit_plain()
        assert [entry.event.how for entry in job.entries() if isinstance(entry.event, WorkerLost)] == [how]
        attempts = [entry.event for entry in job.entries() if isinstance(entry.event, AttemptStarted)]
        assert len(attempts) == 2
        assert (attempts[1].from_epoch, attempts[1].from_step) > (0, 0)
        assert how in attempts[1].why
        assert len(history.history["loss"]) == 12
        assert gap(model, plain) <= 1e-5
        pids = (*first_two.values(), *worker_pids(job).values())
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "a worker outlived its attempt")
        shared_memory.wait_until_none_is_left(segments)


@pytest.mark.nightly
@pytest.mark.nightly
@pytest.mark.parametrize("engine", ["tensorflow", "jax"])
def test_a_private_job_whose_worker_is_killed_goes_on_counting(own_home: Path, engine: str) -> None:
    x, y = table(rows=4096)
    model = small_model()
    execution = Execution(engine=engine, private=Privacy(epsilon=3.0, delta=1e-5), checkpoint_epochs=1)
    with aiaas_magics.connect() as backend:
        job = backend.train(model, x, y, workers=2, oversubscribe=True, execution=execution, epochs=12, batch_size=16)
        wait_until(lambda: first(job, Checkpointed), "no checkpoint was written")
        os.kill(max(worker_pids(job).items())[1], signal.SIGKILL)

        history = job.result(WAIT_S)

        attempts = [entry.event for entry in job.entries() if isinstance(entry.event, AttemptStarted)]
        assert len(attempts) == 2
        assert attempts[1].from_epoch > 0
        (fit,) = job.privacy.fits
        assert fit.steps == 12 * 256
        costs = [epsilon_of([replace(fit, steps=256 * epoch)], 1e-5) for epoch in range(1, 13)]
        assert history.history["privacy_epsilon"] == pytest.approx(costs, rel=1e-6)
        assert 2.9 < costs[-1] <= 3.0
        assert private_training.spent_by(model) == job.privacy


@pytest.mark.nightly
def test_a_worker_that_is_slow_is_waited_for(own_home: Path) -> None:
    with aiaas_magics.connect() as backend:
        job, model, fit_plain, plain = long_job(backend, workers=2, epochs=6, execution=WITHIN_EPOCHS)
        slow = psutil.Process(worker_pids(job)[1])
        stops = 0
        with contextlib.suppress(psutil.NoSuchProcess):  # it is done
            while job.state is JobState.RUNNING:
                slow.suspend()
                time.sleep(0.2)
                slow.resume()
                time.sleep(0.05)
                stops += 1

        history = job.result(WAIT_S)

        fit_plain()
        assert stops > 3
        assert sum(isinstance(entry.event, AttemptStarted) for entry in job.entries()) == 1
        assert len(history.history["loss"]) == 6
        assert gap(model, plain) <= 1e-5


def test_the_server_killed_mid_job_comes_back_and_the_job_ends_well(own_home: Path) -> None:
    with aiaas_magics.connect() as backend:
        job, model, fit_plain, plain = long_job(backend, workers=None, epochs=40)
        os.kill(server_pid(own_home), signal.SIGKILL)

        history = job.result(WAIT_S)

        fit_plain()
        assert len(history.history["loss"]) == 40
        assert gap(model, plain) <= 1e-5


def test_endpoints_come_back_after_the_server_and_its_inference_process_were_killed(own_home: Path) -> None:
    x, _ = table()
    model = small_model()
    with aiaas_magics.connect() as backend:
        endpoint = backend.deploy(model, name="back", sample=x)
        url, token = endpoint.url, endpoint.token
        for process in [psutil.Process(server_pid(own_home)), *processes_of(own_home)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # one ends when another is killed
                process.kill()

        again = backend.endpoint("back")

        def answers() -> bool:
            try:
                return bool(np.allclose(again.predict(x[:3]), model.predict(x[:3], verbose=0), rtol=1e-4, atol=1e-5))
            except aiaas_magics.core.errors.BackendUnreachable:
                return False

        wait_until(answers, "the endpoint did not come back")
        assert (again.url, again.token) == (url, token)
        again.stop()


def test_a_job_outlives_the_process_that_submitted_it(own_home: Path) -> None:
    script = (
        "import sys, aiaas_magics, os\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from tests.contracts.recipes import small_model, table\n"
        "job = aiaas_magics.connect().train(small_model(), *table(rows=4096), epochs=5, batch_size=16)\n"
        "print(job.id, flush=True)\n"
        "os._exit(1)\n"
    )
    root = str(ROOT)
    told = subprocess.run([sys.executable, "-c", script, root], capture_output=True, text=True, timeout=WAIT_S, check=False)

    with aiaas_magics.connect() as backend:
        job = backend.job(told.stdout.strip())
        assert job.wait(WAIT_S) is JobState.SUCCEEDED
        fresh = small_model(seed=5)
        assert len(job.apply_to(fresh).history["loss"]) == 5


def test_cancelling_ends_every_worker(own_home: Path) -> None:
    with aiaas_magics.connect() as backend:
        job, *_ = long_job(backend, workers=2, epochs=100_000)
        pids = worker_pids(job)

        assert job.cancel() is JobState.CANCELLED

        assert len(pids) == 2
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids.values()), "a worker outlived its job")


def test_two_jobs_queue_for_the_devices(own_home: Path) -> None:
    with aiaas_magics.connect() as backend:
        x, y = table()
        running, *_ = long_job(backend, workers=None, epochs=100_000)

        waiting = backend.train(small_model(), x, y, epochs=1)

        assert waiting.state is JobState.QUEUED
        assert waiting.story().phase is not None
        running.cancel()
        assert waiting.wait(WAIT_S) is JobState.SUCCEEDED


def test_a_finished_job_leaves_no_scratch_behind(own_home: Path) -> None:
    with aiaas_magics.connect() as backend:
        x, y = table()
        segments = shared_memory.segments()
        job = backend.train(small_model(), x, y, workers=2, oversubscribe=True, epochs=1)
        job.result(WAIT_S)

        scratch = list(own_home.rglob("files-*")) + list(own_home.rglob("result.safetensors"))
        assert scratch == []
        shared_memory.wait_until_none_is_left(segments)


def server_pid(home: Path) -> int:
    import json

    told = json.loads(next(home.glob("local-*/server.json")).read_text())
    return int(told["pid"])
