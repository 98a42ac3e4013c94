"""Load plan: what the load generator is given, what it reports meanwhile, and what it writes in the end.

Owns the values and the lines of progress. Making the load belongs to `load_generator`, starting its process to `load_run`.
"""

from __future__ import annotations

from typing import Final

from aiaas_magics.core import wire
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.scaling.load_report import LoadPoint, LoadProgress, RatePoint, Sides
from aiaas_magics.core.value import Value

WARM_UP_S: Final = 0.3  # guess: connections are open and the engine's memory is there
ANSWER_S: Final = 30.0  # guess: slower than this is an error, not an answer
SHARES: Final = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)  # of what the connections reached: rates tried until answers stay behind
MARK: Final = "# "  # begins a line of progress; the outcome has none


class BodyForm(Value, frozen=True, kw_only=True):
    """One way to ask the same: the bodies are sent in turn."""

    name: str
    path: str
    bodies: tuple[bytes, ...]
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.bodies:
            raise InvalidSpec("There is no row to send. Give at least one to start with.")


class LoadPlan(Value, frozen=True, kw_only=True):
    """What to do. `token` travels here, not on a command line that others can read."""

    url: str
    token: str
    forms: tuple[BodyForm, ...]
    concurrency: tuple[int, ...]
    duration_s: float
    rows: int
    rates: tuple[float, ...] | None = ()  # requests a second, with the first form; None: chosen by what the connections reached
    model: str = ""  # the endpoint's name, whose figures say what the engine took; "" where nobody asks
    warm_up_s: float = WARM_UP_S
    fingerprint: str = ""  # of the only certificate to believe
    authority: str = ""  # PEM file of who vouches for the server's certificate, where the system's own do not

    def __post_init__(self) -> None:
        if not self.concurrency or any(not 1 <= n <= 10_000 for n in self.concurrency):
            raise InvalidSpec(f"concurrency={self.concurrency}: each is between 1 and 10000. Use --concurrency 1,2,4 to start with.")
        if not 0 < self.duration_s <= 3600:
            raise InvalidSpec(f"duration={self.duration_s}: between 0 and 3600 seconds are possible. Use --duration 2 to start with.")
        if self.rows < 1 or not self.forms:
            raise InvalidSpec(f"rows={self.rows}: a request has at least one row. Use --rows 1 to start with.")
        if any(not 0 < rate <= 1e6 for rate in self.rates or ()):
            raise InvalidSpec(f"rates={self.rates}: each is above 0 and up to 1000000 a second. Leave them out to start with.")

    @property
    def measurements(self) -> int:
        """At most so many, for who waits."""
        return len(self.forms) * (len(self.concurrency) + 1) + len(SHARES if self.rates is None else self.rates)


class LoadOutcome(Value, frozen=True, kw_only=True):
    """What the generator writes: the points, or why there are none. What the model could do is of one executor."""

    points: tuple[LoadPoint, ...] = ()
    rates: tuple[RatePoint, ...] = ()
    sides: tuple[Sides, ...] = ()
    unreachable: bool = False
    unproven: bool = False  # another program answers there; it was sent nothing
    status: int = 0
    refused: str = ""


class Reporter:
    """Writes a line of progress before each measurement. `points` and `rates` are what was measured so far."""

    def __init__(self, plan: LoadPlan) -> None:
        self.points: list[LoadPoint] = []
        self.rates: list[RatePoint] = []
        self._total, self._number = plan.measurements, 0
        self._waiting = [
            label for form in plan.forms for label in (*(at_once_label(n, form) for n in plan.concurrency), interface_label(form))
        ]
        self._waiting += [rate_label(rate, plan.forms[0]) for rate in plan.rates or ()]

    def begin(self, label: str) -> None:
        if label in self._waiting:
            self._waiting.remove(label)
        progress = LoadProgress(
            label=label,
            number=self._number,
            total=self._total,
            waiting=tuple(self._waiting),
            points=tuple(self.points),
            rates=tuple(self.rates),
        )
        self._number += 1
        print(MARK + wire.encode(progress).decode(), flush=True)


def at_once_label(concurrency: int, form: BodyForm) -> str:
    return f"{concurrency} {'connection' if concurrency == 1 else 'connections'}, {form.name}"


def interface_label(form: BodyForm) -> str:
    return f"interface alone, {form.name}"


def rate_label(rate: float, form: BodyForm) -> str:
    return f"{rate:,.0f}/s offered, {form.name}"
