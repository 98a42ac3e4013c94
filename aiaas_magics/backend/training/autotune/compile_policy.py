"""Compile policy: whether a loop over steps is compiled by XLA, by rules about the step and by what was measured before.

Owns the decision. Rules that say "must not" are final; those that say "does not pay" may be overruled by a measurement of both
forms, which is remembered by what the step computes and where, with the time that compiling took: a short fit need not pay for
what a long one gained by.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from aiaas_magics.core.timing_cache import StepTiming, TimingCache

MOST_COMPILE_S: Final = 5.0  # for a candidate of a dry run (guess: somebody looks on)

FORMS: Final = frozenset({"graph", "xla"})  # what a measurement decides between
IN_WORDS: Final = {"xla": "compiled by XLA", "graph": "uncompiled"}

Timings = Mapping[str, StepTiming]  # by form


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """`fused` is "xla", "graph" or "off"; `why` says why not more than that; `open` whether a measurement may change it."""

    fused: str
    why: tuple[str, ...] = ()
    open: bool = False


class TracedStep(Protocol):
    """What the policy asks of a step that was traced."""

    def key(self) -> str:
        """Names what the step computes, on what kind of rows, with what, on this machine."""

    def forbidden(self) -> tuple[str, ...]:
        """Why it must not be compiled, if it must not."""

    def unpaying(self, ahead: float) -> tuple[str, ...]:
        """Why compiling would not pay where `ahead` steps follow, by estimate."""

    def compile_s(self) -> float:
        """About how many seconds compiling takes."""


class Rule:
    """Decides the form of one loop, by what `cache` has of its step where that was measured."""

    def __init__(self, cache: TimingCache | None = None) -> None:
        self._cache, self._key = cache, ""

    def decide(self, step: TracedStep, *, ahead: float) -> Choice:
        measured: Timings = {}
        if self._cache is not None:
            self._key = step.key()
            measured = both_forms(self._cache.get(self._key))
        return choose(step, ahead=ahead, measured=measured)

    def remember(self, timings: Sequence[StepTiming]) -> None:
        """What both forms of the step that was decided on take."""
        if self._cache is not None and (measured := both_forms(timings)):
            self._cache.put(self._key, list(measured.values()))


class ComparingRule(Rule):
    """Says "xla" wherever that can be measured in a moment, whatever was measured before."""

    planned: Callable[[], Choice] | None = None  # what a `Rule` decides by now

    def decide(self, step: TracedStep, *, ahead: float) -> Choice:
        self.planned = functools.partial(super().decide, step, ahead=ahead)
        self.planned()
        by_estimate = choose(step, ahead=ahead, measured={})
        if not by_estimate.open:
            return by_estimate
        if (takes_s := step.compile_s()) > MOST_COMPILE_S:
            return Choice(fused="graph", why=(f"XLA would take about {takes_s:.0f} s to compile this step",))
        return Choice(fused="xla")


def both_forms(timings: Sequence[StepTiming]) -> Timings:
    """The timings of both forms, or nothing."""
    by_form = {timing.fused: timing for timing in timings if timing.fused in FORMS}
    return by_form if by_form.keys() == FORMS else {}


def choose(step: TracedStep, *, ahead: float, measured: Timings) -> Choice:
    """The form for steps like `step`, with `ahead` of them still to make.

    A function of the step, its data and what was `measured` alone, so that the same run is carried out in the same way again.
    """
    if final := step.forbidden():
        return Choice(fused="graph", why=final)
    if measured:
        return quickest(measured, ahead)
    if unpaying := step.unpaying(ahead):
        return Choice(fused="graph", why=unpaying, open=True)
    return Choice(fused="xla", open=True)


def quickest(measured: Timings, ahead: float = math.inf) -> Choice:
    """The form in which `ahead` steps are done first, compiling included; by default one whose compilation is over."""
    best, other = sorted(FORMS, key=lambda form: measured[form].cost_s(ahead))
    ratio = measured[other].cost_s(ahead) / measured[best].cost_s(ahead)
    included = "" if math.isinf(ahead) else ", compiling included"
    return Choice(fused=best, why=(f"measured: {IN_WORDS[other]} it takes {ratio:.2f} times as long{included}",))
