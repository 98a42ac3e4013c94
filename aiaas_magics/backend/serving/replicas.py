"""The executors of one version: each is an engine with a thread of its own.

Owns the threads between the event loop and the engines, and cutting a batch's answer into
the answers of its requests. Which requests form a batch belongs to `batching`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aiaas_magics.backend.serving.batching import BatchQueue, Limits, Waiting
from aiaas_magics.backend.serving.engines import Engine, EngineLost, EngineRefused, Tensors
from aiaas_magics.errors import AiaasBug

log = logging.getLogger(__name__)

Answer = dict[str, np.ndarray] | Exception


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    tensors: Tensors
    future: asyncio.Future[dict[str, np.ndarray]]


class Replicas:
    """Runs requests on `engines`, first come first run. Owns the engines and one thread for each.

    Promises: a request gets the answer of its own rows; one that the engine refuses does not
    spoil the others of its batch; after `close` no thread and no engine is left.
    """

    def __init__(self, engines: Sequence[Engine], *, name: str, batchable: bool, limits: Limits) -> None:
        self._engines = tuple(engines)
        self._batchable = batchable
        self._loop = asyncio.get_running_loop()
        self._queue: BatchQueue[Request] = BatchQueue(limits)
        self._wake = threading.Condition()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, args=(engine,), name=f"aiaas-{name}-{index}", daemon=True)
            for index, engine in enumerate(self._engines)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, tensors: Tensors, rows: int | None) -> dict[str, np.ndarray]:
        """The outputs for `tensors`.

        Raises:
            QueueFull: too much is waiting already.
            EngineRefused: the engine cannot compute this input.
            EngineLost: the engine died while computing.
        """
        future: asyncio.Future[dict[str, np.ndarray]] = self._loop.create_future()
        now_s = time.monotonic()
        waiting = Waiting(
            item=Request(tensors=tensors, future=future),
            key=stack_key(tensors) if self._batchable and rows is not None else None,
            rows=rows or 0,
            bytes=sum(tensor.nbytes for tensor in tensors.values()),
            since_s=now_s,
        )
        with self._wake:
            if self._closing:
                raise AiaasBug("a request reached a version after it was drained")
            self._queue.offer(waiting, now_s=now_s)
            self._wake.notify()
        return await future

    async def close(self, *, grace_s: float = 30.0) -> None:
        """Answer what waits, then end. An engine that computes for longer than `grace_s` is left to its daemon thread."""
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
            engine.close()

    def _work(self, engine: Engine) -> None:
        while True:
            with self._wake:
                # Taken under the lock at the very moment this thread is free: whoever came until now may join.
                while not (batch := self._queue.take()):
                    if self._closing:
                        return
                    self._wake.wait()
            answers = answers_of(engine, [waiting.item.tensors for waiting in batch], [waiting.rows for waiting in batch])
            try:
                self._loop.call_soon_threadsafe(_deliver, [waiting.item.future for waiting in batch], answers)
            except RuntimeError:  # the loop has ended; nobody waits any more
                return


def stack_key(tensors: Tensors) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Requests with equal keys may be stacked; their dtypes are equal already, by the interface."""
    return tuple((name, tensor.shape[1:]) for name, tensor in tensors.items())


def answers_of(engine: Engine, requests: Sequence[Tensors], rows: Sequence[int]) -> list[Answer]:
    """One answer a request, in order. A batch that fails is run again one by one, so that each gets its own fault."""
    if len(requests) > 1:
        try:
            stacked = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
            return list(cut(engine.run(stacked), rows))
        except EngineLost as error:
            return [error] * len(requests)
        except Exception as error:  # noqa: BLE001 - border: a foreign library computes here; one by one says whose fault it is
            log.info("a batch of %d requests failed (%s); running them one by one", len(requests), error)
    return [_answer_of(engine, request) for request in requests]


def _answer_of(engine: Engine, request: Tensors) -> Answer:
    try:
        return engine.run(request)
    except (EngineRefused, EngineLost) as error:
        return error
    except Exception as error:  # border: a foreign library computes here, and this thread must outlive what it raises
        log.exception("the engine raised what it should not")
        return error


def cut(outputs: Tensors, rows: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """The outputs of a batch, cut into those of its requests."""
    total = sum(rows)
    if any(output.ndim == 0 or output.shape[0] != total for output in outputs.values()):
        raise ValueError("an output has not one row for each row of the inputs")
    ends = np.cumsum(rows).tolist()
    return [{name: output[end - count : end] for name, output in outputs.items()} for count, end in zip(rows, ends, strict=True)]


def _deliver(futures: Sequence[asyncio.Future[dict[str, np.ndarray]]], answers: Sequence[Answer]) -> None:
    for future, answer in zip(futures, answers, strict=True):
        if future.done():  # its caller was cancelled
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
