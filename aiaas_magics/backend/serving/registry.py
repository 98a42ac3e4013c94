"""Which version of which endpoint answers.

Owns names, versions, the flip from one version to the next, and waiting until nobody uses
the old one. Making a version ready belongs to `loader`; all of this runs in the event loop.

The flip is one assignment to `Endpoint.live`: a request takes a lease on the version it finds
there and keeps it until its answer is sent, whatever is flipped meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from aiaas_magics.backend.serving.engines import Tensors
from aiaas_magics.backend.serving.figures import Figures
from aiaas_magics.backend.serving.replicas import Done
from aiaas_magics.errors import InvalidSpec
from aiaas_magics.spec import DeploySpec, VersionView

ENDED_KEPT: Final = 8  # guess: how many versions of the past a status still names


class Executor(Protocol):
    def submit(self, tensors: Tensors, rows: int | None, done: Done, *, timeout_s: float = ...) -> None: ...

    async def run(self, tensors: Tensors, rows: int | None) -> dict[str, np.ndarray]: ...

    async def close(self) -> None: ...


class NotServed(LookupError):
    """No such endpoint, or no such version of it."""


@dataclass(slots=True, eq=False, kw_only=True)
class Version:
    """One version of an endpoint. States are TF Serving's: START, LOADING, AVAILABLE, UNLOADING, END."""

    number: int
    spec: DeploySpec
    created_s: float
    state: str = "LOADING"
    engine: str = ""
    proof: float = 0.0
    executor: Executor | None = None
    fault: str = ""
    figures: Figures = field(default_factory=Figures)
    _leases: int = 0
    _free: asyncio.Event = field(default_factory=asyncio.Event)

    def view(self) -> VersionView:
        return VersionView(
            version=self.number,
            state=self.state,
            engine=self.engine,
            created_s=self.created_s,
            artefact=self.spec.artefact,
            proof=self.proof,
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
        """End after the last lease. To be called once it is in nobody's reach any more."""
        self.state = "UNLOADING"
        while self._leases:
            self._free.clear()
            await self._free.wait()
        executor, self.executor = self.executor, None
        if executor is not None:
            await executor.close()
        self.state = "END"


@dataclass(slots=True, eq=False)
class Endpoint:
    name: str
    live: Version | None = None
    versions: dict[int, Version] = field(default_factory=dict)
    withdrawn: bool = False


class Registry:
    """Every endpoint of this process."""

    def __init__(self) -> None:
        self._endpoints: dict[str, Endpoint] = {}

    def names(self) -> list[str]:
        return sorted(self._endpoints)

    def begin(self, version: Version) -> None:
        """Note a version that is being loaded; requests do not see it.

        Raises:
            InvalidSpec: the number is taken, or not above that of the version that answers.
        """
        name = version.spec.name
        endpoint = self._endpoints.get(name) or Endpoint(name)
        held = endpoint.versions.get(version.number)
        newest = endpoint.live.number if endpoint.live else 0
        if version.number < 1 or version.number <= newest or (held and held.state not in ("END",)):
            raise InvalidSpec(f"{name} has a version {max(newest, version.number)} already. Use a higher number than that.")
        endpoint.versions[version.number] = version
        self._endpoints[name] = endpoint

    def failed(self, version: Version, why: str) -> None:
        """Loading did not work out; whatever answered before goes on answering."""
        version.state, version.fault = "END", why
        endpoint = self._endpoints.get(version.spec.name)
        if endpoint is not None and endpoint.live is None and all(other.state == "END" for other in endpoint.versions.values()):
            del self._endpoints[endpoint.name]

    def flip(self, version: Version) -> Version | None:
        """From here on `version` answers; returns the one that did, to be drained.

        Raises:
            NotServed: the endpoint was retired, or overtaken by a higher version, while this one was loading.
        """
        endpoint = self._endpoints.get(version.spec.name)
        if endpoint is None or endpoint.versions.get(version.number) is not version:
            raise NotServed(f"{version.spec.name} was stopped while version {version.number} was loading")
        before = endpoint.live
        if before is not None and before.number > version.number:
            raise NotServed(f"{version.spec.name} has version {before.number} by now")
        version.state = "AVAILABLE"
        endpoint.live = version
        endpoint.withdrawn = False  # whoever deploys wants it answered
        for number in [n for n, other in endpoint.versions.items() if other.state == "END"][:-ENDED_KEPT]:
            del endpoint.versions[number]
        return before

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
        self._get(name).withdrawn = True

    def restore(self, name: str) -> None:
        """Let a withdrawn endpoint answer again; one that was not withdrawn goes on.

        Raises:
            NotServed: there is no such endpoint.
        """
        self._get(name).withdrawn = False

    def _get(self, name: str) -> Endpoint:
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            raise NotServed(name)
        return endpoint

    def find(self, name: str, number: int | None = None) -> Version:
        """The version that answers: the live one for a `number` of None or 0.

        Raises:
            NotServed: there is none, or it does not answer (any more).
        """
        endpoint = self._get(name)
        version = endpoint.versions.get(number) if number else endpoint.live
        if version is None or version.state != "AVAILABLE" or endpoint.withdrawn:
            raise NotServed(name, number)
        return version

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
        return {name: [version.view() for version in self.versions(name)] for name in self.names()}
