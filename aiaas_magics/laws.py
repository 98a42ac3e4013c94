"""The arithmetic of scaling: what n workers should do, what they did, and which law that follows.

Owns numbers in, numbers out. Measuring belongs to `client.study` and `client.load`,
drawing to `plots`.

    T = N / n   ideal time: N seconds of work on one worker, shared by n
    P = n * p   ideal capacity: n workers of p rows a second each
    R = M / m   ideal response: M seconds of waiting work, shared by m replicas

Amdahl's law ("Validity of the single processor approach to achieving large scale
computing capabilities", AFIPS 1967): of the work on one worker the fraction s stays
serial, T(n) = T(1) * (s + (1 - s) / n).

Universal Scalability Law (Gunther, "Guerrilla Capacity Planning", Springer 2007, ch. 4):
speedup C(n) = n / (1 + sigma * (n - 1) + kappa * n * (n - 1)); sigma is contention, kappa
the cost of keeping n workers consistent with each other. kappa > 0 means that beyond some
n more workers are slower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aiaas_magics.errors import InvalidSpec

PAYS_FROM: Final = 0.7  # guess: a worker of which less than 70 % arrives is better given to another job
FIT_TOLERANCE: Final = 0.10  # guess: a law that misses a point by more than a tenth does not describe it
USL_POINTS: Final = 4  # two parameters through a fixed point need two points more to be judged


def ideal_seconds(work_s: float, *, workers: int) -> float:
    """T = N / n."""
    return work_s / workers


def ideal_capacity(rows_per_s: float, *, workers: int) -> float:
    """P = n * p."""
    return workers * rows_per_s


def ideal_response(waiting_s: float, *, replicas: int) -> float:
    """R = M / m."""
    return waiting_s / replicas


# --------------------------------------------------------------------------- points


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedupPoint:
    """What n workers needed for a fixed piece of work.

    `seconds` is the median over the repeats; `spread` is half their range as a share of
    the median. `physical` is False when the workers had to share devices.
    """

    workers: int
    seconds: float
    spread: float = 0.0
    rows_per_s: float = 0.0
    physical: bool = True

    def __post_init__(self) -> None:
        if self.workers < 1 or not self.seconds > 0 or not math.isfinite(self.seconds):
            raise InvalidSpec(f"{self.workers} workers in {self.seconds} s is no measurement. Measure at least one step with a worker.")


def point_of(seconds: Sequence[float], *, workers: int, rows: int, physical: bool = True, scale: float = 1.0) -> SpeedupPoint:
    """The point that repeated measurements of the same `rows` make.

    `scale` carries the measured piece over to the piece that is reported: with 10 steps
    measured and 100 in an epoch, `scale=10` reports seconds an epoch.

    >>> point_of([2.0, 2.2, 1.8], workers=2, rows=100).spread
    0.1
    """
    if not seconds:
        raise InvalidSpec("A point without a measurement. Give at least one repeat.")
    middle = percentile(seconds, 50)
    spread = (max(seconds) - min(seconds)) / (2 * middle) if middle > 0 else 0.0
    rate = rows / middle if middle > 0 else 0.0
    return SpeedupPoint(workers=workers, seconds=middle * scale, spread=round(spread, 9), rows_per_s=rate, physical=physical)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRow:
    """A point beside its ideal. Ranges come from the spread of this point alone."""

    workers: int
    seconds: float
    ideal_s: float
    rows_per_s: float
    ideal_rows_per_s: float
    speedup: float
    efficiency: float
    spread: float
    physical: bool

    @property
    def efficiency_range(self) -> tuple[float, float]:
        return self.efficiency / (1 + self.spread), self.efficiency / max(1e-9, 1 - self.spread)


def scaling(points: Sequence[SpeedupPoint]) -> tuple[ScalingRow, ...]:
    """Every point beside its ideal, by number of workers.

    The ideal starts from the smallest number of workers that was measured; where that is
    not 1, that point counts as perfect, since nothing says how far from it one worker is.
    """
    ordered = sorted(points, key=lambda point: point.workers)
    if not ordered:
        return ()
    first = ordered[0]
    work_s = first.seconds * first.workers
    rate_of_one = first.rows_per_s / first.workers
    return tuple(
        ScalingRow(
            workers=point.workers,
            seconds=point.seconds,
            ideal_s=ideal_seconds(work_s, workers=point.workers),
            rows_per_s=point.rows_per_s,
            ideal_rows_per_s=ideal_capacity(rate_of_one, workers=point.workers),
            speedup=speedup(work_s, point.seconds),
            efficiency=efficiency(work_s, point.seconds, workers=point.workers),
            spread=point.spread,
            physical=point.physical,
        )
        for point in ordered
    )


def speedup(work_s: float, seconds: float) -> float:
    """How many times faster than the `work_s` of one worker."""
    return work_s / seconds


def efficiency(work_s: float, seconds: float, *, workers: int) -> float:
    """The share of n workers that arrives; 1 is ideal."""
    return work_s / (seconds * workers)


# --------------------------------------------------------------------------- laws


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdahlFit:
    """Amdahl's law through the points. `r_squared` is None where the points are too few to judge it."""

    one_worker_s: float
    serial_fraction: float
    largest_miss: float  # largest relative distance of a point from the law
    r_squared: float | None

    def seconds(self, workers: int) -> float:
        return self.one_worker_s * (self.serial_fraction + (1 - self.serial_fraction) / workers)

    @property
    def speedup_limit(self) -> float:
        """What no number of workers exceeds."""
        return 1 / self.serial_fraction if self.serial_fraction > 0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class UslFit:
    """Gunther's law through the points."""

    contention: float
    coherency: float
    largest_miss: float

    def speedup(self, workers: float) -> float:
        return workers / (1 + self.contention * (workers - 1) + self.coherency * workers * (workers - 1))

    @property
    def best_workers(self) -> float:
        """Where the curve turns; infinite when it never does."""
        return math.sqrt(max(0.0, 1 - self.contention) / self.coherency) if self.coherency > 0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFit:
    """What the points say together. Only points on devices of their own count.

    `fits` says whether Amdahl's law describes them, `verdict` says it in words.
    """

    amdahl: AmdahlFit | None
    usl: UslFit | None
    fits: bool
    verdict: str
    recommended: int
    why_recommended: str

    @property
    def serial_fraction(self) -> float | None:
        return self.amdahl.serial_fraction if self.amdahl else None


