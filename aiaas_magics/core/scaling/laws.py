"""Scaling laws: what n workers should do, what they did, and which law that follows.

Owns numbers in, numbers out. What was not measured belongs to `projection`, measuring to
`study_figure` and `load_run`, drawing to `plots`.

    T = N / n   ideal time: N seconds of work on one worker, shared by n
    P = n * p   ideal capacity: n workers of p rows a second each
    R = M / m   ideal response: M seconds of waiting work, shared by m replicas

Strong scaling keeps the work: the same global batch, cut into n parts. Weak scaling keeps
each worker's part: n workers do n times the work, ideally in the time of one.

Amdahl's law ("Validity of the single processor approach to achieving large scale
computing capabilities", AFIPS 1967): of the work on one worker the fraction s stays
serial, T(n) = T(1) * (s + (1 - s) / n).

Gustafson's law ("Reevaluating Amdahl's law", CACM 31(5), 1988): of the time on n workers,
each with its own fixed part of the work, the fraction s' is serial; the scaled speedup is
n - s' * (n - 1).

Universal Scalability Law (Gunther, "Guerrilla Capacity Planning", Springer 2007, ch. 4):
speedup C(n) = n / (1 + sigma * (n - 1) + kappa * n * (n - 1)); sigma is contention, kappa
the cost of keeping n workers consistent with each other. kappa > 0 means that beyond some
n more workers are slower.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from aiaas_magics.core.errors import InvalidSpec

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


def knee(rates: Sequence[float], latencies: Sequence[float]) -> int | None:
    """Which of these measurements is the knee of the throughput-latency curve: the one with the greatest power, rate / latency.

    None where that is the last one: the knee was not passed. Source: L. Kleinrock, "Power and deterministic rules of thumb for
    probabilistic problems in computer communications", ICC 1979.

    >>> knee([100, 200, 300, 310], [1.0, 1.1, 1.5, 9.0])
    2
    """
    power = [rate / latency for rate, latency in zip(rates, latencies, strict=True)]
    best = max(range(len(power)), key=power.__getitem__, default=None)
    return None if best is None or best == len(power) - 1 else best


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


def scaling(points: Sequence[SpeedupPoint], *, weak: bool = False) -> tuple[ScalingRow, ...]:
    """Every point beside its ideal, by number of workers. With `weak`, n workers did n times the work of one.

    The ideal starts from the smallest number of workers that was measured; where that is
    not 1, that point counts as perfect, since nothing says how far from it one worker is.
    """
    ordered = sorted(points, key=lambda point: point.workers)
    if not ordered:
        return ()
    first = ordered[0]
    rate_of_one = first.rows_per_s / first.workers

    def row(point: SpeedupPoint) -> ScalingRow:
        work_s = first.seconds * (point.workers if weak else first.workers)
        return ScalingRow(
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

    return tuple(map(row, ordered))


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

    def seconds(self, workers: float) -> float:
        return self.one_worker_s * (self.serial_fraction + (1 - self.serial_fraction) / workers)

    @property
    def speedup_limit(self) -> float:
        """What no number of workers exceeds."""
        return 1 / self.serial_fraction if self.serial_fraction > 0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class GustafsonFit:
    """Gustafson's law through the points of weak scaling; `serial_fraction` is of the time on n workers."""

    one_worker_s: float
    serial_fraction: float
    largest_miss: float
    r_squared: float | None

    def seconds(self, workers: float) -> float:
        return self.one_worker_s * workers / self.speedup(workers)

    def speedup(self, workers: float) -> float:
        """Scaled: rows a second over those of one worker."""
        return workers - self.serial_fraction * (workers - 1)


