"""Inference process: a port for HTTP, one for gRPC, and a socket for control.

Owns the order of starting and ending, and refusing to start where it would be unsafe. The
parts belong to their modules: `inference_app` and `grpc_server` answer predictions, `model_loader` carries out control calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from aiaas_magics.backend.net.cors import Cors
from aiaas_magics.backend.net.grants import GrantBook
from aiaas_magics.backend.net.guard import LOOPBACK, Guard
from aiaas_magics.backend.net.server_certificate import check_listening, check_pair
from aiaas_magics.backend.serving.http import tracing
from aiaas_magics.backend.serving.http.connection import InferenceConnection
from aiaas_magics.backend.serving.http.fast_path.fast_connection import FastPath
from aiaas_magics.backend.serving.http.http_server import BACKLOG, InferenceServer, configured
from aiaas_magics.backend.serving.http.inference_app import BODY_BYTES, JSON_BYTES, App
from aiaas_magics.backend.serving.http.request_handler import RequestHandler
from aiaas_magics.backend.serving.http.rest_protocols import ROUTES
from aiaas_magics.backend.serving.models.autoscaling import WINDOW_S
from aiaas_magics.backend.serving.models.batching import Limits
from aiaas_magics.backend.serving.models.model_loader import Loader
from aiaas_magics.backend.serving.models.recorder import DRIFT_S, FLUSH_S, Recordings, quietly
from aiaas_magics.backend.serving.models.registry import Registry
from aiaas_magics.backend.serving.process import control
from aiaas_magics.backend.serving.process.control import (
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
)
from aiaas_magics.backend.serving.process.state_directory import Files, RunningProcess
from aiaas_magics.backend.serving.protocols.route_table import RouteTable
from aiaas_magics.core import integrity, process_id, settings
from aiaas_magics.core.clock import SystemClock
from aiaas_magics.core.errors import CannotStart
from aiaas_magics.core.server_proof import is_loopback
from aiaas_magics.core.value import Value

if TYPE_CHECKING:
    from aiaas_magics.backend.serving.grpc.grpc_server import GrpcServer
    from aiaas_magics.backend.serving.grpc.methods import Method

log = logging.getLogger(__name__)

T = TypeVar("T")

DISOWNED_S: Final = 5.0  # guess: how soon a process without a folder is gone
GRANTS_S: Final = 0.25  # a token that was revoked opens nothing after a second at the latest
LOCK_S: Final = 10.0  # guess: a predecessor that drains is gone by then


class InferenceOptions(Value, frozen=True, kw_only=True):
    """How to run, as the command line says it. A port of 0 is that of last time, or any."""

    state: str
    host: str = "127.0.0.1"
    port: int = 0
    grpc_port: int = 0
    tls_cert: str = ""
    tls_key: str = ""
    body_bytes: int = BODY_BYTES
    json_bytes: int = JSON_BYTES
    compute_s: float = Limits().compute_s
    parent: int = 0  # process that started this one, if it is to be looked for there
    cors: tuple[str, ...] = ()  # origins of pages that may ask
    trusted_keys: tuple[str, ...] = ()  # public keys, one of which must have signed what is loaded; none: nothing must be signed
    fast_path: bool = True  # False: every request goes through ASGI, for tests
    behind_proxy: bool = False  # may listen beyond loopback without TLS: a container's port, which somebody else publishes

    def __post_init__(self) -> None:
        Cors.parse(self.cors)
        if self.trusted_keys:
            integrity.check_library()
        if not self.behind_proxy:
            check_listening(self.host, self.tls_cert, self.tls_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedProtocols:
    """What a process speaks.

    Args:
        routes: The operations over HTTP.
        grpc_methods: Methods over gRPC by their paths, beside those that every process has; called once the library is there.
    """

    routes: RouteTable = ROUTES
    grpc_methods: Callable[[], Mapping[str, Method]] = dict


STOCK: Final = ServedProtocols()
# Loads models before the first request is answered, given the loader and what the process says of itself.
Preload = Callable[[Loader, RunningProcess], Awaitable[None]]


async def run(options: InferenceOptions, protocols: ServedProtocols = STOCK, *, preload: Preload | None = None) -> None:
    """Serve until SIGTERM, SIGINT or a `StopProcess`.

    Args:
        preload: awaited before requests are answered; connections wait meanwhile. What it raises ends the process.

    Raises:
        InvalidSpec: the certificate and its key cannot be used.
        CannotStart: another inference process lives in this folder, the port cannot be had, or the process that started this one is gone.
    """
    if options.tls_cert:
        check_pair(Path(options.tls_cert), Path(options.tls_key))
    files = Files(Path(options.state))
    files.make()
    with contextlib.ExitStack() as stack:
        await _lock(files, stack)
        shutil.rmtree(files.scratch, ignore_errors=True)
        files.scratch.mkdir(mode=0o700)
        listener = stack.enter_context(_listener(options, files))
        grpc_port = _grpc_port(options, files)
        registry = Registry(withdrawn=files.withdrawn(), keep_withdrawn=files.keep_withdrawn, expected=files.expected())
        spans = stack.enter_context(tracing.from_environment(scheme="https" if options.tls_cert else "http"))
        limits = Limits(body_bytes=options.body_bytes, compute_s=options.compute_s)
        recordings = Recordings(files.recorded)
        if (expected := files.expected_names()) is not None:
            recordings.keep_only(expected)
        loader = Loader(
            registry,
            clock=SystemClock(),
            scratch=files.scratch,
            limits=limits,
            recordings=recordings,
            trusted_keys=options.trusted_keys,
        )
        grants = GrantBook()
        grants.replace(files.grants(), key=files.token_key())
        guard = _guard(options, files, grants)
        handler = RequestHandler(registry, tracing=spans)
        app = App(handler, guard, body_bytes=options.body_bytes, json_bytes=options.json_bytes, routes=protocols.routes)
        connection = FastPath(app).connection if options.fast_path else InferenceConnection
        server = InferenceServer(configured(app, connection=connection, tls_cert=options.tls_cert, tls_key=options.tls_key))
        _on_signals(lambda: setattr(server, "should_exit", True))
        secret = secrets.token_urlsafe(32)
        if options.parent and os.getppid() != options.parent:
            raise CannotStart("The inference process", "whoever started it ended first, so that nobody would find it", files.log.name)
        grpc = asyncio.create_task(_serve_grpc(options, grpc_port, app, server, protocols))
        async with control.listening(files.socket, secret=secret, answer=_answering(loader, registry, server, grpc, recordings)) as address:
            running = _running(options, listener, grpc_port, address, secret)
            files.keep_running(running)
            watch = asyncio.create_task(_end_when_disowned(files, server))
            following = [
                asyncio.create_task(_follow_load(loader)),
                asyncio.create_task(_write_recorded(recordings)),
                asyncio.create_task(_follow_drift(loader)),
                asyncio.create_task(_follow_grants(files, grants)),
            ]
            try:
                if preload is not None:
                    await asyncio.shield(grpc)  # a version answers on both ports
                    await preload(loader, running)
                await server.serve(sockets=[listener])
            finally:
                watch.cancel()
                for task in following:
                    task.cancel()
                _forget(files)
                try:
                    await (await grpc).stop()
                finally:
                    await loader.close()
                    with quietly("writing recorded requests"):
                        await recordings.flush()


async def _end_when_disowned(files: Files, server: InferenceServer) -> None:
    """A process that its folder no longer names can be neither found nor stopped by anybody: it ends itself."""
    while True:
        await asyncio.sleep(DISOWNED_S)
        if files.disowns(os.getpid()):
            log.warning("the state folder no longer names this process; ending")
            server.should_exit = True


async def _follow_grants(files: Files, grants: GrantBook) -> None:
    mark = files.grants_mark()
    while True:
        await asyncio.sleep(GRANTS_S)
        if (fresh := files.grants_mark()) != mark:
            mark = fresh
            grants.replace(files.grants(), key=files.token_key())


async def _follow_load(loader: Loader) -> None:
    while True:
        await asyncio.sleep(WINDOW_S)
        try:
            await loader.follow_load()
        except Exception:  # border: engines of any kind are opened here, and those that are there go on answering
            log.exception("a version was not scaled")


async def _write_recorded(recordings: Recordings) -> None:
    while True:
        await asyncio.sleep(FLUSH_S)
        with quietly("writing recorded requests"):
            await recordings.flush()


async def _follow_drift(loader: Loader) -> None:
    while True:
        await asyncio.sleep(DRIFT_S)
        with quietly("computing drift"):
            await loader.follow_drift()


def _forget(files: Files) -> None:
    if not files.disowns(os.getpid()):
        files.forget_running()


async def _serve_grpc(options: InferenceOptions, port: int, app: App, server: InferenceServer, protocols: ServedProtocols) -> GrpcServer:
    """gRPC beside HTTP, which does not wait for it: the libraries take a moment."""
    await asyncio.to_thread(_preload)
    from aiaas_magics.backend.serving.grpc.grpc_server import GrpcServer, Port

    try:
        where = Port(host=options.host, number=port, message_bytes=options.body_bytes, tls=_tls(options))
        grpc = GrpcServer(app.handler, app.guard, where, more_methods=protocols.grpc_methods())
        await grpc.start()
    except BaseException:
        # Somebody took the port in between, and is being sent our token: the next process has another port and token.
        server.should_exit = True
        raise
    return grpc


def _tls(options: InferenceOptions) -> tuple[bytes, bytes] | None:
    """Key and certificate."""
    return (Path(options.tls_key).read_bytes(), Path(options.tls_cert).read_bytes()) if options.tls_cert else None


def _preload() -> None:
    """Import while nobody waits for it: first the common engine, so that the first deploy is quicker by that."""
    with contextlib.suppress(ImportError):  # the load that needs it says so
        import aiaas_magics.backend.serving.engines.onnx_engine
    import aiaas_magics.backend.serving.grpc.grpc_server  # noqa: F401


def _answering(
    loader: Loader, registry: Registry, server: InferenceServer, grpc: asyncio.Task[GrpcServer], recordings: Recordings
) -> control.Answering:
    async def answer(call: control.AnyCall) -> Reply:
        match call:
            case Hello():
                return Reply()
            case Load():
                await asyncio.shield(grpc)  # a version answers on both ports
                view = await loader.load(call.spec, call.version, artefact=Path(call.artefact), samples=Path(call.samples))
                return Reply(view=view)
            case RouteVersions():
                await loader.route(call.name, call.routing, keeps=call.keeps, restores=call.restores)
            case Scale():
                await loader.scale(call.name, call.scaling)
            case KeepCard():
                registry.keep_card(call.name, call.version, call.card)
            case Retire():
                await loader.retire(call.name, forgets=call.forgets)
            case ChangeRecording() | CountRecorded() | ForgetRecorded() | DriftQuery():
                return await _answer_of_recording(call, loader, recordings)
            case StatusQuery():
                return Reply(status=registry.status())
            case StopProcess():
                server.should_exit = True
        return Reply()

    return answer


async def _answer_of_recording(call: control.RecordingCall, loader: Loader, recordings: Recordings) -> Reply:
    match call:
        case ChangeRecording():
            await loader.record(call.name, call.change)
        case CountRecorded():
            return Reply(counts=await recordings.counts(call.name))
        case ForgetRecorded():
            await recordings.forget(call.name)
        case DriftQuery():
            return Reply(drift=await loader.drift(call.name, call.version))
    return Reply()


async def _lock(files: Files, stack: contextlib.ExitStack) -> None:
    """Keep other processes out of the folder for as long as `stack` is open."""
    until_s = time.monotonic() + LOCK_S
    while True:
        with contextlib.ExitStack() as attempt:
            if attempt.enter_context(files.lock()):
                stack.enter_context(attempt.pop_all())
                return
        if time.monotonic() > until_s:
            raise CannotStart("The inference process", "another one lives in the same folder", files.log.name)
        await asyncio.sleep(0.1)


def _listener(options: InferenceOptions, files: Files) -> socket.socket:
    """A listening socket, on the port of last time if it is free."""
    listener = _taken_again(options.host, options.port, files, "port", lambda port: _create_server(options.host, port))
    files.keep_port("port", listener.getsockname()[1])
    return listener


def _create_server(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=_family(host), backlog=BACKLOG)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _grpc_port(options: InferenceOptions, files: Files) -> int:
    """A free port for gRPC, which binds by itself: that of last time if it is free."""
    port = _taken_again(options.host, options.grpc_port, files, "grpc_port", lambda port: _free_port(options.host, port))
    files.keep_port("grpc_port", port)
    return port


def _free_port(host: str, port: int) -> int:
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: connections of before that linger are no obstacle
        probe.bind((host, port))
        return int(probe.getsockname()[1])


def _taken_again(host: str, asked_port: int, files: Files, name: str, take: Callable[[int], T]) -> T:
    """What `take` gives for the port that was asked for, or that of last time, or any."""
    previous_port = asked_port or files.port(name)
    try:
        return take(previous_port)
    except OSError as error:
        if asked_port or not previous_port:
            raise CannotStart("The inference process", f"{host}:{previous_port} cannot be listened on ({error})", files.log.name) from error
        # Whoever sits on our old port is sent the old token by clients that do not know yet: it must be worth nothing.
        log.warning("port %d is taken by another process; choosing a new port and a new token", previous_port)
        files.new_token()
        return take(0)


def _guard(options: InferenceOptions, files: Files, grants: GrantBook) -> Guard:
    return Guard(
        files.token().encode(),
        _hosts(options),
        manager=files.api_token,
        cors=Cors.parse(options.cors),
        recognize=grants.recognize,
        proof_key=grants.proof_key,
    )


def _hosts(options: InferenceOptions) -> frozenset[str] | None:
    """On loopback any web page's name may be made to point here, so only loopback's names are answered to."""
    return LOOPBACK | {options.host} if is_loopback(options.host) else None


def _running(options: InferenceOptions, listener: socket.socket, grpc_port: int, address: str, secret: str) -> RunningProcess:
    name = options.host if options.host not in ("0.0.0.0", "::") else socket.gethostname()
    name = f"[{name}]" if ":" in name else name
    return RunningProcess(
        pid=os.getpid(),
        started=process_id.start_mark(os.getpid()),
        url=f"{'https' if options.tls_cert else 'http'}://{name}:{listener.getsockname()[1]}",
        host=options.host,
        tls=options.tls_cert,
        control=address,
        secret=secret,
        version=settings.package_version(),
        grpc=f"{name}:{grpc_port}",
        cors=options.cors,
        trusted_keys=options.trusted_keys,
    )


def _on_signals(stop: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop())
