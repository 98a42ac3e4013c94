"""Supervisor: starts the inference process, watches it and brings it back.

Owns starting it, finding a living one and adopting it, noticing its death and bringing back
what it served, and stopping it. Talking to it belongs to `control`; what it does inside
belongs to `inference_process`.

The inference process is detached: it outlives the API server, and the next API server of the
same state folder adopts it, so that endpoints answer without a gap.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from aiaas_magics.backend.serving.models.autoscaling import scaled
from aiaas_magics.backend.serving.process.control import (
    AnyCall,
    ChangeRecording,
    CountRecorded,
    DriftQuery,
    ForgetRecorded,
    Hello,
    KeepCard,
    Load,
    Reply,
    Retire,
    RouteVersions,
    Scale,
    StatusQuery,
    StopProcess,
    ask_on,
    call_at,
    connection,
)
from aiaas_magics.backend.serving.process.process_health import HUNG_S, is_answered, is_closed, kill, lives
from aiaas_magics.backend.serving.process.state_directory import Files, RunningProcess, is_alive
from aiaas_magics.core.drift.drift_values import DriftReport
from aiaas_magics.core.errors import AiaasBug, AiaasError, BackendTooSlow, CannotStart, UnknownName
from aiaas_magics.core.model_card import ModelCard
from aiaas_magics.core.recording import RecordingCounts
from aiaas_magics.core.routing import Routing, Scaling, without
from aiaas_magics.core.spec import DeploySpec, RecordingChange, VersionView
from aiaas_magics.core.value import Value

log = logging.getLogger(__name__)

START_S: Final = 30.0  # guess: ten times what a start takes on two busy cores
LOAD_S: Final = 300.0  # guess: a SavedModel process imports TensorFlow, once for each replica
ROUTE_S: Final = 300.0  # guess: versions that are of no more use are drained, and a SavedModel's request may take two minutes
ANSWER_S: Final = 60.0  # guess: retiring waits for what is being answered
STOP_S: Final = 20.0  # guess: twice what the process itself gives to requests that still run
POLL_S: Final = 0.02
# -P: the folder that the server was started in is no place to import from.
PROGRAM: Final = (sys.executable, "-P", "-m", "aiaas_magics.backend.serving")
# Waits before another start, when the process died again: a machine without memory is not helped by haste. Guesses.
RESTART_WAITS_S: Final = (0.0, 0.5, 2.0, 5.0, 10.0)
STEADY_S: Final = 60.0  # guess: a process that lived this long did not die of its start

NAME: Final = "The inference process"


class Recorded(Value, frozen=True, kw_only=True):
    """A deployment to bring back: what `load` was given."""

    spec: DeploySpec
    version: int
    artefact: str
    samples: str
    routing: Routing | None = None  # of its endpoint; None: this version answers everything


class InferenceHost:
    """One inference process, kept alive.

    Promises: after `start` it answers, with the port and token of last time; after it died it
    is back with the same endpoints by itself; `close` lets it live on, `stop` ends it.

    Args:
        cors: Origins of web pages that may ask it.
        trusted_keys: Public keys, one of which must have signed what is loaded; none lets everything be loaded.
        program: What is run, up to its options.
    """

    def __init__(self, *, cors: Sequence[str] = (), trusted_keys: Sequence[str] = (), program: Sequence[str] = PROGRAM) -> None:
        self._cors, self._trusted_keys, self._program = tuple(cors), tuple(trusted_keys), tuple(program)
        self._files: Files | None = None
        self._running: RunningProcess | None = None
        self._command: list[str] = []
        self._child: subprocess.Popen[bytes] | None = None
        self._served: dict[str, list[Recorded]] = {}  # by endpoint, ascending; each with the endpoint's routing
        self._up = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self.faults: dict[str, str] = {}  # endpoint -> why it could not be brought back

    @property
    def url(self) -> str:
        """Base address for predictions, without a trailing slash."""
        return self._now().url

    @property
    def grpc(self) -> str:
        """host:port for gRPC."""
        return self._now().grpc

    @property
    def token(self) -> str:
        """The bearer token for predictions."""
        assert self._files is not None, "start first"
        return self._files.token()

    @property
    def pid(self) -> int:
        return self._now().pid

    async def start(
        self,
        state_dir: Path,
        host: str = "127.0.0.1",
        tls: tuple[str, str] | None = None,
        *,
        port: int = 0,
        recorded: Sequence[Recorded] = (),
    ) -> None:
        """Find the living process or start one, and load what of `recorded` it does not serve.

        Args:
            tls: Paths of a certificate and its key, PEM.
            recorded: The deployments that should be live. One that cannot be loaded is named
                in `faults` and does not keep the others from coming back.

        Raises:
            CannotStart: the process did not come up.
            StoreNotWritable: the state folder cannot be written.
        """
        self._files = Files(state_dir)
        self._files.make()
        cert, key = tls or ("", "")
        self._command = [*self._program, "--state", str(state_dir), "--host", host]
        self._command += ["--parent", str(os.getpid())]
        self._command += ["--port", str(port)] if port else []
        self._command += ["--tls-cert", cert, "--tls-key", key] if tls else []
        self._command += [argument for origin in self._cors for argument in ("--cors", origin)]
        self._command += [argument for key in self._trusted_keys for argument in ("--trusted-key", key)]
        self._served = {}
        for record in sorted(recorded, key=lambda record: record.version):
            self._served.setdefault(record.spec.name, []).append(record)
        running = await self._living()
        if running is not None and running.settings != (host, cert, self._cors, self._trusted_keys):
            await self._end(running)
            running = None
        try:
            self._running = running or await self._launch()
            await self._restore()
        except BaseException:
            await self._abandon()
            raise
        self._up.set()
        self._watching = asyncio.create_task(self._watch(), name="aiaas-inference-watch")

    async def load(self, spec: DeploySpec, version: int, artefact: Path, samples: Path) -> VersionView:
        """Bring a version up, which takes seconds; requests go on as they did until `route` says otherwise.

        Raises:
            ProofFailed: the engine differs from Keras; what answered before goes on answering.
            InvalidSpec: the artefact is refused.
            CannotStart: the process ended over it.
        """
        record = Recorded(spec=spec, version=version, artefact=str(artefact), samples=str(samples))
        reply = await self._call(_load_call(record), answer_s=LOAD_S)
        if reply.view is None:
            raise AiaasBug("the inference process loaded a version and did not say which")
        self._served.setdefault(spec.name, []).append(record)
        self.faults.pop(spec.name, None)
        return reply.view

    async def route(self, name: str, routing: Routing, *, keeps: int = 0, restores: bool = False) -> None:
        """Let requests go as `routing` says, from one to the next; after it no new request gets a version that is not named.

        Args:
            keeps: A version that stays loaded beside those: it is being loaded, and waits for a routing of its own.
            restores: An endpoint that was withdrawn answers again.

        Raises:
            UnknownName: there is no such endpoint.
            InvalidSpec: a version that it names is not ready; nothing was changed.
        """
        await self._call(RouteVersions(name=name, routing=routing, keeps=keeps, restores=restores), answer_s=ROUTE_S)
        self._keep(name, routing, keeps=keeps)

    async def scale(self, name: str, scaling: Scaling) -> None:
        """Give every version of an endpoint so many executors; nothing that was asked is lost.

        Raises:
            UnknownName: there is no such endpoint.
            NotScaled: one could not be opened; all versions have what they had.
        """
        await self._call(Scale(name=name, scaling=scaling), answer_s=LOAD_S)
        self._served[name] = [replace(record, spec=scaled(record.spec, scaling)) for record in self._served.get(name, [])]

    async def record(self, name: str, change: RecordingChange) -> None:
        """ChangeRecording requests of an endpoint as `change` says, from the next one on.

        Raises:
            UnknownName: there is no such endpoint.
        """
        await self._call(ChangeRecording(name=name, change=change), answer_s=ANSWER_S)
        self._served[name] = [replace(record, spec=change.applied(record.spec, record.version)) for record in self._served.get(name, [])]

    async def recorded_counts(self, name: str) -> RecordingCounts:
        """What is recorded of an endpoint, in its files when this returns."""
        return (await self._call(CountRecorded(name=name), answer_s=ANSWER_S)).counts or RecordingCounts()

    async def forget_recorded(self, name: str) -> None:
        """Remove what is recorded of an endpoint. Recording itself goes on."""
        await self._call(ForgetRecorded(name=name), answer_s=ANSWER_S)

    async def drift(self, name: str, version: int = 0) -> DriftReport:
        """How the recorded rows of a version differ from its reference; a `version` of 0 is the live one.

        Raises:
            UnknownName: there is no such endpoint, or no such version of it that is ready.
        """
        reply = await self._call(DriftQuery(name=name, version=version), answer_s=ANSWER_S)
        if reply.drift is None:
            raise AiaasBug("the inference process compared recorded rows and did not say with what result")
        return reply.drift

    async def keep_card(self, name: str, version: int, card: ModelCard) -> None:
        """Show another card for a version, also after the process was brought back."""
        await self._call(KeepCard(name=name, version=version, card=card), answer_s=ANSWER_S)
        records = self._served.get(name, [])
        self._served[name] = [replace(r, spec=replace(r.spec, card=card)) if r.version == version else r for r in records]

    def _keep(self, name: str, routing: Routing, *, keeps: int = 0) -> None:
        """Remember what is to be brought back after a death."""
        stays = routing.loaded | {keeps}
        self._served[name] = [replace(record, routing=routing) for record in self._served.get(name, []) if record.version in stays]

    async def retire(self, name: str) -> None:
        """Take an endpoint down; what is being answered is answered first.

        Raises:
            UnknownName: there is no such endpoint.
        """
        records = self._served.pop(name, None)
        self.faults.pop(name, None)
        try:
            await self._call(Retire(name=name), answer_s=ANSWER_S)
        except UnknownName:
            if records is None:  # else the process died meanwhile and came back without it, as was asked
                raise

    async def status(self) -> dict[str, list[VersionView]]:
        """Every endpoint with its versions, the newest first, some of the past among them."""
        return (await self._call(StatusQuery(), answer_s=ANSWER_S)).status or {}

    async def close(self) -> None:
        """Let go of the process without ending it."""
        await self._stop_watching()
        if self._child is not None and self._child.poll() is None:
            # Said to be over: a `Popen` that is collected while its process runs complains of just what is wanted here.
            self._child.returncode = 0
            self._child = None

    async def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None

    async def stop(self) -> None:
        """End the process, after what it is answering."""
        await self._stop_watching()
        running = self._running or (None if self._child else self._left_behind())
        if running is not None:
            await self._end(running)
            self._running = None
        elif self._child is not None:  # `start` was cancelled before the process had said that it is there
            self._child.terminate()
            await asyncio.to_thread(self._child.wait, STOP_S)
            self._child = None
        self._up.clear()

    def _left_behind(self) -> RunningProcess | None:
        """A living process of this folder that `start` was not given the time to find."""
        running = None
        with contextlib.suppress(OSError):  # what cannot be read now cannot be ended now
            running = self._files.running() if self._files is not None else None
        return running if running is not None and is_alive(running) else None

    # ----------------------------------------------------------------- calls

    def _now(self) -> RunningProcess:
        assert self._running is not None, "start first"
        return self._running

    async def _call(self, call: AnyCall, *, answer_s: float) -> Reply:
        """One call to the process that lives now; while it is being brought back, the call waits for that."""
        try:
            async with asyncio.timeout(START_S):
                await self._up.wait()
            running = self._now()
            return await call_at(running.control, running.secret, call, answer_s=answer_s)
        except TimeoutError as error:
            raise BackendTooSlow("The inference process", answer_s) from error
        except (ConnectionError, OSError) as error:
            raise CannotStart(NAME, f"it ended during {type(call).__name__.lower()}", self._log()) from error

    # ----------------------------------------------------------------- life and death

    async def _living(self) -> RunningProcess | None:
        """The process of last time, if it is that very process and answers."""
        assert self._files is not None
        try:
            running = self._files.running()
        except OSError as error:  # a second process would take the folder from one that may live
            raise CannotStart(NAME, f"it is not known who runs: {error}", self._log()) from error
        if running is None or not is_alive(running):
            return None
        try:
            await call_at(running.control, running.secret, Hello(), answer_s=5.0)
        except (OSError, TimeoutError, AiaasError):
            log.warning("process %d does not answer; starting another", running.pid)
            await self._end(running)
            return None
        return running

    async def _launch(self) -> RunningProcess:
        assert self._files is not None
        self._files.forget_running()
        self._files.keep_expected(self._served)
        with self._files.log.open("ab") as output:
            self._child = subprocess.Popen(  # noqa: ASYNC220 - a spawn is over in a millisecond, and the child must outlive this loop
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, close_fds=True
            )
        try:
            return await self._until_it_answers(self._child)
        except BaseException:
            await self._abandon()
            raise

    async def _until_it_answers(self, child: subprocess.Popen[bytes]) -> RunningProcess:
        assert self._files is not None
        self._files.log.chmod(0o600)
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s:
            with contextlib.suppress(OSError):
                running = self._files.running()
                if running is not None and running.pid == child.pid:
                    return running
            if (code := child.poll()) is not None:
                last_lines = self._files.log_tail().splitlines()[-1:]
                raise CannotStart(NAME, f"it ended with code {code} ({' '.join(last_lines)})", self._log())
            await asyncio.sleep(POLL_S)
        raise CannotStart(NAME, f"it did not answer within {START_S:g} s", self._log())

    async def _abandon(self) -> None:
        """End a process whose start was broken off: nobody would know of it. An adopted one is left as it was found."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()

    async def _restore(self) -> None:
        """Load what is known and not live. A deployment that ends the process over it is left out from then on."""
        running = self._now()
        status = (await call_at(running.control, running.secret, StatusQuery(), answer_s=ANSWER_S)).status or {}
        right = {name for name, records in self._served.items() if ready_in(status.get(name, ())) >= {r.version for r in records}}
        for name in status.keys() - right:
            # Not what the records say: retired while nobody was there to tell. What is there beside the records' versions was
            # never acknowledged, and goes when requests are routed again.
            with contextlib.suppress(AiaasError):
                call = Retire(name=name, forgets=name not in self._served)
                await call_at(running.control, running.secret, call, answer_s=ANSWER_S)
        for name, records in list(self._served.items()):
            lost = [] if name in right else [record for record in records if not await self._brought_back(record)]
            await self._route_again(name, frozenset(record.version for record in lost))

    async def _brought_back(self, record: Recorded) -> bool:
        """Load a version, which answers when all of its endpoint are there. One that ends the process over it is left out from then on."""
        running = self._now()
        try:
            await call_at(running.control, running.secret, _load_call(record), answer_s=LOAD_S)
        except AiaasError as error:
            self._lost(record, str(error))
            return False
        except (ConnectionError, OSError, TimeoutError):
            self._lost(record, f"{NAME} ended while it was loaded")
            self._running = await self._launch()
            await self._restore()
            return False
        return True

    def _lost(self, record: Recorded, why: str) -> None:
        name = record.spec.name
        log.error("version %d of %s is not back: %s", record.version, name, why)
        self.faults[name] = why
        self._served[name] = [other for other in self._served.get(name, []) if other.version != record.version]

    async def _route_again(self, name: str, lost: frozenset[int]) -> None:
        """Requests go again as they did, as far as the versions for it are there."""
        records = self._served.get(name, [])
        routing = next((record.routing or Routing(live=record.version) for record in records), None)
        routing = None if routing is None else without(routing, lost | (routing.loaded - {record.version for record in records}))
        running = self._now()
        with contextlib.suppress(AiaasError):
            if routing is None:
                self._served.pop(name, None)
                await call_at(running.control, running.secret, Retire(name=name, forgets=False), answer_s=ANSWER_S)
            else:
                await call_at(running.control, running.secret, RouteVersions(name=name, routing=routing), answer_s=ANSWER_S)
                self._keep(name, routing)
                if not lost:
                    self.faults.pop(name, None)

    async def _watch(self) -> None:
        """Wait for the process's end, and bring it back, until this task is cancelled."""
        deaths = 0
        while True:
            began_s = time.monotonic()
            await self._until_it_ends()
            self._up.clear()
            deaths = 0 if time.monotonic() - began_s > STEADY_S else deaths + 1
            if self._child is not None:
                await asyncio.to_thread(self._child.wait)  # reaps it
            log.warning("the inference process ended; starting it again")
            await asyncio.sleep(RESTART_WAITS_S[min(max(deaths - 1, 0), len(RESTART_WAITS_S) - 1)])
            try:
                self._running = await self._launch()
                await self._restore()
            except (AiaasError, OSError, TimeoutError):
                log.exception("the inference process did not come back; trying again")
                continue
            self._up.set()

    async def _until_it_ends(self) -> None:
        """A connection that is held open ends with the process, at once; whoever lives and does not answer on it is killed."""
        running = self._now()
        try:
            async with connection(running.control) as (reader, writer):
                while await is_answered(ask_on(reader, writer, running.secret, Hello())):
                    if await is_closed(reader):
                        break
                else:
                    log.error("process %d does not answer within %g s; killing it, and starting it again", running.pid, HUNG_S)
                    kill(running)
        except OSError:
            pass
        while lives(running):  # noqa: ASYNC110 - only the system knows when another process is gone
            await asyncio.sleep(POLL_S)

    async def _end(self, running: RunningProcess) -> None:
        with contextlib.suppress(OSError, TimeoutError, AiaasError):
            await call_at(running.control, running.secret, StopProcess(), answer_s=5.0)
        until_s = time.monotonic() + STOP_S
        while is_alive(running) and time.monotonic() < until_s:
            if self._child is not None:
                self._child.poll()
            await asyncio.sleep(POLL_S)
        if is_alive(running):
            log.warning("process %d did not end by itself; killing it", running.pid)
            kill(running)
        if self._child is not None and self._child.pid == running.pid:
            await asyncio.to_thread(self._child.wait, STOP_S)
            self._child = None

    def _log(self) -> str:
        return str(self._files.log) if self._files else ""


def _load_call(record: Recorded) -> Load:
    return Load(spec=record.spec, version=record.version, artefact=record.artefact, samples=record.samples)


def ready_in(views: Sequence[VersionView]) -> set[int]:
    """The versions that may answer."""
    return {view.version for view in views if view.state == "AVAILABLE"}
