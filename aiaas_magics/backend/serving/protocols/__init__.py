"""Protocols: the seam between the inference process and the protocols it speaks.

Owns the values that cross it; they are made for every request, so they are of the kind that is made
quickest. What a path, a document or a status code means belongs to each protocol's module; what is
the same for all of them (finding the version, running it, turning a fault into an answer) belongs to
`request_handler`; sockets and limits belong to `inference_app` and the fast path.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import numpy as np
import orjson

from aiaas_magics.backend.net.grants import LiveGrant
from aiaas_magics.core import contract
from aiaas_magics.core.spec import TensorSpec

if TYPE_CHECKING:
    from aiaas_magics.backend.serving.models.registry import Registry, Version

Headers = tuple[tuple[bytes, bytes], ...]

JSON: Final = b"application/json"
NO_OP: Final = contract.NO_OP.encode()


class BadValue(Exception):
    """A body that does not hold what it should; `status` is the protocol's code for it."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text, status)
        self.text, self.status = text, status

    def __str__(self) -> str:
        return self.text


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request that the guard let in. Header names are in lower case; the body is whole."""

    method: str
    path: str  # as it came: percent-encoded, without the query
    headers: Headers = ()
    body: bytes = b""
    client: bytes = b""  # the other end of the connection, as host:port
    scheme: str = "http"  # or https, or grpc; the fast path leaves it at http
    computes: bool = True  # False: to be read and answered as any other, with nothing computed
    grant: LiveGrant | None = None  # whose token it came with; None: the server's own, which asks every endpoint

    def header(self, name: bytes) -> bytes | None:
        for key, value in self.headers:  # no generator: each request asks for a header or two
            if key == name:
                return value
        return None

    def sticky_key(self) -> bytes:
        """Who asks, for splitting callers between versions: as they say themselves, or else by their connection.

        Where neither is known it is somebody else each time: one key for all of them would put all on one side.
        """
        return self.header(b"aiaas-sticky-key") or self.client or os.urandom(8)


class ByteStream(Protocol):
    """The body of an answer, chunk by chunk. An async generator is one.

    Promises: nothing is computed ahead of the reader, who asks for the next chunk when the last one is sent; `aclose` ends it at once,
    and may be called twice; a fault comes as `StreamFault`.
    """

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def __anext__(self) -> bytes: ...
    async def aclose(self) -> None: ...


class Response(msgspec.Struct, frozen=True):
    """An answer: `body`, or a `stream` of bytes instead of it. Whoever gets a stream reads or closes it."""

    status: int
    body: bytes
    headers: Headers = ()
    content_type: bytes = JSON
    stream: ByteStream | None = None


class StreamFault(Exception):
    """A stream that ends before its answer is whole.

    Args:
        response: What the fault is answered with where nothing of the stream was sent yet.
        closing_chunk: What is sent as the last chunk where something was; None cuts the connection.
    """

    def __init__(self, response: Response, closing_chunk: bytes | None = None) -> None:
        super().__init__(response, closing_chunk)
        self.response, self.closing_chunk = response, closing_chunk


class InferenceRoute(Protocol):
    """What a request line asks for. `version` of None or 0 is the latest."""

    @property
    def action(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int | None: ...
    @property
    def label(self) -> str | None: ...
    @property
    def infers(self) -> bool:
        """Whether the answer is a model's; then it comes from `read`, else from `look`."""
        ...

    @property
    def template(self) -> str:
        """The line of the interface's table, with {name} where the name stood."""
        ...


class InferenceCall(Protocol):
    """A decoded inference request. `rows` is None where the inputs differ in their first dimension."""

    @property
    def tensors(self) -> Mapping[str, np.ndarray]: ...
    @property
    def rows(self) -> int | None: ...
    @property
    def timeout_s(self) -> float:
        """How long its caller lets it wait to be computed; infinite where it does not say."""
        ...

    @property
    def id(self) -> str | None:
        """What its caller calls this request; None where the protocol has no word for it, or the caller does not say."""
        ...

    def response(self, outputs: Mapping[str, np.ndarray]) -> Response:
        """The answer in the form that the request asked for.

        Raises:
            BadValue: the outputs have no such form.
        """
        ...


