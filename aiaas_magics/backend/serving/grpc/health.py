"""Health service: the standard one, which load balancers and probes of gRPC ask.

Owns its two methods. Ready means what `GET /v2/health/ready` means.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from aiaas_magics.backend.serving.grpc import open_inference_schema, tfserving_schema
from aiaas_magics.backend.serving.grpc.methods import GrpcCall, Look, Method, Refused, Watch
from aiaas_magics.backend.serving.grpc.tfserving_schema import HEALTH_SERVICE, health
from aiaas_magics.backend.serving.protocols import error
from aiaas_magics.backend.serving.protocols.open_inference import inference_documents as documents

LOOK_S: Final = 1.0  # guess: how soon a watcher hears of a change

SERVICES: Final = frozenset(
    {"", open_inference_schema.SERVICE, tfserving_schema.PREDICTION_SERVICE, tfserving_schema.MODEL_SERVICE, HEALTH_SERVICE}
)
STATES: Final[Mapping[str, int]] = {
    value.name: value.number for value in health.HealthCheckResponse.DESCRIPTOR.enum_types_by_name["ServingStatus"].values
}


def _state(call: GrpcCall) -> int:
    return STATES["SERVING" if documents.is_ready(call.registry) else "NOT_SERVING"]


def check(call: GrpcCall) -> Any:
    if call.message.service not in SERVICES:
        raise Refused(error(404, f"No service {call.message.service[:100]} is here. Ask with an empty name for the whole server."))
    return health.HealthCheckResponse(status=_state(call))


async def watch(call: GrpcCall) -> AsyncIterator[Any]:
    """The state now, and again whenever it has changed, until the watcher leaves."""
    last = None
    while True:
        now = _state(call) if call.message.service in SERVICES else STATES["SERVICE_UNKNOWN"]
        if now != last:
            yield health.HealthCheckResponse(status=now)
            last = now
        await asyncio.sleep(LOOK_S)


METHODS: Final[Mapping[str, Method]] = {
    f"/{HEALTH_SERVICE}/Check": Look(health.HealthCheckRequest, check, any_token=True),
    f"/{HEALTH_SERVICE}/Watch": Watch(health.HealthCheckRequest, watch, any_token=True),
}
