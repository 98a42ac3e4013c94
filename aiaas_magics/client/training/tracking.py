"""Tracking: one training as a run of an MLflow server, while it goes on.

Owns what is logged, and that it never costs the training anything: a process of its own talks to the server, each wait has an end,
and what was not logged is a sentence. MLflow's calls belong to `mlflow_process`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from aiaas_magics.core import settings
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.spec import FitSpec, JobState, JobView
from aiaas_magics.core.story import EpochRow, JobStory

if TYPE_CHECKING:
    from aiaas_magics.client.training.job import Job

PYTHON: Final = "AIAAS_MLFLOW_PYTHON"  # an interpreter that has mlflow, where this one must not
EXPERIMENT: Final = "aiaas_magics"  # unless MLFLOW_EXPERIMENT_NAME says otherwise
END_S: Final = 60.0  # guess: a model of some hundred megabytes is sent by then
# MLflow itself waits two minutes and tries eight times, which no cell should.
LIMITS: Final = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "15", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
STATUS: Final = {JobState.SUCCEEDED: "FINISHED", JobState.CANCELLED: "KILLED"}  # any other state is a failure


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """What was logged.

    Attributes:
        uri: the tracking server, without a password.
        run: the run's id; "" if it could not be created.
        logged: what is there now, in words.
        failures: what is not, with the reason.
        version: the version of the registered model; "" if none was registered.
    """

    uri: str
    run: str
    logged: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]
    version: str = ""

    @property
    def sentence(self) -> str:
        """What is there, in one line; "" if nothing is."""
        return f"MLflow run {self.run} at {self.uri}: {', '.join(self.logged)}." if self.logged else ""

    @property
    def warning(self) -> str:
        """What is not there and why, in one line; "" if all is."""
        reasons: dict[str, list[str]] = {}
        for what, why in self.failures:
            reasons.setdefault(why, []).append(what)
        parts = [f"{', '.join(dict.fromkeys(whats))} ({why})" for why, whats in reasons.items()]
        if not parts:
            return ""
        sentence = f"The training is complete, but MLflow at {self.uri} did not get all of it: {'; '.join(parts)}."
        return f"{sentence} backend.track(job, URI, model=model) tries again."


def check_installed() -> None:
    """Raises `InvalidSpec` if there is no mlflow to track with, before anything is trained."""
    if not os.environ.get(PYTHON) and importlib.util.find_spec("mlflow") is None:
        raise InvalidSpec(
            "--track needs mlflow, which is not installed here. Run pip install 'aiaas_magics[mlflow]', or set "
            f"{PYTHON} to a Python that has it."
        )


class Tracker:
    """One run, in a `with`. `begin`, `tell` and `log_...` return at once; `end` waits up to a minute."""

    def __init__(self, uri: str, *, end_s: float | None = None) -> None:
        check_installed()
        self._uri, self._end_s = uri, END_S if end_s is None else end_s
        self._outbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._replies: list[dict[str, Any]] = []
        self._sent: list[str] = []
        self._fault = ""
        self._epochs = 0  # told so far
        self._folder = tempfile.TemporaryDirectory(prefix="aiaas-track-")

    def __enter__(self) -> Self:
        program = Path(__file__).with_name("mlflow_process.py")
        environment = {**LIMITS, **settings.without_tokens(os.environ), "MLFLOW_TRACKING_URI": self._uri}
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                [os.environ.get(PYTHON) or sys.executable, str(program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                cwd=self._folder.name,  # a file of the notebook's folder named like a library is not imported
            )
        except OSError as error:
            self._fault = f"could not start: {error.strerror}"
            return self
        threads = (self._write, self._read, self._drain)
        self._threads = [threading.Thread(target=work, name="aiaas-track", daemon=True) for work in threads]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for thread in self._threads:
                thread.join(5.0)
            for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):  # what was not sent to a process that has ended
                        stream.close()
        self._folder.cleanup()

    # ---- what is logged

    def begin(self, view: JobView, *, experiment: str = "", hardware: str = "") -> None:
        """Create the run, with the parameters of the job."""
        self._send(
            "begin",
            of="the run and its parameters",
            experiment=experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT,
            run_name=f"{view.spec.name} job {view.id}",
            tags={"aiaas.job": view.id, "aiaas.hardware": hardware, "aiaas.versions": repr(view.spec.versions)},
            parameters=parameters_of(view.spec),
        )

    def tell(self, story: JobStory) -> None:
        """Log the epochs that ended since the last call."""
        new = [row for row in story.rows if row.epoch >= self._epochs]
        if not new:
            return
        self._epochs = new[-1].epoch + 1
        at_ms = int((story.at_s or time.time()) * 1000)
        self._send("metrics", of="metrics of the epochs", points=[_point(row, at_ms) for row in new])

    def log_text(self, name: str, text: str) -> None:
        """Log a text file.

        Args:
            name: the file's name.
            text: its text.
        """
        path = Path(self._folder.name) / name
        path.write_text(text, encoding="utf-8")
        self._send("file", of=name, path=str(path), folder="")

    def log_bytes(self, name: str, data: bytes) -> None:
        """Log a binary file, such as a figure."""
        path = Path(self._folder.name) / name
        path.write_bytes(data)
        self._send("file", of=name, path=str(path), folder="")

    def log_model(self, model: Any, *, name: str) -> None:
        """Log the model in MLflow's Keras flavor, and register it.

        Args:
            model: a Keras model. One that Keras cannot save is named in `failures`.
            name: the registered model's name.
        """
        path = Path(self._folder.name) / "model.keras"
        try:
            model.save(str(path))
        except Exception as error:  # noqa: BLE001 - border: saving runs the user's get_config
            self._replies.append(
                {"what": "model", "of": "the model", "error": f"Keras could not save it: {' '.join(str(error).split())[:200]}"}
            )
            return
        versions = settings.versions()
        libraries = {"keras": versions.keras, "tensorflow": versions.tensorflow}
        backend = os.environ.get("KERAS_BACKEND", "tensorflow")
        self._send("model", of="the model", path=str(path), versions=libraries, backend=backend, python=platform.python_version())
        self._send("register", of="the registered model", name=name.replace("/", "-").replace(":", "-") or "model")

    def end(self, state: JobState) -> TrackedRun:
        """Close the run, wait for what is on its way, and say what is there and what is not."""
        self._send("end", of="the run's end", status=STATUS.get(state, "FAILED"))
        self._outbox.put(None)
        deadline = time.monotonic() + self._end_s
        while self._process is not None and time.monotonic() < deadline and len(self._answered()) < len(self._sent):
            if self._process.poll() is not None:
                time.sleep(0.1)  # the last lines of a process that has ended are read
                break
            time.sleep(0.02)
        return self._result()

    # ---- the process

    def _send(self, what: str, *, of: str, **fields: Any) -> None:
        self._sent.append(of)
        self._outbox.put(json.dumps({"what": what, "of": of, **fields}))

    def _write(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        while (line := self._outbox.get()) is not None:
            try:
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()
            except (OSError, ValueError):
                return

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self._replies.append(json.loads(line))
            except ValueError:
                continue

    def _drain(self) -> None:
        """Read what MLflow says, so that its pipe never fills; the last line explains a process that ended early."""
        assert self._process is not None
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._fault = line.strip()[:300] or self._fault

    def _answered(self) -> list[dict[str, Any]]:
        return [reply for reply in self._replies if reply["of"] in self._sent]

    def _result(self) -> TrackedRun:
        replies = list(self._replies)
        failures = [(reply["of"], reply["error"]) for reply in replies if "error" in reply]
        answered = [reply["of"] for reply in replies]
        is_over = self._process is None or self._process.poll() is not None
        why = self._fault or "its process ended" if is_over else f"no answer within {self._end_s:g} s"
        for of in self._sent:
            if of in answered:
                answered.remove(of)
            else:
                failures.append((of, why))
        failed = {of for of, _ in failures}
        version = next((reply["version"] for reply in replies if "version" in reply), "")
        logged = [of for of in dict.fromkeys(self._sent) if of not in failed and of != "the run's end"]
        run = next((reply["run"] for reply in replies if "run" in reply), "")
        return TrackedRun(
            uri=without_password(self._uri), run=run, logged=tuple(logged) if run else (), failures=tuple(failures), version=version
        )


def without_password(uri: str) -> str:
    """An address as it may be shown.

    >>> without_password("https://me:secret@host:5000/path")
    'https://host:5000/path'
    """
    return re.sub(r"(?<=://)[^/@]*@", "", uri)


def parameters_of(spec: FitSpec) -> dict[str, Any]:
    """The parameters of a fit, for comparing runs."""
    shape, execution = spec.shape, spec.execution
    return {
        "model": shape.model,
        "parameters": shape.parameters,
        "rows": shape.rows,
        "global_batch": shape.global_batch,
        "epochs": shape.epochs,
        "workers": "all devices" if spec.workers is None else spec.workers,
        "seed": spec.seed,
        "engine": execution.engine,
        "strategy": execution.strategy,
        "precision": execution.precision or "the model's own",
        "accumulate": execution.accumulate,
        **{f"sha256 of array {place}": sha for place, sha in enumerate(spec.arrays, start=1)},
    }


def _point(row: EpochRow, at_ms: int) -> dict[str, Any]:
    return {"step": row.epoch, "at_ms": at_ms, "values": {**row.logs, "seconds per epoch": row.seconds}}


def log_results(tracker: Tracker, view: JobView, story: JobStory, model: Any = None, *, name: str = "", hardware: str = "") -> None:
    """Log what a training that has ended leaves: curves, card and model."""
    from aiaas_magics.client.card.card_making import card_of_model
    from aiaas_magics.plots import text_twins

    tracker.tell(story)
    title = f"Job {view.id} · {view.spec.name}"
    if story.rows:
        from aiaas_magics.plots.figure_style import as_png
        from aiaas_magics.plots.history_figure import history_figure

        tracker.log_bytes("history.png", as_png(history_figure(story.rows, title, caption=hardware)))
        tracker.log_text("history.txt", text_twins.history_text(story.rows, title))
    if model is not None:
        tracker.log_text("README.md", card_of_model(model).to_markdown())
        tracker.log_model(model, name=name or view.spec.name)


def track(job: Job, uri: str, *, model: Any = None, name: str = "", experiment: str = "") -> TrackedRun:
    """Log a job that has ended, all at once.

    Args:
        job: the job. It is waited for.
        uri: the tracking server, such as "http://127.0.0.1:5000", or what else MLflow takes.
        model: the trained Keras model; None logs no model.
        name: the registered model's name; "" is the job's.
        experiment: the experiment; "" is MLFLOW_EXPERIMENT_NAME, or "aiaas_magics".

    Raises:
        InvalidSpec: mlflow is not installed.
    """
    story = job.follow()
    with Tracker(uri) as tracker:
        tracker.begin(job.view(), experiment=experiment, hardware=job.hardware)
        log_results(tracker, job.view(), story, model, name=name, hardware=job.hardware)
        return tracker.end(story.state)
