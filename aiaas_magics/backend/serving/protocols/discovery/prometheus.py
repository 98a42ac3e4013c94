"""Prometheus: the stats of all endpoints in its text format.

Owns names, units and the text (https://prometheus.io/docs/instrumenting/exposition_formats/). Counting belongs
to `stats`. Dashboards made for TensorFlow Serving find its two main metrics under its own names, at its own path.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from aiaas_magics.backend.serving.models.registry import Registry, Version
from aiaas_magics.backend.serving.models.stats import Durations

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
SECONDS: Final = (*(base * 10.0**power for power in range(-5, 1) for base in (1, 2.5, 5)), 10.0)
ROWS: Final = tuple(2.0**power for power in range(11))
MICROSECONDS: Final = tuple(10 * 1.8**power for power in range(33))  # TensorFlow Serving's buckets of latency

Labels = dict[str, str]
Samples = Iterable[tuple[Labels, float]]


def text(registry: Registry) -> bytes:
    """Everything since each version was loaded."""
    versions = [version for name in registry.names() for version in registry.versions(name) if version.state != "END"]
    return "".join(f"{line}\n" for line in _lines(versions)).encode()


def _lines(versions: Sequence[Version]) -> Iterator[str]:
    yield from _family("aiaas_version_info", "gauge", "A loaded version; 1 for each.")
    for version in versions:
        yield _sample("aiaas_version_info", _of(version) | {"state": version.state, "engine": version.engine}, 1)
    yield from _counter("aiaas_requests_total", "Inference requests, by how they ended.", versions, _outcomes)
    yield from _counter("aiaas_explanations_total", "Requests for explanations that were answered.", versions, _of_stat("explanations"))
    yield from _counter("aiaas_rows_total", "Rows that were computed.", versions, _of_stat("rows"))
    yield from _counter("aiaas_queue_seconds_total", "Time that requests waited for an executor.", versions, _of_stat("queue_ns", 1e-9))
    yield from _counter("aiaas_compute_seconds_total", "Time that batches took in the engine.", versions, _of_stat("compute_ns", 1e-9))
    yield from _counter("aiaas_dispatch_total", "Batches, by what closed them.", versions, _reasons)
    yield from _family("aiaas_batch_rows", "histogram", "Rows of a batch.")
    for version in versions:
        sizes = [(float(rows), spent.count) for rows, spent in sorted(version.stats.batches.items())]
        yield from _histogram("aiaas_batch_rows", _of(version), sizes, ROWS)
    yield from _family("aiaas_request_duration_seconds", "histogram", "From the whole request to its answer, in the server.")
    for version in versions:
        yield from _histogram("aiaas_request_duration_seconds", _of(version), _durations(version.stats.latency, 1e-6), SECONDS)
    yield from _recording(versions)
    yield from _drift(versions)
    yield from _as_tensorflow_serving(versions)


def _recording(versions: Sequence[Version]) -> Iterator[str]:
    """Of endpoints whose requests are recorded; each has one recorder for all versions."""
    recorders = {version.spec.name: version.recorder for version in versions if version.recorder is not None}
    if recorders:
        yield from _family("aiaas_endpoint_recorded_requests", "gauge", "Requests in the files of a recording.")
        for name, recorder in recorders.items():
            yield _sample("aiaas_endpoint_recorded_requests", {"endpoint": name}, recorder.counts.requests)
        yield from _family("aiaas_endpoint_recorded_bytes", "gauge", "Size of these files.")
        for name, recorder in recorders.items():
            yield _sample("aiaas_endpoint_recorded_bytes", {"endpoint": name}, recorder.counts.bytes)
        yield from _family("aiaas_endpoint_not_recorded_total", "counter", "Requests that were chosen and not recorded, by reason.")
        for name, recorder in recorders.items():
            for reason, count in (("dropped", recorder.counts.dropped), ("too large", recorder.counts.too_large)):
                yield _sample("aiaas_endpoint_not_recorded_total", {"endpoint": name, "reason": reason}, count)


def _drift(versions: Sequence[Version]) -> Iterator[str]:
    """Of versions whose drift was computed: once a minute where something was recorded."""
    reports = [(version, version.drift) for version in versions if version.drift is not None and version.drift.features]
    for name, field, help in (
        ("aiaas_endpoint_drift_psi", "psi", "Population stability index of a feature against the data of the deployment."),
        ("aiaas_endpoint_drift_noise", "noise", "The index that 99 of 100 samples of this size stay below without a shift."),
    ):
        if reports:
            yield from _family(name, "gauge", help)
        for version, report in reports:
            for feature in report.features:
                yield _sample(name, _of(version) | {"feature": feature.name, "side": feature.side}, getattr(feature, field))


def _of_stat(name: str, unit: float = 1) -> Callable[[Version], Samples]:
    return lambda version: [({}, getattr(version.stats, name) * unit)]


def _outcomes(version: Version) -> Samples:
    stats = version.stats
    counts = {"answered": stats.requests, "failed": stats.failed, "refused": stats.refused, "abandoned": stats.abandoned}
    return [({"outcome": outcome}, count) for outcome, count in counts.items()]


def _reasons(version: Version) -> Samples:
    return [({"reason": why}, count) for why, count in version.stats.dispatch.items()]


def _as_tensorflow_serving(versions: Sequence[Version]) -> Iterator[str]:
    name = ":tensorflow:serving:request_count"
    yield from _family(name, "counter", "Requests of a model, by how they ended; under TensorFlow Serving's name.")
    for model in dict.fromkeys(version.spec.name for version in versions):
        stats_of_model = [version.stats for version in versions if version.spec.name == model]
        yield _sample(name, {"model_name": model, "status": "OK"}, sum(stats.requests for stats in stats_of_model))
        yield _sample(name, {"model_name": model, "status": "ERROR"}, sum(stats.failed + stats.refused for stats in stats_of_model))
    name = ":tensorflow:serving:request_latency"
    yield from _family(name, "histogram", "From the whole request to its answer, in microseconds; under TensorFlow Serving's name.")
    for model in dict.fromkeys(version.spec.name for version in versions):
        observations: dict[float, int] = {}
        for version in versions:
            if version.spec.name == model:
                for duration_us, count in _durations(version.stats.latency, 1.0):
                    observations[duration_us] = observations.get(duration_us, 0) + count
        yield from _histogram(
            name, {"model_name": model, "API": "predict", "entrypoint": "REST"}, sorted(observations.items()), MICROSECONDS
        )


def _of(version: Version) -> Labels:
    return {"endpoint": version.spec.name, "version": str(version.number)}


def _durations(durations: Durations, unit: float) -> list[tuple[float, int]]:
    return [(duration_us * unit, count) for duration_us, count in durations]


def _family(name: str, kind: str, help: str) -> Iterator[str]:
    yield f"# HELP {name} {help}"
    yield f"# TYPE {name} {kind}"


def _counter(name: str, help: str, versions: Sequence[Version], values: Callable[[Version], Samples]) -> Iterator[str]:
    yield from _family(name, "counter", help)
    for version in versions:
        for labels, value in values(version):
            yield _sample(name, _of(version) | labels, value)


def _histogram(name: str, labels: Labels, observations: Sequence[tuple[float, int]], bounds: Sequence[float]) -> Iterator[str]:
    """`observations`: values with how often they were, ascending."""
    counts = [0] * (len(bounds) + 1)
    for value, count in observations:
        counts[bisect_left(bounds, value)] += count
    for bound, below in zip([*map(_number, bounds), "+Inf"], accumulate(counts), strict=True):
        yield _sample(f"{name}_bucket", labels | {"le": bound}, below)
    yield _sample(f"{name}_sum", labels, sum(value * count for value, count in observations))
    yield _sample(f"{name}_count", labels, sum(counts))


def _sample(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
    return f"{name}{{{inside}}} {_number(value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.10g}"
