"""Tracing by OpenTelemetry: one span for each inference request, where the environment names a receiver.

Owns the library (the extra `otel`), what a span is called and what it says. It says what was asked for, how large it was, how it
ended and where its time went; never a value, a token or a body. Sending is the library's, in a thread of its own. The answers
belong to `request_handler`.

Names are those of OpenTelemetry's semantic conventions for HTTP and RPC servers (https://opentelemetry.io/docs/specs/semconv/);
what they have no word for begins with `aiaas.`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aiaas_magics.backend.serving.models.stats import EndpointStats
from aiaas_magics.backend.serving.protocols import InferenceCall, InferenceProtocol, InferenceRoute, Request, Response
from aiaas_magics.backend.serving.protocols.grpc_statuses import status_name
from aiaas_magics.core import settings

if TYPE_CHECKING:
    from aiaas_magics.backend.serving.models.registry import Registry, Version

log = logging.getLogger(__name__)

RECEIVERS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
CARRIED: Final = (b"traceparent", b"tracestate")  # https://www.w3.org/TR/trace-context/
FLUSH_S: Final = 3.0  # guess: what the last spans may take at the end; with a drain before it, less than the server waits for us
NAME_CHARACTERS: Final = 100  # of an endpoint's name, which is the caller's to choose where there is no such endpoint
# An RPC server's span is an error where these end it; the others are the caller's doing.
OUR_FAULTS: Final = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


@contextmanager
def from_environment(*, scheme: str) -> Iterator[Tracing | None]:
    """Traces, if OpenTelemetry's own environment variables ask for them; at the end what is left is sent, within `FLUSH_S`.

    Args:
        scheme: http or https: how HTTP is spoken here.
    """
    tracing = _made(scheme)
    try:
        yield tracing
    finally:
        if tracing is not None:
            tracing.close()


def _made(scheme: str) -> Tracing | None:
    receiver = next((name for name in RECEIVERS if os.environ.get(name)), None)
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    if receiver is None or off:
        return None
    try:
        return Tracing(scheme)
    except ImportError:
        log.warning("%s is set, but no traces are sent: OpenTelemetry is not here. pip install 'aiaas_magics[otel]'", receiver)
    except ValueError as fault:
        sentence = "%s is set, but no traces are sent: OpenTelemetry refuses its variables (%s). Check those that begin with OTEL_"
        log.warning(sentence, receiver, fault)
    return None


class Tracing:
    """Spans, sent by a thread. `close` once nothing is answered any more."""

    def __init__(self, scheme: str) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        version = settings.package_version()
        who = Resource({"service.name": "aiaas", "service.version": version, "process.pid": os.getpid()})
        who = who.merge(OTELResourceDetector().detect())  # what the environment says of it stands
        self._provider = TracerProvider(resource=Resource.create().merge(who), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("aiaas_magics", version)
        self._propagator = TraceContextTextMapPropagator()
        self._server, self._error = trace.SpanKind.SERVER, trace.StatusCode.ERROR
        self._scheme = scheme

    def around(
        self, protocol: InferenceProtocol, route: InferenceRoute, request: Request, done: Callable[[Response], None]
    ) -> tuple[InferenceProtocol, Callable[[Response], None]]:
        """`protocol` and `done` for the request's way to its answer, which a span then tells of."""
        span = self.begin(protocol.NAME, route, request)
        if span is None:
            return protocol, done

        def ended(response: Response) -> None:
            span.end(response)
            done(response)

        return TracedProtocol(protocol, span), ended

    def begin(self, protocol: str, route: InferenceRoute, request: Request) -> RequestSpan | None:
        """A span from now on; None where the caller, or a sampler in the environment, wants none."""
        over_grpc = request.scheme == "grpc"
        name, attributes = _of_grpc(request) if over_grpc else _of_http(request, route, self._scheme)
        attributes["aiaas.protocol"] = protocol
        attributes["aiaas.endpoint"] = route.name[:NAME_CHARACTERS]
        carried = {name.decode(): value.decode("latin-1") for name, value in request.headers if name in CARRIED}
        caller = self._propagator.extract(carried) if carried else None
        span = self._tracer.start_span(name, caller, self._server, attributes)
        return RequestSpan(span, over_grpc, self._error) if span.is_recording() else None

    def close(self) -> None:
        """Send what is left, within `FLUSH_S`."""
        # The library's own limits are longer and not kept while a receiver is silent: a daemon thread ends with the process.
        closing = threading.Thread(target=self._provider.shutdown, name="aiaas-last-spans", daemon=True)
        closing.start()
        closing.join(FLUSH_S)
        if closing.is_alive():
            log.warning("the last traces were not taken within %g s and are lost. Check that OpenTelemetry's receiver answers", FLUSH_S)


