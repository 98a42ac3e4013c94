"""Projection beyond the measured numbers of workers: computing, waiting and exchanging, each by its law.

Owns the model of a step, its fit to the measured points, the band around it, and the sentence on
what it rests. Nothing here is measured, and everything that shows it says "projected".

A step of n workers takes

    T(n) = C(n)                 computing: s + p / n, s what every worker does whatever n (Amdahl 1967);
                                of weak scaling the same for every n
         + r * C(n) * e(n)      waiting for the slowest: e(n) is the expected largest of n normal numbers, r their
                                standard deviation as a share (Blom, "Statistical Estimates and Transformed
                                Beta-Variables", Wiley 1958)
         + k * a * L(n) + V(n) * b
                                k exchanges: each meeting costs a, all bytes once through memory or a link cost b
                                (Hockney, "The communication challenge for MPP", Parallel Computing 20(3), 1994)

L and V are the collective's: a ring takes 2 (n - 1) messages of 1 / n of the bytes (Thakur, Rabenseifner and Gropp,
"Optimization of Collective Communication Operations in MPICH", IJHPCA 19(1), 2005).

What can be known depends on what was measured. Where the workers timed the exchange by itself, two
numbers of workers give every parameter. From times alone three are needed, and then only the sum
c + p / n + l * (n - 1) is known (of weak scaling c + b * (1 - 1 / n) + l * (n - 1)): serial work and bytes both
end in a constant. That is the Universal Scalability Law (Gunther 2007) with contention c / T(1), coherency l / T(1).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from statistics import NormalDist
from typing import Final

from aiaas_magics.core.scaling import laws
from aiaas_magics.core.scaling.laws import SpeedupPoint

SLICED_FROM: Final = 4  # ranks from which `backend.training.group` sums a slice each
UP_TO: Final = 64
DRAWS: Final = 300
BAND: Final = (5.0, 95.0)  # percentiles of the draws
SEED: Final = 1967
LEAST_SPREAD: Final = 0.01  # guess: what three repeats that happen to agree do not rule out
EXCHANGE_SPREAD: Final = 0.10  # guess: between two timings of the same exchange
EXCHANGE_TOLERANCE: Final = 0.30  # guess: an exchange that misses its law by more does not grow as it says
EXCHANGE_COUNTS: Final = 0.05  # guess: below this share of a step the exchange does not decide
MOST_JITTER: Final = 0.5  # guess: what varies by more is no jitter around a mean: some steps stall
TIMES_NEED: Final = 3  # numbers of workers: as many as the parameters that times alone tell
WIDE: Final = 4.0  # guess: a band of more than this factor says "anything"


@dataclass(frozen=True, slots=True)
class ReductionScheme:
    """How a sum over n workers is taken: what it costs in meetings and in bytes, of those that one worker brings."""

    name: str
    latency: Callable[[int], float]
    traffic: Callable[[int], float]


RING: Final = ReductionScheme("a ring", lambda n: 2.0 * (n - 1), lambda n: 2 * (n - 1) / n)


def _meetings(n: int) -> float:
    return (n - 1.0) * (1 if n < SLICED_FROM else 2)


def _passes(n: int) -> float:
    if n == 1:
        return 0.0
    return n + 1.0 if n < SLICED_FROM else 3.0


# As `backend.training.group` does it: a rank writes its bytes and, below four ranks, reads everybody's; from four on it sums a
# slice, writes that, and reads the other slices. At each meeting it looks at every other rank.
SHARED_MEMORY: Final = ReductionScheme("shared memory", _meetings, _passes)
# Whatever the exchange is: what times alone can tell of it.
UNKNOWN: Final = ReductionScheme("an exchange that was not timed", lambda n: n - 1.0, lambda n: 1 - 1 / n)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPoint:
    """A measured step. Seconds of the exchange are of a step, `latency_s` and `transfer_s` of one exchange alone; 0: not timed."""

    workers: int
    rows: int  # of the global batch
    seconds: float
    spread: float = 0.0
    exchange_s: float = 0.0
    exchanges: int = 0
    exchange_bytes: int = 0
    latency_s: float = 0.0
    transfer_s: float = 0.0

    @property
    def timed(self) -> bool:
        return self.workers == 1 or (self.latency_s > 0 and self.transfer_s > 0)

    @property
    def moving_s(self) -> float:
        """Of a step, what its exchanges take when nobody is late: one with all bytes, the others next to empty."""
        return self.transfer_s + max(0, self.exchanges - 1) * self.latency_s

    @property
    def waiting_s(self) -> float:
        return max(0.0, self.exchange_s - self.moving_s)

    @property
    def computing_s(self) -> float:
        return self.seconds - self.moving_s - self.waiting_s


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLaw:
    """The seconds of a step on any number of workers, and the parts they are made of."""

    serial_s: float
    parallel_s: float = 0.0
    jitter: float = 0.0
    meeting_s: float = 0.0
    bytes_s: float = 0.0
    exchanges: int = 1
    collective: ReductionScheme

    def seconds(self, workers: int) -> float:
        return self.computing_s(workers) + self.waiting_s(workers) + self.moving_s(workers)

    def computing_s(self, workers: int) -> float:
        return self.serial_s + self.parallel_s / workers

    def waiting_s(self, workers: int) -> float:
        return self.jitter * self.computing_s(workers) * largest_of(workers)

    def moving_s(self, workers: int) -> float:
        met = self.exchanges * self.meeting_s * self.collective.latency(workers)
        return met + self.bytes_s * self.collective.traffic(workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectedRow:
    """A number of workers that was not measured; between `low_s` and `high_s` lie 90 % of the laws that the repeats allow."""

    workers: int
    seconds: float
    low_s: float
    high_s: float
    rows_per_s: float
    ideal_s: float
    ideal_rows_per_s: float
    speedup: float
    efficiency: float

    @property
    def efficiency_range(self) -> tuple[float, float]:
        return self.efficiency * self.seconds / self.high_s, self.efficiency * self.seconds / self.low_s

    @property
    def rows_per_s_range(self) -> tuple[float, float]:
        return self.rows_per_s * self.seconds / self.high_s, self.rows_per_s * self.seconds / self.low_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """What the measured points say about more workers. Without a law there are no rows, and `says` tells why.

    `recommended` goes over measured and projected together; `recommended_range` over the band.
    """

    law: StepLaw | None
    rows: tuple[ProjectedRow, ...]
    says: str
    recommended: int | None = None
    recommended_range: tuple[int, int] | None = None


def project(
    points: Sequence[StepPoint],
    *,
    weak: bool = False,
    steps: float = 1.0,
    collective: ReductionScheme = SHARED_MEMORY,
    up_to: int = UP_TO,
) -> Projection:
    """Powers of two beyond the measured ones, up to `up_to`, as seconds of `steps` steps. Give points on devices of their own."""
    ordered = sorted(points, key=lambda point: point.workers)
    apart = all(point.timed for point in ordered)
    if reason := _untellable(ordered, apart=apart):
        return no_projection(reason)
    law = _fit(ordered, weak=weak, collective=collective if apart else UNKNOWN)
    if reason := _misfit(ordered, law, apart=apart):
        return no_projection(reason)
    beyond = _powers_of_two(ordered[-1].workers, up_to)
    if not beyond:
        return no_projection(f"{ordered[-1].workers} workers were measured, and projections end at {up_to}.")
    sampled_laws = _draws(ordered, law, weak=weak)
    first = ordered[0]

    def row(workers: int) -> ProjectedRow:
        seconds = law.seconds(workers)
        times = [sampled.seconds(workers) for sampled in sampled_laws]
        work_s = first.seconds * (workers if weak else first.workers)
        rows = first.rows * workers / first.workers if weak else first.rows
        return ProjectedRow(
            workers=workers,
            seconds=seconds * steps,
            low_s=min(seconds, laws.percentile(times, BAND[0])) * steps,
            high_s=max(seconds, laws.percentile(times, BAND[1])) * steps,
            rows_per_s=rows / seconds,
            ideal_s=laws.ideal_seconds(work_s, workers=workers) * steps,
            ideal_rows_per_s=laws.ideal_capacity(first.rows / first.seconds / first.workers, workers=workers),
            speedup=laws.speedup(work_s, seconds),
            efficiency=laws.efficiency(work_s, seconds, workers=workers),
        )

    rows = tuple(map(row, beyond))
    best, fewest, most = (
        _recommended(ordered, [(projected.workers, take(projected) / steps) for projected in rows], weak=weak)
        for take in (attrgetter("seconds"), attrgetter("high_s"), attrgetter("low_s"))
    )
    return Projection(
        law=law,
        rows=rows,
        says=_rests_on(ordered, law, rows, apart=apart, weak=weak),
        recommended=best,
        recommended_range=(min(best, fewest), max(best, most)),
    )


def largest_of(workers: int) -> float:
    """The expected largest of n standard normal numbers, by Blom's approximation."""
    return NormalDist().inv_cdf((workers - 0.375) / (workers + 0.25))


