"""From a routed request to its answer, for every REST protocol alike.

Owns the order (find the version, read, run, write) and what each fault on that way is answered
with. The words of a protocol belong to its module, batches and engines to `replicas`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Final

import numpy as np

from aiaas_magics.backend.serving.engines import EngineLost, EngineRefused, EngineTooSlow
from aiaas_magics.backend.serving.http.compression import LARGE, compressed, encoding_for
from aiaas_magics.backend.serving.models.batching import QueueFull, TooLate
from aiaas_magics.backend.serving.models.registry import NotServed, Registry, UnknownLabel, Version
from aiaas_magics.backend.serving.models.replicas import Answer
from aiaas_magics.backend.serving.protocols import (
    BadValue,
    FormOf,
    InferenceCall,
    InferenceProtocol,
    InferenceRoute,
    Request,
    Response,
    error,
)
from aiaas_magics.backend.serving.protocols.discovery import discovery_routes
from aiaas_magics.backend.serving.protocols.open_inference import open_inference_rest
from aiaas_magics.backend.serving.protocols.tfserving import tfserving_rest
from aiaas_magics.core.spec import DeploySpec

log = logging.getLogger(__name__)

QUICK_BYTES: Final = 256 * 1024  # guess, as `http1.SHORT_BYTES`: reading a larger body takes longer than a thread's turn
# One thread: it shares the interpreter with the event loop, and each more would take as much again of the others' time.
READING: Final = ThreadPoolExecutor(1, thread_name_prefix="aiaas-reading")

# What a path begins with says which protocol it is; every other path is a page of ours, or nothing.
PROTOCOLS: Final = MappingProxyType[str, InferenceProtocol](
    {"/v1/": tfserving_rest, "/v2/": open_inference_rest, "/v2": open_inference_rest}
)


# What may be read and answered together with others, by protocol and route.
PLAIN_FORMS: Final = MappingProxyType[tuple[InferenceProtocol, str], FormOf](
    {(tfserving_rest, "predict"): tfserving_rest.plain_form, (open_inference_rest, "infer"): open_inference_rest.plain_form}
)


def protocol_of(path: str) -> InferenceProtocol:
    return PROTOCOLS.get(path[:4].lower(), discovery_routes)


async def respond(registry: Registry, protocol: InferenceProtocol, route: InferenceRoute, request: Request) -> Response:
    """The answer to a request on `route`, whatever it asks for."""
    if not route.infers:
        return protocol.look(registry, route, request)
    answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    def done(response: Response) -> None:
        if not answered.done():
            answered.set_result(response)

    if len(request.body) <= QUICK_BYTES:
        begin(registry, protocol, route, request, done)
    else:
        await begin_large(registry, protocol, route, request, done)
    return await answered


async def begin_large(
    registry: Registry, protocol: InferenceProtocol, route: InferenceRoute, request: Request, done: Callable[[Response], None]
) -> None:
    """As `begin`, with the body read in a thread, so that other requests are answered meanwhile."""
    began_ns = time.perf_counter_ns()
    if registry.tracing is not None:
        protocol, done = registry.tracing.around(protocol, route, request, done)
    version = find(registry, protocol, route, request)
    if isinstance(version, Response):
        done(version)
        return
    try:
        with version.lease():
            call = await asyncio.get_running_loop().run_in_executor(READING, protocol.read, route, request, version)
            submit(version, call, request, done, began_ns)
    except Exception as fault:  # noqa: BLE001 - border: what the caller sent is read here
        version.figures.failed += 1
        done(refusal(fault))


def begin(
    registry: Registry, protocol: InferenceProtocol, route: InferenceRoute, request: Request, done: Callable[[Response], None]
) -> None:
    """Have an inference request answered: `done` is called once, now or later in the event loop."""
    began_ns = time.perf_counter_ns()
    if registry.tracing is not None:
        protocol, done = registry.tracing.around(protocol, route, request, done)
    version = find(registry, protocol, route, request)
    if isinstance(version, Response):
        done(version)
        return
    try:
        call = protocol.read(route, request, version)
    except Exception as fault:  # noqa: BLE001 - border: what the caller sent is read here
        version.figures.failed += 1
        done(refusal(fault))
        return
    submit(version, call, request, done, began_ns)


def submit(version: Version, call: InferenceCall, request: Request, done: Callable[[Response], None], began_ns: int) -> None:
    """Have a call computed that was read: `done` is called once, now or later in the event loop."""
    try:
        if not request.computes:
            done(call.response(nothing(version.spec, call.rows)))
            return
        executor = version.enter()
    except Exception as fault:  # noqa: BLE001 - border: outputs of any form are written here, and a version may be gone
        version.figures.failed += 1
        done(refusal(fault))
        return

    def answered(answer: Answer) -> None:
        version.leave()
        if isinstance(answer, Exception):
            version.figures.failed += 1
            done(refusal(answer))
            return
        try:
            response = call.response(answer)
        except Exception as fault:  # noqa: BLE001 - border: outputs of any model are written here
            version.figures.failed += 1
            response = refusal(fault)
        else:
            version.figures.answered(time.perf_counter_ns() - began_ns, rows=call.rows or 0)
        if len(response.body) < LARGE:
            done(response)
        else:
            hand_over(request, response, done)

    try:
        executor.submit(call.tensors, call.rows, answered, timeout_s=call.timeout_s)
    except QueueFull as full:
        version.leave()
        version.figures.refused += 1
        done(refusal(full))


def nothing(spec: DeploySpec, rows: int | None) -> dict[str, np.ndarray]:
    """Zeros in the form of the outputs: what the interface is measured with, without the model."""
    found = {}
    for output in spec.outputs:
        shape = [rows or 1, *(1 if size < 0 else size for size in output.shape[1:])]
        found[output.name] = np.full(shape, b"", object) if output.dtype == "string" else np.zeros(shape, output.dtype)
    return found


def hand_over(request: Request, response: Response, done: Callable[[Response], None]) -> None:
    """Call `done` with the answer, made smaller where its caller asked for that; in a thread, since it takes milliseconds."""
    encoding = encoding_for(request, response)
    if encoding is None:
        done(response)
    else:
        compressing = asyncio.get_running_loop().run_in_executor(None, compressed, response, encoding)
        compressing.add_done_callback(lambda made: done(made.result()))


def find(registry: Registry, protocol: InferenceProtocol, route: InferenceRoute, request: Request) -> Version | Response:
    """The version that computes the answer, or the answer where there is none."""
    try:
        return registry.find(route.name, route.version, label=route.label, key=request.sticky_key)
    except UnknownLabel:
        return protocol.unknown_label(route.label or "")
    except NotServed:
        if route.name in registry.expected:
            return error(503, f"{route.name} is being brought back. Try again in a moment.", ((b"retry-after", b"1"),))
        return protocol.not_ready(route) if registry.knows(route.name, route.version) else protocol.not_found(route)


def refusal(fault: Exception) -> Response:
    """What a fault is answered with. One of our own costs one answer, not the server, and the caller sees no trace of it."""
    match fault:
        case BadValue():
            return error(fault.status, fault.text)
        case EngineRefused():
            return error(400, f"The model cannot compute this input: {fault}")
        case QueueFull():
            return error(503, str(fault), ((b"retry-after", str(fault.retry_after_s).encode()),))
        case TooLate():
            return error(503, str(fault), ((b"retry-after", b"1"),))
        case EngineTooSlow():
            return error(504, str(fault))
        case EngineLost():
            return error(503, f"The model is being started anew ({fault}). Try again in a moment.", ((b"retry-after", b"1"),))
    log.error("a request failed", exc_info=fault)
    return error(500, "The server failed on this request. Look at its log, or report it to us.")
