"""Explaining: explanations of a version's outputs, computed beside its predictions and never before them.

Owns the bounds: how many explanations run at once, how many rows each may have computed, and the slices in which these rows go to the
version's own queue, between the requests of others. What is computed is `explain.black_box`, which needs predictions only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import numpy as np
from msgspec import structs

from aiaas_magics.backend.serving.models.batching import QueueFull
from aiaas_magics.backend.serving.models.parity_check import read_background
from aiaas_magics.core.errors import DataMismatch, InvalidSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aiaas_magics.backend.serving.models.registry import Version
    from aiaas_magics.core.explain_settings import ExplainSettings
    from aiaas_magics.explain.attribution_bytes import ExplainResult
    from aiaas_magics.explain.prediction_batches import PredictBatch

    Run = Callable[[Mapping[str, np.ndarray], int | None], Awaitable[Mapping[str, np.ndarray]]]

T = TypeVar("T")

SWITCH_S: Final = 2e-4  # guess: how long the event loop waits for the interpreter while a thread explains; Python's own is 5 ms
LOWEST: Final = 19  # the priority that computes only what nobody else wants to, on Linux


def _yield_to_others() -> None:
    """Make this thread one that runs when no other wants its core; where threads have no priority of their own, nothing."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)


# One thread: it shares the interpreter with the event loop, and each more would take as much again of the predictions' time.
EXPLAINING: Final = ThreadPoolExecutor(1, thread_name_prefix="aiaas-explaining", initializer=_yield_to_others)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainLimits:
    """How much of a version's time an explanation may take."""

    at_once: int = 2  # explanations of all versions of a process; guess: one computes while another waits for the model
    rows: int = 256  # of a request: guess; a job on workers explains more of them sooner
    evaluations: int = 2_000_000  # rows that the model computes for one request: guess, 24 s of a model that takes 12 us per row
    slice_s: float = 1e-3  # guess: what a request of somebody else may be held up by
    batch_rows: int = 512  # that are masked at once, which holds the interpreter: guess, 0.1 ms of a table
    least_rows: int = 8  # of a first slice, whose time nobody knows: guess
    share: float = 0.25  # of the time that explanations take while predictions are answered: guess
    busy_s: float = 0.5  # how long a version counts as busy after a prediction: guess


class ExplainerFull(QueueFull):
    """As many explanations run as may."""

    def __str__(self) -> str:
        return f"No explanation can be taken in: {self.why}. Try again in {self.retry_after_s} s."


class Explainer:
    """Explains rows on the versions of one process. Everything here is called in the event loop."""

    def __init__(self, limits: ExplainLimits | None = None) -> None:
        self.limits = limits or ExplainLimits()
        self.running = 0
        self._switch_s = sys.getswitchinterval()

    async def explained(
        self, version: Version, tensors: Mapping[str, np.ndarray], settings: ExplainSettings, run: Run, *, measures: bool = False
    ) -> ExplainResult:
        """What the inputs of each row contribute to its output.

        Args:
            tensors: rows by input name, as the version takes them.
            settings: a black-box method by its own name or "auto", and its bounds.
            run: computes rows on the version.
            measures: whether faithfulness is measured too.

        Raises:
            ExplainerFull: too many explanations run already.
            InvalidSpec: it takes more evaluations than one request may; or the method is none for this version.
            DataMismatch: the rows cannot be explained.
        """
        from aiaas_magics.explain.attribution_bytes import ExplainResult
        from aiaas_magics.explain.attributions import bytes_per_row
        from aiaas_magics.explain.black_box import black_box_requests, planned_evaluations
        from aiaas_magics.explain.faithfulness import faithfulness_requests
        from aiaas_magics.explain.method_choice import choose_method

        inputs = [tensors[spec.name] for spec in version.spec.inputs]
        self._check_rows(len(inputs[0]))
        with self._seat():
            background = await asyncio.get_running_loop().run_in_executor(EXPLAINING, background_of, version)
            choice = choose_method(inputs, background, settings, has_gradients=False)
            batch_rows = min(self.limits.batch_rows, settings.rows_per_batch(bytes_per_row(inputs)))
            settings = structs.replace(settings, method=choice.method, batch_rows=batch_rows)
            self._check_evaluations(len(inputs[0]), planned_evaluations(inputs, background, settings))
            slices = Slices(version, self.limits, output_of(version, settings), run)
            attributions = await slices.answered(black_box_requests(inputs, background, settings))
            curves = None
            if measures:
                curves = await slices.answered(faithfulness_requests(inputs, background, attributions, settings))
        notes = (*([choice.why] if choice.why else []), *attributions.notes)
        return ExplainResult(attributions=replace(attributions, notes=notes), faithfulness=curves)

    def _check_rows(self, rows: int) -> None:
        if rows > self.limits.rows:
            raise InvalidSpec(
                f"{rows} rows are more than the {self.limits.rows} that one request may have explained. "
                "Ask for fewer at once, or explain the model itself on workers with %aiaas_explain."
            )

    def _check_evaluations(self, rows: int, evaluations: int) -> None:
        if evaluations > self.limits.evaluations:
            raise InvalidSpec(
                f"Explaining {rows} row{'' if rows == 1 else 's'} takes up to {evaluations:,} evaluations of the model, more than the "
                f"{self.limits.evaluations:,} that one request may have. Ask for fewer rows or samples, or explain the model itself on "
                "workers with %aiaas_explain."
            )

    @contextmanager
    def _seat(self) -> Iterator[None]:
        if self.running >= self.limits.at_once:
            raise ExplainerFull(f"{self.running} explanations are running", 1)
        if not self.running:
            self._switch_s = sys.getswitchinterval()
            sys.setswitchinterval(min(SWITCH_S, self._switch_s))
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            if not self.running:
                sys.setswitchinterval(self._switch_s)