Law = TypeVar("Law", AmdahlFit, GustafsonFit)


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

    `fits` says whether the law describes them (Amdahl's, of weak scaling Gustafson's), `verdict` says it in words.
    """

    amdahl: AmdahlFit | None
    gustafson: GustafsonFit | None = None
    usl: UslFit | None
    fits: bool
    verdict: str
    recommended: int
    why_recommended: str

    @property
    def law(self) -> AmdahlFit | GustafsonFit | None:
        return self.amdahl or self.gustafson

    @property
    def serial_fraction(self) -> float | None:
        return self.law.serial_fraction if self.law else None


def fit_amdahl(points: Sequence[SpeedupPoint]) -> AmdahlFit | None:
    """Amdahl's law with the least sum of squared relative misses; None below two different n.

    With T(n) = a + b / n it is a linear problem with a, b >= 0; s = a / (a + b).
    """
    if len({point.workers for point in points}) < 2:
        return None
    rows = [(1 / point.seconds, 1 / (point.workers * point.seconds)) for point in points]
    serial, parallel = least_squares(rows, [1.0] * len(rows))
    total = serial + parallel
    return _judged(AmdahlFit(one_worker_s=total, serial_fraction=serial / total, largest_miss=0.0, r_squared=None), points)


def fit_gustafson(points: Sequence[SpeedupPoint]) -> GustafsonFit | None:
    """Gustafson's law with the least sum of squared relative misses of the rate; None below two different n.

    1 / T(n) = x / n + y * (1 - 1 / n) is linear with x = 1 / T(1) and y = (1 - s') / T(1). Faster than ideal is no s' below 0.
    """
    if len({point.workers for point in points}) < 2:
        return None
    rows = [(point.seconds / point.workers, point.seconds * (1 - 1 / point.workers)) for point in points]
    serial, parallel = least_squares(rows, [1.0] * len(rows))
    if parallel > serial:
        [serial] = least_squares([(point.seconds,) for point in points], [1.0] * len(points))
        parallel = serial
    return _judged(GustafsonFit(one_worker_s=1 / serial, serial_fraction=1 - parallel / serial, largest_miss=0.0, r_squared=None), points)


def _judged(law: Law, points: Sequence[SpeedupPoint]) -> Law:
    """`law` with how well it describes the points: the times of strong scaling; of weak the rates, since its times hardly vary."""
    misses = [law.seconds(point.workers) / point.seconds - 1 for point in points]
    weak = isinstance(law, GustafsonFit)
    measured = [point.workers / point.seconds if weak else point.seconds for point in points]
    modelled = [point.workers / law.seconds(point.workers) if weak else law.seconds(point.workers) for point in points]
    return replace(law, largest_miss=max(map(abs, misses)), r_squared=_r_squared(measured, modelled))


def fit_usl(points: Sequence[SpeedupPoint]) -> UslFit | None:
    """Gunther's law; None below four different n, or without n = 1, on which it stands.

    n / C(n) - 1 = sigma * (n - 1) + kappa * n * (n - 1) is linear in both (Gunther 2007, section 4.4).
    """
    first = next((point for point in points if point.workers == 1), None)
    if first is None or len({point.workers for point in points}) < USL_POINTS:
        return None
    several = [point for point in points if point.workers > 1]
    rows = [(float(point.workers - 1), float(point.workers * (point.workers - 1))) for point in several]
    excess = [point.workers * point.seconds / first.seconds - 1 for point in several]
    contention, coherency = least_squares(rows, excess)
    law = UslFit(contention=contention, coherency=coherency, largest_miss=0.0)
    misses = [abs(first.seconds / law.speedup(point.workers) / point.seconds - 1) for point in several]
    return UslFit(contention=contention, coherency=coherency, largest_miss=max(misses))


def fit_study(points: Sequence[SpeedupPoint], *, weak: bool = False) -> StudyFit:
    """The laws of strong or weak scaling, a verdict in words, and how many workers are worth paying for."""
    real = [point for point in points if point.physical]
    amdahl, gustafson = (None, fit_gustafson(real)) if weak else (fit_amdahl(real), None)
    recommended, why = recommend(points, weak=weak)
    fits, verdict = _judge(real, amdahl or gustafson)
    return StudyFit(
        amdahl=amdahl,
        gustafson=gustafson,
        usl=None if weak else fit_usl(real),
        fits=fits,
        verdict=verdict,
        recommended=recommended,
        why_recommended=why,
    )


def recommend(points: Sequence[SpeedupPoint], *, weak: bool = False) -> tuple[int, str]:
    """The largest n that is faster than every smaller one and still arrives to 70 %; and why, in words."""
    every = scaling(points, weak=weak)
    rows = [row for row in every if row.physical] or list(every)[:1]
    if not rows:
        return 1, "nothing was measured"
    best, fastest = rows[0], rows[0].speedup
    for row in rows[1:]:
        if row.speedup > fastest and row.efficiency >= PAYS_FROM:
            best = row
        fastest = max(fastest, row.speedup)
    if len(rows) == 1:
        return best.workers, "the only number measured with one device per worker"
    if best is rows[-1]:
        return best.workers, f"the largest number measured, at {best.efficiency:.0%} efficiency"
    return best.workers, f"efficiency falls below {PAYS_FROM:.0%} beyond it"


def _judge(points: Sequence[SpeedupPoint], law: AmdahlFit | GustafsonFit | None) -> tuple[bool, str]:
    if law is None:
        return False, "no law: fitting one takes two numbers of workers, with one device per worker"
    weak = isinstance(law, GustafsonFit)
    name = "Gustafson's law" if weak else "Amdahl's law"
    slack = max(FIT_TOLERANCE, *(point.spread for point in points))
    rows = scaling(points, weak=weak)
    first, last = rows[0], rows[-1]
    if last.speedup < first.speedup / (1 + slack):
        took = "process fewer rows/s" if weak else "are slower"
        return (
            False,
            f"{name} does not fit: {last.workers} workers {took} than {first.workers}, because communication costs more than it gains",
        )
    if law.largest_miss > slack:
        if last.efficiency > 1 + slack:
            return False, f"{name} does not fit: speedup is better than ideal, so one worker lacked some resource (cache, say)"
        return False, f"{name} does not fit: it misses a point by {law.largest_miss:.0%}"
    judged = "two points cannot test the law" if law.r_squared is None else f"R² {law.r_squared:.3f}"
    share = "of the time on n workers " if weak else ""
    return True, f"serial fraction {share}{law.serial_fraction:.1%} ({judged})"


def least_squares(rows: Sequence[Sequence[float]], targets: Sequence[float]) -> tuple[float, ...]:
    """x >= 0 with the least sum of squares of (row * x - target), for a few unknowns.

    The best lies where some unknowns are 0 and the others at their free minimum, so every choice is tried.
    """
    columns = list(zip(*rows, strict=True))
    best, least = (0.0,) * len(columns), math.inf
    for size in range(len(columns) + 1):
        for columns_used in itertools.combinations(range(len(columns)), size):
            free = _free_minimum([columns[place] for place in columns_used], targets)
            if free is None or any(value < 0 for value in free):
                continue
            coefficients = dict(zip(columns_used, free, strict=True))
            x = tuple(coefficients.get(place, 0.0) for place in range(len(columns)))
            cost = math.fsum((_dot(row, x) - target) ** 2 for row, target in zip(rows, targets, strict=True))
            if cost < least:
                best, least = x, cost
    return best


def _free_minimum(columns: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float] | None:
    """Least squares without bounds, by modified Gram-Schmidt; None where a column is a mixture of those before it."""
    q: list[list[float]] = []
    r: list[list[float]] = []
    for column in columns:
        rest, parts = list(column), []
        for unit in q:
            part = _dot(unit, rest)
            rest = [value - part * along for value, along in zip(rest, unit, strict=True)]
            parts.append(part)
        length = math.sqrt(_dot(rest, rest))
        if length <= 1e-9 * math.sqrt(_dot(column, column)):
            return None
        q.append([value / length for value in rest])
        r.append([*parts, length])
    x = [0.0] * len(q)
    for place in reversed(range(len(q))):
        solved = math.fsum(r[later][place] * x[later] for later in range(place + 1, len(q)))
        x[place] = (_dot(q[place], targets) - solved) / r[place][place]
    return x


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(left_value * other for left_value, other in zip(a, b, strict=True))


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
