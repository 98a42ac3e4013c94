"""Job: a submitted fit call, for a notebook or a script.

Owns following a job's log, stopping it, and taking its result back into a live model.
Building and submitting it belongs to `submission`; drawing it to `notebook`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import warnings
from collections.abc import Callable, Container, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiaas_magics.client.training import private_training, returned_files
from aiaas_magics.client.transport import Transport
from aiaas_magics.core import errors, wire
from aiaas_magics.core.contract import APPENDED, OPENED
from aiaas_magics.core.errors import (
    AiaasBug,
    AiaasError,
    BackendRefused,
    BackendTooSlow,
    BlobDamaged,
    InvalidSpec,
    JobCancelled,
    OutOfMemory,
    RemoteTrainingError,
    ResultRemoved,
    StoreNotWritable,
    WorkersLost,
)
from aiaas_magics.core.events import MOST_FIGURE_BYTES, Entry, Output, Phase
from aiaas_magics.core.printout import Printout
from aiaas_magics.core.privacy import PrivacySpent
from aiaas_magics.core.spec import JobState, JobView
from aiaas_magics.core.story import JobStory, fold
from aiaas_magics.core.training_record import TrainingRecord

if TYPE_CHECKING:
    from aiaas_magics.client.training.dataset_feed import Feed
    from aiaas_magics.packing.fitcall.fit_call import PackedFitCall

POLL_S: Final = 0.25  # a view is redrawn at most four times a second (Jupyter's output limits, facts/notebook)
KEPT_RESULTS: Final = "those of the newest 100 jobs and of the last 30 days, and fewer where the disk is full"  # `server.retention`
PNG: Final = b"\x89PNG\r\n\x1a\n"  # how each one begins
READ_GAP_S: Final = 0.03  # guess: workers tell four times a second, and the server looks for it twenty times
POLL_ANSWER_S: Final = 20.0  # guess: a poll waits a second at most, and a server at full load takes some
CANCEL_S: Final = 15.0  # workers get 5 s to end by themselves, then they are killed


class Job:
    """One fit that the backend carries out. `Backend.train` and `Backend.job` make it.

    The job lives on the backend: losing this object, the kernel or the connection does not stop it.
    `await job` and `job.result()` put the trained weights into the model and return Keras' `History`.

    Attributes:
        files: the files that callbacks wrote, once the result has been taken: name, path here (None: on the backend
            only), and why it has another name here.
        printout: the lines that worker 0 printed, as far as they have been read.
        hardware: the backend's hardware in one line, if this process submitted the job.
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
        hardware: str = "",
    ) -> None:
        self._transport = transport
        self._view = view
        self._packed = packed
        self._story = story or JobStory()
        self._released = released
        self._feed = feed
        self._fetched: Any = None
        self.hardware = hardware  # of the backend, in one line; "" where that is not known
        self.printout = Printout()  # of what was read of the log
        self.files: tuple[returned_files.ReturnedFile, ...] = ()  # what the callbacks wrote, once the result is here

    @property
    def id(self) -> str:
        """The job's id on its backend."""
        return self._view.id

    @property
    def name(self) -> str:
        """The name that the job was submitted with."""
        return self._view.spec.name

    @property
    def state(self) -> JobState:
        """The state now: queued, running, stopping, succeeded, failed or cancelled. Asks the backend unless the state is final."""
        return self.view().state

    @property
    def history(self) -> dict[str, list[float]]:
        """The epochs so far, as in `History.history`: one list per metric, one number per epoch.

        Of hundreds of very short epochs some are missing; `result()` has all.
        """
        return self.story().history()

    @property
    def privacy(self) -> PrivacySpent | None:
        """The guarantee of a private job after the epochs so far, with earlier private fits of the model; None for other jobs."""
        spec = self._view.spec
        if spec.execution.private is None:
            return None
        rows = self.story().rows
        return private_training.guarantee(
            spec.execution.private, spec.shape, epochs=rows[-1].epoch + 1 if rows else spec.shape.initial_epoch
        )

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.name!r}: {self._view.state}>"

    def view(self) -> JobView:
        """The backend's record of the job. Times are unix times in seconds."""
        if not self._view.state.final:
            self._view = self._transport.get(f"/v1/jobs/{self.id}", JobView)
        return self._view

    def story(self) -> JobStory:
        """The log so far, folded into one value: epochs, metrics, workers, plan, error. Asks the backend for what is new."""
        self._read(wait_s=0.0)
        return self._story

    def entries(self, after: int = 0) -> list[Entry]:
        """Fetch entries of the log, in order.

        Args:
            after: the sequence number of the last entry to leave out; 0 fetches all.
        """
        entries: list[Entry] = []
        while batch := self._transport.get(f"/v1/jobs/{self.id}/events", list[Entry], after=after, wait_s=0):
            entries += batch
            after = batch[-1].seq
        return entries

    def logs(self) -> str:
        """Fetch what the workers printed. Each line begins with its worker's rank if there are several workers."""
        lines: list[str] = []
        for entry in self.entries():
            if isinstance(entry.event, Output):
                prefix = f"[{entry.rank}] " if self._view.spec.workers not in (None, 1) else ""
                lines += [prefix + line for line in entry.event.text.split("\n")]
        return "\n".join(lines)

    def figure(self, attempt: int, number: int) -> bytes:
        """Fetch a figure that the job's code showed, as the bytes of a PNG file.

        Args:
            attempt: the attempt, from 1.
            number: the figure's number within the attempt, from 1.

        Raises:
            UnknownName: the backend does not have this figure, or no longer.
            BackendRefused: the file is no PNG, or larger than 5 MB.
        """
        with self._transport.download(f"/v1/jobs/{self.id}/figures/{attempt}/{number}") as incoming:
            data = b"".join(incoming.chunks) if incoming.size <= MOST_FIGURE_BYTES else b""
        if not data.startswith(PNG):
            raise BackendRefused(200, f"Figure {number} of job {self.id} is no PNG of at most {MOST_FIGURE_BYTES / 1e6:.0f} MB.")
        return data

    def follow(self, on_change: Callable[[JobStory], None] = lambda _: None, *, timeout_s: float | None = None) -> JobStory:
        """Wait until the job has ended. `KeyboardInterrupt` passes and leaves the job running.

        Args:
            on_change: called with the story at every change, at most four times per second.
            timeout_s: seconds to wait; None waits without end.

        Raises:
            BackendTooSlow: `timeout_s` has passed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        on_change(self._story)
        shown_s, is_shown = time.monotonic(), True
        while not self._story.state.final:
            now_s = time.monotonic()
            if deadline is not None and now_s > deadline:
                raise BackendTooSlow(f"job {self.id}", timeout_s or 0.0)
            # What waits to be shown is read on meanwhile: the end is heard when it comes.
            is_shown &= not self._read(wait_s=1.0 if is_shown else max(0.0, shown_s + POLL_S - now_s))
            if not is_shown and (self._story.state.final or time.monotonic() >= shown_s + POLL_S):
                on_change(self._story)
                shown_s, is_shown = time.monotonic(), True
            if not self._story.state.final:
                time.sleep(READ_GAP_S)
        self.view()
        return self._story

    def wait(self, timeout_s: float | None = None) -> JobState:
        """Wait until the job has ended; raises nothing if it failed.

        Args:
            timeout_s: seconds to wait; None waits without end.

        Returns:
            The final state.

        Raises:
            BackendTooSlow: `timeout_s` has passed.
        """
        self.follow(timeout_s=timeout_s)
        return self._view.state

    def cancel(self) -> JobState:
        """Stop the job, and wait up to 15 s until it has stopped. A job that has ended stays as it ended.

        Returns:
            The state then.

        Raises:
            BackendTooSlow: it has not stopped by then.
        """
        self._view = self._transport.post(f"/v1/jobs/{self.id}/cancel", None, JobView, key=f"cancel-{self.id}")
        try:
            return self.wait(CANCEL_S)
        except StoreNotWritable:  # it is told to stop; that it has cannot be recorded before there is room
            return self._view.state
        finally:
            self._released()

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait until the job has ended, and put the trained state into the model.

        Files that callbacks wrote under relative paths come into the working directory; `files` lists them. They
        never replace a file that no job wrote: such a file goes into `aiaas_files/JOB/`, and a warning says so.

        Args:
            timeout_s: seconds to wait; None waits without end.

        Returns:
            Keras' `History`.

        Raises:
            RemoteTrainingError: your code raised in a worker. The error is an instance of that Python class too. An
                error of data that is streamed from this kernel is raised as it is.
            WorkersLost: workers died more often than `retries` allows.
            OutOfMemory: the machine ended a worker for its memory.
            JobCancelled: the job was stopped.
            ResultRemoved: the result was removed to make room on the backend's disk.
            BackendTooSlow: `timeout_s` has passed.
            AiaasBug: another kernel submitted the job; use `apply_to(model)`.
        """
        if self._fetched is not None:
            return self._fetched
        self.follow(timeout_s=timeout_s)
        try:
            history = self._take(self._story)
        finally:
            self._released()
        self._warn_of_files()
        return history

    def take(self, on_change: Callable[[JobStory], None] = lambda _: None) -> Any:
        """`follow`, then `result`, with fetching as a phase of the story.

        Args:
            on_change: called with the story at every change, at most four times per second.
        """
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
        """Wait until the job has ended, and put the trained state into `model`: for a kernel that did not submit the job.

        Args:
            model: a Keras model with the same architecture. Its weights are assigned; if it is compiled alike, so are
                the states of optimizer, metrics and seed generators.

        Returns:
            Keras' `History`.

        Raises:
            ResultMismatch: the model has other variables. It stays as it is.
            AiaasError: as in `result`, if the job did not succeed.
        """
        from aiaas_magics.packing.fitcall import fit_call

        self.follow()
        history = fit_call.apply_to(fit_call.read_result(self.result_bytes()), model)
        private_training.record(model, self._view.spec, epochs=epochs_of(history))
        return history

    def result_bytes(self) -> bytes:
        """Fetch the result as it is stored: a safetensors file (variables by index, JSON header).

        Raises:
            ResultRemoved: the result was removed to make room on the backend's disk.
            BlobDamaged: its bytes changed on the backend's disk.
            AiaasError: as in `result`, if the job did not succeed.
        """
        view = self.view()
        if view.removed_s is None and view.state is JobState.SUCCEEDED:  # it is known as over, and may have been removed since
            view = self._view = self._transport.get(f"/v1/jobs/{self.id}", JobView)
        if view.removed_s is not None and view.state is JobState.SUCCEEDED:
            raise ResultRemoved(self.id, KEPT_RESULTS)
        if view.state is not JobState.SUCCEEDED or view.result is None:
            raise self.failure()
        data = self._transport.read(f"/v1/blobs/{view.result}")
        if hashlib.sha256(data).hexdigest() != view.result:
            raise BlobDamaged(view.result, "its bytes changed on the backend's disk")
        return data

    def record(self) -> TrainingRecord:
        """Fetch what the job was trained from: versions, packages, code of the cell, seeds, fingerprints of the data, machine.

        Raises:
            ResultRemoved: it was removed with the result, to make room on the backend's disk.
            InvalidSpec: the job has none: it measured a study, or another version of this package submitted it.
        """
        view = self._view = self._transport.get(f"/v1/jobs/{self.id}", JobView)
        if not view.spec.record:
            raise InvalidSpec(
                f"Job {self.id} has no record of what it was trained from. Give a job that this version of aiaas_magics trained."
            )
        if view.removed_s is not None:
            raise ResultRemoved(self.id, KEPT_RESULTS)
        data = self._transport.read(f"/v1/blobs/{view.spec.record}")
        if hashlib.sha256(data).hexdigest() != view.spec.record:
            raise BlobDamaged(view.spec.record, "its bytes changed on the backend's disk")
        return wire.decode(data, TrainingRecord)

    def failure(self) -> AiaasError:
        """The exception that says why there is no result, to be raised."""
        view, story = self.view(), self._story
        if self._feed is not None and self._feed.error is not None:
            raise self._feed.error  # the user's own, with its traceback
        if view.state is JobState.CANCELLED:
            return JobCancelled(self.id)
        if not view.state.final:
            return BackendTooSlow(f"job {self.id}", 0.0)
        if story.error is not None and (fault := errors.rebuilt(story.error.kind, story.error.args)) is not None:
            return fault
        if story.error is not None:
            return RemoteTrainingError(story.error)
        for lane in story.lanes:
            if lane.state == "lost" and "memory" in lane.detail:
                return OutOfMemory(self.id, lane.rank, lane.detail)
        return WorkersLost(self.id, view.reason or "no reason was recorded", view.attempt)

    def save_files(self, folder: Path) -> list[Path]:
        """Fetch the files that the job's callbacks wrote.

        Args:
            folder: where to put them. A file whose name is taken by a file that no job wrote, or that could be run,
                goes into `aiaas_files/JOB/` below.

        Returns:
            The paths of the files here.
        """
        self._bring_files(folder)
        return [file.path for file in self.files if file.path is not None]

    def _bring_files(self, folder: Path, logs: Container[str] = ()) -> tuple[str, ...]:
        """Bring what is not here yet; the sentences that say what came where."""
        files_here = [file for file in self.files if file.path is not None]
        own_files = {file.name for file in files_here}
        names = [name for name in self.view().files if name not in own_files]
        new = returned_files.save(self.id, names, folder, fetch=self._file, logs=logs)
        self.files = (*files_here, *new)
        return returned_files.sentences(self.id, new)

    @contextmanager
    def _file(self, name: str) -> Iterator[_JobFile]:
        with self._transport.download(f"/v1/jobs/{self.id}/files/{_quoted(name)}") as incoming:
            yield _JobFile(incoming.size, incoming.chunks, incoming.headers.get(OPENED) == APPENDED)

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
            batch = self._transport.get(
                f"/v1/jobs/{self.id}/events", list[Entry], answer_s=POLL_ANSWER_S, after=self._story.last_seq, wait_s=wait_s
            )
            self._story = fold(batch, self._story)
            self.printout.add(batch)
            if len(batch) < 1000:
                return self._story.last_seq > after
            wait_s = 0.0

    def _take(self, story: JobStory) -> Any:
        if self._fetched is not None:
            return self._fetched
        if self._view.state is not JobState.SUCCEEDED:
            raise self.failure()
        if self._packed is None:
            raise AiaasBug(f"job {self.id} was submitted by another kernel: use job.apply_to(model)")
        from aiaas_magics.packing.fitcall import fit_call, working_folder

        history = fit_call.apply_result(fit_call.read_result(self.result_bytes()), self._packed)
        if self._packed.callbacks:  # a fit without them writes no file
            notices = self._bring_files(Path.cwd(), working_folder.appended(self._packed.callbacks))
            self._story = replace(self._story, notices=(*self._story.notices, *notices))
        private_training.record(self._packed.model, self._view.spec, epochs=epochs_of(history))
        self._fetched = history
        self._remember_for_card()
        return history

    def _remember_for_card(self) -> None:
        """The model's card says where its weights come from."""
        from aiaas_magics.client.card import card_records
        from aiaas_magics.packing.live.model_variables import steps_made

        assert self._packed is not None
        model = self._packed.model
        record = card_records.of_model(model)
        record.training = card_records.ModelTraining(
            view=self._view, story=self._story, manifest=self._packed.manifest, hardware=self.hardware, steps=steps_made(model)
        )

    def _warn_of_files(self) -> None:
        """Where no view shows the story: say what is not under its own name."""
        astray = [file for file in self.files if file.why]
        for line in returned_files.sentences(self.id, astray):
            warnings.warn(line, stacklevel=3)


@dataclass(frozen=True, slots=True)
class _JobFile:
    size: int
    chunks: Iterable[bytes]
    appended: bool


def epochs_of(history: Any) -> int:
    """The number of the epoch after the last one of a `History`."""
    return 1 + max(history.epoch, default=-1)


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="/")
