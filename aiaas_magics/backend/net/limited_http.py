"""Limited HTTP: HTTP/1.1 connections with the limits that uvicorn leaves open, for both servers.

Owns how large a request's head may grow, how long it may take, how long a connection may be silent, what is no HTTP/1.1, and
how many connections there may be. What a request is answered with belongs to the servers; accepting belongs to `accepting`.

A limit that is passed ends the connection with a sentence. None of it needs a token: a stranger meets these limits first.
"""

from __future__ import annotations

import asyncio
import sys
from itertools import islice
from typing import Any, Final

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD_BYTES: Final = 64 * 1024  # as h11, uvicorn's other protocol, by default
HEAD_S: Final = 10.0  # guess: a head is one packet; a sender that needs longer holds a connection for nothing
UNREAD_S: Final = 60.0  # guess: an answer must be taken off, be it slowly
KEEP_ALIVE_S: Final = 75  # nginx's default; load balancers and clients count on more than uvicorn's 5 s

MOST_DESCRIPTORS: Final = 2**20  # as systemd's own limit for services; some systems say "no limit", by a number that is useless
OWN_DESCRIPTORS: Final = 64  # guess: files, the database, models' processes and control sockets
MOST_CONNECTIONS: Final = 16 * 1024  # guess: a connection takes some 20 KB
LOOKS: Final = 64  # guess: connections that are looked at to find one that is idle; the next time goes on behind them

BUSY: Final = "All connections of this server are in use. Try again in a moment."


class LimitedProtocol(HttpToolsProtocol):
    """A connection whose sender must finish each head within `HEAD_S`, and within `HEAD_BYTES` give or take one read."""

    app: Any
    cycle: Any

    _between = True  # the parser stands between two requests
    _in_head = True
    had_head = False  # one was whole, so that the sender speaks HTTP/1
    _head_bytes = 0
    _head_deadline: asyncio.TimerHandle | None = None
    _reader_deadline: asyncio.TimerHandle | None = None
    _length = b""  # the request's own Content-Length
    _last_s = 0.0
    _is_over = False  # nothing more is read
    _end: tuple[int, str] | None = None  # to be said when all whole requests that came before are answered

    # ------------------------------------------------------------------ the transport's calls

    def connection_made(self, transport: Any) -> None:
        self._last_s = self.loop.time()
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._forget_reader()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # uvicorn's timer for idle connections runs on: whether this one was idle is seen when it fires.
        self._last_s = self.loop.time()
        if self._read(data) and self._in_head:
            self._check_head(data)

    def _read(self, data: bytes) -> bool:
        """Parse what came; False where it is no HTTP/1.1."""
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("This is not valid HTTP/1.1. Check what sends this request.")
            return False
        return True

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offered:
                # The parser reads on as another protocol, which nobody here speaks: what comes is read as if it had not been offered.
                data = self._head_without_offer() + data[offered.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            else:
                return

    def _head_without_offer(self) -> bytes:
        """The head that was just read, with what offered another protocol left out (RFC 9110, 7.8: an offer may be passed over)."""
        headers = [(name, value) for name, value in self.headers if name.lower() not in (b"upgrade", b"connection")]
        closes = any(b"close" in value.lower() for name, value in self.headers if name.lower() == b"connection")
        headers += [(b"connection", b"close")] if closes else []
        headers += [(b"content-length", self._length)] if self._length else []
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode(), lines(headers))

    # ------------------------------------------------------------------ the parser's calls

    def on_message_begin(self) -> None:
        # What uvicorn does here is done when the head is whole.
        self.url, self.headers, self._length = b"", [], b""
        self._between, self._in_head, self._head_bytes = False, True, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: nothing of it may change what was decided by the head (RFC 9110, 6.5.1)
        if len(name) == 14 and not self._length and name.lower() == b"content-length":
            self._length = value
        else:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise httptools.HttpParserError
            return  # it comes again, without
        self._in_head, self.had_head = False, True
        self._disarm()
        if self.url[:1] != b"/":
            self._name_host()
        self._begin()

    def _name_host(self) -> None:
        """Of `GET http://name/path` the name counts, whatever the Host header says (RFC 9112, 3.2.2)."""
        try:
            target = httptools.parse_url(self.url)
        except httptools.HttpParserInvalidURLError as error:
            raise httptools.HttpParserError from error
        if target.host is not None:
            host = target.host if target.port is None else b"%b:%d" % (target.host, target.port)
            self.headers = [(name, host if name.lower() == b"host" else value) for name, value in self.headers]

    def _begin(self) -> None:
        """A head is whole."""
        self._begin_asgi()

    def _begin_asgi(self) -> None:
        url, headers = self.url, [(name.lower(), value) for name, value in self.headers]
        if self._length:
            headers.append((b"content-length", self._length))
        super().on_message_begin()
        self.url, self.headers = url, headers
        self.scope["headers"] = headers
        self.expect_100_continue = any(name == b"expect" and value.lower() == b"100-continue" for name, value in headers)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self._in_head:
            return
        self._between = True
        super().on_message_complete()

    # ------------------------------------------------------------------ idle, and busy

    def _is_free(self) -> bool:
        """Whether no request is being answered by the app."""
        return self.cycle is None or bool(self.cycle.response_complete)

    @property
    def last_s(self) -> float:
        """When something came last, by the loop's clock."""
        return self._last_s

    def is_idle(self) -> bool:
        """Whether nobody waits for an answer here; a head that is not whole is nobody's yet."""
        return self._is_free() and not self.pipeline

    def close_idle(self) -> None:
        """Its place is needed, at once: TLS would wait for the other side's farewell."""
        if self.scheme == "https":
            self.transport.abort()
        else:
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """The timer runs on while requests come and go: whether the connection was idle is seen when it fires."""
        self.timeout_keep_alive_task = None
        if self.cycle is not None and not self.cycle.response_complete:
            return
        idle_s = self.loop.time() - self._last_s
        if idle_s >= self.timeout_keep_alive:
            super().timeout_keep_alive_handler()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive - idle_s, self.timeout_keep_alive_handler)

    # ------------------------------------------------------------------ limits

    def _check_head(self, data: bytes) -> None:
        """After a read that ended within a head, or before one."""
        if self.transport.is_closing():
            return
        line = data if self._head_bytes else data.lstrip(b"\r\n")
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES:
            self._refuse(431, f"The request's head has more than {HEAD_BYTES} bytes. Send fewer or shorter headers.")
        elif not self.had_head and not self._between and b"\n" in line and self.parser.get_http_version() == "0.0":
            # The parser has read a request line without a version, and waits for headers that HTTP/0.9 does not have.
            self.send_400_response("This is HTTP/0.9, which is not spoken here. Send HTTP/1.1.")
        elif self._head_deadline is None:
            self._arm()

    def _arm(self) -> None:
        self._head_deadline = self.loop.call_later(HEAD_S, self._too_slow)

    def _disarm(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _too_slow(self) -> None:
        self._head_deadline = None
        self.send_400_response(f"The request's head did not come within {HEAD_S:g} s. Send it at once.")

    @property
    def _unread_s(self) -> float:
        return UNREAD_S

    def pause_writing(self) -> None:
        """The other side does not read its answers: no more of its requests are read either."""
        super().pause_writing()
        self.flow.pause_reading()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_reader()
        if self._may_read():
            self.flow.resume_reading()

    def _may_read(self) -> bool:
        return self._is_free() and not self._is_over

    def _watch_reader(self) -> None:
        """An answer must be taken off, be it slowly: it is memory."""
        self._reader_deadline = self.loop.call_later(self._unread_s, self._look_at_reader, self.transport.get_write_buffer_size())

    def _look_at_reader(self, unread: int) -> None:
        if self.transport.get_write_buffer_size() < unread:
            self._watch_reader()
        else:
            self.transport.abort()

    def _forget_reader(self) -> None:
        if self._reader_deadline is not None:
            self._reader_deadline.cancel()
            self._reader_deadline = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _refuse(self, status: int, text: str) -> None:
        """Answer what came whole before, then this, and read nothing more."""
        if self.transport.is_closing() or self._is_over:
            return
        self.flow.pause_reading()
        if (self.pipeline or not self._is_free()) and (self._between or self._in_head):
            self._end = (status, text)
            return
        self._is_over = True
        self._send_refusal(status, text)

    def _send_refusal(self, status: int, text: str) -> None:
        """The last answer of this connection."""
        body = self.refusal(status, text)
        head = (STATUS_LINE[status], lines(self.server_state.default_headers), b"content-type: application/json\r\nconnection: close\r\n")
        self.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (b"".join(head), len(body), body))
        self.transport.close()

    def refusal(self, status: int, text: str) -> bytes:
        """A refusal as the server's clients read it."""
        return orjson.dumps({"error": text})

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._end is not None:
            self._refuse(*self._end)


