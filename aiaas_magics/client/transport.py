"""Transport: HTTP between a client and a backend.

Owns connections, deadlines, retries of what is safe to repeat, and turning the HTTP
library's failures and the backend's error answers into ours. It is the only user of
`httpx`. Which routes there are belongs to `backend`.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx
import msgspec
import psutil

from aiaas_magics.client import certificates, connections
from aiaas_magics.core import errors, server_proof, wire
from aiaas_magics.core.errors import (
    AiaasError,
    BackendNotProven,
    BackendRefused,
    BackendTooSlow,
    BackendUnreachable,
    InvalidSpec,
    NotAuthorised,
    UntrustedAddress,
)
from aiaas_magics.core.plain_text import visible, visible_json

T = TypeVar("T")

ANSWER_S: Final = 60.0  # guess: the slowest ordinary answer is a deploy, which loads and proves a model
CHUNK_BYTES: Final = 4 * 1024 * 1024
JSON_BYTES: Final = 256 * 1024 * 1024  # of one answer; guess: 100,000 jobs have 200 MB
OUTPUT_BYTES: Final = 1024 * 1024 * 1024  # of one answer to a prediction; guess: 64 times the largest part that is sent at once
# Waits between tries of a request that may be repeated; a server that is being restarted is up within 2 s.
RETRY_WAITS_S: Final = (0.2, 0.5, 1.0, 2.0)
NOT_NOW: Final = (429, 503)
RETRY_MOST_S: Final = 10.0  # guess: who asks to be left alone for longer is told to the caller, not waited for


class Refusal(msgspec.Struct, frozen=True):
    """The backend's error answer."""

    error: str = ""
    type: str = ""
    args: list[Any] = []  # msgspec gives each its own


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole answer. Names of headers are found in any case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class Download:
    """Bytes that come chunk by chunk, `size` of them, and the headers that came before."""

    size: int
    chunks: Iterator[bytes]
    headers: Mapping[str, str]


