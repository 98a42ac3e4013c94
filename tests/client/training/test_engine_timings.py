"""Which engine a fit goes to by what dry runs measured: the rule, the memory, and a real server that goes by both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers

import aiaas_magics
from aiaas_magics.client.training import engine_timings
from aiaas_magics.client.training.engine_timings import is_open, quicker_engine
from aiaas_magics.core.events import Planned
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.timing_cache import StepTiming, TimingCache
from aiaas_magics.packing.fitcall import fit_call
from aiaas_magics.packing.fitcall.fit_call import FitCall
from tests.backend.training.jax import jax_models


def way(engine: str, step_s: float, compile_s: float = 0.0, start_s: float = 0.0) -> StepTiming:
    return StepTiming(engine=engine, strategy="single", fused="xla", step_s=step_s, compile_s=compile_s, start_s=start_s)


def test_jax_is_chosen_where_its_start_and_compilation_pay_within_the_fit() -> None:
    ways = [way("tensorflow", 1e-3, 1.0, 1.0), way("jax", 0.5e-3, 2.0, 10.0)]

    assert quicker_engine(ways, steps=1_000) is None
    quicker = quicker_engine(ways, steps=1_000_000)
    assert quicker is not None
    assert quicker.way == ways[1]
    assert quicker.times == pytest.approx(1002 / 512, rel=1e-3)
    assert "1.96 times as long for this fit, start and compiling included" in quicker.note


def test_without_a_measurement_of_both_engines_nothing_is_chosen() -> None:
    assert quicker_engine([], steps=100) is None
    assert quicker_engine([way("jax", 1e-3)], steps=100) is None
    assert quicker_engine([way("tensorflow", 1e-3)], steps=100) is None


@given(jax=floats(1e-6, 10), tensorflow=floats(1e-6, 10), steps=integers(0, 10**6))
def test_what_is_hardly_quicker_does_not_move_a_fit(jax: float, tensorflow: float, steps: int) -> None:
    chosen = quicker_engine([way("tensorflow", tensorflow, 1.0), way("jax", jax, 1.0)], steps=steps)

    ratio = way("tensorflow", tensorflow, 1.0).fit_s(steps) / way("jax", jax, 1.0).fit_s(steps)
    assert (chosen is not None) == (ratio >= engine_timings.WORTH_LEAVING)


@pytest.mark.parametrize(
    "asked",
    [
        Execution(engine="tensorflow"),
        Execution(engine="jax"),
        Execution(strategy="collective"),
        Execution(accumulate=2),
        Execution(precision="mixed_bfloat16"),
    ],
)
def test_what_was_asked_for_by_name_or_cannot_be_on_jax_is_not_chosen_for(asked: Execution) -> None:
    assert is_open(Execution(fused="off"))
    assert not is_open(asked)


def test_a_damaged_memory_is_none(tmp_path: Path) -> None:
    memory = TimingCache(tmp_path / "new")
    memory.put("key", [way("jax", 1.0)])

    assert memory.get("key") == (way("jax", 1.0),)
    (tmp_path / "new" / "key.json").write_bytes(b'[{"engine"')
    assert memory.get("key") == ()
    assert memory.get("another") == ()
    TimingCache(tmp_path / "new" / "key.json").put("key", [])  # no folder can be made there


def revised(path: Path, **times: float) -> None:
    """Have a step of an engine take so many times as long as was measured."""
    ways = msgspec.json.decode(path.read_bytes(), type=list[StepTiming])
    assert {one.engine for one in ways} == {"tensorflow", "jax"}
    assert all(one.start_s > 0 and one.compile_s > 0 for one in ways)
    path.write_bytes(msgspec.json.encode([msgspec.structs.replace(one, step_s=times.get(one.engine, 1.0) * one.step_s) for one in ways]))


@pytest.mark.process
def test_a_fit_goes_where_a_dry_run_found_it_to_be_quicker(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = jax_models.table()
    given = {"epochs": 2, "batch_size": 32}  # a batch that no other test has: what is remembered is remembered for all
    before = set((home / "measured").glob("*.json"))
    with aiaas_magics.connect() as backend:

        def trained(**more: Any) -> tuple[Planned | None, tuple[str, ...]]:
            job = backend.train(jax_models.dropping(), x, y, **given, **more)
            assert np.isfinite(job.result(180).history["loss"]).all()
            return job.story().plan, job.view().spec.notes

        unmeasured, _ = trained()
        with monkeypatch.context() as whatever:
            whatever.setattr(engine_timings, "WORTH_LEAVING", 0.0)
            plan = backend.plan(jax_models.dropping(), x, y, **given)
        [memory] = set((home / "measured").glob("*.json")) - before
        revised(memory, tensorflow=1e6)
        on_jax, announced = trained()
        on_one, _ = trained(workers=1)
        revised(memory, jax=1e12)
        on_tensorflow, silent = trained()

    assert unmeasured.engine == "tensorflow", "never on JAX without a measurement"
    assert (plan.choice.engine, plan.choice.strategy) == ("jax", "single")
    assert plan.choice.why[0].startswith("measured: TensorFlow takes ")
    assert [note for note in plan.preflight.notes if "are drawn by JAX" in note], "what differs is announced with the plan"
    assert (on_jax.engine, on_jax.strategy) == ("jax", "single")
    assert announced[0].startswith("This fit runs on JAX (measured: TensorFlow takes ")
    assert "are drawn by JAX" in announced[1]
    assert on_one.engine == "tensorflow", "it was measured of another number of workers"
    assert on_tensorflow.engine == "tensorflow"
    assert not any("JAX" in note for note in silent)


@pytest.mark.nightly
def test_what_fails_its_proof_on_jax_stays_though_jax_was_quicker(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = jax_models.table()
    given = {"epochs": 1, "batch_size": 24}
    with aiaas_magics.connect() as backend:
        call = FitCall(jax_models.two_faced(), {"x": x, "y": y, **given})
        key = engine_timings.key_of(fit_call.pack(call), backend.about(), execution=Execution(), workers=None)
        engine_timings.cache().put(key, [way("tensorflow", 1.0), way("jax", 1e-3)])
        job = backend.train(jax_models.two_faced(), x, y, **given)
        job.result(180)
        story = job.story()

    assert story.plan.engine == "tensorflow"
    assert any("This fit stays on TensorFlow: it would compute something else there" in text for text in story.notices)
