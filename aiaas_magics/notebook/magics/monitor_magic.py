"""%aiaas_monitor: watches an endpoint live.

Owns its options and its request. Samples belong to `core.scaling.endpoint_samples`, the live view to `views.endpoint_panel`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from aiaas_magics.core import errors
from aiaas_magics.core.scaling.endpoint_samples import EndpointWatch, Sample
from aiaas_magics.notebook import present
from aiaas_magics.notebook.border import Family, magic
from aiaas_magics.notebook.option_values import positive_seconds
from aiaas_magics.notebook.options import ENDPOINT, OUT, UI, option
from aiaas_magics.notebook.views import live
from aiaas_magics.notebook.views.endpoint_panel import EndpointPanel, EndpointPicture, endpoint_picture


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorRequest:
    name: str | None
    seconds: float
    every: float
    out: str | None
    ui: str | None
    help: bool


class MonitorMagic(Family):
    """Monitoring."""

    @magic(
        MonitorRequest,
        ENDPOINT,
        option(
            "-s",
            "--seconds",
            type=positive_seconds,
            default=30.0,
            metavar="S",
            help="Seconds to watch (default 30). An interrupt ends the watch.",
        ),
        option("-e", "--every", type=positive_seconds, default=1.0, metavar="S", help="Seconds between updates (default 1)."),
        OUT,
        UI,
    )
    def aiaas_monitor(self, request: MonitorRequest) -> None:
        """Watch an endpoint live: rate, latency, batches, versions and errors. An interrupt ends it.

        %aiaas_monitor churn --seconds 60
        """
        endpoint = self._endpoint(request.name, "aiaas_monitor")
        name, kind, ended = endpoint.name, self._ui(request.ui), ""
        looks: list[Sample | None] = []
        total = max(1, round(request.seconds / request.every))

        def pictured() -> EndpointPicture:
            return endpoint_picture(name, tuple(looks), total=total, every_s=request.every, hint=live.HINT)

        with live.LiveView(kind, EndpointPanel(), pictured) as view:
            try:
                for sample in itertools.islice(endpoint.watch(every_s=request.every), total):
                    looks.append(sample)
                    view.draw(pictured)
            except KeyboardInterrupt:
                ended = "Ended by an interrupt."
            except errors.UnknownName:
                ended = "The endpoint was taken down."
            samples = tuple(sample for sample in looks if sample is not None)
            watched = EndpointWatch(endpoint=name, samples=samples, unanswered=len(looks) - len(samples), ended=ended)
            self._put(request.out, watched)
            self._leave(view, kind, present.watched_bundles(watched, figures=self._draws(kind)))