def _of_http(request: Request, route: InferenceRoute, scheme: str) -> tuple[str, dict[str, Any]]:
    return f"{request.method} {route.template}", {
        "http.request.method": request.method,
        "http.route": route.template,
        "url.path": request.path,
        "url.scheme": scheme,
    }


def _of_grpc(request: Request) -> tuple[str, dict[str, Any]]:
    method = request.path.lstrip("/")
    return method, {"rpc.system.name": "grpc", "rpc.method": method}


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """A request's span, and what is noted for it until it ends."""

    span: Any
    over_grpc: bool
    error: Any  # the library's status
    noted: dict[str, Any] = field(default_factory=dict)

    def note(self, version: Version, rows: int | None) -> None:
        """What the request asks for, as it was read."""
        self.noted["aiaas.version"] = version.number
        if rows is not None:
            self.noted["aiaas.rows"] = rows

    def end(self, response: Response) -> None:
        if self.over_grpc:
            self.noted["rpc.response.status_code"] = code = status_name(response.status)
            fault = code if code in OUR_FAULTS else ""
        else:
            self.noted["http.response.status_code"] = response.status
            fault = str(response.status) if response.status >= 500 else ""
        if fault:
            self.noted["error.type"] = fault
            self.span.set_status(self.error)
        self.span.set_attributes(self.noted)
        self.span.end()


@dataclass(frozen=True, slots=True)
class TracedProtocol:
    """A protocol; what it reads is noted in `span`."""

    protocol: InferenceProtocol
    span: RequestSpan

    @property
    def NAME(self) -> str:
        return self.protocol.NAME

    def read(self, route: InferenceRoute, request: Request, version: Version) -> InferenceCall:
        self.span.note(version, None)
        call = self.protocol.read(route, request, version)
        self.span.note(version, call.rows)
        return WatchedCall(call, self.span.noted, version.stats, time.monotonic())

    def look(self, registry: Registry, route: InferenceRoute, request: Request) -> Response:
        return self.protocol.look(registry, route, request)

    def not_found(self, route: InferenceRoute) -> Response:
        return self.protocol.not_found(route)

    def not_ready(self, route: InferenceRoute) -> Response:
        return self.protocol.not_ready(route)

    def unknown_label(self, label: str) -> Response:
        return self.protocol.unknown_label(label)


@dataclass(frozen=True, slots=True)
class WatchedCall:
    """A call; when it is answered, the times of the batch that it was in are in `noted`."""

    call: InferenceCall
    noted: dict[str, Any]
    stats: EndpointStats
    since_s: float

    @property
    def tensors(self) -> Mapping[str, np.ndarray]:
        return self.call.tensors

    @property
    def rows(self) -> int | None:
        return self.call.rows

    @property
    def timeout_s(self) -> float:
        return self.call.timeout_s

    @property
    def id(self) -> str | None:
        return self.call.id

    def response(self, outputs: Mapping[str, np.ndarray]) -> Response:
        began_s, compute_s = self.stats.newest
        if began_s >= self.since_s:  # else nothing was computed for this answer
            self.noted["aiaas.queue_s"], self.noted["aiaas.compute_s"] = began_s - self.since_s, compute_s
        return self.call.response(outputs)
