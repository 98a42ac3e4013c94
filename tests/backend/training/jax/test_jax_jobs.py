"""Jobs on JAX through a real server: launched, trained, and moved to TensorFlow where JAX computes something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import aiaas_magics
from aiaas_magics.core.errors import RemoteTrainingError
from aiaas_magics.core.events import Notice, WorkerStarted
from aiaas_magics.core.execution import Execution
from tests.backend.training.jax import jax_models
from tests.contracts.recipes import gap

pytestmark = pytest.mark.process


def test_jobs_on_jax_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = jax_models.table()
    given = {"epochs": 2, "batch_size": 16, "shuffle": False}
    spmd, plain = jax_models.dense(), jax_models.dense()
    moved, moved_plain, refused = jax_models.two_faced(), jax_models.two_faced(), jax_models.two_faced()
    with aiaas_magics.connect() as backend:
        job = backend.train(spmd, x, y, workers=2, oversubscribe=True, execution=Execution(strategy="spmd"), **given)
        left_open = backend.train(moved, x, y, workers=2, oversubscribe=True, execution=Execution(strategy="spmd"), **given)
        by_name = backend.train(refused, x, y, workers=1, execution=Execution(engine="jax"), **given)
        history = job.result(180)
        left_open.result(180)
        with pytest.raises(RemoteTrainingError, match="it would compute something else there"):
            by_name.result(180)
        with pytest.raises(RemoteTrainingError, match=r"it would compute something else there.* Leave --engine and --strategy out"):
            backend.study(jax_models.two_faced(), x, y, workers=(1, 2), oversubscribe=True, execution=Execution(strategy="spmd"), **given)
        started = [entry.event.device for entry in job.entries() if isinstance(entry.event, WorkerStarted)]
        notices = [entry.event.text for entry in left_open.entries() if isinstance(entry.event, Notice)]

    expected = plain.fit(x, y, verbose=0, **given)
    assert gap(spmd, plain) < 1e-4
    np.testing.assert_allclose(history.history["loss"], expected.history["loss"], rtol=1e-4)
    assert len(started) == 1
    assert started[0].startswith("2 simulated devices")

    moved_plain.fit(x, y, verbose=0, **given)
    assert gap(moved, moved_plain) < 1e-4
    (notice,) = notices
    assert notice.startswith("This fit stays on TensorFlow: it would compute something else there: ")
