"""Registry: the endpoints of this process, and which version answers.

Owns names, versions, the flip from one version to the next, and waiting until nobody uses
the old one. Making a version ready belongs to `model_loader`; all of this runs in the event loop.

The flip is one assignment to `Endpoint.table`: a request takes a lease on the version it finds
there and keeps it until its answer is sent, whatever is flipped meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from msgspec.structs import replace as replace_fields

from aiaas_magics.backend.serving.engines import Tensors
from aiaas_magics.backend.serving.models.recorder import Recorder
from aiaas_magics.backend.serving.models.replicas import Done
from aiaas_magics.backend.serving.models.stats import EndpointStats
from aiaas_magics.core.drift.drift_values import DriftReport
from aiaas_magics.core.errors import InvalidSpec, UnknownName
from aiaas_magics.core.integrity import signed
from aiaas_magics.core.model_card import ModelCard
from aiaas_magics.core.routing import Routing, place_of
from aiaas_magics.core.spec import DeploySpec, VersionView

log = logging.getLogger(__name__)

T = TypeVar("T")

DRAIN_S: Final = 90.0  # guess: half as long again as one computation may take
ENDED_KEPT: Final = 8  # guess: how many versions of the past a status still names


class Executor(Protocol):
    @property
    def batch_rows(self) -> int: ...

    def submit(self, tensors: Tensors, rows: int | None, done: Done, *, timeout_s: float = ...) -> None: ...

    async def run(self, tensors: Tensors, rows: int | None) -> dict[str, np.ndarray]: ...

    async def close(self) -> None: ...


class NotServed(LookupError):
    """No such endpoint, or no such version of it."""


class TakenDown(Exception):
    """A version was closed while it was still answering: it took longer than a drain lasts."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(name, number)
        self.name, self.number = name, number

    def __str__(self) -> str:
        return f"Version {self.number} of {self.name} was taken down before this answer was whole. Send the request again."


class Cuttable(Protocol):
    """An answer that is computed while it is read, and can be ended early."""

    def cut(self) -> None: ...


class UnknownLabel(NotServed):
    """No version of the endpoint has this label."""


@dataclass(slots=True, eq=False, kw_only=True)
class Version:
    """One version of an endpoint. States are TF Serving's: START, LOADING, AVAILABLE, UNLOADING, END."""

    number: int
    spec: DeploySpec
    created_s: float
    files: tuple[Path, Path] = (Path(), Path())  # its artefact and samples, for more executors
    state: str = "LOADING"
    engine: str = ""
    proof: float = 0.0
    executor: Executor | None = None
    replicas: int = 0
    fault: str = ""
    body_bytes: int = 0  # that a request for it may have
    stats: EndpointStats = field(default_factory=EndpointStats)
    recorder: Recorder | None = None  # to offer answered requests to; None: nothing is recorded
    drift: DriftReport | None = None  # as it was computed last, for the metrics
    streams: set[Cuttable] = field(default_factory=set)  # answers under way that are computed while they are read
    _derived: dict[object, Any] = field(default_factory=dict)
    _leases: int = 0
    _free: asyncio.Event = field(default_factory=asyncio.Event)

    def once(self, find: Callable[[Version], T]) -> T:
        """What `find` tells of this version, asked once: what protocols work out of an interface before they read requests for it."""
        try:
            derived: T = self._derived[find]
        except KeyError:
            derived = self._derived[find] = find(self)
        return derived

    def view(self) -> VersionView:
        return VersionView(
            version=self.number,
            state=self.state,
            engine=self.engine,
            created_s=self.created_s,
            artefact=self.spec.artefact,
            samples=self.spec.samples,
            proof=self.proof,
            precision=self.spec.precision,
            replicas=self.replicas,
            **signed(self.spec),
        )

    def enter(self) -> Executor:
        """Begin to use the version: it is not closed before as many have left as entered."""
        if self.executor is None:
            raise NotServed
        self._leases += 1
        return self.executor

    def leave(self) -> None:
        self._leases -= 1
        if self._leases == 0:
            self._free.set()

    @contextmanager
    def lease(self) -> Iterator[Executor]:
        """Use the version; it is not closed before the lease ends."""
        executor = self.enter()
        try:
            yield executor
        finally:
            self.leave()

    async def drain_and_close(self) -> None:
        """End after the last lease, or after `DRAIN_S`. To be called once it is in nobody's reach any more."""
        self.state = "UNLOADING"
        try:
            async with asyncio.timeout(DRAIN_S):
                while self._leases:
                    self._free.clear()
                    await self._free.wait()
        except TimeoutError:
            log.warning("%s version %d is closed with %d requests under way", self.spec.name, self.number, self._leases)
            for stream in tuple(self.streams):
                stream.cut()
        executor, self.executor = self.executor, None
        if executor is not None:
            await executor.close()
        self.state = "END"


