"""Serving magics: deploy a model, and promote, roll back, scale or stop an endpoint.

Owns their options and requests. The export and its check belong to `client`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from IPython.core.error import UsageError

from aiaas_magics.core.precision import SERVED
from aiaas_magics.core.routing import Rollout, Scaling
from aiaas_magics.notebook import present
from aiaas_magics.notebook.border import Family, magic
from aiaas_magics.notebook.namespace import model_of, named
from aiaas_magics.notebook.option_values import change, endpoint_name, recording, replicas, share, variable, variables, whole_number
from aiaas_magics.notebook.options import ENDPOINT, OUT, option
from aiaas_magics.notebook.views import live


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployRequest:
    model: str | None
    name: str | None
    replicas: Scaling
    sample: tuple[str, ...] | None
    background: str | None
    canary: float | None
    keep: Literal[1, 2]
    max_delay_us: int
    precision: str
    validate: tuple[str, ...] | None
    max_change: float | None
    record: str | None
    sign: str | None
    require_signed: str | None
    out: str | None
    help: bool

    def __post_init__(self) -> None:
        if not self.precision and (self.validate is not None or self.max_change is not None):
            raise UsageError("--validate and --max-change measure the impact of --precision. Add --precision int8, for example.")

    @property
    def rollout(self) -> Rollout:
        return Rollout(canary=self.canary or 0.0, keep=self.keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRequest:
    name: str | None
    replicas: Scaling | None
    help: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRequest:
    name: str | None
    help: bool


class ServingMagics(Family):
    """Endpoints."""

    @magic(
        DeployRequest,
        option("model", nargs="?", metavar="MODEL", values="model", help="Variable or file that holds the model."),
        option(
            "--name",
            type=endpoint_name,
            metavar="NAME",
            values="endpoint",
            help="Name of the endpoint (default: the variable's name). A live endpoint gets a new version.",
        ),
        option(
            "--replicas",
            type=replicas,
            default=Scaling(replicas=1),
            metavar="R",
            help="Number of replicas: 2, or auto (or auto:1-4) to follow the load. Default 1.",
        ),
        option(
            "--sample",
            type=variables,
            metavar="ARRAY",
            values="array",
            help="Variable with typical rows (default: rows of the last fit on the backend). Name two, short,long, to leave a size free.",
        ),
        option(
            "--background",
            type=variable,
            metavar="ARRAY",
            values="array",
            help="Variable with training data. Up to 100 of its rows travel with the model, for explanations (default: the sample rows).",
        ),
        option("--canary", type=share, metavar="10%", help="Share of callers that the new version gets first."),
        option(
            "--keep",
            type=whole_number(1, 2, "The number of versions"),
            default=2,
            metavar="N",
            help="Number of versions to keep loaded (default 2, which allows a rollback).",
        ),
        option(
            "--max-delay-us",
            type=whole_number(0, 1_000_000, "A delay in microseconds"),
            default=0,
            metavar="US",
            help="Wait up to US microseconds to fill a batch (default 0).",
        ),
        option(
            "--precision",
            choices=SERVED,
            default="",
            metavar="P",
            help="Store the weights in float16, int8 or int4. The accuracy impact is measured here and shown before the model goes live.",
        ),
        option(
            "--validate",
            type=variables,
            metavar="X,Y",
            values="array",
            help="Variables with validation data for --precision: x_val,y_val or x_val. The data are not sent.",
        ),
        option(
            "--max-change",
            type=change,
            metavar="C",
            help="With --precision: largest allowed change of the first metric, or of the answers (default 0.01; 0.1 without --validate).",
        ),
        option(
            "--record",
            type=recording,
            metavar="1%",
            help="Keep this share of the requests and answers on the backend: 1%%, or 1%%,256MB,7d with bounds on size and age, or off. "
            "Default: as the endpoint has it; off for a new one.",
        ),
        option(
            "--sign",
            metavar="KEY",
            help="Sign the deployment with this Ed25519 private key (a file that `aiaas key` or ssh-keygen made).",
        ),
        option(
            "--require-signed",
            metavar="PUBKEYS",
            help="Serve this and later versions of the endpoint only if a key in this file has signed them.",
        ),
        OUT,
        needs=("names",),
    )
    def aiaas_deploy(self, request: DeployRequest, *, names: dict[str, Any]) -> Any:
        """Serve a trained model over HTTP.

        The model is exported in the kernel and compared with Keras on sample rows before it goes live.
        A live endpoint gets its next version. Returns an Endpoint.

            %aiaas_deploy model --name churn --replicas 2
            %aiaas_deploy better --name churn --canary 10%
            %aiaas_deploy model --name churn --precision int8 --validate x_val,y_val
        """
        if request.model is None:
            raise UsageError("Which model? Name the variable that holds it: %aiaas_deploy model --name churn.")
        from aiaas_magics.client.serving.deployment import default_name

        scope = {**self.shell.user_ns, **names}
        model = model_of(request.model, scope)
        sample, *other_samples = [named(name, scope, lambda _: True, "array") for name in request.sample or ()] or [None]
        validation = tuple(named(name, scope, lambda _: True, "array") for name in request.validate or ())
        background = None if request.background is None else named(request.background, scope, lambda _: True, "array")
        with live.SlowLine(self.shell, f"Deploying {request.model}") as line:
            endpoint = self.session.backend.deploy(
                model,
                name=request.name or (default_name(request.model) if request.model.isidentifier() else None),
                replicas=str(request.replicas),
                sample=sample,
                other_samples=other_samples,
                background=background,
                max_delay_us=request.max_delay_us,
                rollout=request.rollout,
                precision=request.precision,
                validation_data=validation or None,
                max_change=request.max_change,
                recording=request.record,
                sign=request.sign,
                require_signed=request.require_signed,
                on_step=line.tell,
                tell=lambda change: live.show(self.shell, [present.change_table(change)]),
            )
        self.session.saw_endpoint(endpoint)
        self._put(request.out, endpoint)
        return endpoint

    @magic(NameRequest, option("name", nargs="?", metavar="NAME", values="endpoint", help="Endpoint whose canary goes live."))
    def aiaas_promote(self, request: NameRequest) -> None:
        """Make an endpoint's canary its live version, starting with the next request.

        %aiaas_promote churn
        """
        print(present.routing_text(self._endpoint(request.name, "aiaas_promote").promote()))

    @magic(NameRequest, option("name", nargs="?", metavar="NAME", values="endpoint", help="Endpoint to roll back."))
    def aiaas_rollback(self, request: NameRequest) -> None:
        """Remove an endpoint's canary. Without a canary, go back to the previous version.

        %aiaas_rollback churn
        """
        print(present.routing_text(self._endpoint(request.name, "aiaas_rollback").rollback()))

    @magic(
        ScaleRequest,
        ENDPOINT,
        option("replicas", nargs="?", type=replicas, metavar="R", help="Replicas of each version: 2, auto, or auto:1-4."),
    )
    def aiaas_scale(self, request: ScaleRequest) -> None:
        """Change an endpoint's number of replicas without downtime.

        With auto:1-4, the number follows the load within these bounds.

        %aiaas_scale churn 2
        """
        if request.name is None or request.replicas is None:
            raise UsageError("Which endpoint, and how many replicas? Name both: %aiaas_scale churn 2. %aiaas_status lists the endpoints.")
        endpoint = self._endpoint(request.name, "aiaas_scale").scale(str(request.replicas))
        print(f"Endpoint {endpoint.name}: replicas per version set to {request.replicas}.")

    @magic(NameRequest, option("name", nargs="?", metavar="NAME", values="endpoint", help="Endpoint to take down."))
    def aiaas_stop(self, request: NameRequest) -> None:
        """Take down an endpoint and all its versions."""
        self._endpoint(request.name, "aiaas_stop").stop()
        print(f"Endpoint {request.name} is down.")
