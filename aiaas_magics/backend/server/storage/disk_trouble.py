"""Disk trouble: keeps track of what holds jobs up while the disk is full.

Owns since when, and for which job: nothing can be recorded, of any job; the disk is full, though nothing has failed yet; or a
single job waits for room. What is done about it belongs to `conductor`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from aiaas_magics.backend.server.storage.quota import Room
from aiaas_magics.core.clock import Clock
from aiaas_magics.core.errors import StoreNotWritable

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0  # a full disk: events stay in the attempt's files until the store takes them
TOLD_S: Final = 2.0  # guess: a disk that has room again after a moment is worth no word


@dataclass(frozen=True, slots=True)
class Trouble:
    """Nothing of a job can be written, since then."""

    error: StoreNotWritable
    since_s: float


class Troubles:
    def __init__(self, room: Room, clock: Clock) -> None:
        self._room, self._clock = room, clock
        self._blocked: Trouble | None = None
        self._full: Trouble | None = None
        self._of: dict[str, Trouble] = {}

    @property
    def blocks_all(self) -> bool:
        """Whether nothing can be recorded."""
        return self._blocked is not None

    def of(self, job: str) -> Trouble | None:
        """What holds the job up: it alone, or everything."""
        return self._blocked or self._full or self._of.get(job)

    def worth_telling(self, job: str) -> StoreNotWritable | None:
        """The error for whoever has waited for news of the job in vain."""
        trouble = self.of(job)
        return trouble.error if trouble is not None and self._clock.monotonic_s() - trouble.since_s > TOLD_S else None

    async def wait_for_records(self, job: str, error: StoreNotWritable) -> None:
        """What happened to `job` could not be recorded: wait before it is tried again."""
        self._blocked = self._since(self._blocked, error, job)
        await asyncio.sleep(RETRY_S)

    def recorded(self) -> None:
        if self._blocked is not None:
            self._blocked = None
            log.info("the state folder can be written again")

    async def wait_for_room(self, job: str, error: StoreNotWritable) -> None:
        """Something of `job` found no room: wait before it is tried again."""
        self._of[job] = self._since(self._of.get(job), error, job)
        await asyncio.sleep(RETRY_S)

    def has_room(self, job: str) -> None:
        self._of.pop(job, None)

    async def watch(self) -> None:
        """Hold the reserve, and see a full disk also while there is nothing to record: workers keep what they have to say in memory."""
        while True:
            try:
                self._room.check_start()
            except StoreNotWritable as error:
                self._full = Trouble(error, self._clock.monotonic_s() if self._full is None else self._full.since_s)
            except OSError as error:  # the folder is gone: whoever writes says so
                log.warning("%s: %s", self._room.folder, error)
            else:
                self._full = None
                if self._blocked is None:
                    await asyncio.to_thread(self._room.hold_reserve)
            await asyncio.sleep(RETRY_S)

    def _since(self, before: Trouble | None, error: StoreNotWritable, job: str) -> Trouble:
        if before is None:
            log.warning("job %s waits: %s", job, error)
        return Trouble(error, self._clock.monotonic_s() if before is None else before.since_s)