@dataclass(frozen=True, slots=True, eq=False)
class VersionTable:
    """A `Routing` with the versions themselves in it."""

    routing: Routing
    live: Version
    canary: Version | None
    labels: Mapping[str, Version]


@dataclass(slots=True, eq=False)
class ServedEndpoint:
    name: str
    table: VersionTable | None = None  # None while its first version is being loaded
    versions: dict[int, Version] = field(default_factory=dict)

    @property
    def live(self) -> Version | None:
        return None if self.table is None else self.table.live


class Registry:
    """Every endpoint of this process.

    Args:
        withdrawn: The endpoints that were withdrawn when the process of last time ended.
        keep_withdrawn: Called with all of them when they have changed.
        expected: The endpoints that are being brought back: they are not answered as if there were none.
    """

    def __init__(
        self,
        *,
        withdrawn: Collection[str] = (),
        keep_withdrawn: Callable[[Collection[str]], None] = lambda withdrawn: None,
        expected: Collection[str] = (),
    ) -> None:
        self._endpoints: dict[str, ServedEndpoint] = {}
        self._withdrawn = set(withdrawn)
        self._keep_withdrawn = keep_withdrawn
        self.expected = set(expected)

    def names(self) -> list[str]:
        return sorted(self._endpoints)

    def begin(self, version: Version) -> None:
        """Note a version that is being loaded; requests do not see it.

        Raises:
            InvalidSpec: the number is taken, or not above that of the version that answers.
        """
        name = version.spec.name
        endpoint = self._endpoints.get(name) or ServedEndpoint(name)
        for number in [number for number, other in endpoint.versions.items() if other.state == "END"][:-ENDED_KEPT]:
            del endpoint.versions[number]
        newest = max((number for number, other in endpoint.versions.items() if other.state != "END"), default=0)
        if version.number < 1 or version.number <= newest:
            raise InvalidSpec(f"{name} has a version {max(newest, version.number)} already. Use a higher number than that.")
        endpoint.versions[version.number] = version
        self._endpoints[name] = endpoint

    def failed(self, version: Version, why: str) -> None:
        """Loading did not work out; whatever answered before goes on answering."""
        version.state, version.fault = "END", why
        endpoint = self._endpoints.get(version.spec.name)
        if endpoint is not None and endpoint.live is None and all(other.state == "END" for other in endpoint.versions.values()):
            del self._endpoints[endpoint.name]

    def ready(self, version: Version) -> None:
        """A version that was being loaded can answer from here on, and is routed to when a `route` says so.

        Raises:
            NotServed: the endpoint was retired while the version was loading.
        """
        endpoint = self._endpoints.get(version.spec.name)
        if endpoint is None or endpoint.versions.get(version.number) is not version:
            raise NotServed(f"{version.spec.name} was stopped while version {version.number} was loading")
        version.state = "AVAILABLE"

    def route(self, name: str, routing: Routing, *, keeps: Collection[int] = ()) -> list[Version]:
        """Let requests go as `routing` says, from one to the next; returns the versions that it has no use for, to be drained.

        `keeps` are versions that are none of these and stay: they wait for a routing of their own.

        Raises:
            NotServed: there is no such endpoint.
            InvalidSpec: a version that it names is not ready; nothing was changed.
        """
        endpoint, ready = self._get(name), self.routable(name, routing)
        self.expected.discard(name)
        endpoint.table = VersionTable(
            routing=routing,
            live=ready[routing.live],
            canary=ready.get(routing.canary),
            labels={label: ready[number] for label, number in routing.labels.items()},
        )
        dropped = [version for number, version in ready.items() if number not in routing.loaded | {*keeps}]
        for version in dropped:
            version.state = "UNLOADING"  # from now on, not from when its draining begins: nothing is routed to it any more
        return dropped

    def routable(self, name: str, routing: Routing) -> dict[int, Version]:
        """The versions that are ready, all that `routing` names among them.

        Raises:
            NotServed: there is no such endpoint.
            InvalidSpec: a version that it names is not ready.
        """
        ready = self.ready_versions(name)
        missing = sorted(routing.loaded - ready.keys())
        if missing:
            raise InvalidSpec(f"{name} has no version {missing[0]} that is ready. Those that are: {', '.join(map(str, sorted(ready)))}.")
        return ready

    def ready_versions(self, name: str) -> dict[int, Version]:
        """By number, ascending.

        Raises:
            NotServed: there is no such endpoint.
        """
        return {number: version for number, version in sorted(self._get(name).versions.items()) if version.state == "AVAILABLE"}

    def remove(self, name: str) -> list[Version]:
        """Take an endpoint out of reach; returns its versions, to be drained."""
        endpoint = self._endpoints.pop(name, None)
        if endpoint is None:
            raise NotServed(name)
        return [version for version in endpoint.versions.values() if version.executor is not None]

    def withdraw(self, name: str) -> None:
        """Let the endpoint answer no more until `restore`; its versions stay loaded, and what is being answered is answered.

        Raises:
            NotServed: there is no such endpoint.
        """
        self._get(name)
        self._withdrawn.add(name)
        self._keep_withdrawn(self._withdrawn)

    def restore(self, name: str) -> None:
        """Let a withdrawn endpoint answer again; one that was not withdrawn goes on.

        Raises:
            NotServed: there is no such endpoint.
        """
        self._get(name)
        if name in self._withdrawn:
            self._withdrawn.remove(name)
            self._keep_withdrawn(self._withdrawn)

    @property
    def withdrawn(self) -> frozenset[str]:
        """The endpoints that do not answer until they are restored, those that are not loaded yet among them."""
        return frozenset(self._withdrawn)

    def _get(self, name: str) -> ServedEndpoint:
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            raise NotServed(name)
        return endpoint

    def find(self, name: str, number: int | None = None, *, label: str | None = None, key: Callable[[], bytes] = bytes) -> Version:
        """The version that answers: the one of that number or label, or else the live one or, for some keys, the canary.

        `key` tells who asks, where there is a canary: the same key always gets the same version.

        Raises:
            UnknownLabel: no version has this label.
            NotServed: there is none, or it does not answer (any more).
        """
        endpoint = self._get(name)
        table = endpoint.table
        if table is None or name in self._withdrawn:
            raise NotServed(name, number)
        if label is not None:
            version = table.labels.get(label)
            if version is None:
                raise UnknownLabel(name, label)
        elif number:
            version = endpoint.versions.get(number)
        elif table.canary is not None and place_of(key()) < table.routing.share:
            version = table.canary
        else:
            version = table.live
        if version is None or version.state != "AVAILABLE":
            raise NotServed(name, number)
        return version

    def only(self, name: str, number: int | None = None, *, label: str | None = None) -> Version | None:
        """As `find`, where the same version answers whoever asks; else None, and where none does."""
        endpoint = self._endpoints.get(name)
        if endpoint is None or endpoint.table is None or (endpoint.table.canary is not None and label is None and not number):
            return None
        try:
            return self.find(name, number, label=label)
        except NotServed:
            return None

    def answering(self) -> list[Version]:
        """The versions that answer callers who ask for none: live ones and canaries."""
        tables = [endpoint.table for endpoint in self._endpoints.values() if endpoint.table is not None]
        return [version for table in tables for version in (table.live, table.canary) if version is not None]

    def keep_card(self, name: str, number: int, card: ModelCard) -> None:
        """Show another card for a version from now on.

        Raises:
            UnknownName: there is no such endpoint or version.
        """
        endpoint = self._endpoints.get(name)
        if endpoint is None or number not in endpoint.versions:
            raise UnknownName("version", f"{name} {number}")
        version = endpoint.versions[number]
        version.spec = replace_fields(version.spec, card=card)

    def routing(self, name: str) -> Routing | None:
        table = self._get(name).table
        return None if table is None else table.routing

    def knows(self, name: str, number: int | None = None) -> bool:
        """Whether the version is here and has not ended, so that it may answer later if it does not now."""
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            return False
        return any(other.state != "END" for other in endpoint.versions.values() if not number or other.number == number)

    def versions(self, name: str) -> list[Version]:
        """All versions that are known, the newest first.

        Raises:
            NotServed: there is no such endpoint.
        """
        return sorted(self._get(name).versions.values(), key=lambda version: -version.number)

    def status(self) -> dict[str, list[VersionView]]:
        return {
            name: [replace_fields(version.view(), withdrawn=name in self._withdrawn) for version in self.versions(name)]
            for name in self.names()
        }
