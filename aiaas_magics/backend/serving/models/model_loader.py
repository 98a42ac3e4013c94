"""From an artefact on disk to a version that answers: open, prove, warm, flip, drain.

Owns the order of these, and that a failure anywhere leaves what answered before untouched.
Each part belongs to its own module: `engines`, `proof`, `replicas`, `registry`, `transactions`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import structs

from aiaas_magics.backend.serving.engines import Engine, open_engine
from aiaas_magics.backend.serving.engines.onnx_check import has_control_flow
from aiaas_magics.backend.serving.models.autoscaling import DOWN_WINDOWS, Window, totals_of, wanted, window_between
from aiaas_magics.backend.serving.models.batching import Limits
from aiaas_magics.backend.serving.models.parity_check import ParityResult, Samples, prove, read_samples
from aiaas_magics.backend.serving.models.registry import Executor, Registry, Version
from aiaas_magics.backend.serving.models.replicas import Inline, Replicas
from aiaas_magics.backend.serving.models.transactions import Flip, Loading, Rescaling, Retiring, Step, Withdrawing, alone, ended, known
from aiaas_magics.backend.serving.process.control import Change, Load, Retire, RouteVersions, Scale, Withdraw
from aiaas_magics.core.clock import Clock
from aiaas_magics.core.errors import InvalidSpec, NotScaled
from aiaas_magics.core.host import usable_cores
from aiaas_magics.core.routing import Routing, Scaling
from aiaas_magics.core.spec import DeploySpec, VersionView

log = logging.getLogger(__name__)

INLINE_S: Final = 2e-3  # guess: what a batch may keep the event loop for; other requests wait that long to be read
INLINE_LEAST_ROWS: Final = 8  # guess: of a model that computes fewer in that time, a thread's turn is a small part
INLINE_BYTES: Final = 8 * 1024 * 1024  # guess: of a larger file a second copy is no small thing
TIMED_ROWS: Final = 64
TIMED_RUNS: Final = 5


class Loader:
    """Loads and retires versions of one registry.

    Args:
        share: How many processes do the same on these cores.
    """

    def __init__(self, registry: Registry, *, clock: Clock, scratch: Path, limits: Limits, share: int = 1) -> None:
        self._registry, self._clock, self._scratch, self._limits, self._share = registry, clock, scratch, limits, share
        self._scaling = asyncio.Lock()
        self._seen: dict[Version, ScalingWindow] = {}

    async def load(self, spec: DeploySpec, number: int, *, artefact: Path, samples: Path) -> VersionView:
        """Bring a version up; requests go on as they did until `route` says otherwise.

        Raises:
            ProofFailed: the engine differs from Keras on the samples.
            InvalidSpec: the artefact or the samples are refused.
        """
        loading = await self.loading(spec, number, artefact=artefact, samples=samples)
        await alone(loading)
        return loading.version.view()

    async def route(self, name: str, routing: Routing, *, keeps: int = 0, restores: bool = False) -> None:
        """Let requests go as `routing` says; versions that it has no use for are drained and closed, but the one that it `keeps`.

        When this returns, no new request gets a version that `routing` does not name, and the last answer of those is out.
        `restores` lets an endpoint that was withdrawn answer again.

        Raises:
            UnknownName: there is no such endpoint.
            InvalidSpec: a version that it names is not ready.
        """
        await alone(self.flip(name, routing, keeps=keeps, restores=restores))

    async def scale(self, name: str, scaling: Scaling) -> None:
        """Give every version of an endpoint so many executors; what the old ones have taken on they answer.

        Raises:
            UnknownName: there is no such endpoint.
            NotScaled: one could not be opened; all versions have what they had.
        """
        await alone(await self.rescaling(name, scaling))

    async def retire(self, name: str) -> None:
        """Take an endpoint down, all versions of it; what is being answered is answered.

        Raises:
            UnknownName: there is no such endpoint.
        """
        await alone(self.retiring(name))
        log.info("%s is retired", name)

    # ----------------------------------------------------------------- the same, prepared

    async def prepare(self, change: Change) -> Step:
        """All that may fail or takes long of a change; requests see nothing of it.

        Raises:
            AiaasError: it cannot be done; nothing was changed.
        """
        match change:
            case Load():
                return await self.loading(change.spec, change.version, artefact=Path(change.artefact), samples=Path(change.samples))
            case RouteVersions():
                return self.flip(change.name, change.routing, keeps=change.keeps, restores=change.restores)
            case Scale():
                return await self.rescaling(change.name, change.scaling)
            case Retire():
                return self.retiring(change.name)
            case Withdraw():
                return Withdrawing(self._registry, change.name, change.withdrawn)

    async def loading(self, spec: DeploySpec, number: int, *, artefact: Path, samples: Path) -> Loading:
        """As `load`, up to where the version becomes ready."""
        version = Version(
            number=number, spec=spec, created_s=self._clock.now_s(), files=(artefact, samples), body_bytes=self._limits.body_bytes
        )
        self._registry.begin(version)
        try:
            # In a thread: opening and proving take seconds, and requests go on meanwhile.
            opened = await self._opened(spec, artefact, samples)
            version.engine, version.proof = opened.engines[0].kind, opened.proof.largest
            version.executor, version.replicas = self._executor(version, opened), spec.replicas
        except BaseException as error:
            self._registry.failed(version, str(error))
            raise
        log.info("%s version %d is proved, %s engine, %.3g from Keras", spec.name, number, version.engine, version.proof)
        return Loading(self._registry, version)

    def flip(self, name: str, routing: Routing, *, keeps: int = 0, restores: bool = False) -> Flip:
        """As `route`, up to the flip."""
        return Flip(self._registry, name, routing, keeps, restores)

    async def rescaling(self, name: str, scaling: Scaling) -> Rescaling:
        """As `scale`, with new executors that nobody uses yet. Until it is decided on, no other scaling begins."""
        await self._scaling.acquire()
        try:
            with known(self._registry, name):
                versions = list(self._registry.ready_versions(name).values())
            opened = await self._opened_for(versions, scaling.replicas)
        except BaseException:
            self._scaling.release()
            raise
        return Rescaling(opened, scaling, self._scaling.release)

    def retiring(self, name: str) -> Retiring:
        """As `retire`, up to where it goes."""
        return Retiring(self._registry, name)

    async def follow_load(self) -> None:
        """Give versions whose number of executors follows the load one more or one less, where the time since the last call asks for it."""
        async with self._scaling:
            answering = [version for version in self._registry.answering() if version.spec.most_replicas]
            self._seen = {version: self._seen.get(version) or ScalingWindow(version, self._clock.now_s()) for version in answering}
            for version, seen in self._seen.items():
                seen.look(self._clock.now_s())
                most = min(version.spec.most_replicas, max(version.spec.replicas, self._cores()))
                number = wanted(tuple(seen.windows), replicas=version.replicas, least=version.spec.replicas, most=most)
                if number != version.replicas:
                    log.info("%s version %d: %d executors, by its load", version.spec.name, version.number, number)
                    await alone(Rescaling(await self._opened_for([version], number)))
                    seen.windows.clear()

    async def _opened_for(self, versions: Sequence[Version], replicas: int) -> list[tuple[Version, Executor, int]]:
        """Executors for all of them, before any is swapped: a version that cannot be opened so often leaves the others as they are too."""
        async with AsyncExitStack() as undo:
            opened = []
            for version in versions:
                executor = await self._opened_again(version, replicas)
                undo.push_async_callback(executor.close)
                opened.append((version, executor, replicas))
            undo.pop_all()
        return opened

    async def _opened(self, spec: DeploySpec, artefact: Path, samples: Path) -> Opened:
        compute_s = self._limits.compute_s
        return await asyncio.to_thread(open_and_prove, spec, artefact, samples, self._scratch, cores=self._cores(), compute_s=compute_s)

    def _cores(self) -> int:
        """Those that fall to this process."""
        return max(1, len(usable_cores()) // self._share)

    async def _opened_again(self, version: Version, replicas: int) -> Executor:
        spec = structs.replace(version.spec, replicas=replicas)
        try:
            return self._executor(version, await self._opened(spec, *version.files))
        except Exception as error:  # border: engines of any kind are opened here
            log.warning("%s version %d cannot be opened again", spec.name, version.number, exc_info=True)
            raise NotScaled(spec.name, replicas, version.number, str(error) or type(error).__name__) from error

    def _executor(self, version: Version, opened: Opened) -> Executor:
        spec, batchable = version.spec, opened.proof.batchable
        limits, row = replace(self._limits, delay_s=spec.max_delay_us / 1e6), row_bytes(spec)
        name = f"{spec.name}-{version.number}"
        replicas = Replicas(opened.engines, name=name, batchable=batchable, limits=limits, figures=version.figures, row_bytes=row)
        if opened.inline is None:
            return replicas
        limits = replace(limits, batch_rows=min(limits.batch_rows, opened.inline_rows))
        return Inline(opened.inline, larger=replicas, batchable=batchable, limits=limits, figures=version.figures, row_bytes=row)

    async def close(self) -> None:
        for name in self._registry.names():
            await ended(self._registry.remove(name))


class ScalingWindow:
    """What a version has done in the windows since it was scaled last."""

    def __init__(self, version: Version, now_s: float) -> None:
        self._version, self._since_s, self._before = version, now_s, totals_of(version.figures)
        self.windows: deque[Window] = deque(maxlen=DOWN_WINDOWS)

    def look(self, now_s: float) -> None:
        totals, seconds = totals_of(self._version.figures), now_s - self._since_s
        if seconds > 0:
            self.windows.append(window_between(self._before, totals, seconds=seconds, replicas=self._version.replicas))
            self._since_s, self._before = now_s, totals


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Proved engines. `inline` is one more, with a single thread, where the model is quick enough for the event loop."""

    engines: Sequence[Engine]
    proof: ParityResult
    inline: Engine | None = None
    inline_rows: int = 0  # that may run at once in the event loop

    @property
    def all(self) -> Sequence[Engine]:
        return [*self.engines, *([] if self.inline is None else [self.inline])]


