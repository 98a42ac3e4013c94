"""Model loader: from an artifact on disk to a version that answers: open, check, warm, route, drain.

Owns the order of these, and that a failure anywhere leaves what answered before untouched.
Each part belongs to its own module: `engines`, `parity_check`, `replicas`, `registry`, `draining`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import structs

from aiaas_magics.backend.serving.engines import Engine
from aiaas_magics.backend.serving.engines.engine_opening import open_engine
from aiaas_magics.backend.serving.engines.onnx_check import has_control_flow
from aiaas_magics.backend.serving.models.autoscaling import DOWN_WINDOWS, Window, scaled, totals_of, wanted_replicas, window_between
from aiaas_magics.backend.serving.models.batching import Limits
from aiaas_magics.backend.serving.models.draining import close_all, drain
from aiaas_magics.backend.serving.models.parity_check import ParityResult, Samples, check_parity, read_samples
from aiaas_magics.backend.serving.models.recorder import Recordings
from aiaas_magics.backend.serving.models.registry import Executor, NotServed, Registry, Version
from aiaas_magics.backend.serving.models.replicas import Inline, Replicas
from aiaas_magics.core import integrity
from aiaas_magics.core.clock import Clock
from aiaas_magics.core.drift.drift_values import DriftReport
from aiaas_magics.core.errors import InvalidSpec, NotScaled, UnknownName
from aiaas_magics.core.host import usable_cores
from aiaas_magics.core.recording import RecordingPolicy
from aiaas_magics.core.routing import Routing, Scaling
from aiaas_magics.core.spec import DeploySpec, RecordingChange, VersionView

log = logging.getLogger(__name__)

INLINE_S: Final = 2e-3  # guess: what a batch may keep the event loop for; other requests wait that long to be read
INLINE_LEAST_ROWS: Final = 8  # guess: of a model that computes fewer in that time, a thread's turn is a small part
INLINE_BYTES: Final = 8 * 1024 * 1024  # guess: of a larger file a second copy is no small thing
TIMED_ROWS: Final = 64
TIMED_RUNS: Final = 5


class Loader:
    """Loads and retires versions of one registry."""

    def __init__(
        self, registry: Registry, *, clock: Clock, scratch: Path, limits: Limits, recordings: Recordings, trusted_keys: Sequence[str] = ()
    ) -> None:
        self._registry, self._clock, self._scratch, self._limits = registry, clock, scratch, limits
        self._recordings = recordings
        self._trusted_keys = tuple(trusted_keys)  # one of them must have signed what is loaded; none: nothing must be signed
        self._scaling = asyncio.Lock()
        self._windows: dict[Version, ScalingWindow] = {}
        self._compared: dict[str, int] = {}  # by endpoint: how many requests were written when its drift was computed

    async def load(self, spec: DeploySpec, number: int, *, artefact: Path, samples: Path) -> VersionView:
        """Bring a version up; requests go on as they did until `route` says otherwise.

        Raises:
            ProofFailed: the engine differs from Keras on the samples.
            InvalidSpec: the artefact or the samples are refused.
            SignatureRefused: it is not signed as it must be.
            BlobDamaged: a file holds other bytes than were deployed.
        """
        integrity.verify(spec, self._trusted_keys, spec.trusted_keys)
        version = Version(
            number=number, spec=spec, created_s=self._clock.now_s(), files=(artefact, samples), body_bytes=self._limits.body_bytes
        )
        self._registry.begin(version)
        try:
            # In a thread: opening and checking take seconds, and requests go on meanwhile.
            opened = await self._opened(spec, artefact, samples)
            version.engine, version.proof = opened.engines[0].kind, opened.parity.largest
            version.executor, version.replicas = self._executor(version, opened), spec.replicas
            self._registry.ready(version)
            if spec.recording is not None:
                await self._apply(spec.name, spec.recording)
        except BaseException as error:
            self._registry.failed(version, str(error))
            await version.drain_and_close()
            if isinstance(error, NotServed):
                raise InvalidSpec(f"{error}. Run the cell again.") from error
            raise
        log.info("%s version %d is verified, %s engine, %.3g from Keras", spec.name, number, version.engine, version.proof)
        return version.view()

    async def route(self, name: str, routing: Routing, *, keeps: int = 0, restores: bool = False) -> None:
        """Let requests go as `routing` says; versions that it has no use for are drained and closed, but the one that it `keeps`.

        When this returns, no new request gets a version that `routing` does not name, and the last answer of those is out.
        `restores` lets an endpoint that was withdrawn answer again.

        Raises:
            UnknownName: there is no such endpoint.
            InvalidSpec: a version that it names is not ready.
        """
        with served(self._registry, name):
            dropped = self._registry.route(name, routing, keeps=(keeps,))
            if restores:
                self._registry.restore(name)
        await drain(dropped)

    async def scale(self, name: str, scaling: Scaling) -> None:
        """Give every version of an endpoint so many executors; what the old ones have taken on they answer.

        Raises:
            UnknownName: there is no such endpoint.
            NotScaled: one could not be opened; all versions have what they had.
        """
        async with self._scaling:
            with served(self._registry, name):
                versions = list(self._registry.ready_versions(name).values())
            opened = await self._opened_for(versions, scaling.replicas)
            unused = swap_executors(opened, scaling)
        await close_all([executor.close() for executor in unused])

    async def record(self, name: str, change: RecordingChange) -> None:
        """Record requests of an endpoint as `change` says, from the next one on.

        Raises:
            UnknownName: there is no such endpoint.
        """
        with served(self._registry, name):
            versions = self._registry.versions(name)
        for version in versions:
            version.spec, version.drift = change.applied(version.spec, version.number), None
        if change.policy is not None:
            await self._apply(name, change.policy)

    async def _apply(self, name: str, policy: RecordingPolicy) -> None:
        recorder = await self._recordings.apply(name, policy)
        with served(self._registry, name):
            for version in self._registry.versions(name):
                version.recorder = recorder

    async def drift(self, name: str, number: int) -> DriftReport:
        """How the recorded rows of a version differ from its reference; a `number` of 0 is the live one.

        Raises:
            UnknownName: there is no such endpoint, or no such version of it that is ready.
        """
        with served(self._registry, name):
            version = self._registry.find(name, number or None)
        version.drift = await self._recordings.drift(version.spec, version.number)
        return version.drift

    async def follow_drift(self) -> None:
        """Compute the drift in the metrics anew, of the versions that something was recorded of since the last call."""
        for version in self._registry.answering():
            written = self._recordings.written(version.spec.name)
            if version.spec.reference is not None and written != self._compared.get(version.spec.name, 0):
                version.drift = await self._recordings.drift(version.spec, version.number)
        self._compared = {name: self._recordings.written(name) for name in self._registry.names()}

    async def retire(self, name: str, *, forgets: bool = True) -> None:
        """Take an endpoint down, all versions of it; what is being answered is answered.

        Args:
            forgets: Whether what was recorded of it goes with it.

        Raises:
            UnknownName: there is no such endpoint.
        """
        try:
            await self._take_down(name)
        finally:
            if forgets:
                await self._recordings.drop(name)

    async def _take_down(self, name: str) -> None:
        self._registry.expected.discard(name)  # an endpoint that was to come back is not waited for any more
        with served(self._registry, name):
            self._registry.restore(name)  # the name may be given to another
            versions = self._registry.remove(name)
        await drain(versions)
        log.info("%s is retired", name)

    async def follow_load(self) -> None:
        """Give versions whose number of executors follows the load one more or one less, where the time since the last call asks for it."""
        async with self._scaling:
            answering = [version for version in self._registry.answering() if version.spec.most_replicas]
            self._windows = {version: self._windows.get(version) or ScalingWindow(version, self._clock.now_s()) for version in answering}
            for version, window in self._windows.items():
                window.look(self._clock.now_s())
                most = min(version.spec.most_replicas, max(version.spec.replicas, len(usable_cores())))
                number = wanted_replicas(tuple(window.windows), replicas=version.replicas, least=version.spec.replicas, most=most)
                if number != version.replicas:
                    log.info("%s version %d: %d executors, by its load", version.spec.name, version.number, number)
                    unused = swap_executors(await self._opened_for([version], number))
                    await close_all([executor.close() for executor in unused])
                    window.windows.clear()

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
        await asyncio.to_thread(integrity.check_files, spec, artefact, samples)
        return await asyncio.to_thread(
            open_and_check, spec, artefact, samples, self._scratch, cores=len(usable_cores()), compute_s=compute_s
        )

    async def _opened_again(self, version: Version, replicas: int) -> Executor:
        spec = structs.replace(version.spec, replicas=replicas)
        try:
            return self._executor(version, await self._opened(spec, *version.files))
        except Exception as error:  # border: engines of any kind are opened here
            log.warning("%s version %d cannot be opened again", spec.name, version.number, exc_info=True)
            raise NotScaled(spec.name, replicas, version.number, str(error) or type(error).__name__) from error

    def _executor(self, version: Version, opened: Opened) -> Executor:
        spec, batchable = version.spec, opened.parity.batchable
        limits, row = replace(self._limits, delay_s=spec.max_delay_us / 1e6), row_bytes(spec)
        name = f"{spec.name}-{version.number}"
        replicas = Replicas(opened.engines, name=name, batchable=batchable, limits=limits, stats=version.stats, row_bytes=row)
        if opened.inline is None:
            return replicas
        limits = replace(limits, batch_rows=min(limits.batch_rows, opened.inline_rows))
        return Inline(opened.inline, larger=replicas, batchable=batchable, limits=limits, stats=version.stats, row_bytes=row)

    async def close(self) -> None:
        for name in self._registry.names():
            await drain(self._registry.remove(name))


@contextmanager
def served(registry: Registry, name: str) -> Iterator[None]:
    """What the registry does not serve, as the error that crosses to the API server."""
    try:
        yield
    except NotServed as error:
        raise UnknownName("endpoint", name, registry.names()) from error


def swap_executors(opened: Sequence[tuple[Version, Executor, int]], scaling: Scaling | None = None) -> list[Executor]:
    """Give each version its new executor, of so many replicas; returns the executors that nobody uses any more."""
    unused: list[Executor] = []
    for version, executor, replicas in opened:
        if version.executor is None:  # drained meanwhile
            unused.append(executor)
            continue
        unused.append(version.executor)
        version.executor, version.replicas = executor, replicas
        if scaling is not None:
            version.spec = scaled(version.spec, scaling)
    return unused


class ScalingWindow:
    """What a version has done in the windows since it was scaled last."""

    def __init__(self, version: Version, now_s: float) -> None:
        self._version, self._since_s, self._before = version, now_s, totals_of(version.stats)
        self.windows: deque[Window] = deque(maxlen=DOWN_WINDOWS)

    def look(self, now_s: float) -> None:
        totals, seconds = totals_of(self._version.stats), now_s - self._since_s
        if seconds > 0:
            self.windows.append(window_between(self._before, totals, seconds=seconds, replicas=self._version.replicas))
            self._since_s, self._before = now_s, totals


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Verified engines. `inline` is one more, with a single thread, where the model is quick enough for the event loop."""

    engines: Sequence[Engine]
    parity: ParityResult
    inline: Engine | None = None
    inline_rows: int = 0  # that may run at once in the event loop

    @property
    def all(self) -> Sequence[Engine]:
        return [*self.engines, *([] if self.inline is None else [self.inline])]


def open_and_check(spec: DeploySpec, artefact: Path, samples: Path, scratch: Path, *, cores: int, compute_s: float = math.inf) -> Opened:
    """One verified engine per replica, which share `cores`; each of their computations has an end after `compute_s`.

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
        proofs.append(check_parity(engine, replay, spec))
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
    return Opened(engines=engines, parity=max(proofs, key=lambda proof: proof.largest), inline=inline, inline_rows=rows)


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
    one_s, many_s = (quickest_s(engine, samples, rows) for rows in (1, TIMED_ROWS))
    row_s = max((many_s - one_s) / (TIMED_ROWS - 1), 1e-9)
    return max(0, int((limit_s - one_s) / row_s))


def quickest_s(engine: Engine, samples: Samples, rows: int) -> float:
    """Of this thread's own time, in which an engine of one thread computes: who else uses the machine now says nothing."""
    row_numbers = np.arange(rows) % samples.rows
    inputs = {name: np.ascontiguousarray(array[row_numbers]) for name, array in samples.inputs.items()}
    took = []
    for _ in range(TIMED_RUNS):
        began = time.thread_time()
        engine.run(inputs)
        took.append(time.thread_time() - began)
    return min(took)
