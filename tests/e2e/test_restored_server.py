"""A real server with a trained and deployed Keras model, restored into an empty home, answers as the first one did."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import aiaas_magics
from aiaas_magics import cli
from aiaas_magics.client import local_server
from aiaas_magics.core import settings
from aiaas_magics.core.events import Checkpointed
from tests.conftest import processes_of
from tests.contracts.recipes import small_model, table
from tests.support import waiting

wait_until = functools.partial(waiting.until, wait_s=90.0)


@pytest.mark.nightly
def test_an_endpoint_and_a_running_fit_come_back_in_an_empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = table(rows=4096)
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIAAS_HOME", str(first))
    try:
        with aiaas_magics.connect() as backend:
            model = small_model()
            backend.train(model, x, y, workers=1, epochs=1, batch_size=64, verbose=0).result(90)
            answers = backend.deploy(model, name="churn", sample=x).predict(x[:50])
            running = backend.train(small_model(), x, y, workers=1, epochs=40, batch_size=16, shuffle=False)
            wait_until(lambda: any(isinstance(entry.event, Checkpointed) for entry in running.entries()), "no checkpoint was written")

            saved = CliRunner().invoke(cli.main, ["backup", str(tmp_path / "b")])

            assert saved.exit_code == 0, saved.stderr
            jobs = [view.id for view in backend.jobs()]
        local_server.stop_local()
        monkeypatch.setenv("AIAAS_HOME", str(second))

        restored = CliRunner().invoke(cli.main, ["restore", str(tmp_path / "b"), "--into", str(settings.local_state())])

        assert restored.exit_code == 0, restored.stderr
        with aiaas_magics.connect() as backend:
            assert [view.id for view in backend.jobs()] == jobs
            np.testing.assert_array_equal(backend.endpoint("churn").predict(x[:50]), answers)
            wait_until(lambda: backend.jobs()[-1].state.final, "the job that was running did not end")
            assert backend.jobs()[-1].state == "succeeded", backend.jobs()[-1].reason
    finally:
        for home in (first, second):
            monkeypatch.setenv("AIAAS_HOME", str(home))
            local_server.stop_local()
            wait_until(lambda home=home: not processes_of(home), f"left behind: {processes_of(home)}")