def open_and_prove(spec: DeploySpec, artefact: Path, samples: Path, scratch: Path, *, cores: int, compute_s: float = math.inf) -> Opened:
    """One proved engine a replica, which share `cores`; each of their computations has an end after `compute_s`.

    Each has computed the samples once, so that the first request is not the slow one.
    """
    for path in (artefact, samples):
        if not path.is_file():
            raise InvalidSpec(f"{path.name} of {spec.name} is not on this host. Run the cell again to send it anew.")
    replay = read_samples(samples, spec)
    threads = max(1, cores // spec.replicas)
    proofs: list[ParityResult] = []

    def opened(threads: int, compute_s: float = compute_s) -> Engine:
        engine = open_engine(spec, artefact, threads=threads, scratch=scratch, compute_s=compute_s)
        undo.callback(engine.close)
        proofs.append(prove(engine, replay, spec))
        return engine

    with ExitStack() as undo:
        engines = [opened(threads) for _ in range(spec.replicas)]
        inline, rows = None, 0
        if spec.replicas == 1 and may_be_inline(spec, artefact):
            inline = opened(1, math.inf)  # nothing could end it: its time is that of its samples
            rows = rows_within(INLINE_S, inline, replay) if proofs[-1].batchable else 0
            if rows < INLINE_LEAST_ROWS:
                inline.close()
                inline, rows = None, 0
        undo.pop_all()
    return Opened(engines=engines, proof=max(proofs, key=lambda proof: proof.largest), inline=inline, inline_rows=rows)


def may_be_inline(spec: DeploySpec, artefact: Path) -> bool:
    """Whether what a row takes to compute is the same for every row, so that the samples tell it, and a second copy is no small thing."""
    if spec.format != "onnx" or row_bytes(spec) is None or artefact.stat().st_size > INLINE_BYTES:
        return False
    return not has_control_flow(artefact.read_bytes())


def row_bytes(spec: DeploySpec) -> int | None:
    """Bytes of one row of all inputs; None where rows may have different forms."""
    if any(tensor.dtype == "string" or not tensor.shape or min(tensor.shape[1:], default=0) < 0 for tensor in spec.inputs):
        return None
    return sum(math.prod(tensor.shape[1:]) * np.dtype(tensor.dtype).itemsize for tensor in spec.inputs)


def rows_within(limit_s: float, engine: Engine, samples: Samples) -> int:
    """How many rows `engine` computes in that time, by a straight line through the quickest of some runs of 1 and of 64 rows."""
    one, many = (quickest_s(engine, samples, rows) for rows in (1, TIMED_ROWS))
    row_s = max((many - one) / (TIMED_ROWS - 1), 1e-9)
    return max(0, int((limit_s - one) / row_s))


def quickest_s(engine: Engine, samples: Samples, rows: int) -> float:
    """Of this thread's own time, in which an engine of one thread computes: who else uses the machine now says nothing."""
    chosen = np.arange(rows) % samples.rows
    inputs = {name: np.ascontiguousarray(array[chosen]) for name, array in samples.inputs.items()}
    took = []
    for _ in range(TIMED_RUNS):
        began = time.thread_time()
        engine.run(inputs)
        took.append(time.thread_time() - began)
    return min(took)
