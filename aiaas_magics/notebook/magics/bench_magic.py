"""%aiaas_bench: measures an endpoint under load.

Owns its options and its request. The load belongs to `client.load_test`, its live view to `views.load_panel`.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiaas_magics.notebook import present
from aiaas_magics.notebook.border import Family, magic
from aiaas_magics.notebook.option_values import forms, levels, positive_seconds, rates, whole_number
from aiaas_magics.notebook.options import ENDPOINT, OUT, UI, option
from aiaas_magics.notebook.views import live
from aiaas_magics.notebook.views.load_panel import LoadPanel, load_picture


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    name: str | None
    concurrency: tuple[int, ...]
    duration: float
    rows: int
    rates: tuple[float, ...] | None
    forms: tuple[str, ...]
    out: str | None
    ui: str | None
    help: bool


class BenchMagic(Family):
    """Load tests."""

    @magic(
        BenchRequest,
        ENDPOINT,
        option("-c", "--concurrency", type=levels, default=(1, 2, 4), metavar="C", help="Numbers of connections (default 1,2,4)."),
        option("-d", "--duration", type=positive_seconds, default=1.0, metavar="S", help="Seconds per measurement (default 1)."),
        option(
            "-r", "--rows", type=whole_number(1, 10_000, "Rows a request"), default=1, metavar="K", help="Rows per request (default 1)."
        ),
        option(
            "--rates",
            type=rates,
            metavar="R",
            help="Offered rates in requests/s: 200,400 or none. Default: rates rise from 25%% of the measured throughput until answers "
            "fall behind.",
        ),
        option(
            "--forms",
            type=forms,
            default=("json", "binary"),
            metavar="F",
            help="Encodings of tensors: json, binary, or json,binary (default: both).",
        ),
        OUT,
        UI,
    )
    def aiaas_bench(self, request: BenchRequest) -> None:
        """Measure an endpoint's latency and throughput by number of connections and by offered rate, with JSON and binary requests.

        A separate process generates the load, so the kernel does not slow it down.

            %aiaas_bench churn --concurrency 1,2,4,8 --duration 2
        """
        endpoint = self._endpoint(request.name, "aiaas_bench")
        name, kind = endpoint.name, self._ui(request.ui)
        with live.LiveView(kind, LoadPanel(), lambda: load_picture(name, None, hint=live.HINT)) as view:
            report = endpoint.bench(
                concurrency=request.concurrency,
                duration_s=request.duration,
                rows=request.rows,
                rates=request.rates,
                forms=request.forms,
                on_progress=lambda progress: view.draw(lambda: load_picture(name, progress, hint=live.HINT)),
            )
            self._put(request.out, report)
            self._leave(view, kind, present.load_bundles(report, figures=self._draws(kind)))
