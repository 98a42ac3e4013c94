"""The one way to a backend over HTTP.

Owns connections, deadlines, retries of what is safe to repeat, and turning the HTTP
library's failures and the backend's error answers into ours. It is the only user of
`httpx`. Which routes there are belongs to `client`.
"""

from __future__ import annotations

import os
import ssl
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx
import msgspec

from aiaas_magics import errors, wire
from aiaas_magics.errors import (
    AiaasError,
    BackendRefused,
    BackendTooSlow,
    BackendUnreachable,
    InvalidSpec,
    NotAuthorised,
)

T = TypeVar("T")

ANSWER_S: Final = 60.0  # guess: the slowest ordinary answer is a deploy, which loads and proves a model
CHUNK_BYTES: Final = 4 * 1024 * 1024
# Waits between tries of a request that may be repeated; a server that is being restarted is up within 2 s.
RETRY_WAITS_S: Final = (0.2, 0.5, 1.0, 2.0)
NOT_NOW: Final = (429, 503)
RETRY_MOST_S: Final = 10.0  # guess: who asks to be left alone for longer is told to the caller, not waited for


class Refusal(msgspec.Struct, frozen=True):
    """The backend's error answer."""

    error: str = ""
    type: str = ""
    args: list[Any] = []  # msgspec gives each its own


class Transport:
    """HTTP to one backend. Owns its connections; `close` or `with` ends them.

    Promises: every call ends within its deadline; a `GET` and whatever carries an
    idempotency key are tried again when the connection fails; no redirect is followed,
    so the token goes to no other host.

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
    ) -> None:
        self.url = checked_url(url)
        self._on_silence = on_silence
        self._revive = revive
        self._answer_s = answer_s
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(answer_s, connect=5.0),
            follow_redirects=False,
            verify=_trust(),
            trust_env=False,
        )
        # Endpoints and jobs are made and forgotten in notebooks; their connections go with them.
        self._closing = weakref.finalize(self, self._http.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._closing()

    def get(self, path: str, of: type[T], *, answer_s: float | None = None, **query: str | int | float) -> T:
        """The value that `path` answers with."""
        response = self._repeatable("GET", path, params=query, timeout=answer_s)
        return _value(response, of)

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
            response = self._repeatable("POST", path, content=content, headers=headers, timeout=answer_s)
        else:
            response = self._once("POST", path, content=content, headers=headers, timeout=answer_s)
        return _value(response, of)

    def delete(self, path: str) -> None:
        _refuse_errors(self._once("DELETE", path), self.url)

    def upload(self, path: str, chunks: Iterable[bytes | memoryview], *, size: int) -> None:
        """Stream `chunks` to `path`; nothing is held in memory but one chunk."""
        body = (bytes(chunk) for chunk in chunks)
        response = self._once("PUT", path, content=body, headers={"Content-Length": str(size)}, timeout=None)
        _refuse_errors(response, self.url)

    def put(self, path: str, content: bytes, of: type[T]) -> T:
        """Put `content` at `path`, where it may be put again, and decode the answer."""
        return _value(self._repeatable("PUT", path, content=content), of)

    @contextmanager
    def download(self, path: str) -> Iterator[Iterator[bytes]]:
        """The bytes at `path`, chunk by chunk."""
        with _our_errors(self.url, self._answer_s), self._http.stream("GET", path) as response:
            if response.status_code >= 400:
                response.read()
            _refuse_errors(response, self.url)
            yield response.iter_bytes(CHUNK_BYTES)

    def read(self, path: str) -> bytes:
        with self.download(path) as chunks:
            return b"".join(chunks)

    def exchange(self, method: str, path: str, *, content: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
        """One request with bytes both ways; for interfaces that are not the backend's own, such as predictions."""
        response = self._once(method, path, content=content, headers=headers or {})
        _refuse_errors(response, self.url)
        return response.content

    def infer(self, path: str, content: bytes, *, headers: dict[str, str]) -> tuple[bytes, Mapping[str, str]]:
        """The answer to a prediction, and its headers.

        One that was not answered, or not now (429, 503), is asked again for a while; after as long as the server says, if it does.
        """
        for wait_s in (*RETRY_WAITS_S, None):
            try:
                response = self._once("POST", path, content=content, headers=headers)
            except BackendUnreachable:
                if wait_s is None:
                    raise
                time.sleep(wait_s)
            except BackendRefused as error:
                if wait_s is None or error.status not in NOT_NOW or error.retry_after_s > RETRY_MOST_S:
                    raise
                time.sleep(max(wait_s, error.retry_after_s))
            else:
                return response.content, response.headers
        raise AssertionError("unreachable")

    def _repeatable(self, method: str, path: str, **options: Any) -> httpx.Response:
        for wait_s in (*RETRY_WAITS_S, None):
            try:
                return self._once(method, path, **options)
            except BackendUnreachable:
                if wait_s is None:
                    raise
                if self._revive is not None:
                    self._move_to(*self._revive())
                else:
                    time.sleep(wait_s)
        raise AssertionError("unreachable")

    def _move_to(self, url: str, token: str) -> None:
        self.url = checked_url(url)
        self._http.base_url = httpx.URL(self.url)
        self._http.headers["Authorization"] = f"Bearer {token}"

    def _once(self, method: str, path: str, **options: Any) -> httpx.Response:
        waited_s = options.get("timeout") or self._answer_s
        if options.get("timeout", 0) is None:
            options["timeout"] = httpx.USE_CLIENT_DEFAULT
        try:
            with _our_errors(self.url, waited_s):
                response = self._http.request(method, path, **options)
        except BackendTooSlow:
            self._on_silence()
            raise
        _refuse_errors(response, self.url)
        return response


