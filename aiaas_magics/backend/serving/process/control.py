"""Control calls: the API server talks to the inference process by JSON lines over a Unix socket.

Owns the messages, both ends of the connection, and errors crossing it as data. What a
message does belongs to `model_loader`; who starts whom belongs to `supervisor`.

Where Unix sockets are missing, or the path is too long for one, it is loopback TCP. A secret
from a 0600 file opens either.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from aiaas_magics.core import errors, wire
from aiaas_magics.core.drift.drift_values import DriftReport
from aiaas_magics.core.errors import AiaasBug, AiaasError
from aiaas_magics.core.model_card import ModelCard
from aiaas_magics.core.recording import RecordingCounts
from aiaas_magics.core.routing import Routing, Scaling
from aiaas_magics.core.spec import DeploySpec, RecordingChange, VersionView
from aiaas_magics.core.value import Value

log = logging.getLogger(__name__)

LINE_BYTES: Final = 4 * 1024 * 1024  # guess: the interface of a model with some ten thousand inputs
CONNECT_S: Final = 5.0  # guess: the process answers from its event loop, which no model blocks


class ControlCall(msgspec.Struct, frozen=True, tag_field="call"):
    """What may be asked. Subclasses are the closed set."""


class Hello(ControlCall, frozen=True, tag="hello"):
    """Nothing but an answer."""


class Load(ControlCall, frozen=True, kw_only=True, tag="load"):
    """Make a version ready; requests go to it when a `RouteVersions` says so."""

    spec: DeploySpec
    version: int
    artefact: str  # path
    samples: str  # path


class RouteVersions(ControlCall, frozen=True, kw_only=True, tag="route"):
    name: str
    routing: Routing
    keeps: int = 0  # a version that stays loaded beside those of the routing: it waits for one of its own
    restores: bool = False  # whether an endpoint that was withdrawn answers again


class Scale(ControlCall, frozen=True, kw_only=True, tag="scale"):
    name: str
    scaling: Scaling


class KeepCard(ControlCall, frozen=True, kw_only=True, tag="card"):
    """The card of a version is another one now."""

    name: str
    version: int
    card: ModelCard


class Retire(ControlCall, frozen=True, kw_only=True, tag="retire"):
    name: str
    forgets: bool = True  # whether what was recorded goes with it


class ChangeRecording(ControlCall, frozen=True, kw_only=True, tag="record"):
    name: str
    change: RecordingChange


class CountRecorded(ControlCall, frozen=True, kw_only=True, tag="count_recorded"):
    """What is recorded of an endpoint, in its files when this is answered."""

    name: str


class ForgetRecorded(ControlCall, frozen=True, kw_only=True, tag="forget_recorded"):
    name: str


class DriftQuery(ControlCall, frozen=True, kw_only=True, tag="drift"):
    name: str
    version: int = 0  # the live one


class StatusQuery(ControlCall, frozen=True, tag="status"):
    """Every version of every endpoint."""


class StopProcess(ControlCall, frozen=True, tag="stop"):
    """Answer what is being answered, then end."""


RecordingCall = ChangeRecording | CountRecorded | ForgetRecorded | DriftQuery
AnyCall = Hello | Load | RouteVersions | Scale | KeepCard | Retire | RecordingCall | StatusQuery | StopProcess


class SignedCall(Value, frozen=True, kw_only=True):
    secret: str
    call: AnyCall


class Reply(Value, frozen=True, kw_only=True):
    """The answer: a value, or the class and arguments of one of our errors."""

    view: VersionView | None = None
    status: dict[str, list[VersionView]] | None = None
    counts: RecordingCounts | None = None
    drift: DriftReport | None = None
    error: str = ""
    type: str = ""
    args: tuple[Any, ...] = ()


Answering = Callable[[AnyCall], Awaitable[Reply]]
T = TypeVar("T")


# --------------------------------------------------------------------------- the process's end


@asynccontextmanager
async def listening(socket: Path, *, secret: str, answer: Answering) -> AsyncIterator[str]:
    """Listen for calls while the `with` lasts; gives the address for `call_at`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ValueError):  # a peer that breaks off, or sends no line
            while line := await reader.readline():
                writer.write(wire.encode(await _answered(line, secret, answer)) + b"\n")
                await writer.drain()
        writer.close()

    _remove(socket)
    try:
        # The folder is 0700 and the umask 0077: nobody else reaches the socket, not even for a moment.
        server = await asyncio.start_unix_server(serve, socket, limit=LINE_BYTES)
        address = f"unix:{socket}"
    except (OSError, NotImplementedError, AttributeError):
        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=LINE_BYTES)
        address = f"tcp:{server.sockets[0].getsockname()[1]}"
    try:
        yield address
    finally:
        server.close()
        _remove(socket)


def _remove(socket: Path) -> None:
    socket.unlink(missing_ok=True)


async def _answered(line: bytes, secret: str, answer: Answering) -> Reply:
    try:
        ask = wire.decode(line, SignedCall)
    except wire.Malformed as error:
        return failure(AiaasBug(f"a control message was not understood: {error}"))
    if not hmac.compare_digest(ask.secret.encode(), secret.encode()):
        return Reply(type="NotAuthorised", args=("the control socket",), error="wrong secret")
    return await replied(answer(ask.call), to=ask.call)


async def replied(answering: Awaitable[Reply], *, to: ControlCall) -> Reply:
    """The reply, whatever it turns out to be: an error becomes data."""
    try:
        return await answering
    except AiaasError as error:
        return failure(error)
    except Exception as error:  # border: loading runs foreign libraries; the caller gets a sentence, the log the trace
        log.exception("a control call failed")
        return failure(AiaasBug(f"{type(to).__name__} failed: {type(error).__name__}: {error}"))


def failure(error: AiaasError) -> Reply:
    return Reply(error=str(error), type=type(error).__name__, args=tuple(error.args))


# --------------------------------------------------------------------------- the API server's end


@asynccontextmanager
async def connection(address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """An open connection.

    Raises:
        ConnectionError: nobody listens there, or not in time.
    """
    kind, _, where = address.partition(":")
    opening = (
        asyncio.open_unix_connection(where, limit=LINE_BYTES)
        if kind == "unix"
        else asyncio.open_connection("127.0.0.1", int(where), limit=LINE_BYTES)
    )
    try:
        # Not wait_for: in Python 3.11 it may swallow a cancellation that arrives with the connection (python/cpython#86296).
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await opening
    except (OSError, TimeoutError) as error:
        raise ConnectionError(f"nobody listens at {address}") from error
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def call_at(address: str, secret: str, call: AnyCall, *, answer_s: float) -> Reply:
    """The reply to one call.

    Raises:
        AiaasError: the error that the process answered with, as the class it was there.
        ConnectionError: there was no answer.
        TimeoutError: not within `answer_s`.
    """
    async with connection(address) as (reader, writer), asyncio.timeout(answer_s):
        return await ask_on(reader, writer, secret, call)


async def ask_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: str, call: AnyCall) -> Reply:
    writer.write(wire.encode(SignedCall(secret=secret, call=call)) + b"\n")
    await writer.drain()
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("the process ended before it answered")
    return checked(wire.decode(line, Reply))


def checked(reply: Reply) -> Reply:
    """`reply` itself; raises the error that it holds."""
    if reply.type:
        raise revived(reply)
    return reply


def revived(reply: Reply) -> AiaasError:
    return errors.rebuilt(reply.type, reply.args) or AiaasBug(reply.error)
