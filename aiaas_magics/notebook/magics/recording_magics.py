"""Recording magics: keep a sample of an endpoint's traffic, and compare it with the data of the deployment.

Owns their options and requests. Recording belongs to the backend, comparing to `core.drift`, tables and figures to `trust_outputs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from IPython.core.error import UsageError

from aiaas_magics.core.spec import EndpointView
from aiaas_magics.notebook import trust_outputs
from aiaas_magics.notebook.border import Family, magic
from aiaas_magics.notebook.namespace import named
from aiaas_magics.notebook.option_values import recording, variable, whole_number
from aiaas_magics.notebook.options import ENDPOINT, OUT, UI, option
from aiaas_magics.notebook.views import live


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRequest:
    name: str | None
    policy: str | None
    reference: str | None
    forget: bool
    help: bool

    def __post_init__(self) -> None:
        if self.reference is not None and self.policy is None:
            raise UsageError("--reference goes with what to record. Write the share too: %aiaas_record churn 1% --reference x_train.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftRequest:
    name: str | None
    version: int
    out: str | None
    ui: str | None
    help: bool


class RecordingMagics(Family):
    """Recording and drift."""

    @magic(
        RecordRequest,
        ENDPOINT,
        option(
            "policy",
            nargs="?",
            type=recording,
            metavar="1%",
            help="Share of the requests to keep from now on: 1%%, or 1%%,256MB,7d with bounds on size and age, or off. "
            "Left out: show what is recorded.",
        ),
        option(
            "--reference",
            type=variable,
            metavar="ARRAY",
            values="array",
            help="Variable with rows to compare with in %%aiaas_drift. Their distribution is kept, and none of the rows.",
        ),
        option("--forget", action="store_true", help="Remove what is recorded from the backend. Recording itself goes on."),
        needs=("names",),
    )
    def aiaas_record(self, request: RecordRequest, *, names: dict[str, Any]) -> None:
        """Keep a sample of an endpoint's requests and answers on the backend, show what is kept, or remove it.

        Inputs and outputs are kept, without headers and tokens. endpoint.recorded() fetches them as a DataFrame.

            %aiaas_record churn 1%
            %aiaas_record churn 5%,256MB,7d --reference x_train
            %aiaas_record churn off --forget
        """
        endpoint = self._endpoint(request.name, "aiaas_record")
        if request.policy is not None:
            rows = None
            if request.reference is not None:
                rows = named(request.reference, {**self.shell.user_ns, **names}, lambda _: True, "array")
            endpoint.record(request.policy, reference=rows)
        if request.forget:
            endpoint.forget_recorded()
        view: EndpointView = endpoint.view()
        live.show(self.shell, [trust_outputs.recording_bundle(view, endpoint.recording())])

    @magic(
        DriftRequest,
        ENDPOINT,
        option(
            "--version",
            type=whole_number(1, 2**31, "A version"),
            default=0,
            metavar="N",
            help="Version whose recorded requests are compared (default: the live one).",
        ),
        OUT,
        UI,
    )
    def aiaas_drift(self, request: DriftRequest) -> None:
        """Compare an endpoint's recorded inputs and outputs with the data that it was deployed with: PSI and a test per column.

        %aiaas_drift churn
        """
        endpoint = self._endpoint(request.name, "aiaas_drift")
        drift = endpoint.drift(request.version)
        self._put(request.out, drift)
        live.show(self.shell, trust_outputs.drift_bundles(drift.report, figures=self._draws(self._ui(request.ui))))
