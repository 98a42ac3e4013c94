"""Tracking: real processes; where a Python with mlflow is at hand, a real MLflow server, read back by MLflow's own client.

`AIAAS_MLFLOW_PYTHON` names that Python, or this one has mlflow. The nightly lane makes an environment with one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aiaas_magics
from aiaas_magics.client.training import tracking
from aiaas_magics.client.training.mlflow_process import cleaned
from aiaas_magics.client.training.tracking import PYTHON, Tracker
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.settings import versions
from aiaas_magics.core.spec import FitShape, FitSpec, JobState, JobView
from aiaas_magics.core.story import EpochRow, JobStory
from tests.contracts.recipes import small_model, table

START_S = 120.0
# MLflow's own client, in its own Python: what is there.
READ_BACK = """
import json, sys
import mlflow
uri, run = sys.argv[1:]
client = mlflow.MlflowClient(uri)
mlflow.set_tracking_uri(uri)
there = client.get_run(run)
history = {name: [(point.step, point.value) for point in client.get_metric_history(run, name)] for name in there.data.metrics}
files = [file.path for file in client.list_artifacts(run)] + [file.path for file in client.list_artifacts(run, "model")]
models = [(version.name, version.version, version.source) for version in client.search_model_versions()]
card = mlflow.artifacts.load_text(f"{there.info.artifact_uri}/README.md")
folder = mlflow.artifacts.download_artifacts(artifact_uri="models:/tracked/1")
print(json.dumps({"status": there.info.status, "params": there.data.params, "history": history, "files": files, "models": models,
                  "card": card, "folder": folder, "tags": there.data.tags}))
"""
STATUS = """
import sys, mlflow
run = mlflow.MlflowClient(sys.argv[1]).get_run(sys.argv[2])
print(run.info.status, run.data.metrics)
"""


def view() -> JobView:
    shape = FitShape(rows=512, global_batch=64, steps_per_epoch=8, initial_epoch=0, epochs=2, parameters=161, model="net")
    spec = FitSpec(name="tracked", payload="a" * 64, arrays=("b" * 64,), shape=shape, versions=versions(), seed=5)
    return JobView(id="7", spec=spec, state=JobState.SUCCEEDED, created_s=1.0)


def story(epochs: int = 2) -> JobStory:
    rows = tuple(EpochRow(epoch=n, seconds=0.5, rows=512, logs={"loss": 1.0 / (n + 1), "val_acc@5": 0.5}) for n in range(epochs))
    return JobStory(state=JobState.SUCCEEDED, rows=rows, at_s=1_700_000_000.0)


def test_names_are_what_mlflow_takes() -> None:
    assert cleaned("val_acc@5") == "val_acc_5"
    assert cleaned("") == "_"


def test_a_password_of_an_address_is_never_shown() -> None:
    assert tracking.without_password("https://me:secret@host:5000/a@b") == "https://host:5000/a@b"
    assert tracking.without_password("./mlruns") == "./mlruns"


def test_without_mlflow_tracking_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(InvalidSpec, match=r"aiaas_magics\[mlflow\]"):
        tracking.check_installed()


@pytest.mark.process
@pytest.mark.parametrize(
    ("python", "why"),
    [("no_such_python", "could not start"), ("dies", "first words"), ("hangs", "no answer within 1 s"), ("refuses", "ConnectionError")],
)
def test_a_tracker_that_fails_is_a_sentence_and_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str, why: str
) -> None:
    """Programs in MLflow's place: one that is not there, one that ends, one that never answers, one whose server is gone."""
    scripts = {
        "dies": "import sys; sys.exit('first words')",
        "hangs": "import time; time.sleep(60)",
        "refuses": "import json, sys\nfor line in sys.stdin:\n"
        " print(json.dumps({'what': 'x', 'of': json.loads(line)['of'], 'error': 'ConnectionError: refused'}), flush=True)",
    }
    program = tmp_path / python
    if python in scripts:
        program.write_text(f"#!{sys.executable}\n{scripts[python]}\n")
        program.chmod(0o755)
    monkeypatch.setenv(PYTHON, str(program))
    began = time.monotonic()

    with Tracker("http://me:secret@127.0.0.1:9", end_s=1.0) as tracker:
        tracker.begin(view())
        tracker.tell(story())
        tracker.log_text("README.md", "x" * 300_000)
        run = tracker.end(JobState.SUCCEEDED)

    assert time.monotonic() - began < 10
    assert run.run == ""
    assert run.sentence == ""
    assert why in run.warning
    assert "the run and its parameters, metrics of the epochs, README.md" in run.warning
    assert "The training is complete" in run.warning
    assert "secret" not in run.warning


# --------------------------------------------------------------------------- a real server


def mlflow_python() -> str:
    """A Python that has MLflow's server; skips where there is none."""
    candidate = os.environ.get(PYTHON) or (sys.executable if importlib.util.find_spec("mlflow") else "")
    if not candidate:
        pytest.skip(f"no Python with mlflow: set {PYTHON}")
    return candidate


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real tracking server on loopback, with its own folder."""
    python, folder = mlflow_python(), tmp_path_factory.mktemp("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while not is_up(url):
            assert process.poll() is None, (folder / "log.txt").read_text()
            assert time.monotonic() < deadline, (folder / "log.txt").read_text()
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def read_back(url: str, run: str) -> dict[str, Any]:
    done = subprocess.run([mlflow_python(), "-c", READ_BACK, url, run], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    there: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return there


@pytest.mark.nightly
def test_mlflow_reads_back_what_was_trained_here(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    monkeypatch.setattr(tracking, "END_S", 240.0)  # a busy machine
    x, y = table()
    model = small_model()
    with aiaas_magics.connect() as backend:
        job = backend.train(model, x, y, epochs=3, batch_size=64, name="tracked")
        history = job.result(120).history

        run = backend.track(job, server, model=model)

    assert run.failures == (), run.warning
    there = read_back(server, run.run)
    assert there["status"] == "FINISHED"
    assert there["history"]["loss"] == [[n, pytest.approx(value)] for n, value in enumerate(history["loss"])]
    assert there["params"]["global_batch"] == "64"
    assert there["params"]["model"] == "Sequential"
    assert there["tags"]["aiaas.job"] == job.id
    assert {"README.md", "history.png", "history.txt", "model", "model/MLmodel", "model/data"} <= set(there["files"])
    assert there["models"][0][:2] == ["tracked", "1"]
    assert f"Job {job.id} " in there["card"]
    # The very file that MLflow's Keras flavor loads; MLflow's own loader imports pandas, keras and nothing of ours.
    again = keras.saving.load_model(Path(there["folder"]) / "data" / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.nightly
def test_a_second_run_is_the_next_version_and_a_failed_job_a_failed_run(server: str) -> None:
    with Tracker(server, end_s=240.0) as tracker:
        tracker.begin(view())
        tracker.tell(story(1))
        tracker.tell(story(3))
        run = tracker.end(JobState.FAILED)

    assert run.failures == ()
    done = subprocess.run([mlflow_python(), "-c", STATUS, server, run.run], capture_output=True, text=True, timeout=240, check=True)
    there = done.stdout
    assert there.startswith("FAILED")
    assert "'val_acc_5': 0.5" in there
