"""Replicas: the executors of one version, engines with a thread each, or one in the event loop itself.

Owns the way between the event loop and the engines, and cutting a batch's answer into
the answers of its requests. Which requests form a batch belongs to `batching`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np

from aiaas_magics.backend.serving.engines import Engine, EngineLost, EngineRefused, EngineTooSlow, Tensors, slices_of
from aiaas_magics.backend.serving.models.batching import BatchQueue, Limits, TooLate, Waiting
from aiaas_magics.backend.serving.models.stats import EndpointStats
from aiaas_magics.core.errors import AiaasBug

log = logging.getLogger(__name__)

Answer = dict[str, np.ndarray] | Exception
Done = Callable[[Answer], None]  # called in the event loop, once


class ReplicaRequest(msgspec.Struct, frozen=True, kw_only=True):
    tensors: Tensors
    done: Done


Batch = Sequence[Waiting[ReplicaRequest]]
StackKey = tuple[tuple[str, tuple[int, ...]], ...]

SAME_FORM: Final[StackKey] = ()  # the key of requests whose rows can have one form only


class Queued:
    """What executors have in common: requests wait in a queue, and batches are counted and answered.

    `submit` and everything that is answered happen in the event loop.

    Args:
        batchable: Whether rows of several requests may be computed together.
        row_bytes: Bytes of a row, where all rows have the same form; then no request's tensors need be looked at for that.
    """

    def __init__(self, *, batchable: bool, limits: Limits, stats: EndpointStats, row_bytes: int | None = None) -> None:
        self._batchable, self._stats, self._row_bytes = batchable, stats, row_bytes
        self._loop = asyncio.get_running_loop()
        self._queue: BatchQueue[ReplicaRequest] = BatchQueue(limits)

    @property
    def batch_rows(self) -> int:
        """How many rows of several requests run together; 0 where each request runs by itself."""
        return self._queue.limits.batch_rows if self._batchable else 0

    def submit(self, tensors: Tensors, rows: int | None, done: Done, *, timeout_s: float = math.inf) -> None:
        raise NotImplementedError

    async def run(self, tensors: Tensors, rows: int | None) -> dict[str, np.ndarray]:
        """The outputs for `tensors`.

        Raises:
            QueueFull: too much is waiting already.
            EngineRefused: the engine cannot compute this input.
            EngineLost: the engine died while computing.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()
        self.submit(tensors, rows, lambda answer: None if future.done() else future.set_result(answer))
        answer = await future
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _waiting(self, tensors: Tensors, rows: int | None, done: Done, timeout_s: float) -> Waiting[ReplicaRequest]:
        now_s = time.monotonic()
        if rows is None or self._row_bytes is None:
            key = stack_key(tensors) if self._batchable and rows is not None else None
            nbytes = sum([tensor.nbytes for tensor in tensors.values()])
        else:
            key, nbytes = SAME_FORM if self._batchable else None, rows * self._row_bytes
        item = ReplicaRequest(tensors=tensors, done=done)
        return Waiting(item=item, key=key, rows=rows or 0, bytes=nbytes, since_s=now_s, until_s=now_s + timeout_s)

    def _answer(self, batch: Batch, answers: Sequence[Answer], began_s: float, compute_s: float, why: str) -> None:
        rows, waited_s = 0, 0.0
        for waiting in batch:
            rows += waiting.rows
            waited_s += began_s - waiting.since_s
        self._stats.ran(rows=rows, waited_ns=int(waited_s * 1e9), compute_ns=int(compute_s * 1e9), why=why)
        self._stats.newest = began_s, compute_s
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.item.done(answer)


class Replicas(Queued):
    """Runs requests on `engines`, first come first run. Owns the engines and one thread for each.

    Promises: a request gets the answer of its own rows; one that the engine refuses does not
    spoil the others of its batch; after `close` no thread and no engine is left.
    """

    def __init__(
        self, engines: Sequence[Engine], *, name: str, batchable: bool, limits: Limits, stats: EndpointStats, row_bytes: int | None = None
    ) -> None:
        super().__init__(batchable=batchable, limits=limits, stats=stats, row_bytes=row_bytes)
        self._engines = tuple(engines)
        self._wake = threading.Condition()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, args=(engine,), name=f"aiaas-{name}-{index}", daemon=True)
            for index, engine in enumerate(self._engines)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, tensors: Tensors, rows: int | None, done: Done, *, timeout_s: float = math.inf) -> None:
        """`done` is called with the outputs for `tensors`, or with what an engine raised.

        Raises:
            QueueFull: too much is waiting already.
        """
        waiting = self._waiting(tensors, rows, done, timeout_s)
        with self._wake:
            if self._closing:
                raise AiaasBug("a request reached a version after it was drained")
            self._queue.offer(waiting, now_s=waiting.since_s)
            self._wake.notify()

    async def close(self, *, grace_s: float = 30.0) -> None:
        """Answer what waits, then end.

        After `grace_s` what still waits is refused, and an engine that computes is left to its daemon thread.
        """
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        await asyncio.to_thread(self._join, grace_s)

    def _join(self, grace_s: float) -> None:
        until_s = time.monotonic() + grace_s
        for thread, engine in zip(self._threads, self._engines, strict=True):
            thread.join(max(0.0, until_s - time.monotonic()))
            if thread.is_alive():
                log.warning("%s still computes after %s s", thread.name, grace_s)
                with self._wake:
                    waiting = self._queue.take_all()
                with contextlib.suppress(RuntimeError):  # the loop has ended; nobody waits any more
                    self._loop.call_soon_threadsafe(_drop, waiting)
            engine.close()

    def _work(self, engine: Engine) -> None:
        while (next_batch := self._next()) is not None:
            late, batch, why = next_batch
            began_s = time.monotonic()
            answers = answers_of(engine, [waiting.item.tensors for waiting in batch], [waiting.rows for waiting in batch])
            compute_s = time.monotonic() - began_s
            try:
                if late:
                    self._loop.call_soon_threadsafe(_refuse, late)
                if batch:
                    self._loop.call_soon_threadsafe(self._answer, batch, answers, began_s, compute_s, why)
            except RuntimeError:  # the loop has ended; nobody waits any more
                return

    def _next(self) -> tuple[Batch, Batch, str] | None:
        """Who came too late, what runs next and why now; None when there will be no more."""
        with self._wake:
            while True:
                # Taken under the lock at the very moment this thread is free: whoever came until now may join.
                now_s = time.monotonic()
                if held_s := 0.0 if self._closing else self._queue.wait_s(now_s):
                    self._wake.wait(held_s)
                    continue
                late = self._queue.overdue(now_s)
                batch, why = self._queue.take()
                if batch or late:
                    return late, batch, why
                if self._closing:
                    return None
                self._wake.wait()


