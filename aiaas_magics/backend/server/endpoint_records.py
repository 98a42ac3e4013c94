"""Endpoint records: deployed models, and the process that serves them.

Owns the records of versions and their numbers. Serving, proving and flipping belong to
`serving`, behind `Inference`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from msgspec.structs import replace

from aiaas_magics.backend.net.grants import endpoint_token
from aiaas_magics.backend.server.storage.account_records import AccountRecords, EndpointOwner
from aiaas_magics.backend.server.storage.blob_store import BlobStore
from aiaas_magics.backend.server.storage.records import Store, VersionRecord
from aiaas_magics.backend.serving.models.autoscaling import scaled
from aiaas_magics.backend.serving.process.state_directory import Files
from aiaas_magics.backend.serving.process.supervisor import Recorded
from aiaas_magics.core import integrity, wire
from aiaas_magics.core.drift.drift_values import DriftReport
from aiaas_magics.core.errors import AiaasError, InvalidSpec, UnknownName
from aiaas_magics.core.model_card import MOST_BYTES, ModelCard
from aiaas_magics.core.recording import RecordingCounts, RecordingPolicy
from aiaas_magics.core.routing import Change, Routing, Scaling, changed, deployed
from aiaas_magics.core.spec import DeploySpec, EndpointView, RecordingChange, VersionView

log = logging.getLogger(__name__)


class Inference(Protocol):
    """What the server needs of the inference process; see `serving.host.InferenceHost` for its promises."""

    @property
    def url(self) -> str: ...
    @property
    def grpc(self) -> str: ...
    @property
    def token(self) -> str: ...
    @property
    def faults(self) -> Mapping[str, str]: ...

    async def start(
        self, state_dir: Path, host: str = "127.0.0.1", tls: tuple[str, str] | None = None, *, recorded: Sequence[Recorded] = ()
    ) -> None: ...
    async def load(self, spec: DeploySpec, version: int, artefact: Path, samples: Path) -> VersionView: ...
    async def route(self, name: str, routing: Routing, *, keeps: int = 0, restores: bool = False) -> None: ...
    async def scale(self, name: str, scaling: Scaling) -> None: ...
    async def record(self, name: str, change: RecordingChange) -> None: ...
    async def recorded_counts(self, name: str) -> RecordingCounts: ...
    async def forget_recorded(self, name: str) -> None: ...
    async def drift(self, name: str, version: int = 0) -> DriftReport: ...
    async def keep_card(self, name: str, version: int, card: ModelCard) -> None: ...
    async def retire(self, name: str) -> None: ...
    async def status(self) -> dict[str, list[VersionView]]: ...
    async def stop(self) -> None: ...


NOBODYS: Final = EndpointOwner("")


class Endpoints:
    """Every endpoint of one server.

    The inference process is started in the background, so that the server is up at once; whoever needs
    it waits for it. What could not be started is tried again by the next who needs it.
    """

    def __init__(
        self,
        *,
        store: Store,
        blobs: BlobStore,
        make: Callable[[], Inference],
        state_dir: Path,
        host: str = "127.0.0.1",
        tls: tuple[str, str] | None = None,
        trusted_keys: Sequence[str] = (),
    ) -> None:
        self._store, self._blobs, self._make = store, blobs, make
        self._trusted_keys = tuple(trusted_keys)  # one of them must have signed what is served; none: nothing must be signed
        self._state_dir, self._host, self._tls = state_dir, host, tls
        self._inference: Inference | None = None
        self._coming: Inference | None = None  # begun to start
        self._starting: asyncio.Task[Inference] | None = None
        self._turn = asyncio.Lock()  # what opens models, one after the other: each is proved on all the cores
        # What changes a routing and its record. Held for no longer than that, so that nobody who wants to go back waits for a model.
        # Whoever needs both takes `_turn` first.
        self._routed = asyncio.Lock()
        self._waiting: dict[str, int] = {}  # the version of an endpoint that is being loaded
        self._loaded: dict[str, dict[int, VersionRecord]] = {}
        self._routing: dict[str, Routing] = {}
        self._accounts = AccountRecords(store)
        self._owners: dict[str, EndpointOwner] = {}  # of those that are not the server's own account's, or are shared
        self.on_change: Callable[[], None] = lambda: None

    async def start(self) -> None:
        self._owners = dict(await self._store.call(self._accounts.endpoint_owners))
        for record in await self._store.call(self._store.versions):
            self._loaded.setdefault(record.spec.name, {})[record.view.version] = record
        routings = await self._store.call(self._store.routings)
        self._routing = {name: routings.get(name) or Routing(live=max(records)) for name, records in self._loaded.items()}
        self._begin()

    def _begin(self) -> asyncio.Task[Inference]:
        if self._starting is None or (self._starting.done() and self._inference is None):
            self._starting = asyncio.create_task(self._bring_up(), name="start inference")
            self._starting.add_done_callback(_tell)
        return self._starting

    async def _bring_up(self) -> Inference:
        inference = self._coming = self._make()
        recorded = [
            Recorded(
                spec=r.spec,
                version=r.view.version,
                artefact=str(self._blobs.path(r.spec.artefact)),
                samples=str(self._blobs.path(r.spec.samples)),
                routing=self._routing[name],
            )
            for name, records in self._loaded.items()
            for r in records.values()
        ]
        await inference.start(self._state_dir, self._host, self._tls, recorded=recorded)
        self._inference = inference
        self.on_change()
        return inference

    async def _ready(self) -> Inference:
        return await asyncio.shield(self._begin())

    @property
    def is_up(self) -> bool:
        """Whether there is an inference process."""
        return self._inference is not None

    @property
    def any(self) -> bool:
        return bool(self._loaded)

    def owners(self) -> dict[str, EndpointOwner]:
        """Whose each endpoint is, in the order of their names."""
        return {name: self._owners.get(name, NOBODYS) for name in sorted(self._loaded)}

    def token_of(self, name: str, user: str) -> str:
        """The token by which a user asks this endpoint for predictions; "" while there is no inference process."""
        owner = self._owners.get(name, NOBODYS).owner
        return endpoint_token(self._inference.token, endpoint=name, owner=owner, user=user) if self._inference is not None else ""

    async def share(self, name: str, groups: Sequence[str]) -> EndpointView:
        """The endpoint, seen by members of these groups and of no other. Raises `UnknownName`."""
        self._check(name)
        await self._keep_owner(name, EndpointOwner(self._owners.get(name, NOBODYS).owner, tuple(groups)))
        return await self.view(name)

    async def _keep_owner(self, name: str, owner: EndpointOwner | None) -> None:
        await self._store.call(self._accounts.keep_endpoint, name, owner)
        self._owners.pop(name, None)
        if owner is not None:
            self._owners[name] = owner
        self.on_change()

    async def deploy(self, spec: DeploySpec, *, owner: str = "") -> EndpointView:
        """The endpoint with `spec` as its newest version; it answers before this returns. A new one belongs to `owner`.

        Raises:
            ProofFailed, UnknownName: what answered before goes on answering.
            SignatureRefused: no key that must have signed it has; nothing was loaded.
        """
        check_card(spec.card)
        artefact, samples = self._blobs.get_path(spec.artefact), self._blobs.get_path(spec.samples)
        if spec.recording is None:
            spec = replace(spec, recording=self._recording(spec.name))
        inference = await self._ready()
        async with self._turn:
            spec = self._trusted(spec)
            version = 1 + await self._store.call(self._store.last_version, spec.name)
            self._waiting[spec.name] = version
            try:
                view = await inference.load(spec, version, artefact, samples)
                if owner and spec.name not in self._loaded:  # before anybody can see it
                    await self._keep_owner(spec.name, EndpointOwner(owner))
                async with self._routed:
                    await self._route_to(inference, VersionRecord(spec, view, True))
            finally:
                del self._waiting[spec.name]
        self.on_change()
        return await self.view(spec.name)

    def _trusted(self, spec: DeploySpec) -> DeploySpec:
        """`spec`, if the server's keys, the endpoint's and its own are satisfied. An endpoint that demands a signature goes on doing so.

        Raises:
            SignatureRefused: one of the three is not.
        """
        name, routing = spec.name, self._routing.get(spec.name)
        before = () if routing is None else self._loaded[name][routing.live].spec.trusted_keys
        integrity.verify(spec, self._trusted_keys, before, spec.trusted_keys)
        return replace(spec, trusted_keys=spec.trusted_keys or before)

    async def _route_to(self, inference: Inference, record: VersionRecord) -> None:
        """Let requests go to a version that is ready, from the routing that is in force now; with a fault all is as it was."""
        name, version = record.spec.name, record.view.version
        before = self._routing.get(name)
        routing = deployed(before, version, record.spec.rollout)
        try:
            await inference.route(name, routing, restores=True)
            await self._store.call(self._store.keep_routing, name, routing, record)
        except BaseException:
            with contextlib.suppress(AiaasError):
                await (inference.route(name, before) if before is not None else inference.retire(name))
            raise
        self._loaded.setdefault(name, {})[version] = record
        self._keep(name, routing)

    async def change(self, name: str, change: Change) -> EndpointView:
        """Promote, roll back, move a label or a canary's share: from one request to the next, also while a model is being loaded.

        Raises:
            UnknownName: there is no such endpoint.
            InvalidSpec: it cannot be done; nothing was changed.
        """
        self._check(name)
        inference = await self._ready()
        async with self._routed:
            self._check(name)
            routing = changed(name, self._routing[name], change)
            await inference.route(name, routing, keeps=self._waiting.get(name, 0))
            await self._store.call(self._store.keep_routing, name, routing)
            self._keep(name, routing)
        return await self.view(name)

    async def scale(self, name: str, scaling: Scaling) -> EndpointView:
        """The endpoint with so many executors a version.

        Raises:
            UnknownName: there is no such endpoint.
            InvalidSpec: no such number is possible.
            NotScaled: one could not be opened; all versions have what they had.
        """
        self._check(name)
        inference = await self._ready()
        async with self._turn:
            self._check(name)
            await inference.scale(name, scaling)
            async with self._routed:
                records = {n: VersionRecord(scaled(r.spec, scaling), r.view, True) for n, r in self._loaded[name].items()}
                for record in records.values():
                    await self._store.call(self._store.keep_spec, record)
                self._loaded[name] = records
        return await self.view(name)

    async def record(self, name: str, change: RecordingChange) -> EndpointView:
        """The endpoint, whose requests are recorded as `change` says from the next one on.

        Raises:
            UnknownName: there is no such endpoint.
        """
        self._check(name)
        inference = await self._ready()
        async with self._turn, self._routed:
            self._check(name)
            await inference.record(name, change)
            records = {n: VersionRecord(change.applied(r.spec, n), r.view, True) for n, r in self._loaded[name].items()}
            for record in records.values():
                await self._store.call(self._store.keep_spec, record)
            self._loaded[name] = records
        return await self.view(name)

    async def recorded_counts(self, name: str) -> RecordingCounts:
        """What is recorded of an endpoint, in the files of `recorded_folder` when this returns.

        Raises:
            UnknownName: there is no such endpoint.
        """
        self._check(name)
        return await (await self._ready()).recorded_counts(name)

    def recorded_folder(self, name: str) -> Path:
        """Where its recorded requests are; there is none where nothing is recorded.

        Raises:
            UnknownName: there is no such endpoint.
        """
        self._check(name)
        return Files(self._state_dir).recorded / name

    async def forget_recorded(self, name: str) -> None:
        """Remove what is recorded of an endpoint. Recording itself goes on.

        Raises:
            UnknownName: there is no such endpoint.
        """
        self._check(name)
        await (await self._ready()).forget_recorded(name)

    async def drift(self, name: str, version: int = 0) -> DriftReport:
        """How the recorded rows of a version differ from its reference; a `version` of 0 is the live one.

        Raises:
            UnknownName: there is no such endpoint, or no such version of it that is ready.
        """
        self._check(name)
        return await (await self._ready()).drift(name, version)

    def _recording(self, name: str) -> RecordingPolicy:
        """As the endpoint has it now; off for a new one."""
        routing = self._routing.get(name)
        record = self._loaded.get(name, {}).get(routing.live) if routing is not None else None
        return (record.spec.recording if record is not None else None) or RecordingPolicy()

    async def card(self, name: str, version: int) -> ModelCard:
        """The card of a version; 0 is the one that answers.

        Raises:
            UnknownName: there is no such endpoint, version or card.
        """
        card = self._record(name, version).spec.card
        if card is None:
            raise UnknownName("model card of endpoint", name)
        return card

    async def keep_card(self, name: str, version: int, card: ModelCard) -> None:
        """Keep another card for a version; 0 is the one that answers. The model goes on as it is.

        Raises:
            UnknownName: there is no such endpoint or version.
            InvalidSpec: the card is too long.
        """
        check_card(card)
        self._record(name, version)
        inference = await self._ready()
        async with self._turn:
            record = self._record(name, version)
            record = VersionRecord(replace(record.spec, card=card), record.view, True)
            with contextlib.suppress(UnknownName):  # it could not be brought back after a restart
                await inference.keep_card(name, record.view.version, card)
            await self._store.call(self._store.keep_spec, record)
            self._loaded[name][record.view.version] = record

    def _record(self, name: str, version: int) -> VersionRecord:
        self._check(name)
        records = self._loaded[name]
        number = version or self._routing[name].live
        if number not in records:
            raise UnknownName("version", f"{name} {version}", tuple(f"{name} {known}" for known in records))
        return records[number]

    def _keep(self, name: str, routing: Routing) -> None:
        self._routing[name] = routing
        self._loaded[name] = {number: record for number, record in self._loaded[name].items() if number in routing.loaded}

    async def retire(self, name: str) -> None:
        self._check(name)
        inference = await self._ready()
        async with self._turn, self._routed:
            self._check(name)
            # The record first: a crash in between leaves an endpoint that the next start takes down, not one that comes back.
            await self._store.call(self._store.retire, name)
            del self._loaded[name], self._routing[name]
            if name in self._owners:
                await self._keep_owner(name, None)
            with contextlib.suppress(UnknownName):  # it could not be brought back after a restart
                await inference.retire(name)

    async def view(self, name: str) -> EndpointView:
        self._check(name)
        return (await self._views([name]))[0]

    async def views(self, names: Sequence[str] | None = None) -> list[EndpointView]:
        """All, or those with these names."""
        names = sorted(self._loaded) if names is None else names
        return await self._views(names) if names else []

    async def _views(self, names: Sequence[str]) -> list[EndpointView]:
        inference = await self._ready()
        status = await inference.status()
        return [self._view(inference, name, status.get(name, [])) for name in names if name in self._loaded]

    def _view(self, inference: Inference, name: str, versions: list[VersionView]) -> EndpointView:
        routing = self._routing[name]
        record = self._loaded[name][routing.live]
        spec = record.spec
        return EndpointView(
            name=spec.name,
            url=inference.url,
            grpc=inference.grpc,
            token=inference.token,
            replicas=next((view.replicas for view in versions if view.version == routing.live), 0) or spec.replicas,
            versions=tuple(versions) or (replace(record.view, state="END", fault=inference.faults.get(name, "")),),
            inputs=spec.inputs,
            outputs=spec.outputs,
            model=spec.model,
            origin=spec.origin,
            example=spec.example,
            routing=routing,
            recording=self._recording(name),
            owner=self._owners.get(name, NOBODYS).owner,
            groups=self._owners.get(name, NOBODYS).groups,
        )

    def _check(self, name: str) -> None:
        if name not in self._loaded:
            raise UnknownName("endpoint", name)  # without the names of others: which ones the caller may know is asked before

    async def close(self) -> None:
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._coming is not None:
            await self._coming.stop()


def check_card(card: ModelCard | None) -> None:
    """Raises `InvalidSpec` for a card that is too long to travel with every message about its version."""
    size = 0 if card is None else len(wire.encode(card))
    if size > MOST_BYTES:
        raise InvalidSpec(f"The model card has {size / 1024:,.0f} kB; at most {MOST_BYTES // 1024} are kept. Leave sections out.")


def _tell(task: asyncio.Task[Inference]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the inference process is not up: %s", error)
