"""Privacy accountant: the epsilon of private steps, and the noise that a budget asks for.

Owns the arithmetic. It is a numerical composition of privacy loss distributions (PLD) for the Gaussian mechanism with Poisson
sampling, adjacent data sets by adding or removing one row. Each step's distribution is discretized by "connect the dots"
(Doroshenko et al., "Connect the Dots: Tighter Discrete Approximations of Privacy Loss Distributions", PETS 2022), which never
tells less than the truth; steps are composed by FFT (Koskela et al. 2020). Both directions are computed, and the larger counts.

The library dp-accounting does the same. It is not a dependency: its last release wants attrs<24, which notebooks have left behind.
`tests/backend/training/jax/test_private_jax_steps.py` compares the two.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.privacy import MOST_NOISE, PrivateSteps

Floats = npt.NDArray[np.float64]

GRID: Final = 0.03  # width of the grid in standard deviations of a step's loss: discretizing adds (0.03 / 2)^2 to its variance of 1
SPREAD: Final = 0.01  # and at most (0.01 / 2)^2 to the variance of the whole
COARSEST: Final = 5e-3
TAIL: Final = 1e-15  # mass beyond what is computed with; it counts as a loss without bound
MOST_POINTS: Final = 2**22
BINS: Final = 4096  # of a step's losses, for a bound of their sum
LEAST_NOISE: Final = 0.05  # below it the loss of a single step is in the hundreds
CLOSE: Final = 1e-4  # of the noise, when calibrating


class TooCostly(ArithmeticError):
    """Losses so large that they do not fit onto a grid."""


def epsilon_of(fits: Iterable[PrivateSteps], delta: float) -> float:
    """The epsilon that all of these steps together cost, at this delta; infinite where it is beyond what can be told.

    >>> round(epsilon_of([PrivateSteps(sampling=0.01, noise=1.1, steps=1000)], 1e-5), 2)
    1.52
    """
    parts = tuple(part for part in fits if part.steps and part.sampling)
    if not parts:
        return 0.0
    if any(part.noise < LEAST_NOISE for part in parts):
        return math.inf
    # Finer than what all steps together can tell apart would cost minutes.
    width = max(min(map(_width, parts)), SPREAD / math.sqrt(sum(part.steps for part in parts)))
    try:
        return max(_epsilon(parts, delta, width, add=add) for add in (False, True))
    except TooCostly:
        return math.inf


def noise_for(epsilon: float, delta: float, *, sampling: float, steps: int) -> float:
    """The least noise multiplier by which so many steps cost no more than `epsilon`.

    Raises:
        InvalidSpec: none does.
    """

    def cost(noise: float) -> float:
        return epsilon_of([PrivateSteps(sampling=sampling, noise=noise, steps=steps)], delta)

    low = high = 1.0
    cost_low = cost_high = cost(1.0)
    while cost_high > epsilon:
        low, cost_low, high = high, cost_high, 2 * high
        if high > MOST_NOISE:
            raise InvalidSpec(
                f"epsilon={epsilon:g} with delta={delta:g} is out of reach for {steps:,} steps. Use a larger epsilon or fewer epochs."
            )
        cost_high = cost(high)
    while cost_low <= epsilon and low > LEAST_NOISE:
        high, cost_high, low = low, cost_low, max(LEAST_NOISE, low / 2)
        cost_low = cost(low)
    while high > (1 + CLOSE) * low:
        # Nearly a straight line on logarithmic axes; a little beyond its crossing, so that the bracket closes from both sides.
        middle = math.sqrt(low * high)
        if math.isfinite(cost_low) and cost_high > 0:
            slope = math.log(high / low) / math.log(cost_low / cost_high)
            middle = low * (cost_low / epsilon) ** slope
            middle *= 1 + (CLOSE / 3 if middle * high > low * high else -CLOSE / 3)
            middle = min(max(middle, low * (high / low) ** 0.02), low * (high / low) ** 0.98)
        cost_middle = cost(middle)
        if cost_middle <= epsilon:
            high, cost_high = middle, cost_middle
        else:
            low, cost_low = middle, cost_middle
    return high


def _width(part: PrivateSteps) -> float:
    """Of the grid, as the loss of one step varies; its variance is about sampling^2 * (e^(1 / noise^2) - 1)."""
    return min(COARSEST, GRID * part.sampling * math.sqrt(math.expm1(min(1 / part.noise**2, 50))))


# --------------------------------------------------------------------------- one step


@dataclass(frozen=True, slots=True, eq=False)
class _Losses:
    """A distribution of losses `width * (first + place)` with mass `mass[place]`; the rest of it is a loss without bound."""

    first: int
    mass: Floats
    unbounded: float


@functools.lru_cache(maxsize=64)
def _of_step(sampling: float, noise: float, width: float, *, add: bool) -> _Losses:
    """The loss of one step for a row that is there and is taken away, or the other way round (`add`).

    Without the row a step gives N(0, noise^2), with it the mixture of N(0, noise^2) and N(1, noise^2) by `sampling`.
    Every interval of losses gives its mass to its two ends, such that the masses under both distributions are kept.
    """
    reach = noise * 8.3  # beyond so many deviations a normal has less than TAIL
    ends = [_loss(place, sampling, noise) for place in (-reach, 1 + reach)]
    least, most = (-ends[1], -ends[0]) if add else (ends[0], ends[1])
    first, last = math.floor(least / width), math.ceil(most / width)
    if last - first > MOST_POINTS:
        raise TooCostly
    grid: Floats = width * np.arange(first, last + 1, dtype=np.float64)
    # Where the loss is that of the grid: it rises with the place for a row that is taken away, and falls for one that is added.
    edges = _places(-grid if add else grid, sampling, noise)
    below = _normal_between(edges / noise, rising=not add)
    above = _normal_between((edges - 1) / noise, rising=not add)
    without, mixed = below, (1 - sampling) * below + sampling * above
    real, other = (without, mixed) if add else (mixed, without)
    # Of an interval, `other` has b and `real` has a between b e^lower and b e^upper: split so that both ends keep both sums.
    lower, upper = np.exp(grid[:-1]), np.exp(grid[1:])
    to_upper = np.clip((real[1:-1] - lower * other[1:-1]) / (upper - lower), 0.0, other[1:-1]) * upper
    to_lower = np.clip(real[1:-1] - to_upper, 0.0, None)
    mass = np.zeros(len(grid))
    mass[:-1] += to_lower
    mass[1:] += to_upper
    mass[0] += real[0]  # what lies below the grid counts as its first loss
    return _Losses(first, mass, float(real[-1]))


def _loss(place: float, sampling: float, noise: float) -> float:
    """log of (mixture / normal) at `place`."""
    exponent = (2 * place - 1) / (2 * noise**2)
    if exponent > 500:
        return math.log(sampling) + exponent
    return exponent if sampling == 1 else math.log1p(sampling * math.expm1(exponent))


def _places(losses: Floats, sampling: float, noise: float) -> Floats:
    """Where the log of (mixture / normal) is that loss; minus infinity where it is less than it can be."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inside = np.expm1(losses) / sampling + 1
        logs = np.where(losses > 500, losses - math.log(sampling), np.log(np.where(inside > 0, inside, 0.0)))
    places: Floats = noise**2 * logs + 0.5
    return places


