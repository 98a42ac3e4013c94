"""Request handler: from a routed request to its answer, for every protocol alike.

Owns the order (find the version, read, run, write) and what each fault on that way is answered
with. The words of a protocol belong to its module, batches and engines to `replicas`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from aiaas_magics.backend.serving.engines import EngineLost, EngineRefused, EngineTooSlow
from aiaas_magics.backend.serving.http.compression import LARGE, compressed, encoding_for
from aiaas_magics.backend.serving.http.streams import AnswerStream, StreamTooLate, runner
from aiaas_magics.backend.serving.models.batching import QueueFull, TooLate
from aiaas_magics.backend.serving.models.registry import NotServed, Registry, TakenDown, UnknownLabel, Version
from aiaas_magics.backend.serving.models.replicas import Answer
from aiaas_magics.backend.serving.protocols import (
    BadValue,
    InferenceCall,
    InferenceProtocol,
    InferenceRoute,
    Request,
    Response,
    StreamCall,
    error,
)
from aiaas_magics.backend.serving.protocols.explain_calls import EXPLAIN_ACTIONS
from aiaas_magics.backend.serving.protocols.operations import OperationRoute
from aiaas_magics.core.spec import DeploySpec

if TYPE_CHECKING:
    from aiaas_magics.backend.serving.http.tracing import Tracing

log = logging.getLogger(__name__)

QUICK_BYTES: Final = 256 * 1024  # guess, as the fast path's `SHORT_BYTES`: reading a larger body takes longer than a thread's turn
# One thread: it shares the interpreter with the event loop, and each more would take as much again of the others' time.
READING: Final = ThreadPoolExecutor(1, thread_name_prefix="aiaas-reading")


NEEDS_SERVERS_TOKEN: Final = error(
    403, "This token is for some endpoints only. Use the server's own token, or ask about one of these endpoints."
)
TOO_MANY: Final = error(429, "This token's rate is used up. Send fewer requests per second.", ((b"retry-after", b"1"),))


def not_granted(name: str) -> Response:
    """What a token for some endpoints reads about another one, whether that one exists or not."""
    return error(404, f"There is no model {name[:100]!r} for this token. Use a token that is for it.")


class RequestHandler:
    """Answers requests with the versions of a registry.

    Args:
        tracing: Makes a span of each inference request, where somebody wants to know.
    """

    def __init__(self, registry: Registry, *, tracing: Tracing | None = None) -> None:
        self.registry, self.tracing = registry, tracing

    async def respond(self, protocol: InferenceProtocol, route: OperationRoute, request: Request) -> Response:
        """The answer to a request on `route`, whatever it asks for.

        Raises:
            BadValue: the body does not say which model is asked for.
        """
        if request.grant is not None and not route.operation.any_token:
            if not route.operation.names_endpoint:
                return NEEDS_SERVERS_TOKEN
            if route.operation.locate is None and not request.grant.permits(route.name):
                return protocol.not_found(route)
        if not route.infers:
            return protocol.look(self.registry, route, request)
        if route.operation.locate is not None:
            route = route.operation.locate(route, request)
        reader = route.operation.read_stream
        if reader is not None:
            streamed = await self.stream(protocol, route, request, lambda version: reader(route, request, version))
            if streamed is not None:
                return streamed
        return await self.infer(protocol, route, request)

    async def infer(self, protocol: InferenceProtocol, route: InferenceRoute, request: Request) -> Response:
        """The answer to an inference request, in one piece."""
        answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

        def done(response: Response) -> None:
            if not answered.done():
                answered.set_result(response)

        if len(request.body) <= QUICK_BYTES:
            self.begin(protocol, route, request, done)
        else:
            await self._begin_large(protocol, route, request, done)
        return await answered

    async def stream(
        self,
        protocol: InferenceProtocol,
        route: InferenceRoute,
        request: Request,
        read: Callable[[Version], StreamCall | None],
    ) -> Response | None:
        """The answer to an inference request as a stream, or the refusal of one that cannot be begun; None where `read` finds no stream."""
        began_ns = time.perf_counter_ns()
        version = find(self.registry, protocol, route, request)
        if isinstance(version, Response):
            return None  # the way of all others says what is wrong, and counts it
        try:
            call = await self._read_stream(version, request, read)
            if call is None:
                return None
            span = None if self.tracing is None else self.tracing.begin(protocol.NAME, route, request)
            if span is not None:
                span.note(version, call.rows)
            stream = AnswerStream(
                version,
                call,
                runner(version, None if request.computes else partial(zeros_of, version.spec)),
                began_ns=began_ns,
                refusal=refusal,
                on_end=(lambda _: None) if span is None else span.end,
                # What an explanation takes says nothing of how soon predictions are answered.
                on_answered=version.stats.explained if route.action in EXPLAIN_ACTIONS else version.stats.answered,
            )
        except Exception as fault:  # noqa: BLE001 - border: what the caller sent is read here
            version.stats.failed += 1
            return refusal(fault)
        return Response(200, b"", call.headers, call.content_type, stream)

    async def _read_stream(self, version: Version, request: Request, read: Callable[[Version], StreamCall | None]) -> StreamCall | None:
        if len(request.body) <= QUICK_BYTES:
            return read(version)
        with version.lease():
            return await asyncio.get_running_loop().run_in_executor(READING, read, version)

    async def _begin_large(
        self, protocol: InferenceProtocol, route: InferenceRoute, request: Request, done: Callable[[Response], None]
    ) -> None:
        """As `begin`, with the body read in a thread, so that other requests are answered meanwhile."""
        began_ns = time.perf_counter_ns()
        if self.tracing is not None:
            protocol, done = self.tracing.around(protocol, route, request, done)
        version = find(self.registry, protocol, route, request)
        if isinstance(version, Response):
            done(version)
            return
        try:
            with version.lease():
                call = await asyncio.get_running_loop().run_in_executor(READING, protocol.read, route, request, version)
                submit(version, call, request, done, began_ns)
        except Exception as fault:  # noqa: BLE001 - border: what the caller sent is read here
            version.stats.failed += 1
            done(refusal(fault))

    def begin(self, protocol: InferenceProtocol, route: InferenceRoute, request: Request, done: Callable[[Response], None]) -> None:
        """Have an inference request answered in one piece: `done` is called once, now or later in the event loop."""
        began_ns = time.perf_counter_ns()
        if self.tracing is not None:
            protocol, done = self.tracing.around(protocol, route, request, done)
        version = find(self.registry, protocol, route, request)
        if isinstance(version, Response):
            done(version)
            return
        try:
            call = protocol.read(route, request, version)
        except Exception as fault:  # noqa: BLE001 - border: what the caller sent is read here
            version.stats.failed += 1
            done(refusal(fault))
            return
        submit(version, call, request, done, began_ns)


def submit(version: Version, call: InferenceCall, request: Request, done: Callable[[Response], None], began_ns: int) -> None:
    """Have a call computed that was read: `done` is called once, now or later in the event loop."""
    try:
        if not request.computes:
            done(call.response(zeros_of(version.spec, call.rows)))
            return
        executor = version.enter()
    except Exception as fault:  # noqa: BLE001 - border: outputs of any form are written here, and a version may be gone
        version.stats.failed += 1
        done(refusal(fault))
        return

    def answered(answer: Answer) -> None:
        version.leave()
        if isinstance(answer, Exception):
            version.stats.failed += 1
            done(refusal(answer))
            return
        recorder = version.recorder
        try:
            response = call.response(answer)
        except Exception as fault:  # noqa: BLE001 - border: outputs of any model are written here
            version.stats.failed += 1
            response, recorder = refusal(fault), None
        else:
            version.stats.answered(time.perf_counter_ns() - began_ns, rows=call.rows or 0)
        if len(response.body) < LARGE:
            done(response)
        else:
            hand_over(request, response, done)
        if recorder is not None:
            recorder.offer(version.number, call.tensors, answer, rows=call.rows, id=call.id)

    try:
        executor.submit(call.tensors, call.rows, answered, timeout_s=call.timeout_s)
    except QueueFull as full:
        version.leave()
        version.stats.refused += 1
        done(refusal(full))


def zeros_of(spec: DeploySpec, rows: int | None) -> dict[str, np.ndarray]:
    """Zeros in the form of the outputs: what the interface is measured with, without the model."""
    outputs = {}
    for output in spec.outputs:
        shape = [rows or 1, *(1 if size < 0 else size for size in output.shape[1:])]
        outputs[output.name] = np.full(shape, b"", object) if output.dtype == "string" else np.zeros(shape, output.dtype)
    return outputs


def hand_over(request: Request, response: Response, done: Callable[[Response], None]) -> None:
    """Call `done` with the answer, made smaller where its caller asked for that; in a thread, since it takes milliseconds."""
    encoding = encoding_for(request, response)
    if encoding is None:
        done(response)
    else:
        compressing = asyncio.get_running_loop().run_in_executor(None, compressed, response, encoding)
        compressing.add_done_callback(lambda future: done(future.result()))


def find(registry: Registry, protocol: InferenceProtocol, route: InferenceRoute, request: Request) -> Version | Response:
    """The version that computes the answer, or the answer where there is none: also for an endpoint that the caller's token is not for."""
    if request.grant is not None and not request.grant.permits(route.name):
        return protocol.not_found(route)
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
        case StreamTooLate():
            return error(504, str(fault))
        case TakenDown():
            return error(503, str(fault), ((b"retry-after", b"1"),))
        case TooLate():
            return error(503, str(fault), ((b"retry-after", b"1"),))
        case EngineTooSlow():
            return error(504, str(fault))
        case EngineLost():
            return error(503, f"The model is being started anew ({fault}). Try again in a moment.", ((b"retry-after", b"1"),))
    log.error("a request failed", exc_info=fault)
    return error(500, "The server failed on this request. Look at its log, or report it to us.")
