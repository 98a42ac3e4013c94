"""Recorder: keeps a sample of the requests and answers of an endpoint, for those who asked for it.

Owns which requests are chosen and that nobody waits for it: a chosen request is put aside in the event loop as references to its arrays,
within bounds, and a thread makes bytes of it twice a second. What is over the bounds is dropped and counted. Files belong to
`folders.record_folder`, the comparison with the reference to `core.drift`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from threading import Lock
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from msgspec.structs import replace as replace_fields

from aiaas_magics.backend.folders.record_folder import RecordFolder, newest_frames
from aiaas_magics.core.drift.drift_features import features_of
from aiaas_magics.core.drift.drift_report import compared
from aiaas_magics.core.drift.drift_values import DriftReport
from aiaas_magics.core.recorded_arrays import array_of, tensor_of
from aiaas_magics.core.recording import (
    RecordedRequest,
    RecordedTensor,
    RecordingCounts,
    RecordingPolicy,
    frame_of,
    requests_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiaas_magics.core.spec import DeploySpec

log = logging.getLogger(__name__)

FLUSH_S: Final = 0.5  # what a process that is killed loses at most; guess
DRIFT_S: Final = 60.0  # guess: how often the drift in the metrics is computed anew, where something new was recorded
WAITING: Final = 512  # guess: chosen requests that may wait for the thread
WAITING_BYTES: Final = 32 * 1024 * 1024  # guess: of their arrays
MOST_ROWS: Final = 256  # guess: of one request; a few large requests are not to be all there is
COPIED_BYTES: Final = 64 * 1024  # guess: copying takes some microseconds
DRIFT_BYTES: Final = 16 * 1024 * 1024  # guess: of the newest requests, which drift is computed on: 100,000 rows of 20 numbers
DRIFT_ROWS: Final = 10_000  # guess: more rows make no other picture; 0.15 s of CPU for 60 columns

Arrays = Mapping[str, np.ndarray]


class ChosenRequest(msgspec.Struct, frozen=True):
    """A request that is to be written. Its arrays are those of the request itself, which nobody changes any more."""

    time_s: float
    version: int
    id: str
    rows: int | None
    inputs: Arrays
    outputs: Arrays


class Recorder:
    """Chooses requests of one endpoint. It is called in the event loop only.

    Args:
        draw: Gives numbers in (0, 1]; by them requests are chosen.

    Attributes:
        latest: What was recorded when the thread had written last; the thread sets it.
        dropped: Requests that were chosen while too many waited for the thread, since this process began.
    """

    def __init__(self, policy: RecordingPolicy, *, draw: Callable[[], float] = lambda: 1.0 - random.random()) -> None:
        self._draw = draw
        self._waiting: list[ChosenRequest] = []
        self._bytes = 0
        self.latest = RecordingCounts()
        self.dropped = 0
        self.policy = policy

    @property
    def counts(self) -> RecordingCounts:
        return replace_fields(self.latest, policy=self.policy, dropped=self.latest.dropped + self.dropped)

    @property
    def policy(self) -> RecordingPolicy:
        return self._policy

    @policy.setter
    def policy(self, policy: RecordingPolicy) -> None:
        self._policy = policy
        self._skips = self._gap()

    def _gap(self) -> int:
        """How many requests are passed over before the next one: one draw per chosen request, none for the others."""
        share = self._policy.share
        return int(math.log(self._draw()) / math.log1p(-share)) if 0 < share < 1 else 0

    def offer(self, version: int, inputs: Arrays, outputs: Arrays, *, rows: int | None, id: str | None) -> None:
        """A request that was answered. `id` is its caller's own."""
        if self._skips:
            self._skips -= 1
            return
        self._skips = self._gap()
        with quietly("recording a request"):
            self._keep(ChosenRequest(time.time(), version, id or "", rows, own(inputs), own(outputs)))

    def passes_over(self, count: int) -> bool:
        """Whether none of so many requests that were answered together is chosen; else they are to be offered."""
        if self._skips < count:
            return False
        self._skips -= count
        return True

    def offer_batch(self, version: int, inputs: Arrays, outputs: Arrays, rows: Sequence[int]) -> None:
        """Requests that were answered together and not passed over: `rows` says how many rows each of them has."""
        ends, place = np.cumsum(rows).tolist(), self._skips
        with quietly("recording requests"):
            while place < len(rows):
                part = slice(ends[place] - rows[place], ends[place])
                cut = [{name: array[part] for name, array in arrays.items()} for arrays in (inputs, outputs)]
                self._keep(ChosenRequest(time.time(), version, "", rows[place], *map(own, cut)))
                place += 1 + self._gap()
        self._skips = max(0, place - len(rows))

    def _keep(self, request: ChosenRequest) -> None:
        nbytes = bytes_of(request.inputs) + bytes_of(request.outputs)
        if len(self._waiting) >= WAITING or (self._waiting and self._bytes + nbytes > WAITING_BYTES):
            self.dropped += 1
            return
        self._waiting.append(request)
        self._bytes += nbytes

    def take(self) -> list[ChosenRequest]:
        """What waits, to be written now."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        return waiting


@dataclass(slots=True, eq=False)
class EndpointRecording:
    """What is recorded of an endpoint. The folder is touched under the lock, by one thread at a time."""

    recorder: Recorder
    folder: RecordFolder
    lock: Lock
    written: int = 0  # requests, since this process began
    lost: int = 0  # to a full disk
    too_large: int = 0

    def write(self, requests: Sequence[ChosenRequest], now_s: float) -> None:
        """In a thread: make bytes of requests and append them, and remove what is too old."""
        policy = self.recorder.policy
        with self.lock:
            self.folder.sweep(policy, now_s)
            frames = []
            for chosen in requests:
                try:
                    request = recorded(chosen, policy.part_bytes)
                    frame = b"" if request is None else frame_of(request)
                except Exception:  # border: outputs of any model are made bytes of here; one that cannot be costs no other
                    log.exception("a request was not recorded")
                    self.lost += 1
                    continue
                if request is None or len(frame) > policy.part_bytes:
                    self.too_large += 1
                else:
                    frames.append((request, frame))
            if frames:
                written = self.folder.append(frames, policy)
                self.written += written
                self.lost += len(frames) - written
            self._count()

    def _count(self) -> None:
        files = self.folder.files
        self.recorder.latest = RecordingCounts(
            requests=sum(file.requests for file in files),
            rows=sum(file.rows for file in files),
            bytes=self.folder.size,
            oldest_s=files[0].since_s if files else None,
            newest_s=files[-1].newest_s if files else None,
            dropped=self.lost,
            too_large=self.too_large,
        )

    def clear(self) -> None:
        """In a thread: remove all that was written."""
        with self.lock:
            self.folder.clear()
            self._count()

    def rows_of(self, version: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], float, float]:
        """Inputs and outputs of the newest recorded rows of a version, and the unix times of the oldest and the newest of them."""
        with self.lock:
            parts = newest_frames(self.folder.path, most_bytes=DRIFT_BYTES)
        requests = [request for part in parts for request, _ in requests_in(part) if request.version == version]
        chosen, rows = list[RecordedRequest](), 0
        for request in reversed(requests):
            if rows >= DRIFT_ROWS:
                break
            chosen.append(request)
            rows += request.rows
        times = [request.time_s for request in chosen]
        inputs = joined([request.inputs for request in chosen])
        outputs = joined([request.outputs for request in chosen])
        return inputs, outputs, min(times, default=0.0), max(times, default=0.0)


class Recordings:
    """The recordings of all endpoints of a process.

    Args:
        folder: Each endpoint that is recorded has a folder of its name in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._recordings: dict[str, EndpointRecording] = {}
        self._flushing = asyncio.Lock()

    async def apply(self, name: str, policy: RecordingPolicy) -> Recorder | None:
        """Record an endpoint as `policy` says from now on; the recorder to offer its requests to, None where it is off."""
        recording = self._recordings.get(name)
        if recording is None:
            path = self._folder / name
            if not policy.is_on and not path.exists():
                return None
            folder = await asyncio.to_thread(RecordFolder, path)
            recording = self._recordings.setdefault(name, EndpointRecording(Recorder(policy), folder, Lock()))
            await asyncio.to_thread(recording.write, [], time.time())  # removes what has become too old while no process was here
        recording.recorder.policy = policy
        return recording.recorder if policy.is_on else None

    async def flush(self, *only: EndpointRecording) -> None:
        """Write what waits, of some endpoints or of all, and remove what is too old."""
        async with self._flushing:
            for recording in only or tuple(self._recordings.values()):
                requests, now_s = recording.recorder.take(), time.time()
                if requests or recording.folder.files:
                    await asyncio.to_thread(recording.write, requests, now_s)

    async def counts(self, name: str) -> RecordingCounts:
        """What is recorded of an endpoint, all that was answered before this call among it."""
        recording = self._recordings.get(name)
        if recording is None:
            return RecordingCounts()
        await self.flush(recording)
        return recording.recorder.counts

    async def forget(self, name: str) -> None:
        """Remove what is recorded of an endpoint, what waits to be written too. Recording itself goes on."""
        recording = self._recordings.get(name)
        if recording is not None:
            async with self._flushing:
                recording.recorder.take()
                await asyncio.to_thread(recording.clear)
        else:
            await asyncio.to_thread(rmtree, self._folder / name, ignore_errors=True)

    async def drop(self, name: str) -> None:
        """An endpoint is gone: nothing of it stays."""
        await self.forget(name)
        self._recordings.pop(name, None)

    def keep_only(self, names: Collection[str]) -> None:
        """Remove the folders of endpoints that are no more; before anything is recorded."""
        with suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                if path.name not in names:
                    rmtree(path, ignore_errors=True)

    async def drift(self, spec: DeploySpec, version: int) -> DriftReport:
        """How the recorded rows of a version differ from the reference that came with it."""
        recording = self._recordings.get(spec.name)
        if recording is not None:
            await self.flush(recording)
        return await asyncio.to_thread(_drift, spec, version, recording)

    def written(self, name: str) -> int:
        """How many requests of an endpoint were written since this process began: whether anything is new."""
        recording = self._recordings.get(name)
        return 0 if recording is None else recording.written


