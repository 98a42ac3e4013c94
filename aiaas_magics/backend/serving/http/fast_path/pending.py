"""Pending predictions of the fast path: what their heads say, and their order on a connection.

Owns the values; reading them off the wire and writing answers belongs to `fast_connection`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from aiaas_magics.backend.net.grants import LiveGrant
from aiaas_magics.backend.serving.http.fast_path.microbatch import PlainTarget, target_of
from aiaas_magics.backend.serving.http.request_handler import RequestHandler
from aiaas_magics.backend.serving.protocols import Headers, InferenceProtocol, Request, Response, computes
from aiaas_magics.backend.serving.protocols.open_inference.inference_calls import JSON_LENGTH
from aiaas_magics.backend.serving.protocols.operations import OperationRoute


@dataclass(frozen=True, slots=True)
class ParsedHead:
    """A request's head, without its content-length, and what was decided of it: a client's next one mostly is the same."""

    url: bytes
    raw: list[tuple[bytes, bytes]]
    headers: Headers  # with names in lower case
    path: str
    protocol: InferenceProtocol
    route: OperationRoute
    computes: bool
    json_bytes: int  # of a body whose head says how much of it is JSON; else 0
    target: PlainTarget | None  # whom it asks, if it may be answered together with others
    grant: LiveGrant | None = None  # whose token it came with; None: the server's own


UNKNOWN: Final[tuple[ParsedHead | None, int]] = (None, 0)


def parsed_head(
    url: bytes,
    raw: list[tuple[bytes, bytes]],
    headers: Headers,
    path: str,
    protocol: InferenceProtocol,
    route: OperationRoute,
    grant: LiveGrant | None = None,
) -> ParsedHead:
    is_computed, lengths = computes(headers), [value for name, value in headers if name == JSON_LENGTH]
    form = route.operation.plain_form if is_computed else None
    return ParsedHead(
        url=url,
        raw=raw,
        headers=headers,
        path=path,
        protocol=protocol,
        route=route,
        computes=is_computed,
        json_bytes=int(lengths[0]) if len(lengths) == 1 and lengths[0].isdigit() and len(lengths[0]) < 10 else 0,
        target=None if form is None else target_of(route.name, route.version, route.label, form),
        grant=grant,
    )


class AnswerSlot(msgspec.Struct, eq=False, kw_only=True):
    """A place in the order of a connection's answers."""

    response: Response | None = None


class ResponseQueue:
    """The predictions of one connection that are not answered yet, in their order.

    Stands where uvicorn keeps the request that it is carrying out (`cycle`), so that what comes after them on the same
    connection, and a shutdown, waits for them as for any other.

    Args:
        client: The other end of the connection, as host:port.
        flush: Sends the answers that may be sent: those before which no other is missing.
    """

    def __init__(self, handler: RequestHandler, client: bytes, flush: Callable[[], None]) -> None:
        self.handler, self.client, self.flush = handler, client, flush
        self.slots: deque[AnswerSlot] = deque()
        self.keep_alive = True
        self.disconnected = False
        self.message_event = self

    @property
    def response_complete(self) -> bool:
        return not self.slots

    def set(self) -> None:
        """Nobody waits for messages here."""


class PendingPrediction(AnswerSlot, eq=False):
    """A prediction that waits for its answer in its place."""

    pending: ResponseQueue
    head: ParsedHead
    body: bytes
    json_bytes: int
    began_ns: int

    def begin(self) -> None:
        """Have it answered as any other request."""
        head, pending = self.head, self.pending
        request = Request(
            method="POST",
            path=head.path,
            headers=head.headers,
            body=self.body,
            client=pending.client,
            computes=head.computes,
            grant=head.grant,
        )
        pending.handler.begin(head.protocol, head.route, request, self.answer)

    def answer(self, response: Response) -> None:
        self.response = response
        slots = self.pending.slots
        if slots and slots[0] is self:  # none are left of a connection that was lost
            self.pending.flush()
