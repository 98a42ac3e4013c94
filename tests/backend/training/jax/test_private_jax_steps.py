"""Private steps on JAX: clipped sums against a loop over rows and against jax_privacy, the stock step, and the noise."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.environments import python_of
from tests.backend.training.jax.test_without_tensorflow import requirements
from tests.support.launchers import ROOT

pytestmark = pytest.mark.process

CASES = Path(__file__).with_name("private_jax_cases.py")
SAME = 1e-6  # of the norm, in single precision
MODELS = ("dense", "convolution", "words", "several")


def answer(*words: str, python: str = sys.executable, wait_s: float = 120.0) -> dict[str, Any]:
    command = [python, str(CASES), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=wait_s, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    return answer("dense")


def test_the_clipped_sum_is_that_of_a_loop_over_the_rows(told: dict[str, Any]) -> None:
    assert len(told["sums"]) == 2
    assert max(told["sums"].values()) < SAME


def test_a_step_without_noise_and_without_clipping_is_the_stock_step(told: dict[str, Any]) -> None:
    """Chunk by chunk, a place that nobody was drawn for left out; the metrics and the optimizer too."""
    assert all(gap < SAME for of_model in told["steps"].values() for gap in of_model.values()), told["steps"]


def test_the_noise_is_gaussian_of_the_promised_deviation(told: dict[str, Any]) -> None:
    """Where no row was drawn a step is noise alone. The sum of squares lies within what chi-square does in all but 1e-9 of cases."""
    noise, count = told["noise"], told["noise"]["count"]

    assert abs(noise["squares"] - count) < 6 * math.sqrt(2 * count)
    assert abs(noise["mean"]) < 6 / math.sqrt(count)
    assert abs(noise["fourth"] - 3) < 6 * math.sqrt(96 / count)
    assert noise["between steps"] < 6 / math.sqrt(count / 10), "each step draws its own"
    assert noise["same secret"] < 1e-4
    assert abs(noise["other secret"]) < 6 / math.sqrt(count)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_our_clipped_sums_are_those_of_jax_privacy_on_the_same_weights_and_rows() -> None:
    told = answer(*MODELS, "--with-jax-privacy", python=str(python_of("privacy", privacy_requirements())), wait_s=600.0)

    assert len(told["library"]) == 2 * len(MODELS)
    assert max(told["library"].values()) < SAME
    assert max(told["sums"].values()) < SAME
    assert all(gap < SAME for of_model in told["steps"].values() for gap in of_model.values()), told["steps"]


def privacy_requirements() -> list[str]:
    """What a worker on JAX imports, with the libraries that we compare with: they want older ones than notebooks have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    jax = [line for line in project["optional-dependencies"]["jax"] if re.match(r"jax\b", line)]
    return [*requirements(), *jax, "dp-accounting==0.6.0", "jax-privacy==2.0.0"]


DP_ACCOUNTING = """
import json, sys
import dp_accounting
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
answers = []
for sampling, noise, steps, delta, _ in json.loads(sys.argv[1]):
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    step = dp_accounting.PoissonSampledDpEvent(sampling, dp_accounting.GaussianDpEvent(noise))
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    answers.append(accountant.get_epsilon(delta))
print(json.dumps(answers))
"""


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_our_epsilon_is_that_of_dp_accounting() -> None:
    from aiaas_magics.core.privacy import PrivateSteps
    from aiaas_magics.core.privacy_accountant import epsilon_of
    from tests.core.test_privacy_accountant import KNOWN

    python = str(python_of("privacy", privacy_requirements()))
    done = subprocess.run([python, "-c", DP_ACCOUNTING, json.dumps(KNOWN)], capture_output=True, text=True, timeout=300, check=True)

    for (sampling, noise, steps, delta, _), theirs in zip(KNOWN, json.loads(done.stdout), strict=True):
        ours = epsilon_of([PrivateSteps(sampling=sampling, noise=noise, steps=steps)], delta)
        assert theirs * (1 - 1e-4) <= ours <= theirs * (1 + 4e-3), (sampling, noise, steps)
