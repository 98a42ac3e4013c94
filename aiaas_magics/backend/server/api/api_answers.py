"""API answers: request bodies to values, and values and errors to responses.

Owns the limits on a body, the form of an error and the status that says whose move it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Final, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from aiaas_magics.core import errors, log_lines, wire
from aiaas_magics.core.errors import AiaasBug, AiaasError, BackendRefused, InvalidSpec, StoreNotWritable

log = logging.getLogger(__name__)

T = TypeVar("T")

JSON_BYTES: Final = 16 * 1024 * 1024  # guess: a fit call with 100,000 arrays is 7 MB
DISCARD_BYTES: Final = 256 * 1024 * 1024  # guess: what is read of a body that is too large, so that its sender hears why
SILENCE_S: Final = 30.0  # uvicorn has no deadline for receiving a body (facts/reliability 1.7); guess

STATUS: Final[dict[type[AiaasError], int]] = {
    errors.InvalidSpec: 400,
    errors.InvalidName: 400,
    errors.UnknownName: 404,
    errors.RoleTooLow: 403,
    errors.QuotaExceeded: 403,
    errors.VersionSkew: 409,
    errors.NotEnoughDevices: 409,
    errors.BlobDamaged: 422,
    errors.ProofFailed: 422,
    errors.NotScaled: 422,
    errors.BackendTooSlow: 504,
    errors.CannotStart: 503,
    errors.StoreNotWritable: 507,
    errors.UsageError: 400,
    errors.AiaasBug: 500,
}


def answer(value: object, status: int = 200) -> Response:
    return Response(wire.encode(value), status, media_type="application/json")


def refuse(error: AiaasError, status: int | None = None, headers: dict[str, str] | None = None) -> Response:
    """The error as data: a class of `errors`, its sentence and its arguments."""
    if status is None:
        status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
    body = {"error": str(error), "type": type(error).__name__, "args": list(error.args)}
    return Response(wire.encode(body), status, media_type="application/json", headers=headers)


async def on_our_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AiaasError)
    if isinstance(error, BackendRefused):
        # What is left of a body that is too large is not waited for.
        return refuse(error, error.status, {"connection": "close"} if error.status == 413 else None)
    return refuse(error, headers={"connection": "close"} if isinstance(error, StoreNotWritable) else None)


async def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {
        404: "There is nothing at this address. Install the same version of aiaas_magics on both sides.",
        405: "This address does not take that method. Install the same version of aiaas_magics on both sides.",
    }.get(error.status_code, f"{error.detail}. Check what sends this request.")
    return refuse(BackendRefused(error.status_code, text), error.status_code, dict(error.headers or {}))


async def on_bug(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.scope["path"], exc_info=error)
    where = f"{request.method} {request.scope['path'][:80]} ({type(error).__name__}; request {log_lines.REQUEST_ID.get()} in its log)"
    return refuse(AiaasBug(f"the server failed over {where}"))


async def body_of(request: Request, of: type[T]) -> T:
    """The value in a request's body.

    Raises:
        InvalidSpec: it is no such value; the text names the field.
        BackendRefused: it is too large, or did not come.
    """
    data = bytearray()
    too_large = announced_bytes(request) > JSON_BYTES
    read = 0
    if announced_bytes(request) > DISCARD_BYTES:
        raise _too_large()
    async for piece in chunks_of(request):
        read += len(piece)
        too_large = too_large or read > JSON_BYTES
        if read > DISCARD_BYTES:
            break
        if not too_large:
            data += piece
    if too_large:
        raise _too_large()
    try:
        return wire.decode(bytes(data), of)
    except wire.Malformed as error:
        raise InvalidSpec(f"Could not read the request: {error}. Install the same version on both sides.") from error


def _too_large() -> BackendRefused:
    limit = JSON_BYTES // 2**20
    return BackendRefused(413, f"This request's body is larger than {limit} MB. Send arrays as blobs and name them by their hash.")


def announced_bytes(request: Request) -> int:
    """How large the body is going to be; 0 where its sender does not say."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


def upload_of(request: Request, *, most_bytes: int) -> AsyncIterator[bytes]:
    """The pieces of a body that may be large, and not larger than this; see `chunks_of`.

    Raises:
        BackendRefused: it says that it is larger, or, while it is read, turns out to be.
    """
    too_large = BackendRefused(413, f"This request's body is larger than {most_bytes // 2**20:,} MB. Send it in smaller parts.")
    if announced_bytes(request) > most_bytes:
        raise too_large

    async def pieces() -> AsyncIterator[bytes]:
        read = 0
        async for piece in chunks_of(request):
            if (read := read + len(piece)) > most_bytes:
                raise too_large
            yield piece

    return pieces()


async def chunks_of(request: Request) -> AsyncIterator[bytes]:
    """The body's pieces; raises `BackendRefused` when the sender falls silent or goes away."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise BackendRefused(408, f"The request stalled for {SILENCE_S:g} s. Send it again.") from None
        except ClientDisconnect:
            raise BackendRefused(400, "The connection closed in the middle of a request. Send it again.") from None
        if piece:
            yield piece


def number_in(request: Request, name: str, default: float) -> float:
    """A number of the query; raises `InvalidSpec`."""
    text: Any = request.query_params.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 2**53:
        raise InvalidSpec(f"{name}={text[:40]!r} is not a valid number. Use 0 or more.")
    return number