def checked_url(url: str) -> str:
    """`url` without a trailing slash, if it can be a backend's address.

    Raises:
        InvalidSpec: for another scheme than http(s), or a URL that carries a user, a query or a fragment.
    """
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidSpec(f"{url[:80]!r} is no address ({error}). Use one like https://gpu-box:8443.") from error
    if parts.scheme not in {"http", "https"} or not parts.host:
        raise InvalidSpec(f"{url[:80]!r} is no address of a backend. Use one like https://gpu-box:8443.")
    if parts.userinfo or parts.query or parts.fragment:
        raise InvalidSpec("A backend's address carries no user, query or fragment. Give the token by AIAAS_TOKEN.")
    return str(parts).rstrip("/")


def _trust() -> Any:
    """What certificates to believe: the system's, or those in the file AIAAS_CA (a self-signed server)."""
    authority = os.environ.get("AIAAS_CA", "")
    return ssl.create_default_context(cafile=authority) if authority else True


@contextmanager
def _our_errors(url: str, waited_s: float) -> Iterator[None]:
    """Turn the HTTP library's failures into ours. No other module knows their names."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise BackendUnreachable(url) from error
    except httpx.TimeoutException as error:
        raise BackendTooSlow(url, waited_s) from error
    except httpx.TransportError as error:
        raise BackendUnreachable(url) from error


def _refuse_errors(response: httpx.Response, url: str) -> None:
    if response.status_code < 300:
        return
    if response.status_code == 401:
        raise NotAuthorised(url)
    raise _refusal(response)


def _refusal(response: httpx.Response) -> AiaasError:
    """The backend's error as the class it names, where it names one of ours and the arguments fit."""
    said = response.headers.get("Retry-After", "")
    retry_after_s = float(said) if said.isdecimal() else 0.0  # the other form, a date, nobody sends for seconds
    try:
        told = wire.decode(response.content, Refusal)
    except wire.Malformed:
        return BackendRefused(response.status_code, response.text[:300], retry_after_s)
    kind = getattr(errors, told.type, None) if told.type in errors.__all__ else None
    if kind is not None:
        try:
            error = kind(*told.args)
            str(error)
        except (TypeError, AttributeError):
            return BackendRefused(response.status_code, told.error, retry_after_s)
        if isinstance(error, AiaasError):
            return error
    return BackendRefused(response.status_code, told.error, retry_after_s)


def _value(response: httpx.Response, of: type[T]) -> T:
    if of is type(None) or not response.content:
        return None  # type: ignore[return-value]
    try:
        return wire.decode(response.content, of)
    except wire.Malformed as error:
        raise BackendRefused(
            response.status_code, f"The answer is not understood here ({error}). Install the same version on both sides."
        ) from error
