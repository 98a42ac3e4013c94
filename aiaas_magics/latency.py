"""What an endpoint did under load, as values.

Owns the two values. Making the load belongs to `client.load`, drawing it to `plots`.
"""

from __future__ import annotations

from aiaas_magics.spec import Value


class LoadPoint(Value, frozen=True, kw_only=True):
    """One concurrency of a load run, closed loop: each connection asks again when it was answered.

    Latencies are of answered requests; `errors` counts the others by kind ("http 503", "connection").
    """

    concurrency: int
    seconds: float
    requests: int  # answered with 200
    rows: int  # in those requests together
    errors: dict[str, int]
    requests_per_s: float
    rows_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class LoadReport(Value, frozen=True, kw_only=True):
    """What an endpoint did under load. `rows` is the number of rows in a request."""

    endpoint: str
    rows: int
    hardware: str
    points: tuple[LoadPoint, ...]
