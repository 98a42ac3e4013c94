"""What two looks at a server's figures say of the time between them."""

from __future__ import annotations

import math

import pytest

from aiaas_magics.backend.serving.models.registry import Registry, Version
from aiaas_magics.backend.serving.models.stats import EndpointStats
from aiaas_magics.backend.serving.protocols.discovery import prometheus
from aiaas_magics.core.routing import Routing
from aiaas_magics.core.scaling.endpoint_samples import VersionCounts, counts_in, sample_of
from aiaas_magics.core.spec import DeploySpec


def served(name: str, figures: EndpointStats) -> Registry:
    """A registry as the inference process has it, with one version that has done this."""
    registry = Registry()
    spec = DeploySpec(name=name, artefact="", format="onnx", samples="", inputs=(), outputs=())
    version = Version(number=3, spec=spec, created_s=0.0, stats=figures)
    registry.begin(version)
    registry.ready(version)
    registry.route(name, Routing(live=3))
    return registry


def test_a_servers_own_text_is_read_back() -> None:
    figures = EndpointStats(failed=2, refused=1)
    for took_us in (200, 300, 4000):
        figures.answered(1000 * took_us, rows=5)
    figures.ran(rows=10, waited_ns=3_000_000, compute_ns=7_000_000, why="full")

    found = counts_in(prometheus.text(served("churn", figures)).decode(), "churn")

    assert found.keys() == {3}
    counts = found[3]
    assert (counts.answered, counts.failed, counts.refused, counts.rows, counts.batches) == (3, 2, 1, 15, 1)
    assert (counts.queue_s, counts.compute_s) == (pytest.approx(0.003), pytest.approx(0.007))
    assert counts.within[-1] == (math.inf, 3)
    assert 0.0001 <= counts.percentile_s(50) <= 0.0005
    assert 0.0025 <= counts.percentile_s(99) <= 0.005
    assert counts_in(prometheus.text(served("churn", figures)).decode(), "other") == {}


def counts(answered: float, *, quick: float = 0.0, **more: float) -> VersionCounts:
    return VersionCounts(answered=answered, rows=2 * answered, within=((0.001, quick), (0.01, answered), (math.inf, answered)), **more)


def test_rates_and_percentiles_are_of_the_time_between_and_of_all_versions() -> None:
    before = {1: counts(1000, quick=1000, batches=500, queue_s=9.0)}
    after = {1: counts(1060, quick=1060, batches=530, queue_s=9.6), 2: counts(40, failed=5, batches=10)}

    sample = sample_of(before, after, at_s=7.0, seconds=2.0)

    assert (sample.requests_per_s, sample.rows_per_s, sample.failed_per_s) == (50, 100, 2.5)
    assert sample.by_version == {1: 30, 2: 20}
    assert sample.batch_rows == 200 / 40
    assert sample.wait_ms == pytest.approx(6)
    assert sample.p50_ms == pytest.approx(1000 * 0.001 * 50 / 60)
    assert 9 < sample.p99_ms < 10


def test_a_server_that_was_started_again_has_no_negative_rates() -> None:
    sample = sample_of({1: counts(1000)}, {1: counts(10)}, at_s=7.0, seconds=1.0)

    assert sample.requests_per_s == 10


def test_a_quiet_time_has_neither_percentiles_nor_versions() -> None:
    sample = sample_of({1: counts(10)}, {1: counts(10)}, at_s=7.0, seconds=1.0)

    assert (sample.requests_per_s, sample.p50_ms, sample.p99_ms, sample.wait_ms, sample.batch_rows, sample.by_version) == (
        0,
        0,
        0,
        0,
        0,
        {},
    )