# --------------------------------------------------------------------------- fitting


def _fit(points: Sequence[StepPoint], *, weak: bool, collective: ReductionScheme) -> StepLaw:
    """The law with the least sum of squared relative misses, of each part by itself where the parts were timed."""
    if collective is UNKNOWN:
        return _fit_times(points, weak=weak)
    several = [point for point in points if point.workers > 1]
    computing = [(_shape(point.workers, weak=weak), point.computing_s) for point in points]
    serial, parallel = laws.least_squares([(a / took, b / took) for (a, b), took in computing], [1.0] * len(computing))
    alone = [((collective.latency(point.workers), 0.0), point.latency_s) for point in several]
    alone += [((collective.latency(point.workers), collective.traffic(point.workers)), point.transfer_s) for point in several]
    meeting, transfer = laws.least_squares([(a / took, b / took) for (a, b), took in alone], [1.0] * len(alone))
    law = StepLaw(
        serial_s=serial,
        parallel_s=parallel,
        meeting_s=meeting,
        bytes_s=transfer,
        exchanges=max(1, several[-1].exchanges),
        collective=collective,
    )
    shares = [(law.computing_s(point.workers) * largest_of(point.workers) / point.seconds,) for point in several]
    [jitter] = laws.least_squares(shares, [point.waiting_s / point.seconds for point in several])
    return replace(law, jitter=jitter)