def _normal_between(edges: Floats, *, rising: bool) -> Floats:
    """The mass of a standard normal before the first edge, between each two, and after the last; edges rise, or fall."""
    if not rising:
        return _normal_between(-edges, rising=True)
    scaled = edges / math.sqrt(2)
    upper = 0.5 * _erfc(scaled)  # the mass above an edge, and below it: the smaller one has all its digits
    lower = 0.5 * _erfc(-scaled)
    within = np.where(edges[:-1] > 0, upper[:-1] - upper[1:], lower[1:] - lower[:-1])
    return np.concatenate([lower[:1], np.maximum(within, 0.0), upper[-1:]])


def _erfc(values: Floats) -> Floats:
    """The complementary error function, which numpy has not."""
    return np.array([math.erfc(value) for value in values.tolist()])


# --------------------------------------------------------------------------- many steps


def _epsilon(parts: Sequence[PrivateSteps], delta: float, width: float, *, add: bool) -> float:
    losses = [(_of_step(part.sampling, part.noise, width, add=add), part.steps) for part in parts]
    return _epsilon_at(_composed(losses, width), delta, width)


def _composed(losses: Sequence[tuple[_Losses, int]], width: float) -> _Losses:
    """The distribution of the sum of so many losses of each."""
    low, high = _window(losses, width)
    points = high - low + 1
    if points > MOST_POINTS:
        raise TooCostly
    size = 1 << (points - 1).bit_length()
    spectrum: Any = 1.0
    first, bounded = 0, 0.0  # the logarithm of the mass that is bounded
    for loss, steps in losses:
        # Wrapped around, not cut off: an index counts modulo the size, and what is outside the window is less than the tail.
        wrapped = np.zeros(-(-len(loss.mass) // size) * size)
        wrapped[: len(loss.mass)] = loss.mass
        spectrum = spectrum * np.fft.rfft(wrapped.reshape(-1, size).sum(axis=0)) ** steps
        first += loss.first * steps
        bounded += steps * math.log1p(-min(loss.unbounded, 1 - 1e-15))
    mass = np.roll(np.fft.irfft(spectrum, size), (first - low) % size)[:points]
    return _Losses(low, np.maximum(mass, 0.0), -math.expm1(bounded) + TAIL)


def _window(losses: Sequence[tuple[_Losses, int]], width: float) -> tuple[int, int]:
    """Between which losses all but a tail of the sum lies, by Chernoff's bound."""

    bins = [(*_binned(loss), steps) for loss, steps in losses]

    def log_moment(order: float) -> float:
        total = 0.0
        for places, mass, steps in bins:
            exponents = order * width * places
            peak = float(exponents.max())
            total += steps * (peak + math.log(max(float((mass * np.exp(exponents - peak)).sum()), 1e-300)))
        return total

    orders = [2.0**power for power in np.arange(-6, 8, 0.5).tolist()]
    need = math.log(2 / TAIL)
    high = min((log_moment(order) + need) / order for order in orders)
    low = max(-(log_moment(-order) + need) / order for order in orders)
    least = sum(steps * loss.first for loss, steps in losses)
    most = sum(steps * (loss.first + len(loss.mass)) for loss, steps in losses)
    return max(least, math.floor(low / width)), max(min(most, math.ceil(high / width)), math.ceil(1 / width))


def _binned(loss: _Losses) -> tuple[Floats, Floats]:
    """Some thousand places and their masses, whose moments are no less: each bin gives its mass to its two ends and keeps its mean."""
    each = -(-len(loss.mass) // BINS) + 1
    mass = np.zeros(-(-len(loss.mass) // each) * each)
    mass[: len(loss.mass)] = loss.mass
    of_bins = mass.reshape(-1, each)
    total, to_end = of_bins.sum(axis=1), of_bins @ (np.arange(each) / (each - 1))
    start = loss.first + each * np.arange(len(of_bins), dtype=np.float64)
    return np.concatenate([start, start + (each - 1)]), np.concatenate([total - to_end, to_end])


def _epsilon_at(losses: _Losses, delta: float, width: float) -> float:
    """The least epsilon at which no more than `delta` is left: the sum over larger losses of (1 - e^(epsilon - loss)) * mass."""
    values = width * (losses.first + np.arange(len(losses.mass)))
    if losses.unbounded > delta:
        return math.inf
    # From above: what lies beyond each loss, as it is and divided by e^loss.
    beyond = np.concatenate([np.cumsum(losses.mass[::-1])[::-1][1:], [0.0]])
    with np.errstate(over="ignore"):
        shrunk = np.where(values > -700, losses.mass * np.exp(-np.maximum(values, -700)), 0.0)
    beyond_shrunk = np.concatenate([np.cumsum(shrunk[::-1])[::-1][1:], [0.0]])
    with np.errstate(over="ignore", invalid="ignore"):
        left = losses.unbounded + beyond - np.exp(np.minimum(values, 700)) * beyond_shrunk
    enough = np.flatnonzero((left <= delta) & (values >= 0))
    if not len(enough):
        return math.inf
    place = int(enough[0])
    if place == 0 or values[place] - width < 0:
        return max(0.0, float(values[place]))
    # Between two losses what is left is linear in e^epsilon.
    before = float(losses.unbounded + beyond[place - 1] - delta)
    exact = math.log(max(before / float(beyond_shrunk[place - 1]), 1e-300)) if beyond_shrunk[place - 1] > 0 else float(values[place])
    return min(float(values[place]), max(float(values[place]) - width, exact))
