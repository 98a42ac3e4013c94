"""A real MLflow server on loopback, with MLflow in an environment of its own: what we log is what MLflow's own client reads."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import aiaas_magics
from aiaas_magics.client.training import tracking
from aiaas_magics.client.training.tracking import PYTHON, Tracker
from aiaas_magics.core.spec import JobState
from tests.client.training.test_tracking import story, view
from tests.conformance.environments import python_of
from tests.contracts.recipes import small_model, table

START_S = 180.0  # a busy machine imports MLflow for a minute
READ_S = 300.0
# MLflow's own client, in its own Python: what is there, and the model as its Keras flavor loads it.
READ_BACK = """
import json, os, sys
os.environ["KERAS_BACKEND"] = "jax"
import mlflow, numpy as np
uri, run, rows = sys.argv[1:]
client = mlflow.MlflowClient(uri)
mlflow.set_tracking_uri(uri)
there = client.get_run(run)
history = {name: [(point.step, point.value) for point in client.get_metric_history(run, name)] for name in there.data.metrics}
files = [file.path for file in client.list_artifacts(run)] + [file.path for file in client.list_artifacts(run, "model")]
models = [(version.name, version.version) for version in client.search_model_versions()]
card = mlflow.artifacts.load_text(f"{there.info.artifact_uri}/README.md")
model = mlflow.keras.load_model("models:/tracked/1")
served = mlflow.pyfunc.load_model("models:/tracked/1")
x = np.load(rows)
print(json.dumps({"status": there.info.status, "params": there.data.params, "history": history, "files": files, "models": models,
                  "card": card, "tags": there.data.tags, "answers": np.asarray(model(x)).tolist(),
                  "served": np.asarray(served.predict(x)).tolist()}))
"""
STATUS = """
import sys, mlflow
run = mlflow.MlflowClient(sys.argv[1]).get_run(sys.argv[2])
print(run.info.status, run.data.metrics)
"""


@pytest.fixture(scope="module")
def python() -> str:
    """A Python with MLflow, which Trackers use too."""
    return str(python_of("mlflow"))


@pytest.fixture(autouse=True)
def _trackers(python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON, python)
    monkeypatch.setattr(tracking, "END_S", READ_S)


@pytest.fixture(scope="module")
def server(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real tracking server on loopback, with its own folder. None of its processes is left."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log.txt").open("wb") as log:
        process = psutil.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while not is_up(url):
            assert process.poll() is None, (folder / "log.txt").read_text()
            assert time.monotonic() < deadline, (folder / "log.txt").read_text()
            time.sleep(0.2)
        yield url
    finally:
        family = [*process.children(recursive=True), process]
        for member in family:
            member.kill()
        _, left = psutil.wait_procs(family, timeout=20)
        assert left == []


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def told(python: str, *arguments: str) -> str:
    done = subprocess.run([python, "-c", *arguments], capture_output=True, text=True, timeout=READ_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_mlflow_reads_back_what_was_trained_here(python: str, server: str, tmp_path: Path) -> None:
    x, y = table()
    np.save(tmp_path / "rows.npy", x[:16])
    model = small_model()
    with aiaas_magics.connect() as backend:
        job = backend.train(model, x, y, epochs=3, batch_size=64, name="tracked")
        history = job.result(240).history

        run = backend.track(job, server, model=model)

    assert run.failures == (), run.warning
    there: dict[str, Any] = json.loads(told(python, READ_BACK, server, run.run, str(tmp_path / "rows.npy")))
    assert there["status"] == "FINISHED"
    assert there["history"]["loss"] == [[n, pytest.approx(value)] for n, value in enumerate(history["loss"])]
    assert there["params"]["global_batch"] == "64"
    assert there["params"]["model"] == model.name
    assert there["tags"]["aiaas.job"] == job.id
    assert {"README.md", "history.png", "history.txt", "model", "model/MLmodel", "model/data"} <= set(there["files"])
    assert there["models"] == [["tracked", "1"]]
    assert run.version == "1"
    assert f"Job {job.id} " in there["card"]
    expected = model.predict(x[:16], verbose=0)
    np.testing.assert_allclose(there["answers"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(there["served"], expected, rtol=1e-5, atol=1e-6)


def test_a_failed_job_is_a_failed_run_with_its_epochs_once_each(python: str, server: str) -> None:
    with Tracker(server) as tracker:
        tracker.begin(view())
        tracker.tell(story(1))
        tracker.tell(story(3))
        run = tracker.end(JobState.FAILED)

    assert run.failures == ()
    line = told(python, STATUS, server, run.run)
    assert line.startswith("FAILED")
    assert "'val_acc_5': 0.5" in line
