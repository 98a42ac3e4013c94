"""Calls in both directions over one socket, any number of them at once: between the first front end and each other one.

Owns the messages that only front ends send, numbering, and that whoever waits for an answer hears of the other side's end.
The socket is one of a pair that both inherit, so nobody else can speak here, and its end is the other process's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Awaitable, Callable
from typing import Final, Self

from aiaas_magics.backend.serving.process.control import Change, Collect, ControlCall, Hello, Reply, StopProcess, Withdraw, checked, replied
from aiaas_magics.core import wire
from aiaas_magics.core.routing import Routing
from aiaas_magics.core.spec import DeploySpec, Value

LINE_BYTES: Final = 64 * 1024 * 1024  # guess: a picture of some dozen models with ten thousand inputs each


class LoadedVersion(Value, frozen=True, kw_only=True):
    number: int
    spec: DeploySpec
    artefact: str
    samples: str


class PicturedEndpoint(Value, frozen=True, kw_only=True):
    name: str
    versions: tuple[LoadedVersion, ...]  # ascending
    routing: Routing | None


class Picture(Value, frozen=True, kw_only=True):
    """All that a front end has to have in common with the first."""

    endpoints: tuple[PicturedEndpoint, ...] = ()
    withdrawn: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()  # endpoints that are being brought back


class Follow(ControlCall, frozen=True, kw_only=True, tag="follow"):
    """Have what is in the picture, and nothing else."""

    picture: Picture


class Accept(ControlCall, frozen=True, tag="accept"):
    """Take connections from here on."""


class Prepare(ControlCall, frozen=True, kw_only=True, tag="prepare"):
    """All that may fail or takes long of a change; see `steps`."""

    number: int
    change: Change


class Commit(ControlCall, frozen=True, kw_only=True, tag="commit"):
    number: int


class Abort(ControlCall, frozen=True, kw_only=True, tag="abort"):
    number: int


class Drain(ControlCall, frozen=True, kw_only=True, tag="drain"):
    number: int


class Count(ControlCall, frozen=True, tag="count"):
    """What this front end has counted."""


Asked = Hello | StopProcess | Collect | Withdraw | Follow | Accept | Prepare | Commit | Abort | Drain | Count


class Message(Value, frozen=True, kw_only=True):
    """A call, or the reply to the call of that number."""

    number: int
    call: Asked | None = None
    reply: Reply | None = None


class Channel:
    """One end; `await run()` reads until the other side ends.

    Calls are begun in the order in which they were sent.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Callable[[Asked], Awaitable[Reply]]) -> None:
        self._reader, self._writer, self._answer = reader, writer, answer
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self.closed = asyncio.Event()

    @classmethod
    async def on(cls, end: socket.socket, answer: Callable[[Asked], Awaitable[Reply]]) -> Self:
        """A channel on one of a pair of sockets."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=LINE_BYTES), answer)

    async def ask(self, call: Asked, *, answer_s: float) -> Reply:
        """The reply to one call; it is sent before anything is waited for.

        Raises:
            AiaasError: the error that the other side answered with.
            ConnectionError: it has ended.
            TimeoutError: there was no answer within `answer_s`.
        """
        if self.closed.is_set():
            raise ConnectionError("the other front end has ended")
        number, replies = next(self._numbers), asyncio.get_running_loop().create_future()
        self._waiting[number] = replies
        try:
            self._send(Message(number=number, call=call))
            async with asyncio.timeout(answer_s):
                return checked(await replies)
        finally:
            del self._waiting[number]

    def _send(self, message: Message) -> None:
        """Without waiting for the other side to read: a stopped one would be waited for, and messages are small."""
        self._writer.write(wire.encode(message) + b"\n")

    async def run(self) -> None:
        try:
            with contextlib.suppress(ConnectionError, ValueError):  # a line beyond the limit, or no message: nobody to talk to
                while (line := await self._reader.readline()).endswith(b"\n"):
                    self._take(wire.decode(line, Message))
        finally:
            self.close()

    def close(self) -> None:
        self.closed.set()
        for replies in self._waiting.values():
            if not replies.done():
                replies.set_exception(ConnectionError("the other front end ended before it answered"))
        self._writer.close()

    def _take(self, message: Message) -> None:
        if message.call is not None:
            task = asyncio.create_task(self._reply(message.number, message.call))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        elif message.reply is not None:
            replies = self._waiting.get(message.number)
            if replies is not None and not replies.done():
                replies.set_result(message.reply)

    async def _reply(self, number: int, call: Asked) -> None:
        reply = await replied(self._answer(call), to=call)
        if not self.closed.is_set():
            self._send(Message(number=number, reply=reply))