EXPLAINER: Final = Explainer()


@dataclass(frozen=True, slots=True)
class Concluded(Generic[T]):
    """The end of a generator of batches, and what came out."""

    result: T


def advance(requests: Generator[PredictBatch, np.ndarray, T], outputs: np.ndarray | None) -> PredictBatch | Concluded[T]:
    """The next rows to compute, or what came out. A generator's end does not travel between threads by itself."""
    try:
        return next(requests) if outputs is None else requests.send(outputs)
    except StopIteration as end:
        return Concluded(end.value)


class Slices:
    """Computes the rows of an explanation in slices of about `slice_s`, with pauses while others want predictions."""

    def __init__(self, version: Version, limits: ExplainLimits, output: str, run: Run) -> None:
        self._version, self._limits, self._output, self._run = version, limits, output, run
        self._dtypes = [None if spec.dtype == "string" else spec.dtype for spec in version.spec.inputs]
        self._names = [spec.name for spec in version.spec.inputs]
        self._rows = limits.least_rows
        self._requests = version.stats.requests
        self._busy_until_s = 0.0

    async def answered(self, requests: Generator[PredictBatch, np.ndarray, T]) -> T:
        """What comes out of a generator of batches, whose own work is done in the thread for explanations."""
        outputs: np.ndarray | None = None
        while True:
            began_s = time.monotonic()
            step = await asyncio.get_running_loop().run_in_executor(EXPLAINING, advance, requests, outputs)
            await self.pause(time.monotonic() - began_s)
            if isinstance(step, Concluded):
                return step.result
            outputs = await self.computed(step.inputs)

    async def computed(self, inputs: list[np.ndarray]) -> np.ndarray:
        """The explained output of these rows.

        Raises:
            DataMismatch: the output has not one row for each row.
        """
        count, parts, start = len(inputs[0]), [], 0
        while start < count:
            stop = min(count, start + self._rows)
            rows = [
                array[start:stop] if dtype is None else array[start:stop].astype(dtype, copy=False)
                for array, dtype in zip(inputs, self._dtypes, strict=True)
            ]
            began_s = time.monotonic()
            outputs = await self._run(
                {name: np.ascontiguousarray(array) for name, array in zip(self._names, rows, strict=True)}, stop - start
            )
            took_s = time.monotonic() - began_s
            part = np.asarray(outputs[self._output])
            if not part.ndim or len(part) != stop - start:
                raise DataMismatch(f"Output {self._output!r} has not one row for each row of the inputs, so it cannot be explained.")
            parts.append(part)
            self._adapt(stop - start, took_s)
            start = stop
            await self.pause(took_s)
        return np.concatenate(parts)

    def _adapt(self, rows: int, took_s: float) -> None:
        """As many rows as take `slice_s`, by the last slice; at most twice as many as that had."""
        executor = self._version.executor
        most = max(1, executor.batch_rows if executor is not None else 1) if self._is_batchable() else 256
        self._rows = max(1, min(most, 2 * rows, int(rows * self._limits.slice_s / max(took_s, 1e-6))))

    def _is_batchable(self) -> bool:
        return self._version.executor is not None and self._version.executor.batch_rows > 0

    async def pause(self, took_s: float) -> None:
        """Leave the others as much time as they are due after so much of ours; nothing where nobody asks for predictions."""
        await asyncio.sleep(self._pause_s(took_s))

    def _pause_s(self, took_s: float) -> float:
        now_s, requests = time.monotonic(), self._version.stats.requests
        if requests != self._requests:
            self._requests, self._busy_until_s = requests, now_s + self._limits.busy_s
        return took_s * (1 / self._limits.share - 1) if now_s < self._busy_until_s else 0.0


def output_of(version: Version, settings: ExplainSettings) -> str:
    """The output that is explained.

    Raises:
        InvalidSpec: the version has no such output.
    """
    names = [spec.name for spec in version.spec.outputs]
    if settings.output and settings.output not in names:
        raise InvalidSpec(f"{version.spec.name} has no output {settings.output[:80]!r}. Use one of: {', '.join(names)[:200]}.")
    return settings.output or names[0]


def background_of(version: Version) -> list[np.ndarray]:
    """The rows that hidden parts of a row take their values from: those that came with the deployment, or else the sample rows."""
    return version.once(_read_background)


def _read_background(version: Version) -> list[np.ndarray]:
    rows = read_background(version.files[1], version.spec)
    return [rows[spec.name] for spec in version.spec.inputs]
