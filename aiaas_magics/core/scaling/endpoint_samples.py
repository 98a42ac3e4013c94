"""What an endpoint does over time, from the figures that its server counts.

Owns reading those figures and what two readings say of the time between them. Asking the server belongs to
`client.endpoint`, drawing to `plots` and the notebook's views.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from aiaas_magics.core.spec import Value

# A line of the text format (https://prometheus.io/docs/instrumenting/exposition_formats/) that our server writes.
LINE: Final = re.compile(r"(\w+)\{(.*)\} (\S+)")
LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class VersionCounts(Value, frozen=True, kw_only=True):
    """What one version has done since it was loaded. `within` are bounds in seconds with how many answers took no longer."""

    answered: float = 0.0
    failed: float = 0.0
    refused: float = 0.0
    rows: float = 0.0
    batches: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    within: tuple[tuple[float, float], ...] = ()

    def since(self, before: VersionCounts) -> VersionCounts:
        """What came in between; a version that was loaded anew has counted from 0 again."""
        if before.answered > self.answered or before.rows > self.rows or before.batches > self.batches:
            before = VersionCounts()
        earlier = dict(before.within)
        return VersionCounts(
            **{name: getattr(self, name) - getattr(before, name) for name in SUMS},
            within=tuple((bound, count - earlier.get(bound, 0.0)) for bound, count in self.within),
        )

    def and_also(self, other: VersionCounts) -> VersionCounts:
        """Both together."""
        more = dict(other.within)
        bounds = [bound for bound, _ in self.within or other.within]
        mine = dict(self.within)
        return VersionCounts(
            **{name: getattr(self, name) + getattr(other, name) for name in SUMS},
            within=tuple((bound, mine.get(bound, 0.0) + more.get(bound, 0.0)) for bound in bounds),
        )

    def percentile_s(self, percent: float) -> float:
        """The time that so many per cent of answers stayed within, evenly spread within a bound; 0 where there was none."""
        wanted, low, below = percent / 100 * (self.within[-1][1] if self.within else 0.0), 0.0, 0.0
        for bound, count in self.within:
            if count >= wanted > below:
                return low if math.isinf(bound) else low + (bound - low) * (wanted - below) / (count - below)
            low, below = bound, count
        return 0.0


SUMS: Final = ("answered", "failed", "refused", "rows", "batches", "queue_s", "compute_s")


class Sample(Value, frozen=True, kw_only=True):
    """`seconds` of an endpoint's life, up to `at_s` (unix time). Times are milliseconds; 0 where nothing was answered."""

    at_s: float
    seconds: float
    requests_per_s: float
    rows_per_s: float
    failed_per_s: float
    refused_per_s: float
    p50_ms: float
    p99_ms: float
    wait_ms: float  # mean, for an executor
    batch_rows: float  # mean
    by_version: dict[int, float]  # requests a second


class EndpointWatch(Value, frozen=True, kw_only=True):
    """What was seen of an endpoint, and what stopped the looking."""

    endpoint: str
    samples: tuple[Sample, ...] = ()
    unanswered: int = 0  # looks that nobody answered
    ended: str = ""

    @property
    def answered(self) -> tuple[Sample, ...]:
        """Those in which something was answered."""
        return tuple(sample for sample in self.samples if sample.requests_per_s > 0)


def counts_in(text: str, endpoint: str) -> dict[int, VersionCounts]:
    """Each version's counts, from the text of `/metrics`."""
    sums: dict[int, dict[str, float]] = {}
    within: dict[int, list[tuple[float, float]]] = {}
    for name, labels, value in _lines(text):
        if labels.get("endpoint") != endpoint:
            continue
        version = int(labels["version"])
        mine = sums.setdefault(version, {})
        match name:
            case "aiaas_requests_total":
                mine[labels["outcome"]] = value
            case "aiaas_rows_total":
                mine["rows"] = value
            case "aiaas_batch_rows_count":
                mine["batches"] = value
            case "aiaas_queue_seconds_total":
                mine["queue_s"] = value
            case "aiaas_compute_seconds_total":
                mine["compute_s"] = value
            case "aiaas_request_duration_seconds_bucket":
                within.setdefault(version, []).append((float(labels["le"]), value))
    known = {version: {name: value for name, value in mine.items() if name in SUMS} for version, mine in sums.items()}
    return {version: VersionCounts(**mine, within=tuple(sorted(within.get(version, ())))) for version, mine in known.items()}


def _lines(text: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    for line in text.splitlines():
        found = LINE.fullmatch(line)
        if found is not None and not line.startswith("#"):
            yield found[1], dict(LABEL.findall(found[2])), float(found[3])


def sample_of(before: Mapping[int, VersionCounts], after: Mapping[int, VersionCounts], *, at_s: float, seconds: float) -> Sample:
    """What two looks at an endpoint, `seconds` apart, say of the time between them."""
    each = {version: counts.since(before.get(version, VersionCounts())) for version, counts in after.items()}
    together = VersionCounts()
    for counts in each.values():
        together = together.and_also(counts)
    return Sample(
        at_s=at_s,
        seconds=seconds,
        requests_per_s=together.answered / seconds,
        rows_per_s=together.rows / seconds,
        failed_per_s=together.failed / seconds,
        refused_per_s=together.refused / seconds,
        p50_ms=1e3 * together.percentile_s(50),
        p99_ms=1e3 * together.percentile_s(99),
        wait_ms=1e3 * together.queue_s / together.answered if together.answered else 0.0,
        batch_rows=together.rows / together.batches if together.batches else 0.0,
        by_version={version: counts.answered / seconds for version, counts in sorted(each.items()) if counts.answered},
    )


def versions_of(samples: Sequence[Sample]) -> list[int]:
    """The versions that answered something, in the order in which they began."""
    return list(dict.fromkeys(version for sample in samples for version in sample.by_version))
