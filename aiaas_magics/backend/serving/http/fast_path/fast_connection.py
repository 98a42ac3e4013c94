"""Fast path: a connection that answers plain predictions below ASGI.

Owns reading and answering a prediction with a small body that is all there, without a scope, a task and a dozen messages, which cost
more than a small model computes. It handles plain requests only; all others (a refusal, a stream, a large, chunked or compressed body,
another route) go to `inference_app` untouched. Both ask the same guard, routes and protocols, so that answers are the same.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from aiaas_magics.backend.net.guard import Allow, facts_of
from aiaas_magics.backend.net.limited_http import lines
from aiaas_magics.backend.serving.http.connection import InferenceConnection
from aiaas_magics.backend.serving.http.fast_path.microbatch import Microbatcher
from aiaas_magics.backend.serving.http.fast_path.pending import (
    UNKNOWN,
    AnswerSlot,
    ParsedHead,
    PendingPrediction,
    ResponseQueue,
    parsed_head,
)
from aiaas_magics.backend.serving.http.inference_app import App, BodyTooSlow
from aiaas_magics.backend.serving.protocols import JSON, Response, error

FAST_BYTES: Final = 256 * 1024  # guess: reading a larger body costs more than ASGI
HEADS: Final = 1024  # guess: heads that are known by their bytes; they differ in the body's length
LEARNED_HEAD_BYTES: Final = 2048  # guess: of longer ones too few are the same
PENDING: Final = 64  # guess: requests of one connection that wait for their answers before it is read on


class FastPath:
    """What the fast connections of one app have in common."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.microbatcher = Microbatcher(app.handler)
        self.heads: dict[bytes, tuple[ParsedHead, int]] = {}  # that were decided on, with their bodies' lengths

    def connection(self, **options: Any) -> FastConnection:
        """A new connection; uvicorn names its arguments."""
        return FastConnection(self, **options)