Run = Callable[[Mapping[str, np.ndarray], int | None], Awaitable[Mapping[str, np.ndarray]]]


class StreamCall(Protocol):
    """A decoded inference request that is answered by a stream. `rows` is how many it counts as in the stats."""

    @property
    def rows(self) -> int | None: ...
    @property
    def timeout_s(self) -> float:
        """How long the whole answer may take; infinite where its caller does not say."""
        ...

    @property
    def headers(self) -> Headers: ...
    @property
    def content_type(self) -> bytes: ...

    def chunks(self, run: Run) -> AsyncGenerator[bytes, None]:
        """The answer's body; `run` computes so many rows of tensors, as often as need be.

        Raises:
            BadValue: the answer has no such form.
        """
        ...

    def closing_chunk(self, refusal: Response) -> bytes | None:
        """The last chunk of an answer that a fault ends in the middle; None cuts the connection, so that its reader sees the end."""
        ...


class InferenceProtocol(Protocol):
    """What a protocol makes of a request that has a route."""

    @property
    def NAME(self) -> str:
        """What traces call it."""
        ...

    def read(self, route: InferenceRoute, request: Request, version: Version) -> InferenceCall:
        """The tensors of an inference request for the version that will compute them.

        Raises:
            BadValue: the request does not fit the version's interface.
        """
        ...

    def look(self, registry: Registry, route: InferenceRoute, request: Request) -> Response:
        """The answer to a request that computes nothing."""
        ...

    def not_found(self, route: InferenceRoute) -> Response: ...

    def not_ready(self, route: InferenceRoute) -> Response:
        """What is known here and does not answer now: still being loaded, on its way out, or withdrawn."""
        ...

    def unknown_label(self, label: str) -> Response: ...


Plain = tuple[bytes, int, Any]  # a request's rows as they lie in memory, their number, and what its protocol needs for the answer


class PlainForm(msgspec.Struct, frozen=True, kw_only=True):
    """How plain requests are read for one version of one input and one output: rows of numbers, and nothing else to decide.

    `read` takes a body, and how much of it is JSON where its head says so (else 0); it gives None for a request that is not plain.
    `write` takes what a batch of them was computed to, row after row, and gives the answer to each; None for one that is not plain.
    """

    name: str
    row: tuple[int, ...]  # the shape of one
    dtype: np.dtype[Any]
    read: Callable[[bytes, int], Plain | None]
    write: Callable[[np.ndarray, Sequence[Plain]], Sequence[Response | None]]


FormOf = Callable[["Version"], PlainForm | None]
# Reads a request for the version that computes it; None for one that wants its answer in one piece, by the protocol's `read`.
StreamReader = Callable[[Any, Request, "Version"], StreamCall | None]


def computes(headers: Headers) -> bool:
    """Whether a request with these headers wants what it asks for computed."""
    return all(name != NO_OP for name, _ in headers)


def rows_of(tensors: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec]) -> int | None:
    """How many rows a request has; None where its inputs differ in their first dimension because the interface says so.

    Raises:
        BadValue: inputs of rows differ in their number of rows. An engine would repeat those of the shorter one.
    """
    if len(tensors) == 1:
        (only,) = tensors.values()
        return only.shape[0] if only.ndim else 1
    counts = {spec.name: tensors[spec.name].shape[0] for spec in inputs if spec.shape and spec.shape[0] < 0 and spec.name in tensors}
    if len(set(counts.values())) > 1:
        first, count = next(iter(counts.items()))
        other = next(name for name in counts if counts[name] != count)
        text = f"Input {first!r} has {_rows(count)} and input {other!r} has {_rows(counts[other])}. Give all inputs the same number of rows"
        raise BadValue(text)
    sizes = {tensor.shape[0] if tensor.ndim else 1 for tensor in tensors.values()}
    return sizes.pop() if len(sizes) == 1 else None


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def error(status: int, text: str, headers: Headers = ()) -> Response:
    """Every error, in every protocol, is one document with one key."""
    return Response(status, orjson.dumps({"error": text}), headers)
