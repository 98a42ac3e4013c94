"""Micro-batches of the fast path: plain predictions that one turn of the event loop has read, answered together at its end.

Owns the short cut for what nearly every request to a small model is: rows of numbers, for a model that runs in the event loop.
They are read, computed and answered in one loop, without an object and a callback for each of them; a small model takes less time
than those. Of everything else (another form, a fault, a canary, a long answer) nothing is decided here: such a request goes the
way of all others, as if it had not been here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

import numpy as np

from aiaas_magics.backend.serving.http.compression import LARGE
from aiaas_magics.backend.serving.http.request_handler import RequestHandler
from aiaas_magics.backend.serving.models.batching import Limits
from aiaas_magics.backend.serving.models.registry import Version
from aiaas_magics.backend.serving.models.replicas import Inline
from aiaas_magics.backend.serving.protocols import FormOf, Plain, PlainForm, Response

MOST_WAITING: Final = Limits().waiting  # predictions that may wait here; what is beyond waits, or is refused, where all others do


class Prediction(Protocol):
    """A request that waits for its answer."""

    @property
    def body(self) -> bytes: ...
    @property
    def json_bytes(self) -> int: ...
    @property
    def began_ns(self) -> int: ...

    def answer(self, response: Response) -> None: ...

    def begin(self) -> None:
        """Have it answered as any other request."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PlainTarget:
    """Which version is asked for, in which protocol's plain form. Made by `target_of`: equal requests share one target."""

    name: str
    version: int | None
    label: str | None
    form: FormOf


target_of = lru_cache(maxsize=1024)(PlainTarget)  # guess: as many as heads are known


class Microbatcher:
    """Answers plain predictions for the versions of a registry. Everything happens in the event loop."""

    def __init__(self, handler: RequestHandler) -> None:
        self._registry, self._is_traced = handler.registry, handler.tracing is not None
        self._waiting: list[tuple[PlainTarget, Prediction]] = []
        self._turn_comes = False

    def add(self, target: PlainTarget, prediction: Prediction) -> None:
        """Have `prediction` answered at the end of this turn."""
        waiting = self._waiting
        if len(waiting) >= MOST_WAITING:
            prediction.begin()
            return
        waiting.append((target, prediction))
        if not self._turn_comes:
            self._call_turn()

    def _call_turn(self) -> None:
        if not self._turn_comes:
            self._turn_comes = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_comes = False
        waiting, self._waiting = self._waiting, []
        by_target: dict[PlainTarget, list[Prediction]] = {}
        for target, prediction in waiting:
            by_target.setdefault(target, []).append(prediction)
        for target, predictions in by_target.items():
            self._answer(target, predictions)

    def _answer(self, target: PlainTarget, predictions: Sequence[Prediction]) -> None:
        version = self._registry.only(target.name, target.version, label=target.label)
        executor = None if version is None or self._is_traced else version.executor
        if version is None or not isinstance(executor, Inline) or not executor.joins or (form := version.once(target.form)) is None:
            _begin(predictions)
            return
        batch: list[Prediction] = []
        plain: list[Plain] = []
        read, most, total, why = form.read, executor.batch_rows, 0, "all that waited"
        for at, prediction in enumerate(predictions):
            plain_request = read(prediction.body, prediction.json_bytes)
            if plain_request is None or plain_request[1] > most:
                prediction.begin()
                continue
            if total + plain_request[1] > most:
                # The loop is to read on in between. They come before whatever it reads.
                self._waiting += [(target, later) for later in predictions[at:]]
                self._call_turn()
                why = "full"
                break
            batch.append(prediction)
            plain.append(plain_request)
            total += plain_request[1]
        if batch:
            x = np.ndarray((total, *form.row), form.dtype, b"".join([data for data, _, _ in plain]))
            _compute(version, executor, form, x, plain, batch, why)


def _begin(predictions: Sequence[Prediction]) -> None:
    for prediction in predictions:
        prediction.begin()


def _compute(
    version: Version, executor: Inline, form: PlainForm, x: np.ndarray, plain: Sequence[Plain], batch: Sequence[Prediction], why: str
) -> None:
    began_ns = time.perf_counter_ns()
    try:
        (output,) = executor.compute({form.name: x}).values()
        ended_ns = time.perf_counter_ns()
        responses = form.write(output, plain) if output.ndim and len(output) == len(x) else [None] * len(batch)
    except Exception:  # noqa: BLE001 - border: outputs of any model come and are written here; one by one each request is told its own fault
        _begin(batch)
        return
    answered, since_ns = 0, list[int]()
    for prediction, (_, rows, _), response in zip(batch, plain, responses, strict=True):
        if response is None or len(response.body) >= LARGE:
            prediction.begin()
            continue
        prediction.answer(response)
        answered += rows
        since_ns.append(prediction.began_ns)
    stats, over_ns = version.stats, time.perf_counter_ns()
    stats.answered(*[over_ns - since for since in since_ns], rows=answered)
    waited_ns = len(since_ns) * began_ns - sum(since_ns)
    stats.ran(rows=answered, waited_ns=waited_ns, compute_ns=ended_ns - began_ns, why=why)
    recorder = version.recorder
    # Who was begun anew is offered where that is answered.
    if recorder is not None and len(since_ns) == len(batch) and not recorder.passes_over(len(batch)):
        (name,) = (spec.name for spec in version.spec.outputs)
        recorder.offer_batch(version.number, {form.name: x}, {name: output}, [rows for _, rows, _ in plain])