def _fit_times(points: Sequence[StepPoint], *, weak: bool) -> StepLaw:
    def parts(n: int) -> tuple[float, float, float]:
        return 1.0, UNKNOWN.traffic(n) if weak else 1 / n, UNKNOWN.latency(n)

    rows = [tuple(part / point.seconds for part in parts(point.workers)) for point in points]
    constant, second, meeting = laws.least_squares(rows, [1.0] * len(rows))
    law = StepLaw(serial_s=constant, meeting_s=meeting, collective=UNKNOWN)
    return replace(law, bytes_s=second) if weak else replace(law, parallel_s=second)


def _shape(workers: int, *, weak: bool) -> tuple[float, float]:
    """How serial and shared computing go with n; of weak scaling nothing is shared."""
    return 1.0, 0.0 if weak else 1 / workers


def _draws(points: Sequence[StepPoint], law: StepLaw, *, weak: bool) -> list[StepLaw]:
    """Laws through points moved as far as their repeats, or the law itself, miss: a parametric bootstrap.

    Its seed is fixed, so that the same study is always told the same way.
    """
    draw = random.Random(SEED)
    missed = max(abs(law.seconds(point.workers) / point.seconds - 1) for point in points)

    def moved(point: StepPoint) -> StepPoint:
        factors = [_around_one(draw, EXCHANGE_SPREAD) for _ in range(3)]
        move = _around_one(draw, max(point.spread, missed, LEAST_SPREAD))
        # The exchange is a part of the step, so a draw that moves it leaves the computing as it was.
        seconds = point.computing_s * move + point.moving_s * factors[0] + point.waiting_s * factors[1]
        return replace(
            point,
            seconds=seconds,
            exchange_s=point.moving_s * factors[0] + point.waiting_s * factors[1],
            latency_s=point.latency_s * factors[0],
            transfer_s=point.transfer_s * factors[0],
        )

    return [_fit([moved(point) for point in points], weak=weak, collective=law.collective) for _ in range(DRAWS)]


def _around_one(draw: random.Random, spread: float) -> float:
    return max(0.1, draw.gauss(1.0, spread))


# --------------------------------------------------------------------------- judging


def _untellable(points: Sequence[StepPoint], *, apart: bool) -> str:
    """Why these points do not tell the law's parameters, or nothing."""
    counts = len({point.workers for point in points})
    if counts < 2:
        return "it takes two numbers of workers on devices of their own."
    if not apart and counts < TIMES_NEED:
        return (
            "the exchange was not timed, and the times of two numbers of workers do not tell serial work from latency. "
            "Measure a third number."
        )
    if any(point.computing_s <= 0 for point in points):
        return "the exchange takes longer than the whole step, so the two overlap and are not told apart."
    return ""


