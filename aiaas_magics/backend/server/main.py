"""Server: puts the parts of one server together, from its options to its end.

Owns putting the parts together, listening, ending in good order, and the idle end.
Options come from `cli`; tests may bring other parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import uvicorn

from aiaas_magics.backend.net.accepting import LimitedServer
from aiaas_magics.backend.net.cors import Cors
from aiaas_magics.backend.net.event_loop import fast_loop
from aiaas_magics.backend.net.grants import Grant
from aiaas_magics.backend.net.guard import LOOPBACK, Guard
from aiaas_magics.backend.net.limited_http import KEEP_ALIVE_S, LimitedProtocol
from aiaas_magics.backend.net.server_certificate import check_listening, check_pair
from aiaas_magics.backend.server import devices
from aiaas_magics.backend.server.api.account_routes import Accounts
from aiaas_magics.backend.server.api.api_answers import refuse
from aiaas_magics.backend.server.api.api_app import Parts, build
from aiaas_magics.backend.server.api.auth import Guarded
from aiaas_magics.backend.server.api.ownership import Ownership
from aiaas_magics.backend.server.audit.audit_log import AuditLog
from aiaas_magics.backend.server.audit.audited import Audited
from aiaas_magics.backend.server.conductor import Conductor
from aiaas_magics.backend.server.endpoint_records import Endpoints, Inference
from aiaas_magics.backend.server.identity.blob_spaces import BlobSpaces
from aiaas_magics.backend.server.identity.directory import Directory
from aiaas_magics.backend.server.identity.granting import grants_of, write_grants
from aiaas_magics.backend.server.identity.token_secrets import server_key
from aiaas_magics.backend.server.presence import Presence
from aiaas_magics.backend.server.storage.blob_store import BlobStore
from aiaas_magics.backend.server.storage.quota import KeepFree, Room
from aiaas_magics.backend.server.storage.records import Store
from aiaas_magics.backend.server.storage.state_folder import StateFolder
from aiaas_magics.backend.server.storage.usage import SWEEP_S, Storage
from aiaas_magics.backend.serving.process.supervisor import InferenceHost
from aiaas_magics.backend.workers.pool import PoolFactory, PoolSetting
from aiaas_magics.backend.workers.pools import POOLS
from aiaas_magics.core import integrity, settings, wire
from aiaas_magics.core.clock import Clock, SystemClock
from aiaas_magics.core.errors import BackendRefused, InvalidSpec, StoreNotWritable
from aiaas_magics.core.server_proof import is_loopback
from aiaas_magics.core.spec import About

log = logging.getLogger(__name__)

IDLE_MINUTES: Final = 30.0
LOOK_S: Final = 30.0  # how often the idle end is thought of, and the launcher told if it is wanted; guess
GRACE_S: Final = 3  # what requests in flight get when the server ends; long polls are answered at once
BACKLOG: Final = 2048  # uvicorn's own default


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How to serve. A `port` of None is that of last time, or any; `idle_minutes` of None never ends by itself."""

    state: Path
    local: bool = False
    host: str = "127.0.0.1"
    port: int | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    idle_minutes: float | None = None
    pool: str = "local"  # where workers live: a name in `pools`
    pools: Mapping[str, PoolFactory] = field(default_factory=lambda: POOLS)
    launcher_options: Sequence[str] = field(default=())
    keep_free: str = ""  # of the disk: see `room.KeepFree`
    cors: Sequence[str] = ()  # origins of web pages that may ask for predictions
    trusted_keys: Sequence[str] = ()  # public keys, one of which must have signed what is served; none: nothing must be signed
    inference: Callable[[], Inference] | None = None  # None: the real one

    def check(self) -> None:
        """Raises `InvalidSpec` for what must not be served so."""
        if self.pool not in self.pools:
            raise InvalidSpec(f"There is no pool {self.pool!r}. Use one of: {', '.join(self.pools)}.")
        Cors.parse(self.cors)
        if self.trusted_keys:
            integrity.check_library()
        if self.keep_free:
            KeepFree.parse(self.keep_free)
        check_listening(self.host, self.tls_cert, self.tls_key)
        if self.tls_cert is not None and self.tls_key is not None:
            check_pair(self.tls_cert, self.tls_key)

    @property
    def tls(self) -> tuple[str, str] | None:
        return (str(self.tls_cert), str(self.tls_key)) if self.tls_cert and self.tls_key else None


def serve(
    options: ServerOptions, *, on_ready: Callable[[str], None] = lambda _: None, on_admin_token: Callable[[str], None] | None = None
) -> None:
    """Serve until told to end. `on_ready` hears the URL.

    `on_admin_token` hears the token of a first admin, who is made on a fresh folder of a server that others can reach.

    Raises:
        InvalidSpec, StoreNotWritable: nothing was started.
    """
    options.check()
    os.umask(0o077)
    state = StateFolder.open(options.state)
    try:
        with listening(options, state) as listener:
            server = ServerParts(options, state, listener, on_ready, on_admin_token)
            with asyncio.Runner(loop_factory=fast_loop()) as runner:
                runner.run(server.run())
    finally:
        state.close()