class Connections(set[Any]):
    """All connections of a server, at most so many: for a new one an idle one is closed, or else the new one is refused.

    Those that never sent a whole head go first, the oldest of them before the others; then whoever is idle for longest.
    Stands where uvicorn has a plain set.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self._new: dict[LimitedProtocol, None] = {}  # had no whole head when they were looked at last; in the order in which they came
        self._line: dict[LimitedProtocol, float] = {}  # the others, as they are looked at, with what `last_s` was then

    def add(self, connection: LimitedProtocol) -> None:
        is_full = len(self) >= self.most and not self.close_one()
        super().add(connection)
        self._new[connection] = None
        if is_full:
            connection.loop.call_soon(connection._refuse, 503, BUSY)  # when the connection is made

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        self._new.pop(connection, None)
        self._line.pop(connection, None)

    def close_one(self) -> bool:
        """Close one that is idle; False where none of the next `LOOKS` is."""
        idle = self._next_new() or self._longest_idle()
        if idle is None:
            return False
        self.discard(idle)
        idle.close_idle()
        return True

    def _next_new(self) -> LimitedProtocol | None:
        for connection in list(islice(self._new, LOOKS)):
            if not connection.had_head:
                return connection
            del self._new[connection]
            self._line[connection] = connection.last_s
        return None

    def _longest_idle(self) -> LimitedProtocol | None:
        idle: LimitedProtocol | None = None
        for connection in list(islice(self._line, LOOKS)):
            since_s = self._line.pop(connection)
            self._line[connection] = connection.last_s
            if connection.is_idle() and (idle is None or connection.last_s < idle.last_s):
                idle = connection
                if connection.last_s <= since_s:
                    break  # nothing came since it was put there, and whoever stands behind it came later
        return idle


def raise_descriptors() -> int:
    """Let this process, and what it starts, have as many descriptors as it may; returns how many that is."""
    if sys.platform == "win32":
        return 8192  # the C library's own largest number of files
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return most
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (ValueError, OSError):  # macOS has a limit of its own below that
        return soft
    return most


def most_connections(descriptors: int) -> int:
    """How many connections fit: two descriptors each (an upload has a file besides), beside what the server itself has open.

    >>> most_connections(1024), most_connections(2**20)
    (480, 16384)
    """
    own = min(OWN_DESCRIPTORS, descriptors // 2)
    return max(4, min(MOST_CONNECTIONS, (descriptors - own) // 2))


def lines(headers: Any) -> bytes:
    """Headers as they stand on the wire."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])
