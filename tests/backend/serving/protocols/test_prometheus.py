"""Figures: the histogram's buckets, and what an unmodified Prometheus parser reads."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from aiaas_magics.backend.serving.models.registry import Registry, Version
from aiaas_magics.backend.serving.models.stats import Durations, EndpointStats, bucket_of, largest_of
from aiaas_magics.backend.serving.protocols.discovery import prometheus
from aiaas_magics.core.routing import Routing
from tests.backend.serving.support.serving_models import spec_of, tensor


@given(st.integers(0, 2**39))
def test_a_duration_falls_into_a_bucket_that_is_at_most_a_hundredth_wide(duration_us: int) -> None:
    bucket = bucket_of(duration_us)

    assert duration_us <= largest_of(bucket) <= duration_us * 1.008 + 1e-9
    assert bucket_of(largest_of(bucket)) == bucket
    assert bucket_of(largest_of(bucket) + 1) == bucket + 1


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=200), st.floats(0.1, 100))
def test_percentiles_are_those_of_the_durations_within_a_bucket(seen: list[int], percent: float) -> None:
    durations = Durations()
    for duration_us in seen:
        durations.add(duration_us)

    exact = sorted(seen)[max(0, -(-len(seen) * percent // 100).__int__() - 1)]
    assert exact <= durations.percentile(percent) <= exact * 1.008 + 1e-9
    assert len(durations) == len(seen)


def test_what_was_never_seen_has_no_percentile_and_what_takes_for_ever_is_counted() -> None:
    durations = Durations()
    assert durations.percentile(50) == 0

    durations.add(2**60)

    assert len(durations) == 1


def counted(registry: Registry, name: str, number: int) -> EndpointStats:
    version = Version(number=number, spec=spec_of(name, [tensor("x", "float32", -1)], [tensor("y", "float32", -1)]), created_s=0.0)
    version.engine = "onnx"
    registry.begin(version)
    registry.ready(version)
    registry.route(name, Routing(live=number))
    return version.stats


@pytest.fixture
def told() -> Mapping[str, dict[tuple[tuple[str, str], ...], float]]:
    registry, chance = Registry(), random.Random(2)
    figures = counted(registry, "oddname", 3)
    for _ in range(100):
        figures.answered(int(chance.uniform(1e5, 1e8)), rows=2)
    figures.failed, figures.refused = 4, 5
    figures.ran(rows=2, waited_ns=10**9, compute_ns=3 * 10**9, why="all that waited")
    figures.ran(rows=300, waited_ns=0, compute_ns=10**9, why="full")
    families = text_string_to_metric_families(prometheus.text(registry).decode())
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_prometheus_reads_what_a_version_did(told: Mapping[str, dict[tuple[tuple[str, str], ...], float]]) -> None:
    requests = {dict(labels)["outcome"]: value for labels, value in told["aiaas_requests_total"].items()}
    assert requests == {"answered": 100, "failed": 4, "refused": 5, "abandoned": 0}
    assert [*told["aiaas_rows_total"].values()] == [200]
    assert [*told["aiaas_queue_seconds_total"].values()] == [1.0]
    assert [*told["aiaas_compute_seconds_total"].values()] == [4.0]
    assert {dict(labels)["reason"]: value for labels, value in told["aiaas_dispatch_total"].items()} == {"all that waited": 1, "full": 1}
    [labels] = told["aiaas_version_info"]
    assert dict(labels) == {"endpoint": "oddname", "version": "3", "state": "AVAILABLE", "engine": "onnx"}


@pytest.mark.parametrize(
    ("name", "count"), [("aiaas_request_duration_seconds", 100), ("aiaas_batch_rows", 2), (":tensorflow:serving:request_latency", 100)]
)
def test_histograms_rise_to_their_count(told: Mapping[str, dict[tuple[tuple[str, str], ...], float]], name: str, count: int) -> None:
    buckets = sorted((float(dict(labels)["le"]), value) for labels, value in told[f"{name}_bucket"].items())

    assert [value for _, value in buckets] == sorted(value for _, value in buckets)
    assert buckets[-1] == (float("inf"), count)
    assert [*told[f"{name}_count"].values()] == [count]


def test_the_mean_of_a_histogram_is_that_of_what_was_seen(told: Mapping[str, dict[tuple[tuple[str, str], ...], float]]) -> None:
    [seconds], [microseconds] = (
        [*told[f"{name}_sum"].values()] for name in ("aiaas_request_duration_seconds", ":tensorflow:serving:request_latency")
    )

    assert seconds == pytest.approx(microseconds / 1e6)
    assert 3.0 < seconds < 8.0, "a hundred durations around 50 ms"


def test_every_family_says_what_it_counts() -> None:
    """As `promtool check metrics` wants it, of TensorFlow Serving's names too."""
    registry = Registry()
    counted(registry, "m", 1)
    lines = prometheus.text(registry).decode().splitlines()

    helped = {line.split()[2] for line in lines if line.startswith("# HELP ") and len(line.split()) > 3}
    assert helped == {line.split()[2] for line in lines if line.startswith("# TYPE ")}
    assert ":tensorflow:serving:request_count" in helped
