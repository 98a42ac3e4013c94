"""From a routed request to its answer, for every REST protocol alike.

Owns the order (find the version, read, run, write) and what each fault on that way is answered
with. The words of a protocol belong to its module, batches and engines to `replicas`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from aiaas_magics.backend.serving.batching import QueueFull
from aiaas_magics.backend.serving.engines import EngineLost, EngineRefused
from aiaas_magics.backend.serving.protocols import BadValue, InferenceProtocol, Request, Response, Route, error, openinference, tfserving
from aiaas_magics.backend.serving.registry import NotServed, Registry, Version

# What a path begins with says which protocol it is; a path of none of them is TensorFlow Serving's to refuse.
PROTOCOLS: Final = MappingProxyType[str, InferenceProtocol]({"/v1/": tfserving, "/v2/": openinference, "/v2": openinference})


def protocol_of(path: str) -> InferenceProtocol:
    return PROTOCOLS.get(path[:4].lower(), tfserving)


async def respond(registry: Registry, protocol: InferenceProtocol, route: Route, request: Request) -> Response:
    """The answer to a request on `route`, whatever it asks for."""
    if not route.infers:
        return protocol.look(registry, route, request)
    version = find(registry, protocol, route)
    if isinstance(version, Response):
        return version
    try:
        call = protocol.read(route, request, version)
        with version.lease() as executor:
            outputs = await executor.run(call.tensors, call.rows)
        return call.response(outputs)
    except (BadValue, EngineRefused, EngineLost, QueueFull) as fault:
        return refusal(fault)


def find(registry: Registry, protocol: InferenceProtocol, route: Route) -> Version | Response:
    """The version that computes the answer, or the answer where there is none."""
    if route.label is not None:
        return protocol.unknown_label(route.label)
    try:
        return registry.find(route.name, route.version)
    except NotServed:
        return protocol.not_found(route)


def refusal(fault: BadValue | EngineRefused | EngineLost | QueueFull) -> Response:
    """What a fault that a caller can cause, or can do nothing against, is answered with."""
    match fault:
        case BadValue():
            return error(fault.status, fault.text)
        case EngineRefused():
            return error(400, f"The model cannot compute this input: {fault}")
        case QueueFull():
            return error(503, str(fault), ((b"retry-after", str(fault.retry_after_s).encode()),))
        case EngineLost():
            return error(503, f"The model is being started anew ({fault}). Try again in a moment.", ((b"retry-after", b"1"),))
