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
    """What an endpoint did under load. `rows` is the number of rows in a request.

    `model_per_s` is what the model alone can do: requests a second by the time that its batches took in the engine during the run.
    `interface_per_s` is what the interface alone can do: the same requests where nothing is computed, over as many connections
    as the largest point had. 0 where they are not known.
    """

    endpoint: str
    rows: int
    hardware: str
    points: tuple[LoadPoint, ...]
    model_per_s: float = 0.0
    interface_per_s: float = 0.0

    @property
    def response(self) -> float:
        """R = M / m: above 1 the interface is what limits, below 1 the model; 0 where it is not known."""
        return self.model_per_s / self.interface_per_s if self.interface_per_s else 0.0