def fit_amdahl(points: Sequence[SpeedupPoint]) -> AmdahlFit | None:
    """Amdahl's law with the least sum of squared relative misses; None below two different n.

    With T(n) = a + b / n it is a linear problem with a, b >= 0; s = a / (a + b).
    """
    if len({point.workers for point in points}) < 2:
        return None
    rows = [(1 / point.seconds, 1 / (point.workers * point.seconds)) for point in points]
    serial, parallel = _least_squares(rows, [1.0] * len(rows))
    total = serial + parallel
    law = AmdahlFit(one_worker_s=total, serial_fraction=serial / total, largest_miss=0.0, r_squared=None)
    misses = [law.seconds(point.workers) / point.seconds - 1 for point in points]
    return AmdahlFit(
        one_worker_s=total,
        serial_fraction=law.serial_fraction,
        largest_miss=max(map(abs, misses)),
        r_squared=_r_squared([point.seconds for point in points], [law.seconds(point.workers) for point in points]),
    )


def fit_usl(points: Sequence[SpeedupPoint]) -> UslFit | None:
    """Gunther's law; None below four different n, or without n = 1, on which it stands.

    n / C(n) - 1 = sigma * (n - 1) + kappa * n * (n - 1) is linear in both (Gunther 2007, section 4.4).
    """
    first = next((point for point in points if point.workers == 1), None)
    if first is None or len({point.workers for point in points}) < USL_POINTS:
        return None
    others = [point for point in points if point.workers > 1]
    rows = [(float(point.workers - 1), float(point.workers * (point.workers - 1))) for point in others]
    excess = [point.workers * point.seconds / first.seconds - 1 for point in others]
    contention, coherency = _least_squares(rows, excess)
    law = UslFit(contention=contention, coherency=coherency, largest_miss=0.0)
    misses = [abs(first.seconds / law.speedup(point.workers) / point.seconds - 1) for point in others]
    return UslFit(contention=contention, coherency=coherency, largest_miss=max(misses))


def fit_study(points: Sequence[SpeedupPoint]) -> StudyFit:
    """Both laws, a verdict in words, and how many workers are worth paying for."""
    real = [point for point in points if point.physical]
    amdahl = fit_amdahl(real)
    recommended, why = recommend(points)
    fits, verdict = _judge(real, amdahl)
    return StudyFit(amdahl=amdahl, usl=fit_usl(real), fits=fits, verdict=verdict, recommended=recommended, why_recommended=why)