def listening(options: ServerOptions, state: StateFolder) -> socket.socket:
    """A bound socket: on the port that was asked for, else on that of last time, else on any, and then with a new token.

    Raises:
        InvalidSpec: the port that was asked for is taken.
    """
    preferred_port = options.port
    for port in (preferred_port,) if preferred_port is not None else (state.last_port(), 0):
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name != "nt":  # there it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, port))
        except OSError as error:
            listener.close()
            if preferred_port is not None or port == 0:
                raise InvalidSpec(f"Could not listen on {options.host}:{port}: {error.strerror}. Use another --port.") from error
            if port:
                # Programs that do not ask for a proof first send the old token to whoever sits there: it must be worth nothing.
                log.warning("port %d is taken by another process; choosing a new port and a new token", port)
                state.new_token()
        else:
            return listener
    raise AssertionError("port 0 is always tried last")


class ServerParts:
    """The parts of one server and their order of life."""

    def __init__(
        self,
        options: ServerOptions,
        state: StateFolder,
        listener: socket.socket,
        on_ready: Callable[[str], None],
        on_admin_token: Callable[[str], None] | None = None,
    ) -> None:
        clock: Clock = SystemClock()
        self._options, self._state, self._listener, self._on_ready = options, state, listener, on_ready
        self._on_admin_token = on_admin_token
        self.port: int = listener.getsockname()[1]
        self.url = _url(options, self.port)
        self._room = Room(state.path, KeepFree.parse(options.keep_free) if options.keep_free else KeepFree())
        self._store = Store(state.records)
        self._blobs = BlobStore(state.blobs)
        self._pool = options.pools[options.pool](PoolSetting(state=state.path, launcher_options=options.launcher_options))
        machine = devices.find()
        name = "local" if options.local else socket.gethostname()
        self._about = About(
            backend=name,
            protocol=wire.PROTOCOL,
            versions=settings.versions(),
            devices=machine.devices,
            hardware=machine.hardware,
            memory_bytes=machine.memory_bytes,
            started_s=clock.now_s(),
            dropbox=str(self._blobs.dropbox) if options.local else None,
        )
        self._conductor = Conductor(
            state=state, store=self._store, blobs=self._blobs, pool=self._pool, machine=machine, room=self._room, clock=clock, name=name
        )
        self._endpoints = Endpoints(
            store=self._store,
            blobs=self._blobs,
            make=options.inference or partial(InferenceHost, cors=options.cors, trusted_keys=options.trusted_keys),
            state_dir=state.path,
            host=options.host,
            tls=options.tls,
            trusted_keys=options.trusted_keys,
        )
        self._spaces = BlobSpaces(self._store, self._blobs, clock)
        self._storage = Storage(
            state=state, store=self._store, blobs=self._blobs, spaces=self._spaces, conductor=self._conductor, room=self._room
        )
        self._first_token = ""
        self._key = server_key(state.path)
        self._directory = Directory(self._store, key=self._key, clock=clock)
        self._directory.on_change = self._endpoints.on_change = self._write_grants
        self._conductor.quotas_of = self._directory.quotas_of
        self._clock = clock
        self._grants: list[Grant] = []  # as they were written last
        self._ownership = Ownership(conductor=self._conductor, endpoints=self._endpoints, spaces=self._spaces, directory=self._directory)
        self._presence = Presence(clock)
        self._audit = AuditLog(state.audit)
        self._http = _Http(self._config(), on_end=self._conductor.wake)

    def _config(self) -> uvicorn.Config:
        options = self._options
        parts = Parts(
            about=lambda: self._about,
            conductor=self._conductor,
            blobs=self._blobs,
            endpoints=self._endpoints,
            presence=self._presence,
            room=self._room,
            storage=self._storage,
            job_folder=self._state.job,
            stop=self.stop,
            spaces=self._spaces,
            ownership=self._ownership,
            accounts=Accounts(self._directory, self._ownership, self._spaces),
        )
        hosts = None if options.tls else LOOPBACK | {options.host.lower(), f"[{options.host}]".lower()}
        guard = Guard(
            token=self._state.token().encode(), hosts=hosts, recognize=self._directory.recognize, proof_key=self._directory.proof_key
        )
        app = Guarded(build(parts), guard=guard, url=lambda: self.url, on_request=self._presence.on_request)
        self._audited = Audited(app, audit=self._audit, own_name="local" if options.local else "server token")
        return uvicorn.Config(
            self._audited,
            http=ApiConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
            ssl_certfile=options.tls[0] if options.tls else None,
            ssl_keyfile=options.tls[1] if options.tls else None,
        )

    def stop(self) -> None:
        """Begin the end: requests in flight are answered, workers and endpoints end, records stay."""
        self._http.handle_exit(signal.SIGTERM, None)

    async def run(self) -> None:
        async with self._parts_running():
            self._listener.listen(BACKLOG)
            self._http.config.load()
            self._http.on_up = self._up
            await self._http.serve(sockets=[self._listener])

    def _up(self) -> None:
        self._state.announce(self.url, self.port)
        self._on_ready(self.url)
        if self._first_token and self._on_admin_token is not None:
            self._on_admin_token(self._first_token)
            self._first_token = ""
        log.info("listening at %s, process %d", self.url, os.getpid())

    @asynccontextmanager
    async def _parts_running(self) -> AsyncIterator[None]:
        await self._directory.start()
        if self._on_admin_token is not None and self._directory.is_empty and not is_loopback(self._options.host):
            self._first_token = (await self._directory.add_first_admin()).token
        await self._spaces.start()
        await self._audited.record_own("server_started", {"version": self._about.versions.aiaas_magics, "pid": str(os.getpid())})
        await self._conductor.start()
        await self._endpoints.start()
        self._pool.warm()
        housekeeping = asyncio.create_task(self._keep_house(), name="housekeeping")
        try:
            yield
        finally:
            housekeeping.cancel()
            # All at once: ending takes as long as the slowest of them.
            ends = await asyncio.gather(self._conductor.close(), self._endpoints.close(), housekeeping, return_exceptions=True)
            for end in ends:
                if isinstance(end, Exception):
                    log.error("a part of the server did not end well", exc_info=end)
            await self._pool.close()
            self._store.close()
            await self._audited.write_due(at_end=True)
            await self._audited.record_own("server_ended", {"pid": str(os.getpid())})
            self._audit.close()
            log.info("ended")

    async def _keep_house(self) -> None:
        swept_s = -math.inf
        while True:
            if time.monotonic() - swept_s > SWEEP_S:
                swept_s = time.monotonic()
                await self._sweep()
            limit_s = None if self._options.idle_minutes is None else self._options.idle_minutes * 60
            await asyncio.sleep(LOOK_S if limit_s is None else min(LOOK_S, max(limit_s / 4, 0.1)))
            # A pool ends its helpers in their own time: a server that lives for months must not hold the libraries' memory for nobody.
            await self._write_uses()
            self._write_grants()  # the inference process may have come back with another token
            await self._audited.write_due()
            await self._pool.keep_house(is_wanted=self._conductor.is_busy or self._presence.was_asked())
            if self._conductor.is_busy or self._endpoints.any:
                self._presence.needed()
            elif limit_s is not None and self._presence.quiet_s() > limit_s:
                log.info("nobody was here for %g minutes", self._options.idle_minutes)
                return self.stop()

    def _write_grants(self) -> None:
        """Tell the inference process which tokens ask what. While nobody but the server's own account is here there is nothing to tell."""
        file = self._state.path / "serving" / "grants.json"
        if self._directory.is_empty and not file.exists():
            return
        if not self._endpoints.is_up:  # tokens are made from its own: it is told when it is there
            return
        grants = grants_of(
            self._directory.users(),
            self._directory.token_records(),
            self._endpoints.owners(),
            token_of=self._endpoints.token_of,
            key=self._key,
            now_s=self._clock.now_s(),
        )
        if grants == self._grants and file.exists():
            return
        try:
            write_grants(file, grants)
            self._grants = grants
        except OSError as error:  # on a full disk old grants stay in force, so that is told
            log.error("which tokens ask which endpoints could not be written: %s", error)

    async def _write_uses(self) -> None:
        with contextlib.suppress(StoreNotWritable):  # when a token was used last is no reason to stop anything
            await self._directory.write_uses()

    async def _sweep(self) -> None:
        try:
            await self._storage.sweep()
        except (StoreNotWritable, OSError) as error:  # on a full disk the next one may find room
            log.warning("nothing was removed: %s", error)


class ApiConnection(LimitedProtocol):
    """A connection of the API server, whose clients read errors as data."""

    def refusal(self, status: int, text: str) -> bytes:
        return bytes(refuse(BackendRefused(status, text), status).body)


class _Http(LimitedServer):
    """A limited server, telling when it listens and when it begins to end."""

    def __init__(self, config: uvicorn.Config, *, on_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_end = on_end
        self.on_up: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self.on_up()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_end()
        self.force_exit = self.should_exit  # a second signal does not wait for requests
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """uvicorn's own raises the signal again after the HTTP part has ended, before our parts have."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def _url(options: ServerOptions, port: int) -> str:
    scheme = "https" if options.tls else "http"
    host = options.host
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:
            host = socket.gethostname()
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
