"""Epsilon of private steps: against closed forms, published values and dp-accounting's, and the noise that a budget asks for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis.strategies import floats, integers

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.privacy import Privacy, PrivateSteps, privacy_of, sampling_of
from aiaas_magics.core.privacy_accountant import epsilon_of, noise_for

# (sampling, noise, steps, delta) and epsilon of dp-accounting 0.6.0 (PLD, interval 1e-4); the nightly test computes them anew.
KNOWN = [
    (0.01, 1.1, 1000, 1e-5, 1.5153702481094293),
    (256 / 60000, 1.1, 14062, 1e-5, 2.381686002234784),
    (0.01, 4.0, 10000, 1e-5, 0.9469993068930963),
    (1.0, 5.0, 100, 1e-5, 9.997256407509484),
    (0.004, 0.5, 1000, 1e-5, 6.828973980058989),
    (0.2, 2.0, 50, 1e-6, 3.9744063566478585),
    (0.05, 8.0, 200, 1e-7, 0.40172608938974125),
    (0.5, 20.0, 5, 1e-5, 0.18432924262039704),
]


def steps(sampling: float, noise: float, count: int) -> PrivateSteps:
    return PrivateSteps(sampling=sampling, noise=noise, steps=count)


def gaussian_delta(epsilon: float, noise: float) -> float:
    """Of one step on all rows (Balle and Wang 2018, theorem 8)."""

    def below(value: float) -> float:
        return 0.5 * math.erfc(-value / math.sqrt(2))

    return below(0.5 / noise - epsilon * noise) - math.exp(epsilon) * below(-0.5 / noise - epsilon * noise)


@pytest.mark.parametrize(("sampling", "noise", "count", "delta", "epsilon"), KNOWN)
def test_epsilon_is_what_dp_accounting_computes_and_never_less(
    sampling: float, noise: float, count: int, delta: float, epsilon: float
) -> None:
    ours = epsilon_of([steps(sampling, noise, count)], delta)

    assert epsilon * (1 - 1e-4) <= ours <= epsilon * (1 + 4e-3), "its own grid adds a little too"


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
def test_one_step_on_all_rows_costs_what_the_closed_form_says(noise: float) -> None:
    epsilon = epsilon_of([steps(1.0, noise, 1)], 1e-5)

    assert gaussian_delta(epsilon, noise) == pytest.approx(1e-5, rel=1e-3)
    assert gaussian_delta(epsilon, noise) <= 1e-5 * (1 + 1e-9), "never less than the truth"


def test_many_steps_on_all_rows_cost_what_one_with_less_noise_does() -> None:
    """Gaussian steps compose to a Gaussian step: noise falls with the root of their number."""
    assert epsilon_of([steps(1.0, 30.0, 400)], 1e-6) == pytest.approx(epsilon_of([steps(1.0, 1.5, 1)], 1e-6), rel=1e-3)


def test_the_moments_accountant_of_2016_gives_a_larger_bound() -> None:
    """Abadi et al. 2016, section 3.2: sampling 0.01, noise 4, 10,000 steps, delta 1e-5 cost 1.26 by their accountant."""
    assert 0.9 < epsilon_of([steps(0.01, 4.0, 10_000)], 1e-5) < 1.26


def test_fits_are_composed_not_added() -> None:
    whole = epsilon_of([steps(0.01, 1.1, 1000)], 1e-5)

    assert epsilon_of([steps(0.01, 1.1, 400), steps(0.01, 1.1, 600)], 1e-5) == pytest.approx(whole, rel=1e-6)
    assert whole < epsilon_of([steps(0.01, 1.1, 1000), steps(0.02, 1.5, 300)], 1e-5) < whole + epsilon_of([steps(0.02, 1.5, 300)], 1e-5)


@pytest.mark.parametrize(("epsilon", "sampling", "count"), [(2.0, 256 / 60000, 2350), (0.1, 0.01, 500), (8.0, 0.032, 320), (30.0, 1.0, 3)])
def test_the_noise_of_a_budget_is_the_least_that_keeps_it(epsilon: float, sampling: float, count: int) -> None:
    noise = noise_for(epsilon, 1e-5, sampling=sampling, steps=count)

    assert epsilon_of([steps(sampling, noise, count)], 1e-5) <= epsilon
    assert epsilon_of([steps(sampling, noise * 0.999, count)], 1e-5) > epsilon


@settings(max_examples=8, deadline=None)
@given(sampling=floats(1e-3, 1.0), noise=floats(0.6, 20.0), count=integers(1, 500))
def test_more_steps_cost_more_and_more_noise_less(sampling: float, noise: float, count: int) -> None:
    cost = epsilon_of([steps(sampling, noise, count)], 1e-5)

    assert 0 <= cost <= epsilon_of([steps(sampling, noise, 2 * count)], 1e-5) * (1 + 1e-3) + 1e-6
    assert epsilon_of([steps(sampling, 1.5 * noise, count)], 1e-5) <= cost * (1 + 1e-3) + 1e-6


def test_no_step_costs_nothing_and_hardly_any_noise_costs_everything() -> None:
    assert epsilon_of([], 1e-5) == epsilon_of([steps(0.01, 1.0, 0)], 1e-5) == 0.0
    assert epsilon_of([steps(0.01, 1e-3, 1)], 1e-5) == math.inf


def test_a_budget_is_read_from_text() -> None:
    assert privacy_of("epsilon=2,delta=1e-5") == Privacy(epsilon=2, delta=1e-5, clip=1.0)
    assert privacy_of("noise=1.1,delta=1e-6,clip=0.5") == Privacy(noise=1.1, delta=1e-6, clip=0.5)
    assert sampling_of(50, 64) == 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epsilon=0,delta=1e-5", "epsilon=0 is no budget"),
        ("epsilon=-1,delta=1e-5", "epsilon=-1 is no budget"),
        ("epsilon=nan,delta=1e-5", "epsilon=nan is no budget"),
        ("epsilon=2,delta=1", "delta=1 gives no guarantee"),
        ("epsilon=2,delta=0", "delta=0 gives no guarantee"),
        ("epsilon=2", "has no delta"),
        ("delta=1e-5", "one of the two"),
        ("epsilon=2,noise=1,delta=1e-5", "one of the two"),
        ("epsilon=2,delta=1e-5,clip=0", "clip=0 cannot clip"),
        ("epsilon=2,delta=1e-5,clip=-1", "clip=-1 cannot clip"),
        ("noise=0,delta=1e-5", "noise=0 gives no guarantee"),
        ("noise=-1,delta=1e-5", "noise=-1 is no noise multiplier"),
        ("epsilon=2,delta=1e-5,seed=3", "'seed=3' is not a part of --private"),
        ("epsilon=two,delta=1e-5", "'epsilon=two' has no number"),
        ("epsilon=2,epsilon=3,delta=1e-5", "'epsilon=3' is not a part"),
    ],
)
def test_what_gives_no_guarantee_is_refused_with_the_next_move(text: str, words: str) -> None:
    with pytest.raises(InvalidSpec, match=words.replace("=", "=").replace("(", r"\(")) as refused:
        privacy_of(text)

    assert "Use " in str(refused.value) or "Write " in str(refused.value)


def test_a_budget_out_of_reach_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="out of reach for 10,000 steps"):
        noise_for(1e-4, 1e-9, sampling=1.0, steps=10_000)
