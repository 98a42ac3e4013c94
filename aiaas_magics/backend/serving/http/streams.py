"""Answer streams: an answer that a model computes while its first chunks are read.

Owns what every such answer has in common: the lease on its version, its deadline, stats, its span, and how it ends early. What a
chunk is belongs to the protocol, sending one to the connection (`inference_app`, `grpc_server`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol, Self

from aiaas_magics.backend.serving.models.batching import QueueFull, TooLate
from aiaas_magics.backend.serving.models.registry import TakenDown, Version
from aiaas_magics.backend.serving.protocols import Response, Run, StreamCall, StreamFault

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

GONE: Final = Response(499, b"")  # nginx's status for a client that closed the connection; nobody is sent it


class Answered(Protocol):
    """Counts answers; see `EndpointStats.answered`."""

    def __call__(self, *took_ns: int, rows: int) -> None: ...


class StreamTooLate(TooLate):
    """A stream whose deadline came before its end."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return f"The request's timeout of {self.timeout_s:g} s was over before the answer was whole. Allow more time, or ask for less."


class AnswerStream:
    """The body of an answer; a `ByteStream`. It uses its version until it has ended.

    Args:
        run: Computes rows on the version.
        refusal: What a fault is answered with.
        on_end: Called once, with a response that has the status of how it ended.
        on_answered: Counts an answer that is whole, with the nanoseconds it took and its rows.
    """

    def __init__(
        self,
        version: Version,
        call: StreamCall,
        run: Run,
        *,
        began_ns: int,
        refusal: Callable[[Exception], Response],
        on_end: Callable[[Response], None],
        on_answered: Answered | None = None,
    ) -> None:
        version.enter()
        version.streams.add(self)
        self._version, self._call, self._chunks = version, call, call.chunks(run)
        self._began_ns, self._refusal, self._on_end = began_ns, refusal, on_end
        self._on_answered: Answered = on_answered or version.stats.answered
        loop = asyncio.get_running_loop()
        self._until_s = None if math.isinf(call.timeout_s) else loop.time() + call.timeout_s
        self._waiting: asyncio.Timeout | None = None
        self._is_cut = self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise StopAsyncIteration
        # Around the computing only: a timeout that came while the reader takes the last chunk would cancel the reader.
        self._waiting = asyncio.timeout_at(asyncio.get_running_loop().time() if self._is_cut else self._until_s)
        try:
            async with self._waiting:
                return await anext(self._chunks)
        except StopAsyncIteration:
            self._on_answered(time.perf_counter_ns() - self._began_ns, rows=self._call.rows or 0)
            self._end(Response(200, b""))
            raise
        except Exception as error:  # noqa: BLE001 - border: a protocol's and an engine's code runs in there
            fault = await self._failed(error)
        finally:
            self._waiting = None
        raise fault

    async def _failed(self, error: Exception) -> StreamFault:
        if self._waiting is not None and self._waiting.expired():
            error = TakenDown(self._version.spec.name, self._version.number) if self._is_cut else StreamTooLate(self._call.timeout_s)
        refusal = self._refusal(error)
        if isinstance(error, QueueFull):
            self._version.stats.refused += 1
        else:
            self._version.stats.failed += 1
        await self._close_chunks()
        self._end(refusal)
        return StreamFault(refusal, self._call.closing_chunk(refusal))

    def cut(self) -> None:
        """End it now, with a fault: its version is closed."""
        self._is_cut = True
        if self._waiting is not None:
            self._waiting.reschedule(asyncio.get_running_loop().time())

    async def aclose(self) -> None:
        """End it: nobody reads any more."""
        if self._is_over:
            return
        self._version.stats.abandoned += 1
        await self._close_chunks()
        self._end(GONE)

    async def _close_chunks(self) -> None:
        try:
            await self._chunks.aclose()
        except Exception:  # border: a protocol's code runs in there; the answer has ended in any case
            log.exception("a stream was not closed well")

    def _end(self, response: Response) -> None:
        if not self._is_over:
            self._is_over = True
            self._version.streams.discard(self)
            self._version.leave()
            self._on_end(response)


def runner(version: Version, zeros: Callable[[int | None], Mapping[str, np.ndarray]] | None) -> Run:
    """Computes on whatever executor the version has at that moment, or gives `zeros` where nothing is to be computed."""

    async def run(tensors: Mapping[str, np.ndarray], rows: int | None) -> Mapping[str, np.ndarray]:
        if zeros is not None:
            return zeros(rows)
        if version.executor is None:
            raise TakenDown(version.spec.name, version.number)
        return await version.executor.run(tensors, rows)

    return run