class Inline(Queued):
    """Runs small batches of an engine in the event loop itself: for a quick model a thread's turn costs more than the work.

    Requests that are read in one turn of the loop run together at its end. What would keep the loop for too long, a request
    of more rows than a batch may have, goes to `larger`, which has a thread.
    """

    def __init__(
        self, engine: Engine, *, larger: Replicas, batchable: bool, limits: Limits, stats: EndpointStats, row_bytes: int | None = None
    ) -> None:
        super().__init__(batchable=batchable, limits=limits, stats=stats, row_bytes=row_bytes)
        self._engine, self._larger = engine, larger
        self._turn_comes = False
        self._free = asyncio.Event()

    def submit(self, tensors: Tensors, rows: int | None, done: Done, *, timeout_s: float = math.inf) -> None:
        """As that of `Replicas`."""
        if rows is None or rows > self._queue.limits.batch_rows:
            self._larger.submit(tensors, rows, done, timeout_s=timeout_s)
            return
        waiting = self._waiting(tensors, rows, done, timeout_s)
        self._queue.offer(waiting, now_s=waiting.since_s)
        self._call_turn()

    @property
    def joins(self) -> bool:
        """Whether rows of several requests may be computed together at once."""
        return self._batchable and self._row_bytes is not None and not self._queue.limits.delay_s

    def compute(self, tensors: Tensors) -> Tensors:
        """The outputs, now: at most `batch_rows` rows, for who has put them together and counts them himself."""
        return self._engine.run(tensors)

    def _call_turn(self) -> None:
        if self._turn_comes:
            return
        self._turn_comes = True
        if self._queue.limits.delay_s and (held_s := self._queue.wait_s(time.monotonic())):
            self._loop.call_later(held_s, self._turn)
        else:
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_comes = False
        began_s = time.monotonic()
        _refuse(self._queue.overdue(began_s))
        batch, why = self._queue.take()
        if batch:
            answers = answers_of(self._engine, [waiting.item.tensors for waiting in batch], [waiting.rows for waiting in batch])
            self._answer(batch, answers, began_s, time.monotonic() - began_s, why)
        if len(self._queue):
            self._call_turn()
        else:
            self._free.set()

    async def close(self) -> None:
        """Answer what waits, then end."""
        while len(self._queue):
            self._free.clear()
            await self._free.wait()
        self._engine.close()
        await self._larger.close()


def _drop(waiting_requests: Batch) -> None:
    for waiting in waiting_requests:
        waiting.item.done(EngineLost("its version was taken down"))


def _refuse(late: Batch) -> None:
    for waiting in late:
        waiting.item.done(TooLate())


def stack_key(tensors: Tensors) -> StackKey:
    """Requests with equal keys may be stacked; their dtypes are equal already, by the interface."""
    return tuple([(name, tensor.shape[1:]) for name, tensor in tensors.items()])


def answers_of(engine: Engine, requests: Sequence[Tensors], rows: Sequence[int]) -> list[Answer]:
    """One answer a request, in order. A batch that fails is run again one by one, so that each gets its own fault."""
    if len(requests) > 1:
        try:
            stacked = {name: stack([request[name] for request in requests]) for name in requests[0]}
            return list(cut(engine.run(stacked), rows))
        except EngineLost as error:
            return [error] * len(requests)
        except Exception as error:  # noqa: BLE001 - border: a foreign library computes here; one by one says whose fault it is
            log.info("a batch of %d requests failed (%s); running them one by one", len(requests), error)
    return [_answer_of(engine, request) for request in requests]


def stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The rows of all, one after the other; they agree in everything but their number."""
    first = arrays[0]
    if first.dtype.hasobject:
        return np.concatenate(arrays)
    try:
        joined = b"".join(arrays)  # type: ignore[arg-type] # arrays are buffers; a quarter of the time of `concatenate` for a dozen small ones
    except ValueError:  # not in C order, or of a type that buffers have no word for
        return np.concatenate(arrays)
    return np.ndarray((sum([array.shape[0] for array in arrays]), *first.shape[1:]), first.dtype, joined)


def _answer_of(engine: Engine, request: Tensors) -> Answer:
    try:
        return engine.run(request)
    except (EngineRefused, EngineLost, EngineTooSlow) as error:
        return error
    except Exception as error:  # border: a foreign library computes here, and this thread must outlive what it raises
        log.exception("the engine raised what it should not")
        return error


def cut(outputs: Tensors, rows: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """The outputs of a batch, cut into those of its requests."""
    total = sum(rows)
    for output in outputs.values():
        if output.ndim == 0 or output.shape[0] != total:
            raise ValueError("an output has not one row for each row of the inputs")
    return [{name: output[place] for name, output in outputs.items()} for place in slices_of(rows)]
