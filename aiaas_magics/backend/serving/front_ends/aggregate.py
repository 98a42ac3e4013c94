"""What concerns every front end, as whoever answers a request sees it.

Owns the seam: requests about figures, or that withdraw an endpoint, may arrive at any front end, and are answered for all of
them. How front ends talk belongs to `coordinator` and `worker_process`; where there is only one, nobody is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import MappingProxyType
from typing import Final, Protocol

from aiaas_magics.backend.serving.models.registry import Registry
from aiaas_magics.backend.serving.models.stats import StatsRecord, summed
from aiaas_magics.backend.serving.process.control import CountsOf, FrontEndCounts
from aiaas_magics.backend.serving.protocols import InferenceProtocol, InferenceRoute, Request, Response

SUMMED: Final = frozenset({"metrics", "page", "statistics", "all_statistics"})  # actions whose answers tell figures
WITHDRAWN: Final = MappingProxyType({"unload": True, "load": False})  # actions that withdraw an endpoint, or let it answer again


class Everywhere(Protocol):
    """All front ends of this port.

    Promises: what `collect` tells is whole, and what `withdraw` says holds everywhere when it returns; else they raise
    `AiaasError`, within a finite time.
    """

    async def collect(self) -> tuple[FrontEndCounts, ...]: ...
    async def withdraw(self, name: str, *, withdrawn: bool) -> None: ...


async def look(
    everywhere: Everywhere, registry: Registry, protocol: InferenceProtocol, route: InferenceRoute, request: Request
) -> Response:
    """The answer of all front ends to a request that computes nothing."""
    response = protocol.look(await seen(everywhere, registry, route.action), route, request)
    if response.status == 200:
        await spread(everywhere, route.action, route.name)
    return response


async def seen(everywhere: Everywhere, registry: Registry, action: str) -> Registry:
    """What an action is to look at."""
    return with_all_figures(registry, await everywhere.collect()) if action in SUMMED else registry


async def spread(everywhere: Everywhere, action: str, name: str) -> None:
    """What an action changed in this front end holds in all of them when this returns."""
    withdrawn = WITHDRAWN.get(action)
    if withdrawn is not None:
        await everywhere.withdraw(name, withdrawn=withdrawn)


def told(registry: Registry) -> FrontEndCounts:
    """What this process has counted."""
    return FrontEndCounts(
        pid=os.getpid(),
        counted=tuple(
            CountsOf(name=name, version=version.number, counts=version.figures.counts())
            for name in registry.names()
            for version in registry.versions(name)
            if version.state != "END"
        ),
    )


def with_all_figures(registry: Registry, parts: Iterable[FrontEndCounts]) -> Registry:
    """`registry` to look at, with the sums of what all have told."""
    found: dict[tuple[str, int], list[StatsRecord]] = {}
    for part in parts:
        for one in part.counted:
            found.setdefault((one.name, one.version), []).append(one.counts)
    return registry.with_figures({key: summed(counts) for key, counts in found.items()})
