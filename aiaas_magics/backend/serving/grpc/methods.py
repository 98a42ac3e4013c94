"""gRPC methods: the seam between the gRPC port and the protocols that it speaks.

Owns the values that cross it. Which version answers, how it is run, and what a fault is answered
with are `request_handler`'s for REST and gRPC alike: a call that is refused ends with REST's sentence
and the status that its HTTP code stands for.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import orjson

from aiaas_magics.backend.net.grants import LiveGrant
from aiaas_magics.backend.serving import protocols
from aiaas_magics.backend.serving.http import request_handler
from aiaas_magics.backend.serving.models.registry import Registry, Version
from aiaas_magics.backend.serving.protocols import BadValue, Headers, InferenceCall, InferenceProtocol, Request, Response, StreamCall
from aiaas_magics.backend.serving.protocols.grpc_statuses import status_name
from aiaas_magics.backend.serving.protocols.operations import OperationRoute

TOLD: Final = 2000  # characters of a fault that fit beside other metadata into a client's limit of 8 KiB: guess


@dataclass(frozen=True, slots=True)
class RefusedStatus:
    """How a refused call ends."""

    code: grpc.StatusCode
    text: str
    trailers: tuple[tuple[str, str], ...] = ()


def status_of(status: int, text: str, headers: Headers = ()) -> RefusedStatus:
    trailers = tuple((name.decode(), value.decode()) for name, value in headers if name == b"retry-after")
    return RefusedStatus(grpc.StatusCode[status_name(status)], text[:TOLD], trailers)


def status_of_response(response: Response) -> RefusedStatus:
    return status_of(response.status, orjson.loads(response.body)["error"], response.headers)


class Refused(Exception):
    """A call that gets no message, but what REST would answer."""

    def __init__(self, response: Response) -> None:
        super().__init__(response)
        self.response = response


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcCall:
    """One call that the guard let in: its message, and its metadata as the headers of a request."""

    registry: Registry
    message: Any
    request: Request


@dataclass(frozen=True, slots=True)
class Look:
    """A method that computes nothing.

    Args:
        manages: The token for predictions does not suffice.
        names: The endpoint that a message asks about; None for the whole server, about which only the server's own token asks.
        any_token: Every token will do, though no endpoint is named.
    """

    takes: Any  # a message class
    answer: Callable[[GrpcCall], Any]
    manages: bool = False
    names: Callable[[Any], str] | None = None
    any_token: bool = False

    def permits(self, grant: LiveGrant | None, message: Any) -> bool:
        """Whether a caller with this grant may ask this; None is the server's own token."""
        return grant is None or self.any_token or (self.names is not None and grant.permits(self.names(message)))


@dataclass(frozen=True, slots=True)
class Watch:
    """A method that answers one message with many."""

    takes: Any
    answers: Callable[[GrpcCall], AsyncIterator[Any]]
    any_token: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRoute:
    """The route of a message that asks for inference."""

    message: Any
    name: str
    version: int | None = None
    label: str | None = None
    timeout_s: float = math.inf  # until the caller's deadline
    infers: bool = True
    template: str = ""  # a path of REST's; a method has none
    action: str = "infer"


def _only_streams(_route: MessageRoute, _version: Version) -> InferenceCall:
    raise BadValue("This method answers by a stream only.", 501)


@dataclass(frozen=True, slots=True, kw_only=True)
class Infer:
    """A method that a model answers: for the request handler a protocol like those of REST, with the sentences of `rest`."""

    takes: Any
    rest: InferenceProtocol
    route: Callable[[Any], MessageRoute]
    call: Callable[[MessageRoute, Version], InferenceCall]

    @property
    def NAME(self) -> str:
        return self.rest.NAME

    def read(self, route: protocols.InferenceRoute, _request: Request, version: Version) -> InferenceCall:
        assert isinstance(route, MessageRoute)
        return self.call(route, version)

    def look(self, registry: Registry, route: protocols.InferenceRoute, request: Request) -> Response:
        return self.rest.look(registry, route, request)

    def not_found(self, route: protocols.InferenceRoute) -> Response:
        return self.rest.not_found(route)

    def not_ready(self, route: protocols.InferenceRoute) -> Response:
        return self.rest.not_ready(route)

    def unknown_label(self, label: str) -> Response:
        return self.rest.unknown_label(label)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferStream(Infer):
    """A method that a model answers with many messages. The chunks of its call are whole messages, serialized."""

    call: Callable[[MessageRoute, Version], InferenceCall] = field(init=False, default=_only_streams)
    stream: Callable[[MessageRoute, Version], StreamCall]


@dataclass(frozen=True, slots=True)
class StreamMethod:
    """A method that answers each message of a stream, in their order. A fault is an answer too."""

    infer: Infer
    framed: Callable[[bytes], Any]  # an answer of `infer`
    fault: Callable[[str], Any]

    @property
    def takes(self) -> Any:
        return self.infer.takes


Method = Look | Watch | Infer | InferStream | StreamMethod


def find(call: GrpcCall, protocol: InferenceProtocol, route: OperationRoute) -> Version:
    """The version that is asked about.

    Raises:
        Refused: as the protocol says it over REST.
    """
    version = request_handler.find(call.registry, protocol, route, call.request)
    if isinstance(version, Response):
        raise Refused(version)
    return version
