"""Stub inference: remembers what was loaded, without a process.

Owns the same promises as `serving.process.supervisor.InferenceHost` towards the server, without a process. An artefact's
bytes are its script: "wrong..." fails its proof, and "slow PATH" is not done with its load before PATH exists.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from aiaas_magics.backend.serving.process.supervisor import Recorded
from aiaas_magics.core.drift.drift_values import DriftReport
from aiaas_magics.core.errors import InvalidSpec, ProofFailed, UnknownName
from aiaas_magics.core.model_card import ModelCard
from aiaas_magics.core.recording import RecordingCounts, RecordingPolicy
from aiaas_magics.core.routing import Routing, Scaling
from aiaas_magics.core.spec import DeploySpec, RecordingChange, VersionView


class StubInference:
    url = "http://127.0.0.1:9"  # the discard port: nobody answers there
    grpc = "127.0.0.1:9"
    token = "stub-token"

    def __init__(self) -> None:
        self.loaded: dict[str, dict[int, VersionView]] = {}
        self.routing: dict[str, Routing] = {}
        self.replicas: dict[str, int] = {}
        self.recording: dict[str, RecordingChange] = {}
        self.cards: dict[tuple[str, int], ModelCard] = {}
        self.faults: dict[str, str] = {}

    async def start(
        self, state_dir: Path, host: str = "127.0.0.1", tls: tuple[str, str] | None = None, *, recorded: Sequence[Recorded] = ()
    ) -> None:
        for record in recorded:
            await self.load(record.spec, record.version, Path(record.artefact), Path(record.samples))
        for record in recorded:
            await self.route(record.spec.name, record.routing or Routing(live=record.version))

    async def load(self, spec: DeploySpec, version: int, artefact: Path, samples: Path) -> VersionView:
        script = artefact.read_bytes()  # noqa: ASYNC240 - a few bytes of a test
        if script.startswith(b"wrong"):
            raise ProofFailed(spec.name, "stub", 1.0, "the artefact says so")
        view = VersionView(
            version=version,
            state="AVAILABLE",
            engine="stub",
            created_s=time.time(),
            artefact=spec.artefact,
            proof=0.0,
            precision=spec.precision,
        )
        self.loaded.setdefault(spec.name, {})[version] = view
        if script.startswith(b"slow "):
            go = Path(script.removeprefix(b"slow ").decode())
            go.with_suffix(".begun").touch()
            while not go.exists():  # noqa: ASYNC110, ASYNC240 - the test is another process
                await asyncio.sleep(0.01)
        return view

    async def route(self, name: str, routing: Routing, *, keeps: int = 0, restores: bool = False) -> None:
        missing = routing.loaded - self.loaded[name].keys()
        if missing:
            raise InvalidSpec(f"{name} has no version {min(missing)} that is ready. Use another.")
        self.routing[name] = routing
        self.loaded[name] = {number: view for number, view in self.loaded[name].items() if number in routing.loaded | {keeps}}

    async def scale(self, name: str, scaling: Scaling) -> None:
        self.replicas[name] = scaling.replicas

    async def record(self, name: str, change: RecordingChange) -> None:
        self.recording[name] = change

    async def recorded_counts(self, name: str) -> RecordingCounts:
        policy = self.recording[name].policy if name in self.recording else None
        return RecordingCounts(policy=policy or RecordingPolicy())

    async def forget_recorded(self, name: str) -> None:
        """Nothing is answered here, so that nothing is recorded."""

    async def drift(self, name: str, version: int = 0) -> DriftReport:
        return DriftReport(endpoint=name, version=version or self.routing[name].live, rows_then=0, rows_now=0)

    async def keep_card(self, name: str, version: int, card: ModelCard) -> None:
        self.cards[name, version] = card

    async def retire(self, name: str) -> None:
        if name not in self.loaded:
            raise UnknownName("endpoint", name, tuple(self.loaded))
        del self.loaded[name]

    async def status(self) -> dict[str, list[VersionView]]:
        return {name: [view for _, view in sorted(views.items(), reverse=True)] for name, views in self.loaded.items()}

    async def stop(self) -> None:
        self.loaded.clear()
