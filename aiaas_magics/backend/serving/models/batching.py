"""Batching: the queue of a version, and which of its requests run together.

Owns the queue's rules, and nothing that waits: no thread, no clock, no array is
touched. Threads that take from the queue belong to `replicas`.

The rules: first come, first run. A batch is formed at the moment an executor is free, from
what waits then; nobody waits for company unless told to. Requests run together when their rows may be
stacked (the same key) and the batch stays within `batch_rows`; the first that does not fit
closes the batch, so that no request is overtaken.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may wait, and how much may run at once."""

    batch_rows: int = 256  # guess: beyond this a batch gains little on a CPU and makes its members wait
    waiting: int = 1024  # guess: requests; more would be answered after their callers gave up
    waiting_bytes: int = 256 * 1024 * 1024  # guess: four requests of the largest body that is taken
    body_bytes: int = 64 * 1024 * 1024  # of one request; as Triton's --http-max-input-size
    oldest_s: float = 10.0  # guess: with a queue this old, a quick refusal helps more than a late answer
    compute_s: float = 60.0  # guess: of one batch; a caller has given up by then, as our own client does
    delay_s: float = 0.0  # how long the first of a batch may be held back for company; nobody waits unless asked to


class TooLate(Exception):
    """A request's own time was over before it ran."""

    def __str__(self) -> str:
        return "The request's timeout was over before it could run. Try again, or allow more time."


class QueueFull(Exception):
    """Nothing more may wait now; `retry_after_s` is when to try again."""

    def __init__(self, why: str, retry_after_s: int) -> None:
        super().__init__(why, retry_after_s)
        self.why, self.retry_after_s = why, retry_after_s

    def __str__(self) -> str:
        return f"The model is busy: {self.why}. Try again in {self.retry_after_s} s."


class Waiting(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One request in the queue. A `key` of None never shares a batch."""

    item: T
    key: Hashable | None
    rows: int
    bytes: int
    since_s: float
    until_s: float = math.inf  # after that nobody waits for the answer any more


@dataclass(slots=True)
class BatchQueue(Generic[T]):
    """First come, first run; bounded by number, bytes and age."""

    limits: Limits
    _waiting: deque[Waiting[T]] = field(default_factory=deque)
    _bytes: int = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, request: Waiting[T], *, now_s: float) -> None:
        """Let `request` wait.

        Raises:
            QueueFull: it was not taken in.
        """
        if self._waiting:
            if len(self._waiting) >= self.limits.waiting:
                raise QueueFull(f"{len(self._waiting)} requests are waiting", 1)
            if self._bytes + request.bytes > self.limits.waiting_bytes:
                raise QueueFull("the waiting requests fill the memory set aside for them", 1)
            if now_s - self._waiting[0].since_s > self.limits.oldest_s:
                raise QueueFull(f"the first in the queue has waited for more than {self.limits.oldest_s:g} s", int(self.limits.oldest_s))
        self._waiting.append(request)
        self._bytes += request.bytes

    def overdue(self, now_s: float) -> list[Waiting[T]]:
        """Take out those at the front that came too late to run."""
        late = []
        while self._waiting and self._waiting[0].until_s < now_s:
            late.append(self._pop())
        return late

    def take(self) -> tuple[list[Waiting[T]], str]:
        """What runs next, together, and what closed the batch; empty when nothing waits."""
        if not self._waiting:
            return [], ""
        batch = [self._pop()]
        key, rows = batch[0].key, batch[0].rows
        while key is not None and self._waiting:
            following = self._waiting[0]
            if following.key != key:
                return batch, "other shape"
            if rows + following.rows > self.limits.batch_rows:
                return batch, "full"
            rows += following.rows
            batch.append(self._pop())
        return batch, "alone" if key is None else "all that waited"

    def take_all(self) -> list[Waiting[T]]:
        """All that waits: it will not run."""
        return [self._pop() for _ in range(len(self._waiting))]

    def wait_s(self, now_s: float) -> float:
        """How long a batch may still be held back for company: 0 unless somebody chose to wait."""
        if not self._waiting or self.limits.delay_s <= 0 or sum(request.rows for request in self._waiting) >= self.limits.batch_rows:
            return 0.0
        return max(0.0, self._waiting[0].since_s + self.limits.delay_s - now_s)

    def _pop(self) -> Waiting[T]:
        request = self._waiting.popleft()
        self._bytes -= request.bytes
        return request