def _drift(spec: DeploySpec, version: int, recording: EndpointRecording | None) -> DriftReport:
    inputs, outputs, since_s, until_s = ({}, {}, 0.0, 0.0) if recording is None else recording.rows_of(version)
    features = [*features_of("input", inputs), *features_of("output", outputs)]
    rows = len(next(iter(inputs.values()))) if inputs else 0
    return compared(spec.name, version, spec.reference, features, rows=rows, since_s=since_s, until_s=until_s)


def own(arrays: Arrays) -> Arrays:
    """Arrays that do not hold on to much more than themselves: a small part of a batch or a body is copied."""
    return {name: array.copy() if array.base is not None and array.nbytes <= COPIED_BYTES else array for name, array in arrays.items()}


def bytes_of(arrays: Arrays) -> int:
    """What arrays take in memory, with their texts."""
    return sum([sum(map(len, array.ravel().tolist())) if array.dtype.hasobject else array.nbytes for array in arrays.values()])


def recorded(chosen: ChosenRequest, most_bytes: int) -> RecordedRequest | None:
    """A request as it is written; of a large one so many of its rows as may be, chosen evenly over them. None if not even one may."""
    inputs, outputs, rows = chosen.inputs, chosen.outputs, chosen.rows
    nbytes, count = bytes_of(inputs) + bytes_of(outputs), rows or 0
    if rows and all(array.ndim and len(array) == rows for arrays in (inputs, outputs) for array in arrays.values()):
        fits = int(0.9 * most_bytes) // max(1, nbytes // rows)  # the rest is for names and shapes
        count = min(rows, MOST_ROWS, fits)
        if count < 1:
            return None
        if count < rows:
            # Of equal parts of the request one row each: rows beside one another are often alike.
            places = (np.arange(count) * rows) // count + np.random.default_rng().integers(0, max(1, rows // count), count)
            inputs, outputs = ({name: array[places] for name, array in arrays.items()} for arrays in (inputs, outputs))
    elif nbytes > most_bytes:
        return None
    return RecordedRequest(
        time_s=chosen.time_s,
        version=chosen.version,
        id=chosen.id or os.urandom(8).hex(),
        rows=count,
        rows_of=rows or 0,
        inputs=tuple(tensor_of(name, array) for name, array in inputs.items()),
        outputs=tuple(tensor_of(name, array) for name, array in outputs.items()),
    )


def joined(requests: Sequence[tuple[RecordedTensor, ...]]) -> dict[str, np.ndarray]:
    """The rows of all requests by the tensors' names. Requests with rows of another shape than the first are left out."""
    if not requests:
        return {}
    by_name: dict[str, list[np.ndarray]] = {tensor.name: [] for tensor in requests[0]}
    shapes = {tensor.name: tensor.shape[1:] for tensor in requests[0]}
    for tensors in requests:
        if {tensor.name: tensor.shape[1:] for tensor in tensors} == shapes:
            for tensor in tensors:
                by_name[tensor.name].append(array_of(tensor))
    return {name: np.concatenate(arrays) for name, arrays in by_name.items()}


@contextmanager
def quietly(what: str) -> Iterator[None]:
    """A fault of recording costs what was to be recorded, and nothing else."""
    try:
        yield
    except Exception:  # border: nobody who asks for a prediction is to notice that recording failed
        log.exception("%s failed", what)
