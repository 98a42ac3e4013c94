"""Load report: what an endpoint did under load, as values.

Owns the values. Making the load belongs to `load_generator`, drawing it to `plots`.
"""

from __future__ import annotations

import math
from typing import Final

from aiaas_magics.core.scaling.laws import knee
from aiaas_magics.core.value import Value

KEEPS_UP: Final = 0.95  # guess: with less of what was asked answered meanwhile the queue grows; the last answers come after the end


ONE_IN: Final = {"p50_ms": 2, "p90_ms": 10, "p99_ms": 100, "p999_ms": 1000}


class Answers(Value, frozen=True, kw_only=True):
    """What was answered in one measurement. `form` is how tensors travelled: "json", or "binary" (Open Inference v2).

    Latencies are of answered requests; `errors` counts the others by kind ("http 503", "connection").
    """

    form: str = "json"
    seconds: float
    requests: int  # answered with 200
    rows: int  # in those requests together
    errors: dict[str, int]
    requests_per_s: float
    rows_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    def known_ms(self, percentile: str) -> float:
        """A percentile by the name of its field; not a number where fewer than ten answers lie beyond it."""
        value: float = getattr(self, percentile)
        return value if self.requests >= 10 * ONE_IN[percentile] else math.nan


class LoadPoint(Answers, frozen=True, kw_only=True):
    """A closed loop: each of `concurrency` connections asks again when it was answered."""

    concurrency: int
    generator_busy: float = 0.0  # share of its core that the generator used; near 1 it is the generator that is measured


class RatePoint(Answers, frozen=True, kw_only=True):
    """An open loop: requests come at random times, `offered_per_s` of them, whether or not those before were answered.

    A latency counts from when its request was to be sent, so a server that stalls pays for all who came meanwhile
    (no "coordinated omission"). What was never answered counts in the latencies with the age that it had at the end.
    `late_ms` is the p99 of how late the generator itself was.
    """

    offered_per_s: float
    late_ms: float

    @property
    def keeps_up(self) -> bool:
        """Whether answers came as fast as requests, all of them."""
        return not self.errors and self.requests_per_s >= KEEPS_UP * self.offered_per_s


class LoadProgress(Value, frozen=True, kw_only=True):
    """Where a load run is.

    Attributes:
        label: the measurement that runs now, in words.
        waiting: those that are known to follow.
        number: which one it is, from 0.
        total: the largest possible number of measurements; rates that nobody chose may end earlier.
        points, rates: what has been measured so far.
    """

    label: str
    number: int
    total: int
    waiting: tuple[str, ...] = ()
    points: tuple[LoadPoint, ...] = ()
    rates: tuple[RatePoint, ...] = ()


class Sides(Value, frozen=True, kw_only=True):
    """What each side could do alone, in requests a second; 0 where it is not known.

    `model_per_s` by the time that batches took in the engine during the run; `interface_per_s` by the same requests where nothing
    is computed, over as many connections as the largest point had.
    """

    form: str
    model_per_s: float
    interface_per_s: float

    @property
    def response(self) -> float:
        """R = M / m: above 1 the interface is what limits, below 1 the model; 0 where it is not known."""
        return self.model_per_s / self.interface_per_s if self.interface_per_s else 0.0


class LoadReport(Value, frozen=True, kw_only=True):
    """What an endpoint did under load. `rows` is the number of rows in a request; the first form is the one of `rates`."""

    endpoint: str
    rows: int
    hardware: str
    points: tuple[LoadPoint, ...]
    rates: tuple[RatePoint, ...] = ()
    sides: tuple[Sides, ...] = ()

    @property
    def forms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(point.form for point in self.points))

    def points_of(self, form: str) -> tuple[LoadPoint, ...]:
        """The answered ones, by number of connections."""
        return tuple(point for point in self.points if point.form == form and point.requests)

    @property
    def response(self) -> float:
        """R = M / m of the first form; 0 where it is not known."""
        return self.sides[0].response if self.sides else 0.0

    @property
    def knee(self) -> RatePoint | None:
        """The rate beyond which latency grows faster than throughput, by p99; None where it was not passed."""
        answered = [point for point in self.rates if point.requests and point.p99_ms > 0]
        place = knee([point.requests_per_s for point in answered], [point.p99_ms for point in answered])
        return None if place is None else answered[place]
