"""Dataset feed: sends data that stays in this kernel to a job, batch by batch while it trains.

Owns the threads that do it, one for each argument of `fit`, and one that says that the kernel is there.
They end with the job. The job asks for passes over the data, and no more batches are sent than it is
about to read. Making batches belongs to `batch_sources`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from aiaas_magics.client.transport import Transport
from aiaas_magics.core.errors import AiaasError, StoreNotWritable, UsageError
from aiaas_magics.core.feed_frames import FeedView, FrameKind, encode

if TYPE_CHECKING:
    from aiaas_magics.packing.data.batch_sources import Stream

AHEAD: Final = 8  # batches that wait at the backend; guess: more would be memory, fewer would be felt over a network
POLL_S: Final = 10.0
BEAT_S: Final = 5.0
ROOM_LOOK_S: Final = 1.0


class Feed:
    """Sends what `streams` yield to a job, from now on until the job has ended. `error` is what the user's data raised."""

    def __init__(self, transport: Transport, job: str, streams: Sequence[Stream]) -> None:
        self._transport, self._job = transport, job
        self._ended = threading.Event()
        self.error: BaseException | None = None
        self._start(lambda: self._beat([stream.name for stream in streams]), "aiaas-feed-beat")
        for stream in streams:
            self._start(partial(self._feed, stream), f"aiaas-feed-{stream.name}")

    def _start(self, run: Callable[[], None], name: str) -> None:
        def until_backend_is_gone() -> None:
            try:
                run()
            except AiaasError as error:  # whoever waits for the job hears of it
                self.error = self.error or error
                self._ended.set()

        threading.Thread(target=until_backend_is_gone, name=f"{name}-{self._job}", daemon=True).start()

    def _feed(self, stream: Stream) -> None:
        done = -1
        view = self._view(stream.name)
        while view.open:
            if view.reading > done:
                done = view.reading
                self._send_pass(stream, done, view)
            view = self._changed(stream.name, view)
        self._ended.set()

    def _send_pass(self, stream: Stream, number: int, view: FeedView) -> None:
        index = 0
        try:
            for batch in stream.one_pass():
                while view.open and view.reading == number and view.waiting >= AHEAD:
                    view = self._changed(stream.name, view)
                if not view.open or view.reading != number:
                    return
                view = self._put(stream.name, number, index, batch)
                index += 1
        except AiaasError as error:
            if not isinstance(error, UsageError):
                raise
            self.error = error
            self._put(stream.name, number, index, encode(FrameKind.FAILED, [str(error)[:1000].encode()]))
            return
        except BaseException as error:  # noqa: BLE001 - border: the user's data is iterated here
            self.error = error
            self._put(stream.name, number, index, encode(FrameKind.FAILED, [f"{type(error).__name__}: {error}."[:500].encode()]))
            return
        self._put(stream.name, number, index, encode(FrameKind.END))

    def _put(self, name: str, number: int, index: int, frame: bytes) -> FeedView:
        while True:
            try:
                return self._transport.put(f"/v1/jobs/{self._job}/feed/{name}/{number}/{index}", frame, FeedView)
            except StoreNotWritable:  # the job waits for room too
                if self._ended.wait(ROOM_LOOK_S):
                    raise

    def _view(self, name: str) -> FeedView:
        return self._transport.get(f"/v1/jobs/{self._job}/feed/{name}", FeedView)

    def _changed(self, name: str, view: FeedView) -> FeedView:
        """The next view that is another one, or the same after a while."""
        return self._transport.get(f"/v1/jobs/{self._job}/feed/{name}", FeedView, known=str(view), wait_s=POLL_S)

    def _beat(self, names: Sequence[str]) -> None:
        """The user's data may take its time; the backend must not think that the kernel is gone."""
        while not self._ended.wait(BEAT_S):
            if not any(self._view(name).open for name in names):
                self._ended.set()
