"""Connections: HTTP connections to a backend, each verified before anything is sent over it.

Owns what happens between dialling and the first request: over plain HTTP the server proves that it knows the token, behind TLS its
certificate is compared with the accepted one. It is the only user of `httpcore`, below the HTTP library. Requests belong to `transport`;
those of the load generator, in asyncio, to `load_generator`.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import httpcore

from aiaas_magics.client import certificates
from aiaas_magics.core import server_proof
from aiaas_magics.core.errors import AiaasBug, WrongProtocol

TLS_ALERT: Final = b"\x15"  # what a TLS server says to plain HTTP, if anything (RFC 8446, 5.1)


@dataclass(slots=True, repr=False)
class Peer:
    """Whom a transport means to speak to. It changes when a local server comes back at another address.

    `fingerprint` is that of the certificate which the user has accepted; "" where an authority vouches for it.
    """

    url: str
    token: str
    fingerprint: str = ""


PROOF_S: Final = 60.0  # guess: outside of a request that has a limit of its own
_limit_s: Final = ContextVar("aiaas_magics: seconds that the request under way may wait", default=PROOF_S)


@contextmanager
def within(limit_s: float) -> Iterator[None]:
    """A connection that is opened inside has `limit_s` to prove itself, as the request that it is opened for."""
    before = _limit_s.set(limit_s)
    try:
        yield
    finally:
        _limit_s.reset(before)


class PeerConnections(httpcore.NetworkBackend):
    """Opens connections to `peer`."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._network.connect_tcp(host, port, timeout, local_address, socket_options)
        if server_proof.is_needed(self._peer.url):
            try:
                prove(stream, self._peer, answer_s=_limit_s.get())
            except BaseException:
                stream.close()
                raise
        elif self._peer.fingerprint:
            return _Pinned(stream, self._peer)
        return stream

    def sleep(self, seconds: float) -> None:
        self._network.sleep(seconds)


class _Pinned(httpcore.NetworkStream):
    """A connection over which TLS begins, and goes on only with the accepted certificate."""

    def __init__(self, stream: httpcore.NetworkStream, peer: Peer) -> None:
        self._stream, self._peer = stream, peer

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        encrypted = self._stream.start_tls(ssl_context, server_hostname, timeout)
        try:
            certificates.check(encrypted.get_extra_info("ssl_object"), self._peer.url, self._peer.fingerprint)
        except BaseException:
            encrypted.close()
            raise
        return encrypted

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def prove(stream: httpcore.NetworkStream, peer: Peer, *, answer_s: float) -> None:
    """Have the other end of `stream` show that it knows the token; then the connection is as new.

    Raises:
        BackendNotProven: it does not.
        NotAuthorised: there is no token, which every server of ours asks for.
        httpcore.ReadTimeout, httpcore.RemoteProtocolError: it says nothing.
    """
    try:
        address = stream.get_extra_info("server_addr")[:2]
    except OSError as error:  # it was reset at once
        raise httpcore.ConnectError(str(error)) from error
    challenge = server_proof.Challenge(peer.url, token=peer.token, peer=address)
    stream.write(challenge.request, answer_s)
    received, until_s = b"", time.monotonic() + answer_s
    while not challenge.is_proven(received):
        try:
            piece = stream.read(server_proof.ANSWER_BYTES, max(0.001, until_s - time.monotonic()))
        except httpcore.ReadError:  # it was reset
            piece = b""
        if not piece or piece[:1] == TLS_ALERT:
            if certificates.speaks_tls(*address):
                raise WrongProtocol(peer.url, "TLS")
            raise httpcore.RemoteProtocolError("the connection ended before the server had proved itself")
        received += piece


def put_into(pool: Any, connections: PeerConnections) -> None:
    """Have the pool of an `httpx.HTTPTransport` open its connections by `connections`.

    The library offers no public way, so this replaces a private attribute, in this one place. Where a later version has another name
    for it, nothing must be sent unasked: this raises.
    """
    if not isinstance(getattr(pool, "_network_backend", None), httpcore.SyncBackend):
        raise AiaasBug("this version of httpx opens its connections in another way, so servers could not be asked for a proof")
    pool._network_backend = connections
