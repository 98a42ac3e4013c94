"""A job, as seen from a notebook or a script.

Owns following a job's log, stopping it, and taking its result back into a live model.
Building and submitting it belongs to `training`; drawing it to `notebook`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Container, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from aiaas_magics.client.transport import Transport
from aiaas_magics.errors import (
    AiaasBug,
    AiaasError,
    BackendTooSlow,
    JobCancelled,
    OutOfMemory,
    RemoteTrainingError,
    WorkersLost,
)
from aiaas_magics.events import Entry, Output, Phase
from aiaas_magics.spec import JobState, JobView
from aiaas_magics.story import JobStory, fold

if TYPE_CHECKING:
    from aiaas_magics.client.feed import Feed
    from aiaas_magics.packing.fitcall import PackedFitCall

POLL_S: Final = 0.25  # a view is redrawn at most four times a second (Jupyter's output limits, facts/notebook)
CANCEL_S: Final = 15.0  # workers get 5 s to end by themselves, then they are killed


class Job:
    """One fit call that the backend carries out.

    It lives on the backend: losing this object, the kernel or the connection does not stop it.
    `await job` and `job.result()` give Keras' `History` and put the trained weights into the model.
    """

    def __init__(
        self,
        transport: Transport,
        view: JobView,
        *,
        packed: PackedFitCall | None = None,
        story: JobStory | None = None,
        released: Callable[[], None] = lambda: None,
        feed: Feed | None = None,
    ) -> None:
        self._transport = transport
        self._view = view
        self._packed = packed
        self._story = story or JobStory()
        self._released = released
        self._feed = feed
        self._taken: Any = None

    @property
    def id(self) -> str:
        return self._view.id

    @property
    def name(self) -> str:
        return self._view.spec.name

    @property
    def state(self) -> JobState:
        """The state now, asked from the backend unless it is final already."""
        return self.view().state

    @property
    def history(self) -> dict[str, list[float]]:
        """The epochs so far: one list a metric, as `History.history`.

        Of hundreds of very short ones not all are told; `result()` has them.
        """
        return self.story().history()

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.name!r}: {self._view.state}>"

    def view(self) -> JobView:
        if not self._view.state.final:
            self._view = self._transport.get(f"/v1/jobs/{self.id}", JobView)
        return self._view

    def story(self) -> JobStory:
        """The whole log so far as one picture; asks the backend for what is new."""
        self._read(wait_s=0.0)
        return self._story

    def entries(self, after: int = 0) -> list[Entry]:
        """The log's entries after sequence number `after`, in order, as they are."""
        found: list[Entry] = []
        while batch := self._transport.get(f"/v1/jobs/{self.id}/events", list[Entry], after=after, wait_s=0):
            found += batch
            after = batch[-1].seq
        return found

    def logs(self) -> str:
        """What the workers printed, each line with its rank where there are several."""
        lines: list[str] = []
        for entry in self.entries():
            if isinstance(entry.event, Output):
                prefix = f"[{entry.rank}] " if self._view.spec.workers not in (None, 1) else ""
                lines += [prefix + line for line in entry.event.text.splitlines()]
        return "\n".join(lines)

    def follow(self, on_change: Callable[[JobStory], None] = lambda _: None, *, timeout_s: float | None = None) -> JobStory:
        """Block until the job's state is final; `on_change` hears every change, at most four times a second.

        `KeyboardInterrupt` passes and leaves the job as it is.

        Raises:
            BackendTooSlow: when `timeout_s` has passed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        on_change(self._story)
        while not self._story.state.final:
            began = time.monotonic()
            if deadline is not None and began > deadline:
                raise BackendTooSlow(f"job {self.id}", timeout_s or 0.0)
            if self._read(wait_s=1.0):
                on_change(self._story)
            time.sleep(max(0.0, POLL_S - (time.monotonic() - began)) if not self._story.state.final else 0.0)
        self.view()
        return self._story

    def wait(self, timeout_s: float | None = None) -> JobState:
        self.follow(timeout_s=timeout_s)
        return self._view.state

    def cancel(self) -> JobState:
        """Stop the job; returns its state when it has stopped. A job that has ended stays as it ended."""
        self._view = self._transport.post(f"/v1/jobs/{self.id}/cancel", None, JobView, key=f"cancel-{self.id}")
        try:
            return self.wait(CANCEL_S)
        finally:
            self._released()

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the end and take the result: Keras' `History`; the model gets the trained state.

        Files that callbacks wrote under relative paths are written into the working directory.

        Raises:
            RemoteTrainingError: the cell's own code raised in a worker; the error is an instance of that Python class too.
                What data that is streamed from here raises, comes as it is.
            WorkersLost, OutOfMemory: the workers did not survive.
            JobCancelled: it was stopped.
            AiaasBug: there is no live model here; use `apply_to(model)` in another kernel.
        """
        if self._taken is not None:
            return self._taken
        self.follow(timeout_s=timeout_s)
        try:
            return self._take(self._story)
        finally:
            self._released()

    def take(self, on_change: Callable[[JobStory], None] = lambda _: None) -> Any:
        """`follow`, then `result`, with the fetching shown as a phase of its own."""
        self.follow(on_change)
        try:
            if self._view.state is JobState.SUCCEEDED:
                self._story = self._story.with_phase(Phase.FETCHING, at_s=time.time())
                on_change(self._story)
            return self._take(self._story)
        finally:
            self._released()
            self._story = self._story.with_phases_closed(at_s=time.time())
            on_change(self._story)

    def apply_to(self, model: Any) -> Any:
        """Put the trained state into `model`, which has the same architecture; returns its `History`.

        For a kernel that did not submit the job. The model's weights, and, where the model is
        compiled alike, optimizer, metric and seed-generator states are assigned.
        """
        from aiaas_magics.packing import fitcall

        self.follow()
        return fitcall.apply_to(fitcall.read_result(self.result_bytes()), model)

    def result_bytes(self) -> bytes:
        """The result as it is stored: a safetensors file (variables by index, JSON header)."""
        view = self.view()
        if view.state is not JobState.SUCCEEDED or view.result is None:
            raise self.failure()
        return self._transport.read(f"/v1/blobs/{view.result}")

    def failure(self) -> AiaasError:
        """Why there is no result, as the exception to raise."""
        view, story = self.view(), self._story
        if self._feed is not None and self._feed.error is not None:
            raise self._feed.error  # the user's own, with its traceback
        if view.state is JobState.CANCELLED:
            return JobCancelled(self.id)
        if not view.state.final:
            return BackendTooSlow(f"job {self.id}", 0.0)
        if story.error is not None:
            return RemoteTrainingError(story.error)
        for lane in story.lanes:
            if lane.state == "lost" and "memory" in lane.detail:
                return OutOfMemory(self.id, lane.rank, lane.detail)
        return WorkersLost(self.id, view.reason or "no reason was recorded", view.attempt)

    def save_files(self, folder: Path, *, appended: Container[str] = ()) -> list[Path]:
        """Write the files of the job's callbacks below `folder`; returns where they are.

        One of the names in `appended` goes behind what is in the file already, without its first line where that is the same.
        """
        written = []
        root = folder.resolve()
        for name in self.view().files:
            target = (root / name).resolve()
            if not target.is_relative_to(root):
                raise AiaasBug(f"the backend named a file outside the working directory: {name[:80]!r}")
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{os.getpid()}.part")
            with self._transport.download(f"/v1/jobs/{self.id}/files/{_quoted(name)}") as chunks, partial.open("wb") as file:
                if name in appended and target.exists():
                    _write_on(file, target.read_bytes(), b"".join(chunks))
                else:
                    file.writelines(chunks)
            partial.replace(target)
            written.append(target)
        return written

    def __await__(self) -> Generator[Any, None, Any]:
        return self._awaited().__await__()

    async def _awaited(self) -> Any:
        """Wait in a thread, so that the kernel's loop stays free; assign in the caller's thread.

        Interrupting an `await` reaches us as `CancelledError`: the job is stopped then.
        """
        try:
            while not self._story.state.final:
                await asyncio.to_thread(self._read, wait_s=1.0)
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.to_thread(self.cancel))
            raise
        return self.result()

    def _read(self, *, wait_s: float) -> bool:
        """Fold what is new into the story; whether there was anything."""
        after = self._story.last_seq
        while True:
            batch = self._transport.get(f"/v1/jobs/{self.id}/events", list[Entry], after=self._story.last_seq, wait_s=wait_s)
            self._story = fold(batch, self._story)
            if len(batch) < 1000:
                return self._story.last_seq > after
            wait_s = 0.0

    def _take(self, story: JobStory) -> Any:
        if self._taken is not None:
            return self._taken
        if self._view.state is not JobState.SUCCEEDED:
            raise self.failure()
        if self._packed is None:
            raise AiaasBug(f"job {self.id} was submitted by another kernel: use job.apply_to(model)")
        from aiaas_magics.packing import fitcall, surroundings

        history = fitcall.apply_result(fitcall.read_result(self.result_bytes()), self._packed)
        self.save_files(Path.cwd(), appended=surroundings.appended(self._packed.callbacks))
        self._taken = history
        return history


def _write_on(file: BinaryIO, before: bytes, after: bytes) -> None:
    head, _, rest = after.partition(b"\n")
    file.write(before + (rest if before.startswith(head) else after))


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="/")
