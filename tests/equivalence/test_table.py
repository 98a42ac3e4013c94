"""However a fit is carried out, its weights, history and metrics are those of plain `fit` in one process on the same order of rows.

Every change runs one model in all forms, and all models in one form. AIAAS_EQUIVALENCE=all (`make equivalence`, and so
`make nightly`) runs every combination.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aiaas_magics.backend.workers.local.launcher_client import LauncherClient
from tests.backend.training.ranks import gaps
from tests.equivalence import forked
from tests.equivalence.rank import Outcome
from tests.equivalence.table import MODELS, OPTIMIZERS, PLAIN, THIN, WAYS, Run, Way, case_of, runs
from tests.support.launchers import ROOT, launcher_in

EVERY = os.environ.get("AIAAS_EQUIVALENCE") == "all"
RUNS = runs(every=EVERY)
LOGS = {"float32": 1e-5, "float64": 1e-9}
ON_JAX = 1e-4  # another library's float32: every operation rounds for itself
NOTHING = Outcome([], {}, [], [])

# All runs are carried out before the first test looks at one; `forked.STUCK_S` ends what does not go on.
pytestmark = pytest.mark.timeout(0)


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LauncherClient]:
    with launcher_in(tmp_path_factory.mktemp("launcher"), module="tests.equivalence.rank") as launcher:
        yield launcher


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest, launcher: LauncherClient, tmp_path_factory: pytest.TempPathFactory) -> forked.Outcomes:
    """Of all runs that this session's tests ask for."""
    chosen = [
        item.callspec.params["run"] for item in request.session.items if "run" in getattr(getattr(item, "callspec", None), "params", ())
    ]
    return forked.carried_out([run for run in chosen if isinstance(run, Run)], tmp_path_factory.mktemp("runs"), launcher)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_a_fit_is_what_plain_fit_is(outcomes: forked.Outcomes, run: Run) -> None:
    ours, plain = outcomes[run], outcomes.get(Run(run.case, PLAIN), NOTHING)
    if run.stays:
        assert ours.fused == "stays"
        assert_announced(run, ours)
        return
    assert not plain.error, plain.error
    assert not ours.error, ours.error

    assert ours.fused == run.fused or run.way.on_jax or "step by step" in run.case, "the form that was asked for"
    assert_announced(run, ours)
    assert ours.epoch == plain.epoch
    assert ours.history.keys() == plain.history.keys()
    if run.is_exact:
        assert_same(run, ours, plain)
    else:
        assert max(gaps(ours.variables, plain.variables)) > tolerance(run), "it is exact: nothing should be announced"
        assert all(np.isfinite(values).all() for values in ours.variables if values.dtype.kind == "f")


def tolerance(run: Run) -> float:
    return ON_JAX if run.way.on_jax else case_of(run.case).tolerance


def assert_same(run: Run, ours: Outcome, plain: Outcome) -> None:
    assert max(gaps(ours.variables, plain.variables)) <= tolerance(run)
    limit = ON_JAX if run.way.on_jax else LOGS[case_of(run.case).floatx]
    other = run.row.logs_on_jax if run.row is not None and run.way.on_jax else ()
    for log, values in plain.history.items():
        if log not in other:
            np.testing.assert_allclose(ours.history[log], values, rtol=limit, atol=limit / 10, err_msg=log)
    np.testing.assert_allclose(ours.batches, plain.batches, rtol=1e-5)


def assert_announced(run: Run, ours: Outcome) -> None:
    """Nothing differs that was not announced, and nothing is announced that does not."""
    if run.row is not None:
        assert [said for said in run.said if not any(note.startswith(said) for note in ours.notes)] == [], ours.notes
        assert [note for note in ours.notes if not note.startswith(run.said or ("nothing",))] == []


@pytest.mark.parametrize(("fused", "ranks"), [("graph", 3), *([("off", 2), ("off", 3), ("graph", 2), ("xla", 2)] if EVERY else [])])
def test_the_same_run_has_the_same_bits(launcher: LauncherClient, tmp_path: Path, ranks: int, fused: str) -> None:
    run = Run("cnn / adam", Way("collective", fused, ranks))

    first, second = (forked.carried_out([run], tmp_path / str(turn), launcher, deterministic=True)[run] for turn in range(2))

    assert not first.error, first.error
    assert bits(first) == bits(second)
    assert first.history == second.history


def bits(outcome: Outcome) -> list[bytes]:
    return [np.asarray(values).tobytes() for values in outcome.variables]


def test_the_small_set_has_every_model_and_every_form() -> None:
    assert {combination.model for combination in THIN} == set(MODELS)
    assert {combination.optimizer for combination in THIN} < set(OPTIMIZERS)
    assert {(way.strategy, way.fused) for way in WAYS} == {(run.way.strategy, run.way.fused) for run in (one.run for one in THIN)}
    assert len(THIN) < len(WAYS) + len(MODELS) + len(OPTIMIZERS)


def test_the_page_on_equivalence_names_every_case() -> None:
    page = (ROOT / "docs" / "equivalence.md").read_text(encoding="utf-8")

    cells = {cell.strip() for line in page.splitlines() if line.startswith("|") for cell in line.split("|")[1:2]}
    assert {*MODELS, *OPTIMIZERS, *(f"{way.strategy}, {way.fused}" for way in WAYS)} <= cells
    for row in MODELS.values():
        announced = (*row.said, *row.said_on_jax, *([row.stays] if row.stays else []))
        assert [said for said in announced if said.partition(" (")[0] not in page] == []
