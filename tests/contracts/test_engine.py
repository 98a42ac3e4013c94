"""The promises of `training.engine.TrainingEngine`, kept by every engine of the table, in real processes."""

from __future__ import annotations

import numpy as np
import pytest

from aiaas_magics.backend.training.engine import TrainingEngine
from aiaas_magics.core.engines import ENGINES, HOME
from aiaas_magics.core.events import Candidate, EpochEnded, Measured, Planned
from aiaas_magics.core.privacy import PrivateSteps
from aiaas_magics.core.privacy_accountant import epsilon_of
from tests.backend.training import fit_cases
from tests.support.engine_jobs import PRIVATE, Outcomes, carried_out

pytestmark = pytest.mark.process

SAME = 1e-5  # of the norm: other orders of sums


@pytest.fixture(scope="module", params=list(ENGINES))
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return carried_out(ENGINES[request.param], tmp_path_factory.mktemp(request.param))


def test_importing_touches_no_device_and_a_touched_one_forbids_to_fork(outcomes: Outcomes) -> None:
    assert outcomes.code == 0, outcomes.output[-6000:]
    assert "touch [3]" in outcomes.output, "it says so once a device was touched; preloading had not"
    assert "workers cannot fork from here" in outcomes.output


def test_no_other_engines_library_is_needed(outcomes: Outcomes) -> None:
    """JAX trains where there is no TensorFlow; the nightly test `test_without_tensorflow` has an environment of its own for that."""
    others = [package for info in ENGINES.values() if info is not outcomes.info for package in info.packages]

    assert all(f"{package} is blocked" in outcomes.output for package in others)
    assert outcomes.gap("train-off", "plain") < SAME


def test_every_form_computes_what_plain_keras_computes_on_that_library(outcomes: Outcomes) -> None:
    trained = outcomes.result("plain")

    assert trained.history["loss"][-1] < trained.history["loss"][0], "it learns, so that equal weights say something"
    for form in outcomes.info.forms:
        assert outcomes.gap(f"train-{form}", "plain") < SAME, form
        assert np.allclose(outcomes.result(f"train-{form}").history["loss"], trained.history["loss"], rtol=1e-4)


def test_nothing_of_keras_stays_changed_after_a_fit(outcomes: Outcomes) -> None:
    assert outcomes.code == 0, outcomes.output[-6000:]
    (line,) = [line for line in outcomes.output.splitlines() if line.startswith("changed:")]
    assert line.startswith("changed: ;"), line


def test_plans_name_the_engine_its_strategy_and_the_form(outcomes: Outcomes) -> None:
    for form in outcomes.info.forms:
        (plan,) = outcomes.events(f"train-{form}", Planned)
        assert (plan.engine, plan.strategy, plan.fused) == (outcomes.info.name, "single", form)


def test_two_devices_compute_what_one_does(outcomes: Outcomes) -> None:
    (plan,) = outcomes.events("several", Planned)

    assert plan.strategy == outcomes.info.on_cores
    assert outcomes.gap("several", "plain") < SAME


def test_a_resumed_training_ends_where_an_undisturbed_one_does(outcomes: Outcomes) -> None:
    assert outcomes.gap("resumed", "train-off") == 0.0
    assert outcomes.result("resumed").epoch == [0, 1, 2, 3]


def test_private_steps_are_the_same_on_two_devices_in_another_form(outcomes: Outcomes) -> None:
    """The rows that are drawn, their clipped gradients, and noise that is added once."""
    one, several = outcomes.result("private"), outcomes.result("private-several")

    assert outcomes.gap("private-several", "private") < SAME
    assert np.allclose(one.history["loss"], several.history["loss"], rtol=1e-5)
    assert one.history["accuracy"] == pytest.approx(several.history["accuracy"], abs=1e-6), "metrics count the drawn rows alone"
    assert outcomes.gap("private", "checkpoints") > 1e-2, "plain steps go elsewhere"


def test_epsilon_goes_on_counting_where_a_training_is_resumed(outcomes: Outcomes) -> None:
    steps = -(-fit_cases.ROWS // fit_cases.BATCH)
    sampling = fit_cases.BATCH / fit_cases.ROWS
    costs = [
        epsilon_of([PrivateSteps(sampling=sampling, noise=PRIVATE.noise, steps=epoch * steps)], PRIVATE.delta) for epoch in (1, 2, 3, 4)
    ]

    assert outcomes.result("private").history["privacy_epsilon"] == pytest.approx(costs[:2])
    assert outcomes.result("private-resumed").history["privacy_epsilon"] == pytest.approx(costs)
    told = [event.logs["privacy_epsilon"] for event in outcomes.events("private-resumed", EpochEnded)]
    assert told == pytest.approx(costs[2:]), "and so the live view has it"


@pytest.mark.parametrize("name", ["measured", "reference"])
def test_steps_are_timed(outcomes: Outcomes, name: str) -> None:
    (measured,) = outcomes.events(name, Measured)

    assert (measured.steps, measured.rows_per_step) == (2, fit_cases.BATCH)
    assert len(measured.seconds) == 2
    assert all(seconds > 0 for seconds in measured.seconds)
    assert measured.compile_s > 0


def test_forms_are_compared_in_the_order_of_the_table_and_a_plan_follows(outcomes: Outcomes) -> None:
    candidates, plans = outcomes.events("forms", Candidate), outcomes.events("forms", Planned)

    assert [one.fused for one in candidates] == list(outcomes.info.forms)
    assert {(one.engine, one.strategy) for one in candidates} == {(outcomes.info.name, "single")}
    assert all(one.why or (one.step_s > 0 and one.memory_bytes > 0) for one in candidates)
    assert [plan.fused in outcomes.info.forms for plan in plans] == [True]


def test_the_table_has_one_home_and_no_two_engines_share_a_backend_of_keras() -> None:
    assert [info for info in ENGINES.values() if not info.ported] == [HOME]
    assert len({info.keras_backend for info in ENGINES.values()}) == len(ENGINES)
    assert all(info.module in info.preload for info in ENGINES.values()), "a launcher checks what it has preloaded"
    assert all({info.on_cores, info.on_gpus, *info.one_process} <= set(info.several) for info in ENGINES.values())
    assert {name for name in vars(TrainingEngine) if not name.startswith("_")} >= {"prepare", "unpack", "opened", "assert_fork_safe"}
