"""Tracking that fails costs no training. A real MLflow server is in `tests/conformance/test_mlflow.py`."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import pytest

from aiaas_magics.client.training import tracking
from aiaas_magics.client.training.mlflow_process import cleaned
from aiaas_magics.client.training.tracking import PYTHON, Tracker
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.settings import versions
from aiaas_magics.core.spec import FitShape, FitSpec, JobState, JobView
from aiaas_magics.core.story import EpochRow, JobStory


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
