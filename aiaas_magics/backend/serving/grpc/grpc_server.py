"""gRPC server: the gRPC port of the inference process, in the event loop that answers HTTP.

Owns what every call meets before a protocol sees it: the guard, the message's limits and
deadline, and how a fault ends a call. What a method means belongs to `open_inference_grpc`,
`tfserving_grpc` and `health`.

A call that is refused is refused before its message is read. The guard decides by the metadata as
it does by headers, with one difference: grpc.aio does not tell the `:authority`, so the name that
a caller used is not looked at. That check keeps out web pages, and no browser lets a page speak
gRPC over HTTP/2; an `Origin` of a page is refused here as well.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NoReturn

import grpc
import msgspec
from google.protobuf.message import DecodeError

from aiaas_magics.backend.net import guard as rules
from aiaas_magics.backend.net.grants import LiveGrant
from aiaas_magics.backend.net.guard import Allow, Guard
from aiaas_magics.backend.net.limited_http import HEAD_S, most_connections, raise_descriptors
from aiaas_magics.backend.serving.grpc import health, open_inference_grpc, tfserving_grpc
from aiaas_magics.backend.serving.grpc.methods import (
    GrpcCall,
    Infer,
    InferStream,
    Look,
    MessageRoute,
    Method,
    Refused,
    RefusedStatus,
    StreamMethod,
    Watch,
    status_of,
    status_of_response,
)
from aiaas_magics.backend.serving.http import request_handler
from aiaas_magics.backend.serving.http.request_handler import RequestHandler
from aiaas_magics.backend.serving.protocols import BadValue, Headers, Request, Response, StreamFault, computes
from aiaas_magics.core.errors import CannotStart

METHODS: Final[dict[str, Method]] = {**open_inference_grpc.METHODS, **tfserving_grpc.METHODS, **health.METHODS}
NO_METHODS: Final = MappingProxyType[str, Method]({})
MESSAGE_S: Final = 60.0  # as the body's over HTTP
CALLS: Final = 4096  # guess: under way at once; four times what may wait for a model
DRAIN_S: Final = 5.0  # guess: what a call that runs at the end may still take
OWN_NAME: Final = (b"localhost",)  # stands for the name that grpc.aio does not tell; every guard takes it


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """Where to listen, and how much to take. `tls` is the key and the certificate, PEM."""

    host: str
    number: int
    message_bytes: int
    tls: tuple[bytes, bytes] | None = None

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.number}" if ":" in self.host else f"{self.host}:{self.number}"


class GrpcServer:
    """`await start()`, and calls are answered until `await stop()`.

    Args:
        more_methods: Beside `METHODS`, by their paths.
    """

    def __init__(self, handler: RequestHandler, guard: Guard, port: Port, *, more_methods: Mapping[str, Method] = NO_METHODS) -> None:
        self._handler, self._port = handler, port
        self._held = 0  # bytes of messages in memory, over all calls
        self._held_most = 8 * port.message_bytes  # guess, as over HTTP
        options = [
            ("grpc.so_reuseport", 0),  # a port that somebody has is not shared with him
            ("grpc.max_receive_message_length", port.message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.server_handshake_timeout_ms", int(HEAD_S * 1000)),  # its own is two minutes
            ("grpc.max_allowed_incoming_connections", most_connections(raise_descriptors()) // 2),
        ]
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=CALLS)
        self._server.add_generic_rpc_handlers((_Door(guard, {**METHODS, **more_methods}, self._make_handler),))

    async def start(self) -> None:
        """Listen and answer.

        Raises:
            CannotStart: the port cannot be had.
        """
        try:
            if self._port.tls is not None:
                self._server.add_secure_port(self._port.address, grpc.ssl_server_credentials([self._port.tls]))
            else:
                self._server.add_insecure_port(self._port.address)
        except RuntimeError as fault:
            raise CannotStart("The gRPC port", f"{self._port.address} cannot be listened on ({fault})", "log.txt") from fault
        await self._server.start()

    async def stop(self) -> None:
        """Answer what is being answered, within `DRAIN_S`, then end."""
        await self._server.stop(DRAIN_S)

    def _make_handler(self, method: Method, request: Request) -> Any:
        """What grpc runs for one call. All read by themselves: then a message has a deadline, and none is read before the guard."""
        match method:
            case StreamMethod():

                async def answer_each(_: Any, context: Any) -> AsyncIterator[bytes]:
                    async for answer in self._answer_each(method, _with_client(request, context), context):
                        yield answer.SerializeToString()

                return grpc.stream_stream_rpc_method_handler(answer_each)
            case Watch():

                async def watch(_: Any, context: Any) -> AsyncIterator[bytes]:
                    async for answer in self._watch(method, request, context):
                        yield answer.SerializeToString()

                return grpc.stream_stream_rpc_method_handler(watch)
            case InferStream():

                async def stream(_: Any, context: Any) -> None:
                    await self._stream(method, _with_client(request, context), context)

                return grpc.stream_stream_rpc_method_handler(stream)
            case _:

                async def answer(_: Any, context: Any) -> bytes:
                    return await self._answer(method, _with_client(request, context), context)

                return grpc.stream_unary_rpc_method_handler(answer)

    async def _answer(self, method: Look | Infer, request: Request, context: Any) -> bytes:
        response = await self._response(method, await _read(context), request, context)
        if response.status == 200:
            return response.body
        return await _abort(context, status_of_response(response))

    async def _answer_each(self, method: StreamMethod, request: Request, context: Any) -> AsyncIterator[Any]:
        while (raw := await context.read()) is not grpc.aio.EOF:
            response = await self._response(method.infer, raw, request, context)
            yield method.framed(response.body) if response.status == 200 else method.fault(status_of_response(response).text)

    async def _watch(self, method: Watch, request: Request, context: Any) -> AsyncIterator[Any]:
        raw = await _read(context)
        try:
            message = _parsed(method, raw)
        except BadValue as fault:
            await _abort(context, status_of(fault.status, fault.text))
        async for answer in method.answers(GrpcCall(registry=self._handler.registry, message=message, request=request)):
            yield answer

    async def _stream(self, method: InferStream, request: Request, context: Any) -> None:
        """One message answered by many: each is written when the library has taken the one before, and none once the caller is gone."""
        raw = await _read(context)
        try:
            with self._holding(raw):
                route = _with_deadline(method.route(_parsed(method, raw)), context)
                response = await self._handler.stream(method, route, request, partial(method.stream, route))
        except Exception as fault:  # noqa: BLE001 - border: what the caller sent is read here
            response = request_handler.refusal(fault)
        if response is None:  # no version: the way of all others says what is wrong
            response = await self._handler.infer(method, route, request)
        if response.stream is None:
            await _abort(context, status_of_response(response))
        try:
            async for message in response.stream:
                await context.write(message)
        except StreamFault as fault:
            await _abort(context, status_of_response(fault.response))
        finally:
            await response.stream.aclose()

    async def _response(self, method: Look | Infer, raw: bytes, request: Request, context: Any) -> Response:
        """The answer's message as the body of a response, or REST's refusal."""
        try:
            with self._holding(raw):
                message = _parsed(method, raw)
                if isinstance(method, Infer):
                    return await self._handler.infer(method, _with_deadline(method.route(message), context), request)
                if not method.permits(request.grant, message):
                    return (
                        request_handler.NEEDS_SERVERS_TOKEN if method.names is None else request_handler.not_granted(method.names(message))
                    )
                call = GrpcCall(registry=self._handler.registry, message=message, request=request)
                return Response(200, method.answer(call).SerializeToString())
        except Refused as refused:
            return refused.response
        except grpc.aio.BaseError:  # the caller is gone, or its message beyond the limit: grpc itself has answered
            raise
        except Exception as fault:  # noqa: BLE001 - border: what the caller sent is read here
            return request_handler.refusal(fault)

    @contextmanager
    def _holding(self, raw: bytes) -> Iterator[None]:
        """Count a message for as long as it is in memory.

        Raises:
            BadValue: together they are too many.
        """
        if self._held + len(raw) > self._held_most:
            raise BadValue("Too many large messages are being sent at once. Send fewer rows at once, or try again.", 413)
        self._held += len(raw)
        try:
            yield
        finally:
            self._held -= len(raw)


async def _read(context: Any) -> bytes:
    """The only message of a call. One that does not come ends the call."""
    try:
        async with asyncio.timeout(MESSAGE_S):
            raw = await context.read()
    except TimeoutError:
        await _abort(context, status_of(408, f"The message did not come within {MESSAGE_S:g} s. Send fewer rows at once."))
    if raw is grpc.aio.EOF:
        await _abort(context, status_of(400, "The call holds no message"))
    return bytes(raw)


def _with_deadline(route: MessageRoute, context: Any) -> MessageRoute:
    left_s = context.time_remaining()
    return replace(route, timeout_s=math.inf if left_s is None else left_s)


async def _abort(context: Any, status: RefusedStatus) -> NoReturn:
    await context.abort(status.code, status.text, status.trailers)
    raise AssertionError("abort returned")


def _parsed(method: Method, raw: bytes) -> Any:
    try:
        return method.takes.FromString(raw)
    except DecodeError as fault:
        raise BadValue("The message cannot be read as what this method takes") from fault


def _with_client(request: Request, context: Any) -> Request:
    """`request` with the other end of the connection, which grpc tells no sooner: ipv4:127.0.0.1:5555."""
    return msgspec.structs.replace(request, client=context.peer().partition(":")[2].encode())


class _Door(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Who may pass, and to which method; None is grpc's UNIMPLEMENTED."""

    def __init__(self, guard: Guard, methods: Mapping[str, Method], handler: Callable[[Method, Request], Any]) -> None:
        self._guard, self._methods, self._handler = guard, methods, handler

    def service(self, details: Any) -> Any:
        headers = headers_of(details.invocation_metadata)
        method = self._methods.get(details.method)
        decision = self._guard.decide(facts_of(headers), manages=isinstance(method, Look) and method.manages)
        if not isinstance(decision, Allow):
            return _refusing(status_of(decision.status, decision.text))
        grant: LiveGrant | None = decision.by
        if grant is not None and not grant.take():
            return _refusing(status_of_response(request_handler.TOO_MANY))
        if method is None:
            return None
        if grant is not None and isinstance(method, Watch) and not method.any_token:
            return _refusing(status_of_response(request_handler.NEEDS_SERVERS_TOKEN))
        request = Request(method="POST", path=details.method, headers=headers, scheme="grpc", computes=computes(headers), grant=grant)
        return self._handler(method, request)


def _refusing(status: RefusedStatus) -> Any:
    async def refuse(_: Any, context: Any) -> None:
        await _abort(context, status)

    return grpc.stream_stream_rpc_method_handler(refuse)


def headers_of(metadata: Iterable[tuple[str, str | bytes]]) -> Headers:
    """Metadata as headers. What compresses a message here is grpc: no answer is to come compressed twice."""
    return tuple(
        (name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in metadata if name != "accept-encoding"
    )


def facts_of(headers: Headers) -> rules.Facts:
    return replace(rules.facts_of(headers), hosts=OWN_NAME)
