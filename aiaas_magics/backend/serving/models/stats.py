"""Stats: counters and latencies of one version of an endpoint.

Owns the counting. It happens once a request on the way of every answer, so it is plain integers and
no lock: everything here is called in the event loop. Showing the numbers belongs to `prometheus` and to
the protocols.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

PRECISION_BITS: Final = 7  # of a duration's leading bits that are kept: buckets are at most 0.8 % wide


class Durations:
    """How often which duration was seen: a histogram with buckets of equal relative width.

    The layout is that of HdrHistogram (Gil Tene, hdrhistogram.org): the leading bits of a number are its bucket, so
    counting is an addition and no search, however long the tail.
    """

    def __init__(self) -> None:
        self.counts = array("Q", bytes(8 * bucket_of(2**40)))  # longer than 12 days in microseconds are counted as that
        self.total_us = 0

    def add(self, *durations_us: int) -> None:
        self.total_us += sum(durations_us)
        for duration_us in durations_us:
            try:
                self.counts[bucket_of(duration_us)] += 1
            except IndexError:
                self.counts[-1] += 1

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Durations in microseconds (the largest of their bucket) with how often they were seen, ascending."""
        return ((largest_of(bucket), count) for bucket, count in enumerate(self.counts) if count)

    def percentile(self, percent: float) -> int:
        """The duration in microseconds that so many per cent stayed within; 0 where nothing was seen."""
        target = len(self) * percent / 100
        below = 0
        for duration_us, count in self:
            below += count
            if below >= target:
                return duration_us
        return 0


def bucket_of(duration_us: int) -> int:
    """The bucket of a duration.

    >>> bucket_of(5), bucket_of(127), bucket_of(128), bucket_of(256), bucket_of(257)
    (5, 127, 128, 256, 256)
    """
    shift = duration_us.bit_length() - PRECISION_BITS - 1
    return duration_us if shift <= 0 else (shift << PRECISION_BITS) + (duration_us >> shift)


def largest_of(bucket: int) -> int:
    """The longest duration that falls into `bucket`.

    >>> largest_of(bucket_of(5)), largest_of(bucket_of(257))
    (5, 257)
    """
    shift = max(0, (bucket >> PRECISION_BITS) - 1)
    return ((bucket - (shift << PRECISION_BITS) + 1) << shift) - 1


@dataclass(slots=True)
class BatchTimes:
    """Batches of one size: how many there were, and their time in the engine."""

    count: int = 0
    compute_ns: int = 0


@dataclass(slots=True, eq=False)
class EndpointStats:
    """Counts of one version, since it was loaded. Rows and requests are those that were answered."""

    requests: int = 0
    failed: int = 0  # refused for what they held, or lost with the engine
    refused: int = 0  # not taken in: the queue was full
    abandoned: int = 0  # streams whose reader left before the end
    explanations: int = 0  # answered; they are not among the requests
    rows: int = 0
    queue_ns: int = 0  # summed over requests
    compute_ns: int = 0  # summed over batches
    last_s: float = 0.0  # unix time of the last batch's end
    newest: tuple[float, float] = (0.0, 0.0)  # of the batch that is being answered: when it began, by the monotonic clock; its compute time
    latency: Durations = field(default_factory=Durations)  # from the whole request to its answer, in this process
    batches: dict[int, BatchTimes] = field(default_factory=dict)  # by rows
    dispatch: dict[str, int] = field(default_factory=dict)  # why a batch began when it did

    def ran(self, *, rows: int, waited_ns: int, compute_ns: int, why: str) -> None:
        """A batch of `rows` rows went through an engine; `waited_ns` is the sum over its requests."""
        spent = self.batches.get(rows)
        if spent is None:
            spent = self.batches[rows] = BatchTimes()
        spent.count += 1
        spent.compute_ns += compute_ns
        self.compute_ns += compute_ns
        self.queue_ns += waited_ns
        self.last_s = time.time()
        self.dispatch[why] = self.dispatch.get(why, 0) + 1

    def answered(self, *took_ns: int, rows: int) -> None:
        """Requests that took so long were answered, with so many rows in all."""
        self.requests += len(took_ns)
        self.rows += rows
        self.latency.add(*[duration_ns // 1000 for duration_ns in took_ns])

    def explained(self, *took_ns: int, rows: int) -> None:
        """As `answered`, for explanations: how long they take says nothing of predictions."""
        self.explanations += len(took_ns)
