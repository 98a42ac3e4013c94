"""The comparison of a model's numbers with those of another backend."""

from __future__ import annotations

import numpy as np
import pytest

from aiaas_magics.packing.checks.reference_answers import HALF_TOLERANCE, TOLERANCE, Numbers, ReferenceAnswers, difference

NAN, INF = float("nan"), float("inf")
PLAIN = (1.0, 2.0)


def numbers(*gradients: tuple[float, ...], loss: float = 1.0, output: tuple[float, ...] = PLAIN) -> Numbers:
    return Numbers(outputs=(np.array(output),), loss=loss, gradients=tuple(map(np.array, gradients)))


def told(here: Numbers, there: Numbers, *, tolerance: float = TOLERANCE) -> str | None:
    paths = tuple(f"v{place}" for place in range(len(here.gradients)))
    return difference(ReferenceAnswers(x=None, y=None, sample_weight=None, numbers=here, tolerance=tolerance, paths=paths), there)


def test_what_agrees_up_to_rounding_is_proved() -> None:
    assert told(numbers(PLAIN, (0.0, 0.0)), numbers((1.0, 2.0 + 1e-6), (0.0, 1e-9))) is None


def test_in_16_bits_a_gradient_may_be_off_by_what_sums_in_16_bits_are() -> None:
    here = numbers((100.0, 0.0), (1.0, 0.0))

    def off(first: float, second: float, *, tolerance: float = HALF_TOLERANCE) -> str | None:
        return told(here, numbers((100.0 + first, 0.0), (1.0 + second, 0.0)), tolerance=tolerance)

    assert off(19.0, 0.39) is None, "a fifth of itself, or a unit of all gradients together"
    assert off(21.0, 0.0) == "the gradient of v0 differs by 0.21 of its norm (0.2 is allowed)"
    assert off(0.0, 0.41) is not None
    assert off(0.0, 0.1, tolerance=TOLERANCE) is not None, "in single precision that is a difference"
    assert told(here, numbers((100.0, 0.0), (1.0, 0.0), output=(1.0, 2.2)), tolerance=HALF_TOLERANCE) is not None, "nor may an output be"


def test_the_largest_difference_is_told() -> None:
    assert told(numbers(PLAIN, PLAIN, PLAIN), numbers((1.0, 2.1), (1.0, 4.0), PLAIN)) == (
        "the gradient of v1 differs by 0.89 of its norm (0.0001 is allowed)"
    )


@pytest.mark.parametrize("lost", [(NAN, 2.0), (NAN, NAN), (INF, 2.0)], ids=str)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_number_that_is_missing_there_or_here_is_found_at_any_place(place: int, lost: tuple[float, float]) -> None:
    whole = [PLAIN] * 3
    holed = [*whole[:place], lost, *whole[place + 1 :]]
    expected = f"the gradient of v{place} is not a number, or infinite, in other places"

    assert told(numbers(*whole), numbers(*holed)) == expected
    assert told(numbers(*holed), numbers(*whole)) == expected


def test_a_loss_that_is_not_a_number_is_found_before_gradients_that_agree() -> None:
    assert told(numbers(PLAIN), numbers(PLAIN, loss=NAN)) == "the loss is not a number, or infinite, in other places"


@pytest.mark.parametrize("same", [NAN, INF])
def test_what_is_not_a_number_in_the_same_places_is_the_same_and_hides_nothing_beside_it(same: float) -> None:
    here = numbers((same, 2.0), PLAIN, loss=same, output=(same, 1.0))

    assert told(here, numbers((same, 2.0 + 1e-6), PLAIN, loss=same, output=(same, 1.0))) is None
    assert told(here, numbers((same, 3.0), PLAIN, loss=same, output=(same, 1.0))) == (
        "the gradient of v0 differs by 0.5 of its norm (0.0001 is allowed)"
    )
    assert told(here, numbers((2.0, same), PLAIN, loss=same, output=(same, 1.0))) is not None
    assert told(here, numbers((same, 2.0), (1.0, 3.0), loss=same, output=(same, 1.0))) is not None