class FastConnection(InferenceConnection):
    """A connection of the inference process, with the fast path."""

    _last_head: ParsedHead | None = None  # of the request that took the fast path last
    _head: ParsedHead | None = None  # the request being read, where it takes the fast path
    _newest = UNKNOWN  # the last request of this read that took the fast path, and its body's length
    _held = 0
    _body_deadline: asyncio.TimerHandle | None = None
    _default_headers: object = None
    _plain_head = b""  # of an answer with a JSON body and nothing special, up to the body's length

    def __init__(self, fast_path: FastPath, **options: Any) -> None:
        super().__init__(**options)
        self._fast_path = fast_path

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        client = b"%s:%d" % (self.client[0].encode(), self.client[1]) if self.client else b""
        self._pending = ResponseQueue(self.app.handler, client, self._flush)
        self._body: list[bytes] = []

    def connection_lost(self, exc: Exception | None) -> None:
        self._release()
        self._pending.slots.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._last_s = self.loop.time()
        # A whole request whose head came before, byte for byte, is not parsed again.
        head = data[: data.find(b"\r\n\r\n") + 4] if self._between else b""
        if head:
            parsed, length = self._fast_path.heads.get(head, UNKNOWN)
            if parsed is not None and len(data) == len(head) + length and self._is_free():
                if self._head_deadline is not None:
                    self._disarm()
                self._begin_prediction(parsed, data[len(head) :])
                return
        self._newest = UNKNOWN
        if not self._read(data):
            return
        if head and self._between:
            self._learn(head, len(data))
        # A whole request in one read, which is nearly every one, costs a few comparisons here.
        if self._in_head:
            self._check_head(data)
        elif self._head is not None and not self._held:
            self._hold()

    # ------------------------------------------------------------------ the parser's calls

    def _begin(self) -> None:
        self._head = self._fast_head() if self._is_free() and self._is_plain() else None
        if self._head is not None and self._head.grant is not None and not self._head.grant.take():
            self._head = None  # the way of all others says so
        if self._head is None:
            super()._begin()
        else:
            self._last_head, self._body = self._head, []

    def _is_free(self) -> bool:
        """Whether no request for uvicorn is before this one."""
        return self.cycle is None or self.cycle is self._pending or self.cycle.response_complete

    def _is_plain(self) -> bool:
        length, parser = self._length, self.parser
        plain = parser.get_method() == b"POST" and parser.get_http_version() == "1.1" and parser.should_keep_alive()
        return plain and length.isdigit() and len(length) < 10 and int(length) <= FAST_BYTES

    def _fast_head(self) -> ParsedHead | None:
        head = self._last_head
        if head is None or head.url != self.url or head.raw != self.headers or (head.grant is not None and not head.grant.is_valid):
            return self._parse_head()
        return head

    def _parse_head(self) -> ParsedHead | None:
        """What is asked for, where it may take the fast path."""
        headers = tuple((name.lower(), value) for name, value in self.headers)
        for name, value in headers:
            if name in (b"content-encoding", b"transfer-encoding", b"expect", b"upgrade", b"content-length") and value != b"identity":
                return None
        url = httptools.parse_url(self.url)
        decision = self.app.guard.decide(facts_of(headers, url.query or b""))
        if not isinstance(decision, Allow) or decision.page:
            return None
        path = url.path.decode("ascii")
        protocol, route = self.app.routes.find("POST", path)
        if isinstance(route, Response) or not route.infers:
            return None
        if route.operation.read_stream is not None or route.operation.locate is not None:
            return None
        if decision.by is not None and not decision.by.permits(route.name):
            return None
        return parsed_head(self.url, self.headers, headers, path, protocol, route, decision.by)

    def on_body(self, body: bytes) -> None:
        if self._head is None:
            super().on_body(body)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._in_head:
            return
        self._between = True
        head, self._head = self._head, None
        if head is None:
            super().on_message_complete()
            return
        self._release()
        if self._ending:
            self._pending.keep_alive = False
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._newest = head, len(body)
        self._begin_prediction(head, body)

    def _learn(self, head: bytes, read: int) -> None:
        """If what was read was just one request, and took the fast path, the next one with that head need not be parsed."""
        parsed, length = self._newest
        # A grant ends, and has a rate: its heads are looked at each time.
        if parsed is not None and parsed.grant is None and read == len(head) + length and len(head) <= LEARNED_HEAD_BYTES:
            if len(self._fast_path.heads) >= HEADS:
                self._fast_path.heads.clear()
            self._fast_path.heads[head] = parsed, length

    def _begin_prediction(self, head: ParsedHead, body: bytes) -> None:
        """Have a request answered below ASGI."""
        pending = self._pending
        prediction = PendingPrediction(pending, head, body, head.json_bytes, time.perf_counter_ns())
        pending.slots.append(prediction)
        self.cycle = pending
        if len(pending.slots) >= PENDING:
            self.flow.pause_reading()
        if head.target is None:
            prediction.begin()
        else:
            self._fast_path.microbatcher.add(head.target, prediction)

    # ------------------------------------------------------------------ answers

    def _flush(self) -> None:
        """Send what may be sent: answers leave in the order of their requests."""
        pending, out = self._pending, b""
        slots = pending.slots
        while slots and (response := slots[0].response) is not None:
            slots.popleft()
            out += self._bytes_of(response, is_last=not slots)
        if not out:
            return
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.transport.write(out)
        if slots:
            return
        if not pending.keep_alive:  # a shutdown waited for them
            self.transport.close()
        elif self.pipeline:
            self.on_response_complete()
        else:
            if self.flow.read_paused and not self.flow.write_paused:
                self.flow.resume_reading()
            if self.timeout_keep_alive_task is None:
                self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _bytes_of(self, response: Response, *, is_last: bool) -> bytes:
        """`is_last` of those that wait: if the connection is to be closed, that answer says so."""
        closes = is_last and not self._pending.keep_alive
        if self._default_headers is not self.server_state.default_headers:  # uvicorn makes a new list each second, for the date
            self._default_headers = self.server_state.default_headers
            self._plain_head = b"%b%bcontent-type: %b\r\ncontent-length: " % (
                STATUS_LINE[200],
                lines(self.server_state.default_headers),
                JSON,
            )
        body = response.body
        if response.status == 200 and not response.headers and response.content_type is JSON and body and not closes:
            return b"%b%d\r\n\r\n%b" % (self._plain_head, len(body), body)
        return b"%b%b%b%b%bcontent-length: %d\r\n\r\n%b" % (
            STATUS_LINE[response.status],
            lines(self.server_state.default_headers),
            lines(response.headers),
            b"content-type: %b\r\n" % response.content_type if body else b"",
            b"connection: close\r\n" if closes else b"",
            len(body),
            body,
        )

    def _end_when_idle(self) -> None:
        self._pending.keep_alive = False
        super()._end_when_idle()

    def _has_begun(self) -> bool:
        return not self._between and (self._in_head or self._head is not None)

    def _is_unused(self) -> bool:
        return not self._pending.slots and super()._is_unused()

    def _is_streaming(self) -> bool:
        return self.cycle is not self._pending and super()._is_streaming()

    def _may_read(self) -> bool:
        return super()._may_read() and len(self._pending.slots) < PENDING

    def is_idle(self) -> bool:
        return self._head is None and not self._pending.slots and super().is_idle()

    # ------------------------------------------------------------------ limits

    def _hold(self) -> None:
        """A body that did not come in one read counts as memory, and has a deadline."""
        self._held = int(self._length)
        self.app.held.bytes += self._held
        self._body_deadline = self.loop.call_later(self.app.body_s, self._body_too_slow)

    def _release(self) -> None:
        if self._held:
            self.app.held.bytes -= self._held
            self._held = 0
        if self._body_deadline is not None:
            self._body_deadline.cancel()
            self._body_deadline = None

    def _body_too_slow(self) -> None:
        self._release()
        self._head, self._body = None, []
        self._refuse(408, str(BodyTooSlow(self.app.body_s)))

    def _send_refusal(self, status: int, text: str) -> None:
        self._pending.keep_alive = False
        self._pending.slots.append(AnswerSlot(response=error(status, text)))
        self._flush()
