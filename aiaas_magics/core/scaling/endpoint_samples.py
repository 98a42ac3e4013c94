"""Endpoint samples: rates and latencies over time, from the counters of its server.

Owns reading those figures and what two readings say of the time between them. Asking the server belongs to
`client.endpoint`, drawing to `plots` and the notebook's views.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from aiaas_magics.core.value import Value

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
        counts = dict(self.within)
        return VersionCounts(
            **{name: getattr(self, name) + getattr(other, name) for name in SUMS},
            within=tuple((bound, counts.get(bound, 0.0) + more.get(bound, 0.0)) for bound in bounds),
        )

    def percentile_s(self, percent: float) -> float:
        """The time that so many per cent of answers stayed within, evenly spread within a bound; 0 where there was none."""
        target, low, below = percent / 100 * (self.within[-1][1] if self.within else 0.0), 0.0, 0.0
        for bound, count in self.within:
            if count >= target > below:
                return low if math.isinf(bound) else low + (bound - low) * (target - below) / (count - below)
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
        if labels.get("endpoint") != endpoint or "version" not in labels:  # what is recorded counts for all versions
            continue
        version = int(labels["version"])
        version_sums = sums.setdefault(version, {})
        match name:
            case "aiaas_requests_total":
                version_sums[labels["outcome"]] = value
            case "aiaas_rows_total":
                version_sums["rows"] = value
            case "aiaas_batch_rows_count":
                version_sums["batches"] = value
            case "aiaas_queue_seconds_total":
                version_sums["queue_s"] = value
            case "aiaas_compute_seconds_total":
                version_sums["compute_s"] = value
            case "aiaas_request_duration_seconds_bucket":
                within.setdefault(version, []).append((float(labels["le"]), value))
    complete = {version: {name: value for name, value in own.items() if name in SUMS} for version, own in sums.items()}
    return {version: VersionCounts(**own, within=tuple(sorted(within.get(version, ())))) for version, own in complete.items()}


def _lines(text: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        if match is not None and not line.startswith("#"):
            yield match[1], dict(LABEL.findall(match[2])), float(match[3])


def sample_of(before: Mapping[int, VersionCounts], after: Mapping[int, VersionCounts], *, at_s: float, seconds: float) -> Sample:
    """What two looks at an endpoint, `seconds` apart, say of the time between them."""
    differences = {version: counts.since(before.get(version, VersionCounts())) for version, counts in after.items()}
    together = VersionCounts()
    for counts in differences.values():
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
        by_version={version: counts.answered / seconds for version, counts in sorted(differences.items()) if counts.answered},
    )


def versions_of(samples: Sequence[Sample]) -> list[int]:
    """The versions that answered something, in the order in which they began."""
    return list(dict.fromkeys(version for sample in samples for version in sample.by_version))
