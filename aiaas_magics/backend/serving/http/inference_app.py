"""Inference app: the inference server as a bare ASGI callable.

Owns what every request meets before a protocol sees it: the guard, the body's limits and
deadlines, and what happens when our own code fails. What a path means belongs to `protocols`.
No framework: a dozen routes, and each microsecond here is paid by every prediction.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from aiaas_magics.backend.net.grants import LiveGrant
from aiaas_magics.backend.net.guard import STRANGERS, Allow, Guard, Refuse, facts_of
from aiaas_magics.backend.serving.http import request_handler
from aiaas_magics.backend.serving.http.compression import TooLarge, unpacked
from aiaas_magics.backend.serving.http.request_handler import RequestHandler
from aiaas_magics.backend.serving.http.rest_protocols import ROUTES
from aiaas_magics.backend.serving.models.batching import Limits
from aiaas_magics.backend.serving.protocols import BadValue, Headers, Request, Response, StreamFault, computes, error
from aiaas_magics.backend.serving.protocols.open_inference.inference_calls import JSON_LENGTH
from aiaas_magics.backend.serving.protocols.operations import BINARY_TYPE, OperationRoute
from aiaas_magics.backend.serving.protocols.route_table import RouteTable
from aiaas_magics.core import server_proof

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_BYTES: Final = Limits().body_bytes
# Reading JSON takes 0.1 s of a core a MB, whatever stands in it (measured here), so 4 MB are what one caller may take of the others'.
JSON_BYTES: Final = 4 * 1024 * 1024
BODY_S: Final = 60.0  # guess: the largest body over a 10 Mbit/s line
LINGER_S: Final = 2.0  # guess: how long a refused body is read into nothing, so that its sender sees the answer instead of a reset
CLOSE: Final = (b"connection", b"close")
PROOF: Final = ("GET", server_proof.PATH.encode())
NO_STREAM: Final = error(505, "This answer is a stream, which takes HTTP/1.1. Ask by HTTP/1.1.")
BAD_QUESTION: Final = error(400, "A proof is asked for with nonce= and 64 hexadecimal digits. Check what sends this request.")


class BodyTooLarge(Exception):
    """More bytes than may come."""


@dataclass(frozen=True, slots=True)
class Most:
    """How large a body may be, and what its sender can do about one that is larger."""

    bytes: int
    what: str = "body"
    move: str = "Send fewer rows at once."

    def refusal(self, size: int | None = None) -> BodyTooLarge:
        if size is None:
            return BodyTooLarge(f"The {self.what} has more than the {self.bytes} bytes that are taken. {self.move}")
        return BodyTooLarge(f"The {self.what} has {size} bytes; at most {self.bytes} are taken. {self.move}")


def most_of(route: OperationRoute, headers: Headers, *, body_bytes: int, json_bytes: int) -> Most:
    """The limit on a request's body: JSON has one of its own, since reading it takes much longer than binary tensors.

    Raises:
        BodyTooLarge: the head says that its JSON is larger.
    """
    whole = Most(body_bytes)
    if not route.infers or json_bytes >= body_bytes:
        return whole
    move = f"Send binary tensors instead, to /v2/models/{route.name}/infer (the client libraries do by themselves), or fewer rows at once."
    json = Most(json_bytes, "JSON", move)
    length = next((value for name, value in headers if name == JSON_LENGTH), None)
    if length is None or BINARY_TYPE not in route.operation.takes:
        return json
    if length.isdigit() and len(length) < 20 and int(length) > json_bytes:
        raise json.refusal(int(length))
    return whole


class BodyTooSlow(Exception):
    """The body was not there in time."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(limit_s)
        self.limit_s = limit_s

    def __str__(self) -> str:
        return f"The body did not come within {self.limit_s:g} s. Send fewer rows at once."


class SenderGone(Exception):
    """The connection ended before the body did; nobody waits for an answer."""


@dataclass(slots=True)
class Held:
    """Bytes of bodies in memory, over all connections."""

    bytes: int = 0


