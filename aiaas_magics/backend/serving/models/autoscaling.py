"""Autoscaling: how many executors a version should have, from what it has done lately.

Owns the decision alone: numbers in, a number out, no clock and no executor. Counting belongs to `stats`,
carrying it out to `model_loader`.

A version gets one more when its executors were busy, or kept requests waiting for longer than they compute, in
each of the last windows; one less when one less would still have been idle for half of the time, for much longer.
So a moment's peak costs nothing, and a number that was just reached stays for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from aiaas_magics.backend.serving.models.stats import EndpointStats
from aiaas_magics.core.routing import Scaling
from aiaas_magics.core.spec import DeploySpec

WINDOW_S: Final = 2.0  # guess: some hundred requests of a model that is worth a second executor
UP_WINDOWS: Final = 2  # guess: busy for that many is no accident
DOWN_WINDOWS: Final = 15  # guess: half a minute of calm; opening an executor again costs more than keeping it
BUSY: Final = 0.8  # guess: beyond this share of the time, waiting grows quickly (of M/M/1, five times the computing)
CALM: Final = 0.5  # guess: far enough from BUSY that one step down is not followed by one up
WAITED: Final = 0.3  # of the time busy: below, requests that waited came in a burst, and more executors would be idle; guess


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a version has done since it was loaded."""

    requests: int
    batches: int
    queue_ns: int
    compute_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a version did in some seconds: how busy its executors were, and how long requests waited and batches took."""

    busy: float  # share of the time, over all executors
    waited_s: float  # of a request, on average
    computed_s: float  # of a batch, on average


def totals_of(stats: EndpointStats) -> Totals:
    batches = sum(spent.count for spent in stats.batches.values())
    return Totals(requests=stats.requests, batches=batches, queue_ns=stats.queue_ns, compute_ns=stats.compute_ns)


def window_between(before: Totals, after: Totals, *, seconds: float, replicas: int) -> Window:
    requests, batches = after.requests - before.requests, after.batches - before.batches
    compute_ns = after.compute_ns - before.compute_ns
    return Window(
        busy=compute_ns / (seconds * 1e9 * replicas),
        waited_s=(after.queue_ns - before.queue_ns) / 1e9 / max(1, requests),
        computed_s=compute_ns / 1e9 / max(1, batches),
    )


def wanted_replicas(windows: Sequence[Window], *, replicas: int, least: int, most: int) -> int:
    """The number of executors from here on.

    Args:
        windows: The latest ones, the last at the end, all of them with `replicas`.
    """
    latest = windows[-UP_WINDOWS:]
    if replicas < most and len(latest) == UP_WINDOWS and all(is_tight(window) for window in latest):
        return replicas + 1
    calm = windows[-DOWN_WINDOWS:]
    if replicas > least and len(calm) == DOWN_WINDOWS and all(window.busy * replicas < CALM * (replicas - 1) for window in calm):
        return replicas - 1
    return min(max(replicas, least), max(least, most))


def scaled(spec: DeploySpec, scaling: Scaling) -> DeploySpec:
    return msgspec.structs.replace(spec, replicas=scaling.replicas, most_replicas=scaling.most)


def is_tight(window: Window) -> bool:
    return window.busy > BUSY or (window.busy > WAITED and window.waited_s > window.computed_s)
