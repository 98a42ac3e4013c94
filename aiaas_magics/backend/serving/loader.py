"""From an artefact on disk to a version that answers: open, prove, warm, flip, drain.

Owns the order of these, and that a failure anywhere leaves what answered before untouched.
Each part belongs to its own module: `engines`, `proof`, `replicas`, `registry`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from aiaas_magics.backend.serving.batching import Limits
from aiaas_magics.backend.serving.engines import Engine, open_engine
from aiaas_magics.backend.serving.proof import Proof, prove, read_samples
from aiaas_magics.backend.serving.registry import NotServed, Registry, Version
from aiaas_magics.backend.serving.replicas import Replicas
from aiaas_magics.clock import Clock
from aiaas_magics.errors import InvalidSpec, UnknownName
from aiaas_magics.spec import DeploySpec, VersionView

log = logging.getLogger(__name__)


class Loader:
    """Loads and retires versions of one registry."""

    def __init__(self, registry: Registry, *, clock: Clock, scratch: Path, limits: Limits) -> None:
        self._registry, self._clock, self._scratch, self._limits = registry, clock, scratch, limits

    async def load(self, spec: DeploySpec, number: int, *, artefact: Path, samples: Path) -> VersionView:
        """Bring a version up; when this returns, no new request gets the one before, and its last answer is out.

        Raises:
            ProofFailed: the engine differs from Keras on the samples.
            InvalidSpec: the artefact or the samples are refused.
        """
        version = Version(number=number, spec=spec, created_s=self._clock.now_s())
        self._registry.begin(version)
        try:
            # In a thread: opening and proving take seconds, and requests go on meanwhile.
            engines, proof = await asyncio.to_thread(open_and_prove, spec, artefact, samples, self._scratch)
            version.engine, version.proof = engines[0].kind, proof.largest
            version.executor = Replicas(engines, name=f"{spec.name}-{number}", batchable=proof.batchable, limits=self._limits)
            before = self._registry.flip(version)
        except BaseException as error:
            self._registry.failed(version, str(error))
            if version.executor is not None:
                await version.drain_and_close()
            if isinstance(error, NotServed):
                raise InvalidSpec(f"{error}. Run the cell again.") from error
            raise
        if before is not None:
            await before.drain_and_close()
        log.info("%s version %d answers, %s engine, %.3g from Keras", spec.name, number, version.engine, version.proof)
        return version.view()

    async def retire(self, name: str) -> None:
        """Take an endpoint down, all versions of it; what is being answered is answered.

        Raises:
            UnknownName: there is no such endpoint.
        """
        try:
            versions = self._registry.remove(name)
        except NotServed as error:
            raise UnknownName("endpoint", name, self._registry.names()) from error
        await asyncio.gather(*(version.drain_and_close() for version in versions))
        log.info("%s is retired", name)

    async def close(self) -> None:
        for name in self._registry.names():
            await self.retire(name)


def open_and_prove(spec: DeploySpec, artefact: Path, samples: Path, scratch: Path) -> tuple[Sequence[Engine], Proof]:
    """One proved engine a replica; each has computed the samples once, so that the first request is not the slow one."""
    for path in (artefact, samples):
        if not path.is_file():
            raise InvalidSpec(f"{path.name} of {spec.name} is not on this host. Run the cell again to send it anew.")
    replay = read_samples(samples, spec)
    threads = max(1, usable_cores() // spec.replicas)
    with ExitStack() as undo:
        engines, proofs = [], []
        for _ in range(spec.replicas):
            engine = open_engine(spec, artefact, threads=threads, scratch=scratch)
            undo.callback(engine.close)
            engines.append(engine)
            proofs.append(prove(engine, replay, spec))
        undo.pop_all()
    return engines, max(proofs, key=lambda proof: proof.largest)


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the container's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