def recommend(points: Sequence[SpeedupPoint]) -> tuple[int, str]:
    """The largest n that is faster than every smaller one and still arrives to 70 %; and why, in words."""
    rows = [row for row in scaling(points) if row.physical] or list(scaling(points))[:1]
    if not rows:
        return 1, "nothing was measured"
    best, fastest_s = rows[0], rows[0].seconds
    for row in rows[1:]:
        if row.seconds < fastest_s and row.efficiency >= PAYS_FROM:
            best = row
        fastest_s = min(fastest_s, row.seconds)
    if len(rows) == 1:
        return best.workers, "the only number of workers measured on devices of their own"
    if best is rows[-1]:
        return best.workers, f"the most measured, and {best.efficiency:.0%} of each worker arrives"
    return best.workers, f"beyond it less than {PAYS_FROM:.0%} of each worker arrives"


def _judge(points: Sequence[SpeedupPoint], law: AmdahlFit | None) -> tuple[bool, str]:
    if law is None:
        return False, "no law: it takes two numbers of workers on devices of their own"
    slack = max(FIT_TOLERANCE, *(point.spread for point in points))
    first, last = min(points, key=lambda point: point.workers), max(points, key=lambda point: point.workers)
    if last.seconds > first.seconds * (1 + slack):
        return (
            False,
            f"Amdahl's law does not fit: {last.workers} workers took longer than {first.workers}, the exchange costs more than it gains",
        )
    if law.largest_miss > slack:
        if efficiency(first.seconds * first.workers, last.seconds, workers=last.workers) > 1 + slack:
            return False, "Amdahl's law does not fit: faster than ideal, so one worker was short of something else (cache, say)"
        return False, f"Amdahl's law does not fit: it misses a point by {law.largest_miss:.0%}"
    judged = "two points, so nothing tests the law" if law.r_squared is None else f"R² {law.r_squared:.3f}"
    return True, f"serial fraction {law.serial_fraction:.1%} ({judged})"


def _least_squares(rows: Sequence[tuple[float, float]], targets: Sequence[float]) -> tuple[float, float]:
    """x, y >= 0 with the least sum of (p * x + q * y - target)².

    Two unknowns: where the free minimum leaves the quadrant, the best lies on one of its edges.
    """
    pp = math.fsum(p * p for p, _ in rows)
    qq = math.fsum(q * q for _, q in rows)
    pq = math.fsum(p * q for p, q in rows)
    pt = math.fsum(p * t for (p, _), t in zip(rows, targets, strict=True))
    qt = math.fsum(q * t for (_, q), t in zip(rows, targets, strict=True))
    determinant = pp * qq - pq * pq
    if determinant > 1e-12 * pp * qq:
        x, y = (pt * qq - qt * pq) / determinant, (qt * pp - pt * pq) / determinant
        if x >= 0 and y >= 0:
            return x, y
    edges = ((max(0.0, pt / pp) if pp else 0.0, 0.0), (0.0, max(0.0, qt / qq) if qq else 0.0))

    def cost(edge: tuple[float, float]) -> float:
        return math.fsum((p * edge[0] + q * edge[1] - t) ** 2 for (p, q), t in zip(rows, targets, strict=True))

    return min(edges, key=cost)


def _r_squared(measured: Sequence[float], modelled: Sequence[float]) -> float | None:
    """Share of the variance that the model explains; None for two points, through which every line goes."""
    if len(measured) < 3:
        return None
    mean = math.fsum(measured) / len(measured)
    total = math.fsum((value - mean) ** 2 for value in measured)
    rest = math.fsum((value - model) ** 2 for value, model in zip(measured, modelled, strict=True))
    return 1 - rest / total if total > 0 else None


# --------------------------------------------------------------------------- percentiles


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of `values` lie, interpolated between neighbours as numpy does.

    >>> percentile([1, 2, 3, 4], 50)
    2.5
    """
    if not values:
        raise InvalidSpec("A percentile of nothing. Give at least one value.")
    if not 0 <= percent <= 100:
        raise InvalidSpec(f"percent={percent}: a percentile lies between 0 and 100. Use 99.9 for the slowest in a thousand.")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