def _misfit(points: Sequence[StepPoint], law: StepLaw, *, apart: bool) -> str:
    """Why `law` is not to be believed, or nothing."""
    slack = max(laws.FIT_TOLERANCE, *(point.spread for point in points))
    for point in points:
        miss = law.seconds(point.workers) / point.seconds - 1
        if abs(miss) > slack:
            more = "more" if miss > 0 else "less"
            return f"the step model does not fit: at n={point.workers} it predicts {abs(miss):.0%} {more} than measured."
    if law.seconds(1) <= 0:  # times that spread by their own size allow it
        return "the step model does not fit: it predicts no time at all for one worker."
    if law.jitter > MOST_JITTER:
        return "the step model does not fit: waits for the slowest worker are too long to be jitter, so some steps stall."
    for point in points if apart else ():
        for quantity, measured, modelled in (
            ("the wait for the slowest worker", point.waiting_s, law.waiting_s(point.workers)),
            ("the exchange", point.moving_s, law.moving_s(point.workers)),
        ):
            far = abs(modelled - measured) > EXCHANGE_TOLERANCE * measured
            if far and max(modelled, measured) > EXCHANGE_COUNTS * point.seconds:
                return f"the step model does not fit: {quantity} does not grow with n as predicted."
    return ""


def no_projection(why: str) -> Projection:
    return Projection(law=None, rows=(), says=f"No projection: {why}")


def _recommended(points: Sequence[StepPoint], projected: Sequence[tuple[int, float]], *, weak: bool) -> int:
    every = [*((point.workers, point.seconds) for point in points), *projected]
    return laws.recommend([SpeedupPoint(workers=workers, seconds=seconds) for workers, seconds in every], weak=weak)[0]


def _powers_of_two(above: int, up_to: int) -> list[int]:
    return [2**power for power in range(up_to.bit_length()) if above < 2**power <= up_to]


# --------------------------------------------------------------------------- saying


def _rests_on(points: Sequence[StepPoint], law: StepLaw, rows: Sequence[ProjectedRow], *, apart: bool, weak: bool) -> str:
    """What a reader must know to believe the projected rows."""
    measured = ", ".join(str(point.workers) for point in points)
    by, tested = _parts_in_words(points, law, weak=weak) if apart else _times_in_words(points, law, weak=weak)
    untested = "" if tested else " There are as many parameters as measurements, so the model is untested."
    wide = next((row.workers for row in rows if row.high_s > WIDE * row.low_s), None)
    loose = f" From n={wide} on, the band spans more than a factor of {WIDE:.0f}; measure more workers." if wide else ""
    return (
        f"Projected from n = {measured} by {by}. This assumes more devices of the same kind and the same interconnect."
        f" The band covers 90% of the models that fit the spread of the repeats.{untested}{loose}"
    )


def _parts_in_words(points: Sequence[StepPoint], law: StepLaw, *, weak: bool) -> tuple[str, bool]:
    """The laws of the parts, and whether there are more measurements than parameters."""
    computing = "constant compute time per worker" if weak else f"Amdahl's law for compute (serial {law.serial_s / law.seconds(1):.1%})"
    megabytes = points[-1].exchange_bytes / 1e6
    rate = f", {megabytes:.3g} MB at {megabytes / 1e3 / law.bytes_s:.3g} GB/s" if law.bytes_s else ""
    exchange = f"the latency-bandwidth model of an all-reduce in {law.collective.name} (latency {law.meeting_s * 1e6:.3g} µs{rate})"
    parameters = (1 if weak else 2) + 3  # of computing; meeting, bytes and jitter
    measurements = len(points) + 3 * sum(point.workers > 1 for point in points)  # computing; latency, transfer and waiting
    by = f"{computing}, {exchange}, and a wait for the slowest worker ({law.jitter:.1%} jitter)"
    return by, measurements > parameters


def _times_in_words(points: Sequence[StepPoint], law: StepLaw, *, weak: bool) -> tuple[str, bool]:
    contention = law.bytes_s if weak else law.serial_s
    name = "a sum of a constant, a saturating and a growing term" if weak else "the Universal Scalability Law"
    one_s = law.seconds(1)
    by = f"{name}, fitted to total times (contention {contention / one_s:.2%}, coherency {law.meeting_s / one_s:.2%})"
    return by, len(points) > TIMES_NEED