class App:
    """`App(handler, guard)` is what uvicorn runs.

    Args:
        routes: The operations that are answered.
        body_bytes: How large a body may be.
        json_bytes: How large the JSON of a prediction may be.
        body_s: How long a body may take to come, and a chunk of an answer to be taken off.
    """

    def __init__(
        self,
        handler: RequestHandler,
        guard: Guard,
        *,
        body_bytes: int = BODY_BYTES,
        json_bytes: int = JSON_BYTES,
        body_s: float = BODY_S,
        routes: RouteTable = ROUTES,
    ) -> None:
        self.handler, self.guard, self.routes = handler, guard, routes
        self.body_s = body_s
        self._body_bytes, self._json_bytes = body_bytes, json_bytes
        self.held = Held()
        self._held_most = 8 * body_bytes  # guess: eight of the largest bodies at once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path, headers = scope["raw_path"].decode("latin-1"), tuple(scope["headers"])  # as they are now: a chunked body may end with more
        protocol, route = self.routes.find(scope["method"], path)
        manages = not isinstance(route, Response) and route.operation.manages
        facts = facts_of(headers, scope["query_string"])
        decision = self.guard.decide(facts, manages=manages)
        if self.guard.cors is not None:
            send = _adding(send, self.guard.cors.headers(facts.origins))
            preflight = self.guard.cors.preflight(scope["method"], headers) if self.guard.cors.allows(facts.origins) else None
            if preflight is not None and (decision in STRANGERS or isinstance(decision, Allow)):
                await self._refuse(Response(200, b"", preflight), scope, receive, send)
                return
        if (scope["method"], scope["raw_path"]) == PROOF and (decision in STRANGERS or isinstance(decision, Allow)):
            proof = server_proof.answer(self.guard.key_of, scope["query_string"], scope.get("server"))
            await _answer(send, BAD_QUESTION if proof is None else Response(200, proof))
            return
        passed = _passed(decision, route)
        if isinstance(passed, Response):
            await self._refuse(passed, scope, receive, send)
            return
        route, grant = passed
        try:
            most = most_of(route, headers, body_bytes=self._body_bytes, json_bytes=self._json_bytes)
            body = b"" if scope["method"] == "GET" else await self._unpacked(await self._body(scope, receive, most), headers, most)
            client = b"%b:%d" % (scope["client"][0].encode(), scope["client"][1]) if scope.get("client") else b""
            request = Request(
                method=scope["method"],
                path=path,
                headers=headers,
                body=body,
                client=client,
                scheme=scope["scheme"],
                computes=computes(headers),
                grant=grant,
            )
            response = await self.handler.respond(protocol, route, request)
        except BodyTooLarge as fault:
            await self._refuse(error(413, str(fault)), scope, receive, send)
            return
        except (BadValue, TooLarge) as fault:
            response = error(fault.status if isinstance(fault, BadValue) else 413, str(fault))
        except BodyTooSlow as fault:
            await _answer(send, error(408, str(fault)), close=True)
            return
        except SenderGone:
            return
        except Exception as fault:  # noqa: BLE001 - border: a fault of ours costs one answer, not the server
            response = request_handler.refusal(fault)
        await self._answer_whole_or_by_stream(scope, receive, send, response)

    async def _answer_whole_or_by_stream(self, scope: Scope, receive: Receive, send: Send, response: Response) -> None:
        """Send a stream for as long as somebody reads it, chunk by chunk; it is closed when this returns, however it ended."""
        if response.stream is None:
            await _answer(send, response)
            return
        try:
            if scope["http_version"] == "1.0":
                await _answer(send, NO_STREAM)
                return
            # A task of its own, since the reader may leave while a chunk is computed.
            tasks = asyncio.create_task(_send_stream(send, response)), asyncio.create_task(_disconnect(receive))
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                outcome, _ = await asyncio.gather(*tasks, return_exceptions=True)
            if isinstance(outcome, Exception):
                raise outcome
        finally:
            await response.stream.aclose()

    async def _unpacked(self, body: bytes, headers: Headers, most: Most) -> bytes:
        encoding = next((value for name, value in headers if name == b"content-encoding"), None)
        return body if encoding is None else await asyncio.to_thread(unpacked, body, encoding, most=most.bytes, move=most.move)

    async def _body(self, scope: Scope, receive: Receive, most: Most) -> bytes:
        """The whole body, within its limits.

        Raises:
            BodyTooLarge: before any of it is read where its length was told; else when it grows too long.
            BadValue: it is encoded in a way that nobody undoes here.
            BodyTooSlow: after `body_s` seconds.
            SenderGone: the connection ended in the middle.
        """
        coding = next((value for name, value in scope["headers"] if name == b"transfer-encoding"), b"chunked")
        if coding.strip().lower() != b"chunked":
            raise BadValue(f"Transfer-Encoding {coding[:40].decode('latin-1')!r} is not read here. Send chunked, or a Content-Length.", 501)
        length = next((int(value) for name, value in scope["headers"] if name == b"content-length" and value.isdigit()), 0)
        if length > most.bytes:
            raise most.refusal(length)
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            return bytes(message["body"])
        try:
            async with asyncio.timeout(self.body_s):
                return await self._rest_of_body(message, receive, most)
        except TimeoutError as fault:
            raise BodyTooSlow(self.body_s) from fault

    async def _rest_of_body(self, message: MutableMapping[str, Any], receive: Receive, most: Most) -> bytes:
        chunks: list[bytes] = []
        size = 0
        try:
            while True:
                if message["type"] != "http.request":
                    raise SenderGone
                chunk = message["body"]
                size += len(chunk)
                self.held.bytes += len(chunk)
                if size > most.bytes:
                    raise most.refusal()
                if self.held.bytes > self._held_most:
                    raise BodyTooLarge("Too many large bodies are being sent at once. Send fewer rows at once, or try again.")
                chunks.append(chunk)
                if not message.get("more_body"):
                    return b"".join(chunks)
                message = await receive()
        finally:
            self.held.bytes -= size

    async def _refuse(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer without having read the body. A body that was announced is read into nothing for a moment, then cut."""
        unread = any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in scope["headers"])
        if not unread:
            await _answer(send, response)
            return
        await send(_head(response, close=True))
        if scope["method"] != "HEAD":
            await send({"type": "http.response.body", "body": response.body, "more_body": True})
        try:
            async with asyncio.timeout(LINGER_S):
                while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                    pass
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b""})


def _passed(decision: Allow | Refuse, route: OperationRoute | Response) -> tuple[OperationRoute, LiveGrant | None] | Response:
    """The operation of a request that the guard let in, with whose token it came; or what any other request is answered with."""
    if isinstance(decision, Refuse):
        return error(decision.status, decision.text, decision.headers)
    grant: LiveGrant | None = decision.by
    if grant is not None and not grant.take():
        return request_handler.TOO_MANY
    return route if isinstance(route, Response) else (route, grant)


def _adding(send: Send, headers: Headers) -> Send:
    """`send`, with these headers in every answer."""

    async def adding(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return adding


async def _disconnect(receive: Receive) -> None:
    """Returns when the other side is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_stream(send: Send, response: Response) -> None:
    """A fault before the first chunk is an answer as any other; a later one ends the stream as its protocol says, or cuts it."""
    assert response.stream is not None
    has_head = False
    try:
        async for chunk in response.stream:
            if not chunk:
                continue
            if not has_head:
                await send(_stream_head(response))
                has_head = True
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except StreamFault as fault:
        if not has_head:
            await _answer(send, fault.response)
            return
        if fault.closing_chunk is None:
            return  # uvicorn closes the connection of an answer that is not whole
        await send({"type": "http.response.body", "body": fault.closing_chunk, "more_body": True})
    if not has_head:
        await send(_stream_head(response))
    await send({"type": "http.response.body", "body": b""})


def _stream_head(response: Response) -> dict[str, Any]:
    headers = [*response.headers, (b"content-type", response.content_type)]
    return {"type": "http.response.start", "status": response.status, "headers": headers}


async def _answer(send: Send, response: Response, *, close: bool = False) -> None:
    await send(_head(response, close=close))
    await send({"type": "http.response.body", "body": response.body})


def _head(response: Response, *, close: bool) -> dict[str, Any]:
    headers = [*response.headers]
    if response.body:
        headers.append((b"content-type", response.content_type))
    if close:
        headers.append(CLOSE)
    headers.append((b"content-length", str(len(response.body)).encode()))
    return {"type": "http.response.start", "status": response.status, "headers": headers}
