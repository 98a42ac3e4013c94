"""An inference process that is none: it remembers what was loaded.

Owns the same promises as `serving.host.InferenceHost` towards the server, without a process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from aiaas_magics.backend.serving.host import Recorded
from aiaas_magics.errors import InvalidSpec, ProofFailed, UnknownName
from aiaas_magics.routing import Routing, Scaling
from aiaas_magics.spec import DeploySpec, VersionView


class StubInference:
    """An artefact whose bytes begin with `wrong` fails its proof."""

    url = "http://127.0.0.1:9"  # the discard port: nobody answers there
    grpc = "127.0.0.1:9"
    token = "stub-token"

    def __init__(self) -> None:
        self.loaded: dict[str, dict[int, VersionView]] = {}
        self.routing: dict[str, Routing] = {}
        self.replicas: dict[str, int] = {}

    async def start(
        self, state_dir: Path, host: str = "127.0.0.1", tls: tuple[str, str] | None = None, *, recorded: Sequence[Recorded] = ()
    ) -> None:
        for record in recorded:
            await self.load(record.spec, record.version, Path(record.artefact), Path(record.samples), routing=record.routing)

    async def load(self, spec: DeploySpec, version: int, artefact: Path, samples: Path, *, routing: Routing | None = None) -> VersionView:
        if artefact.read_bytes().startswith(b"wrong"):  # noqa: ASYNC240 - a few bytes of a test
            raise ProofFailed(spec.name, "stub", 1.0, "the artefact says so")
        view = VersionView(version=version, state="AVAILABLE", engine="stub", created_s=time.time(), artefact=spec.artefact, proof=0.0)
        self.loaded.setdefault(spec.name, {})[version] = view
        self.routing[spec.name] = routing or Routing(live=version)
        return view

    async def route(self, name: str, routing: Routing) -> None:
        missing = routing.loaded - self.loaded[name].keys()
        if missing:
            raise InvalidSpec(f"{name} has no version {min(missing)} that is ready. Use another.")
        self.routing[name] = routing

    async def scale(self, name: str, scaling: Scaling) -> None:
        self.replicas[name] = scaling.replicas

    async def retire(self, name: str) -> None:
        if name not in self.loaded:
            raise UnknownName("endpoint", name, tuple(self.loaded))
        del self.loaded[name]

    async def status(self) -> dict[str, list[VersionView]]:
        return {
            name: [view for number, view in sorted(views.items(), reverse=True) if number in self.routing[name].loaded]
            for name, views in self.loaded.items()
        }

    async def stop(self) -> None:
        self.loaded.clear()
