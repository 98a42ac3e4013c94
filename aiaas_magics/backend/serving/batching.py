"""Which waiting requests run together.

Owns the queue's rules, and nothing that waits: no thread, no clock, no array is
touched. Threads that take from the queue belong to `replicas`.

The rules: first come, first run. A batch is formed at the moment an executor is free, from
what waits then; nobody waits for company. Requests run together when their rows may be
stacked (the same key) and the batch stays within `batch_rows`; the first that does not fit
closes the batch, so that no request is overtaken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may wait, and how much may run at once."""

    batch_rows: int = 256  # guess: beyond this a batch gains little on a CPU and makes its members wait
    waiting: int = 1024  # guess: requests; more would be answered after their callers gave up
    waiting_bytes: int = 256 * 1024 * 1024  # guess: four requests of the largest body that is taken
    oldest_s: float = 10.0  # guess: with a queue this old, a quick refusal helps more than a late answer


class QueueFull(Exception):
    """Nothing more may wait now; `retry_after_s` is when to try again."""

    def __init__(self, why: str, retry_after_s: int) -> None:
        super().__init__(why, retry_after_s)
        self.why, self.retry_after_s = why, retry_after_s

    def __str__(self) -> str:
        return f"The model is busy: {self.why}. Try again in {self.retry_after_s} s."


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Generic[T]):
    """One request in the queue. A `key` of None never shares a batch."""

    item: T
    key: Hashable | None
    rows: int
    bytes: int
    since_s: float


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

    def take(self) -> list[Waiting[T]]:
        """What runs next, together; empty when nothing waits."""
        if not self._waiting:
            return []
        batch = [self._pop()]
        key, rows = batch[0].key, batch[0].rows
        while key is not None and self._waiting:
            following = self._waiting[0]
            if following.key != key or rows + following.rows > self.limits.batch_rows:
                break
            rows += following.rows
            batch.append(self._pop())
        return batch

    def _pop(self) -> Waiting[T]:
        request = self._waiting.popleft()
        self._bytes -= request.bytes
        return request