class Transport:
    """HTTP to one backend. Owns its connections; `close` or `with` ends them.

    Promises: every call ends within its deadline; a `GET` and whatever carries an
    idempotency key are tried again when the connection fails; no redirect is followed,
    so the token goes to no other host. Over plain HTTP each new connection's server proves first
    that it knows the token: another program on the same port is sent neither token nor data.

    `revive`, where it is given, brings a dead backend back and says where it is now; it is
    called before such a request is tried again. `on_silence` is called when no answer came in time, and may raise why.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str,
        revive: Callable[[], tuple[str, str]] | None = None,
        on_silence: Callable[[], None] = lambda: None,
        answer_s: float = ANSWER_S,
        fingerprint: str = "",
    ) -> None:
        """`fingerprint` is of the only certificate to believe; without it the accepted one for this address, if there is one."""
        self.url = checked_url(url)
        self._on_silence = on_silence
        self._revive = revive
        self._answer_s = answer_s
        self.fingerprint = ""
        if self.url.startswith("https:"):
            self.fingerprint = certificates.checked_fingerprint(fingerprint) if fingerprint else certificates.pinned(self.url)
        elif fingerprint:
            raise InvalidSpec(f"A fingerprint identifies a certificate, and {self.url} has none. Use https://, or leave it out.")
        self._peer = connections.Peer(self.url, token, self.fingerprint)
        tls = certificates.settings_for(self.fingerprint, os.environ.get(certificates.AUTHORITY, ""))
        http = httpx.HTTPTransport(verify=True if tls is None else tls, trust_env=False)
        connections.put_into(http._pool, connections.PeerConnections(self._peer))
        self._http = httpx.Client(
            transport=http,
            base_url=self.url,
            headers={"Accept-Encoding": "identity", **({"Authorization": f"Bearer {token}"} if token else {})},
            timeout=httpx.Timeout(answer_s, connect=5.0),
            follow_redirects=False,
            trust_env=False,
        )
        # Endpoints and jobs are made and forgotten in notebooks; their connections go with them.
        self._closing = weakref.finalize(self, _close, self._http)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._closing()

    def get(self, path: str, of: type[T], *, answer_s: float | None = None, **query: str | int | float) -> T:
        """The value that `path` answers with."""
        return _value(self._repeatable("GET", path, params=query, answer_s=answer_s), of)

    def post(
        self,
        path: str,
        body: object,
        of: type[T],
        *,
        key: str | None = None,
        answer_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> T:
        """Send `body` and decode the answer; with `key` the request may be repeated safely."""
        content = b"" if body is None else wire.encode(body)
        headers = {"Content-Type": "application/json", **(headers or {})}
        if key:
            headers["Idempotency-Key"] = key
            answer = self._repeatable("POST", path, content=content, headers=headers, answer_s=answer_s)
        else:
            answer = self._once("POST", path, content=content, headers=headers, answer_s=answer_s)
        return _value(answer, of)

    def delete(self, path: str) -> None:
        self._once("DELETE", path)

    def upload(self, path: str, chunks: Iterable[bytes | memoryview], *, size: int) -> None:
        """Stream `chunks` to `path`; nothing is held in memory but one chunk."""
        body = (bytes(chunk) for chunk in chunks)
        self._once("PUT", path, content=body, headers={"Content-Length": str(size)})

    def put(self, path: str, content: bytes, of: type[T]) -> T:
        """Put `content` at `path`, where it may be put again, and decode the answer."""
        return _value(self._repeatable("PUT", path, content=content), of)

    @contextmanager
    def download(self, path: str) -> Iterator[Download]:
        """The bytes at `path`, chunk by chunk: as many as were announced, and no more.

        Raises:
            BackendRefused: how many there are was not announced, or they are compressed, which was not asked for.
        """
        with (
            _our_errors(self.url, self._answer_s),
            _unlogged(),
            connections.within(self._answer_s),
            self._http.stream("GET", path) as response,
        ):
            if response.status_code >= 300:
                _refuse_errors(_read(response, JSON_BYTES, read_s=self._answer_s), self.url)
            size = response.headers.get("content-length", "")
            if not size.isdecimal():
                raise BackendRefused(response.status_code, "The backend does not say how long this file is. Look at what answers there.")
            _refuse_encoded(response)
            yield Download(int(size), response.iter_raw(CHUNK_BYTES), response.headers)

    def read(self, path: str) -> bytes:
        """What `download` gives, in memory, if it has room there."""
        with self.download(path) as incoming:
            free = psutil.virtual_memory().available
            if incoming.size > free:
                raise BackendRefused(
                    200,
                    f"The backend announces {incoming.size:,} bytes, and {free:,} are free in memory here. Close other programs, "
                    "or look at what answers there.",
                )
            return b"".join(incoming.chunks)

    def date(self) -> str:
        """What the server's clock says, to the second, as HTTP writes it; empty where it does not say."""
        return self._repeatable("GET", "/v1/health").headers.get("date", "")

    def exchange(self, method: str, path: str, *, content: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
        """One request with bytes both ways; for interfaces that are not the backend's own, such as predictions."""
        return self._once(method, path, content=content, headers=headers or {}).content

    def infer(
        self, path: str, content: bytes, *, headers: dict[str, str], answer_s: float | None = None
    ) -> tuple[bytes, Mapping[str, str]]:
        """The answer to a prediction, and its headers.

        One that was not answered, or not now (429, 503), is asked again for a while; after as long as the server says, if it does.
        """
        for wait_s in (*RETRY_WAITS_S, None):
            try:
                answer = self._once("POST", path, content=content, headers=headers, most=OUTPUT_BYTES, answer_s=answer_s)
            except BackendNotProven:
                raise  # whoever has the port keeps it
            except BackendUnreachable:
                if wait_s is None:
                    raise
                time.sleep(wait_s)
            except BackendRefused as error:
                if wait_s is None or error.status not in NOT_NOW or error.retry_after_s > RETRY_MOST_S:
                    raise
                time.sleep(max(wait_s, error.retry_after_s))
            else:
                return answer.content, answer.headers
        raise AssertionError("unreachable")

    def _repeatable(self, method: str, path: str, **options: Any) -> HttpResponse:
        for wait_s in (*RETRY_WAITS_S, None):
            try:
                return self._once(method, path, **options)
            except BackendNotProven:
                raise
            except BackendUnreachable:
                if wait_s is None:
                    raise
                if self._revive is not None:
                    self._move_to(*self._revive())
                else:
                    time.sleep(wait_s)
        raise AssertionError("unreachable")

    def _move_to(self, url: str, token: str) -> None:
        self.url = self._peer.url = checked_url(url)
        self._peer.token = token
        self._http.base_url = httpx.URL(self.url)
        self._http.headers["Authorization"] = f"Bearer {token}"

    def _once(self, method: str, path: str, **options: Any) -> HttpResponse:
        """One request. One that met another program in the backend's place was not sent, so it may always be sent to the right one."""
        try:
            return self._send(method, path, **options)
        except BackendNotProven:
            if self._revive is None:
                raise
            address = self._revive()
            if address == (self._peer.url, self._peer.token):
                raise
            self._move_to(*address)
            return self._send(method, path, **options)

    def _send(self, method: str, path: str, *, answer_s: float | None = None, most: int = 0, **options: Any) -> HttpResponse:
        """One request; `most` bytes of an answer to a prediction, else what JSON may have, and in time."""
        limit_s = self._answer_s if answer_s is None else answer_s
        timeout = httpx.USE_CLIENT_DEFAULT if answer_s is None else answer_s
        try:
            with _our_errors(self.url, limit_s), _unlogged(), connections.within(limit_s):
                response = self._http.send(self._http.build_request(method, path, timeout=timeout, **options), stream=True)
                try:
                    answer = _read(response, most or JSON_BYTES, read_s=None if most else limit_s)
                finally:
                    response.close()
        except BackendTooSlow:
            self._on_silence()
            raise
        _refuse_errors(answer, self.url)
        return answer


def _read(response: httpx.Response, most: int, *, read_s: float | None) -> HttpResponse:
    """The whole answer, if it has at most `most` bytes, which come within `read_s`.

    Raises:
        BackendRefused: it has more, or is compressed.
        httpx.ReadTimeout: it takes longer.
    """
    _refuse_encoded(response)
    until_s = None if read_s is None else time.monotonic() + read_s
    parts, size = [], 0
    for part in response.iter_raw():
        size += len(part)
        parts.append(part)
        if size > most:
            raise BackendRefused(
                response.status_code,
                f"The answer has more than {most // 2**20} MB and was not read to its end. Ask for less, or look at what answers there.",
            )
        if until_s is not None and time.monotonic() > until_s:
            raise httpx.ReadTimeout("an answer that comes and comes")
    return HttpResponse(response.status_code, response.headers, parts[0] if len(parts) == 1 else b"".join(parts))


def _refuse_encoded(response: httpx.Response) -> None:
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise BackendRefused(
            response.status_code, f"The answer is compressed ({encoding[:20]!r}), which was not asked for. Look at what answers there."
        )


# --------------------------------------------------------------------------- logging

_asking: Final = ContextVar("aiaas_magics: a request of ours is under way", default=False)


class _NotOurs(logging.Filter):
    """Drops what the HTTP library logs of our requests; what it logs of the user's own stays."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _asking.get()


for _name in ("httpx", "httpcore.connection", "httpcore.http11"):  # a filter is not asked for what loggers below its own log
    logging.getLogger(_name).addFilter(_NotOurs())


@contextmanager
def _unlogged() -> Iterator[None]:
    before = _asking.set(True)
    try:
        yield
    finally:
        _asking.reset(before)


def _close(http: httpx.Client) -> None:
    with _unlogged():
        http.close()


# --------------------------------------------------------------------------- addresses


def checked_url(url: str) -> str:
    """`url` without a trailing slash, if it can be a backend's address.

    Raises:
        InvalidSpec: for another scheme than http(s), http beyond this machine, or a URL that carries a user, a query or a fragment.
    """
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidSpec(f"{url[:80]!r} is not an address ({error}). Use one like https://gpu-box:8443.") from error
    if parts.scheme not in {"http", "https"} or not parts.host:
        raise InvalidSpec(f"{url[:80]!r} is not the address of a backend. Use one like https://gpu-box:8443.")
    if parts.scheme == "http" and not server_proof.is_loopback(parts.host):
        raise InvalidSpec(
            f"{url[:80]!r} would send the token and your data over the network in clear text. Nothing was sent. Use https://, "
            "or a tunnel to this machine: ssh -L PORT:127.0.0.1:PORT HOST, and http://127.0.0.1:PORT."
        )
    if parts.userinfo or parts.query or parts.fragment:
        raise InvalidSpec("A backend's address has no user, query or fragment. Set the token in AIAAS_TOKEN.")
    return str(parts).rstrip("/")


def sibling_url(named: str, own: str) -> str:
    """Where a backend's endpoints answer: at another port of the backend's own machine.

    Args:
        named: what the backend says. A server that listens on every address names itself as it pleases, so behind TLS its host is
            replaced by the one that was connected to, whose certificate was checked.
        own: the backend's address, as the user gave it.

    Raises:
        UntrustedAddress: it names another scheme or machine, or a path.
    """
    try:
        target, own_url = httpx.URL(named), httpx.URL(own)
    except httpx.InvalidURL:
        raise UntrustedAddress(named, own) from None
    if target.scheme != own_url.scheme or not target.host or target.userinfo or target.raw_path not in (b"/", b"") or target.fragment:
        raise UntrustedAddress(named, own)
    if own_url.scheme == "https":
        target = target.copy_with(host=own_url.host)
    elif not server_proof.is_loopback(target.host):
        raise UntrustedAddress(named, own)
    return str(target).rstrip("/")


@contextmanager
def _our_errors(url: str, waited_s: float) -> Iterator[None]:
    """Turn the HTTP library's failures into ours. No other module knows their names."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise certificates.refusal(error, url) or BackendUnreachable(url) from error
    except httpx.TimeoutException as error:
        raise BackendTooSlow(url, waited_s) from error
    except httpx.TransportError as error:
        raise BackendUnreachable(url) from error


def _refuse_errors(answer: HttpResponse, url: str) -> None:
    if answer.status < 300:
        return
    if answer.status == 401:
        raise NotAuthorised(url)
    raise _refusal(answer)


def _refusal(answer: HttpResponse) -> AiaasError:
    """The backend's error as the class it names, where it names one of ours and the arguments fit."""
    retry_after = answer.headers.get("Retry-After", "")
    retry_after_s = float(retry_after) if retry_after.isdecimal() else 0.0  # the other form, a date, nobody sends for seconds
    try:
        refusal = wire.decode(visible_json(answer.content), Refusal)
    except wire.Malformed:
        return BackendRefused(answer.status, visible(answer.content[:1200].decode(errors="replace")[:300]), retry_after_s)
    return errors.rebuilt(refusal.type, refusal.args) or BackendRefused(answer.status, refusal.error, retry_after_s)


def _value(answer: HttpResponse, of: type[T]) -> T:
    if of is type(None) or not answer.content:
        return None  # type: ignore[return-value]
    try:
        return wire.decode(visible_json(answer.content), of)
    except wire.Malformed as error:
        raise BackendRefused(
            answer.status, f"The answer is not understood here ({error}). Install the same version on both sides."
        ) from error
