"""What a dry run measures on a real server, and that the fit that follows is carried out by its plan."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aiaas_magics
from aiaas_magics.client.training import engine_timings, planning
from aiaas_magics.client.training.planning import FitPlan, PlanProgress
from aiaas_magics.client.training.submission import TrainOptions
from aiaas_magics.core.events import Candidate, Planned
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.spec import FitShape
from aiaas_magics.notebook import present
from aiaas_magics.packing.fitcall.fit_call import FitCall
from tests.backend.training.jax import jax_models
from tests.contracts.recipes import small_model, table

pytestmark = pytest.mark.process

OFTEN = {"epochs": 20, "batch_size": 64}


@pytest.fixture(scope="module")
def backend() -> Iterator[aiaas_magics.Backend]:
    with aiaas_magics.connect() as backend:
        yield backend


@pytest.mark.nightly
def test_every_way_on_two_workers_is_measured_and_nothing_is_trained(
    backend: aiaas_magics.Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine_timings, "WORTH_LEAVING", math.inf)  # the plan is TensorFlow's, however quick this machine finds JAX
    x, y = table()
    model = small_model()
    before, random = [np.array(w) for w in model.get_weights()], np.random.get_state()[1].copy()
    told: list[PlanProgress] = []

    found = planning.plan(
        backend, FitCall(model, {"x": x, "y": y, **OFTEN}), TrainOptions(workers=2, oversubscribe=True), on_progress=told.append
    )

    assert {(one.engine, one.strategy, one.fused) for one in found.measured} == {
        ("tensorflow", "collective", "off"),
        ("tensorflow", "collective", "graph"),
        ("tensorflow", "collective", "xla"),
        ("tensorflow", "mirrored", "off"),
        ("jax", "spmd", "off"),
        ("jax", "spmd", "xla"),
    }
    assert all(one.step_s > 0 and one.compile_s > 0 and one.memory_bytes > 1e6 for one in found.measured)
    assert [(one.strategy, one.fused) for one in found.ruled_out] == [("mirrored", "graph"), ("mirrored", "xla")]
    assert found.choice is not None
    assert (found.choice.engine, found.choice.strategy, found.choice.fused) == ("tensorflow", "collective", "graph")
    assert {at.label for at in told} == {"tensorflow, collective", "tensorflow, mirrored", "jax, spmd"}
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))
    assert int(model.optimizer.iterations) == 0
    assert (np.random.get_state()[1] == random).all()
    job = backend.train(model, x, y, workers=2, oversubscribe=True, **OFTEN)
    job.result(120)
    assert job.story().plan == found.choice
    shown = present.plan_table(found)["text/plain"]
    assert "mirrored, simulated devices" in shown
    assert "costs what compiling gains, but in recurrent layers" in shown


def test_the_fit_goes_by_what_a_dry_run_measured_and_sends_no_array_again(
    backend: aiaas_magics.Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = jax_models.table(7010)  # the last batch is a smaller one, which no measurement has
    model = jax_models.two_faced()
    given = {"epochs": 3, "batch_size": 16}

    found = backend.plan(model, x, y, **given)
    again = backend.plan(model, x, y, execution=Execution(engine="tensorflow", fused="off"), **given)
    job = backend.train(model, x, y, **given)
    waiting = backend.plan(model, x, y, **given)
    job.result(120)

    assert [(one.engine, one.fused) for one in found.candidates] == [
        ("tensorflow", "off"),
        ("tensorflow", "graph"),
        ("tensorflow", "xla"),
        ("jax", "auto"),
    ]
    [refused] = found.ruled_out
    assert refused.why.startswith("it would compute something else there: ")
    assert found.choice is not None
    assert found.choice.why[0].startswith("measured: "), "both forms were, so no estimate decides"
    assert job.story().plan == found.choice
    assert (found.preflight.known_bytes, again.preflight.known_bytes) == (0, x.nbytes)
    assert [(one.engine, one.fused) for one in again.candidates] == [("tensorflow", "off")]
    assert waiting.candidates == ()
    assert waiting.unmeasured.startswith(f"Nothing was measured: the backend is busy with job {job.id}.")


def test_a_way_that_takes_too_long_or_breaks_is_a_row_and_leaves_nothing_running(
    backend: aiaas_magics.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    class Breaks(keras.layers.Layer):
        def call(self, x: Any, training: bool = False) -> Any:
            if training:
                raise ValueError("no step can be made")
            return x

    x, y = table()
    single = Execution(engine="tensorflow", strategy="single")
    broken = keras.Sequential([keras.Input((8,)), Breaks(), keras.layers.Dense(1)])
    broken.compile("sgd", "mse")
    unmeasured = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3), keras.layers.Dense(1)])  # by no test of this session
    unmeasured.compile("sgd", "mse")

    [breaks] = backend.plan(broken, x, y, execution=single).candidates
    monkeypatch.setattr(planning, "MOST_S", 0.0)
    found = backend.plan(unmeasured, x, y, execution=single)

    assert "no step can be made" in breaks.why
    assert [one.why for one in found.candidates] == ["measuring takes more than 0 s"]
    assert found.choice is None
    assert [view.id for view in backend.jobs() if not view.state.final] == []


def test_what_yields_batches_is_not_read_to_be_measured(backend: aiaas_magics.Backend) -> None:
    read: list[int] = []

    def batches() -> Any:
        for number in range(10):
            read.append(number)
            yield np.zeros((4, 8), "float32"), np.zeros(4, "float32")

    jobs = len(backend.jobs())

    found = planning.plan(backend, FitCall(small_model(), {"x": batches(), "steps_per_epoch": 10}), TrainOptions())

    assert found.unmeasured.startswith("Nothing was measured, because measuring would use up data")
    assert len(read) < 10
    assert len(backend.jobs()) == jobs


def test_an_engine_that_is_quicker_than_the_plans_is_named() -> None:
    def found(jax_step_s: float) -> FitPlan:
        shape = FitShape(rows=640, global_batch=64, steps_per_epoch=10, initial_epoch=0, epochs=100, parameters=1, model="m")
        ours = Candidate(engine="tensorflow", strategy="single", fused="xla", step_s=1e-2, compile_s=1.0, memory_bytes=1)
        jax = Candidate(engine="jax", strategy="single", fused="xla", step_s=jax_step_s, compile_s=1.0, memory_bytes=1)
        chosen = Planned(fused="xla", engine="tensorflow", strategy="single")
        return FitPlan(preflight=None, shape=shape, choice=chosen, candidates=(ours, jax))  # type: ignore[arg-type]

    assert "--engine jax would take" in present.plan_table(found(5e-3))["text/plain"]
    assert "--engine" not in present.plan_table(found(9.5e-3))["text/plain"]
    assert [one.engine for one in found(5e-3).measured] == ["jax", "tensorflow"]
