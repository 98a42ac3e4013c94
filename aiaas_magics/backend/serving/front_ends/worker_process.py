"""A front end beside the first: accepts on the listening socket that it inherited, and does as it is told.

Owns this process's start and end, and following what the first has. Who tells it what belongs to `coordinator`; what answers
requests is the same as in the first.

It lives as long as the first: the end of the channel is the first's end, however that came, and then this process answers what
it is answering and ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Final

from aiaas_magics.backend.serving.front_ends.accept_balancing import Table
from aiaas_magics.backend.serving.front_ends.aggregate import told
from aiaas_magics.backend.serving.front_ends.call_channel import (
    Abort,
    Accept,
    Asked,
    Channel,
    Commit,
    Count,
    Drain,
    Follow,
    Picture,
    PicturedEndpoint,
    Prepare,
)
from aiaas_magics.backend.serving.http import tracing
from aiaas_magics.backend.serving.http.http_server import InferenceServer, configured
from aiaas_magics.backend.serving.http.inference_app import App
from aiaas_magics.backend.serving.models.batching import Limits
from aiaas_magics.backend.serving.models.model_loader import Loader
from aiaas_magics.backend.serving.models.registry import Registry
from aiaas_magics.backend.serving.models.transactions import Step, ended
from aiaas_magics.backend.serving.process.control import Change, Collect, FrontEndCounts, Hello, Reply, StopProcess, Withdraw
from aiaas_magics.backend.serving.process.inference_process import InferenceOptions, follow_load, guard_of, preload_engine
from aiaas_magics.backend.serving.process.state_directory import Files
from aiaas_magics.core.clock import SystemClock
from aiaas_magics.core.errors import AiaasBug, BackendTooSlow
from aiaas_magics.core.spec import Value

log = logging.getLogger(__name__)

ORPHAN_S: Final = 2  # guess: what a request may still take when the first is gone: until then its successor cannot have the port
COLLECT_S: Final = 5.0  # the first gives each 2 s, all at once
WITHDRAW_S: Final = 20.0  # the first gives each step 5 s, and ends who needs longer


class Place(Value, frozen=True, kw_only=True):
    """What the first has handed over: its number, and descriptors."""

    index: int
    listener: int
    channel: int
    lock: int


async def run(options: InferenceOptions, place: Place) -> None:
    """Serve until the first says `Stop`, or ends, or SIGTERM."""
    for descriptor in (place.listener, place.channel, place.lock):
        os.set_inheritable(descriptor, False)  # an engine's process must not hold the port, or the folder, when this one is gone
    files = Files(Path(options.state))
    scratch = files.scratch / f"front-end-{place.index}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700, parents=True)
    registry = Registry()
    limits = Limits(body_bytes=options.body_bytes, compute_s=options.compute_s)
    loader = Loader(registry, clock=SystemClock(), scratch=scratch, limits=limits, share=options.front_ends)
    first = First()
    app = App(registry, guard_of(options, files), body_bytes=options.body_bytes, json_bytes=options.json_bytes, everywhere=first)
    beside = Beside(
        registry, loader, InferenceServer(configured(app, options.tls_cert, options.tls_key), table=Table(files.connections, place.index))
    )
    first.channel = channel = await Channel.on(socket.socket(fileno=place.channel), beside.answer)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, beside.end)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # of a terminal: the first is sent one as well, and says what follows
    reading, following = asyncio.create_task(channel.run()), asyncio.create_task(follow_load(loader))
    reading.add_done_callback(lambda _: beside.orphaned())
    await asyncio.to_thread(preload_engine)
    with tracing.from_environment(scheme="https" if options.tls_cert else "http") as registry.tracing:
        try:
            await beside.serve(socket.socket(fileno=place.listener))
        finally:
            following.cancel()
            reading.cancel()
            await loader.close()


class First:
    """The first front end, for whoever answers a request about all of them."""

    channel: Channel

    async def collect(self) -> tuple[FrontEndCounts, ...]:
        return (await self._ask(Collect(), COLLECT_S)).told

    async def withdraw(self, name: str, *, withdrawn: bool) -> None:
        await self._ask(Withdraw(name=name, withdrawn=withdrawn), WITHDRAW_S)

    async def _ask(self, call: Asked, answer_s: float) -> Reply:
        try:
            return await self.channel.ask(call, answer_s=answer_s)
        except (ConnectionError, TimeoutError) as error:
            raise BackendTooSlow("The first front end", answer_s) from error


class Beside:
    """What the first tells this process to do."""

    def __init__(self, registry: Registry, loader: Loader, server: InferenceServer) -> None:
        self._registry, self._loader, self._server = registry, loader, server
        self._steps: dict[int, Step] = {}  # prepared and not finished, by the change's number
        self._accepts, self._ends = asyncio.Event(), asyncio.Event()

    async def serve(self, listener: socket.socket) -> None:
        """Wait until connections are to be taken, and take them; until the end."""
        waits = [asyncio.create_task(self._accepts.wait()), asyncio.create_task(self._ends.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self._ends.is_set():
            listener.close()
        else:
            await self._server.serve(sockets=[listener])

    def end(self) -> None:
        self._ends.set()
        self._server.should_exit = True

    def orphaned(self) -> None:
        self._server.config.timeout_graceful_shutdown = ORPHAN_S
        self.end()

    async def answer(self, call: Asked) -> Reply:
        match call:
            case Hello():
                pass
            case Follow():
                await follow(call.picture, self._registry, self._loader)
            case Accept():
                self._accepts.set()
                await self._server.is_up.wait()
            case Prepare():
                await self._prepare(call.number, call.change)
            case Commit():
                self._steps[call.number].commit()
            case Abort():
                await self._steps.pop(call.number).abort()
            case Drain():
                await self._steps.pop(call.number).drain()
            case Count():
                return Reply(told=(told(self._registry),))
            case StopProcess():
                self.end()
            case _:
                raise AiaasBug(f"the first asked a front end for {type(call).__name__}")
        return Reply()

    async def _prepare(self, number: int, change: Change) -> None:
        self._steps[number] = await self._loader.prepare(change)


async def follow(picture: Picture, registry: Registry, loader: Loader) -> None:
    """Have what is in the picture, and nothing else; nobody is answered meanwhile.

    Raises:
        AiaasError: something of it cannot be loaded.
    """
    for name in set(registry.names()) - {endpoint.name for endpoint in picture.endpoints}:
        await loader.retire(name)
    for endpoint in picture.endpoints:
        if endpoint.name in registry.names() and not can_become(endpoint, registry):
            await loader.retire(endpoint.name)
        held = registry.ready_versions(endpoint.name) if endpoint.name in registry.names() else {}
        for version in endpoint.versions:
            if version.number not in held:
                await loader.load(version.spec, version.number, artefact=Path(version.artefact), samples=Path(version.samples))
        if endpoint.routing is not None:
            wanted = [version.number for version in endpoint.versions]
            await ended(registry.route(endpoint.name, endpoint.routing, keeps=wanted))
    registry.withhold(picture.withdrawn)
    registry.expected = set(picture.expected)


def can_become(endpoint: PicturedEndpoint, registry: Registry) -> bool:
    """Whether what is held needs only more versions, or fewer. If not it is had anew: rare, and nobody is served by it yet."""
    held, wanted = registry.ready_versions(endpoint.name), {version.number: version for version in endpoint.versions}
    if endpoint.routing is None and (registry.routing(endpoint.name) is not None or not held.keys() <= wanted.keys()):
        return False
    newer = all(number > max(held, default=0) for number in wanted.keys() - held.keys())
    return newer and all(held[number].spec == wanted[number].spec for number in held.keys() & wanted.keys())
