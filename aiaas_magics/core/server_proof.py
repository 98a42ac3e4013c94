"""Server proof: how a server on loopback shows that it knows the token before a client sends it anything.

Owns the arithmetic and the few bytes of HTTP around it, for both sides. Sockets belong to whoever has them.

TLS tells a client whom it speaks to; on plain loopback any account may bind the port of a server that has ended. So a client asks
first, on each new connection: `GET /v1/proof?nonce=N`. The answer holds the address that the connection was accepted at, and
HMAC-SHA256(token, "aiaas-proof|N|address"). The address keeps another program from passing the question on to the real server at
another port; the nonce keeps it from repeating an answer of before. A token has 256 random bits, so an answer tells nothing about it.

Of a user's token the server keeps a hash only, so there the key is one that both can derive or keep (`accounts.proof_key_of`), and the
question names the token by its public part: `&id=ID`.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from aiaas_magics.core import wire
from aiaas_magics.core.accounts import id_of_token, proof_key_of
from aiaas_magics.core.errors import BackendNotProven, NotAuthorised
from aiaas_magics.core.value import Value

PATH: Final = "/v1/proof"
QUERY: Final = re.compile(rb"nonce=([0-9a-f]{64})(?:&id=([a-z0-9]{12}))?", re.ASCII)
ANSWER_BYTES: Final = 4096  # guess: an answer of ours has 300
LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]{1,4})\r\n", re.IGNORECASE)
CLOSES: Final = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)


class ServerProof(Value, frozen=True, kw_only=True):
    """A server's answer. `address` is where it accepted the connection, as host:port."""

    address: str
    proof: str


def is_needed(url: str) -> bool:
    """Whether a server at `url` must prove itself: over https its certificate has done so."""
    return url.startswith("http:")


def is_loopback(host: str) -> bool:
    """
    >>> is_loopback("127.0.0.1"), is_loopback("[::1]"), is_loopback("localhost"), is_loopback("gpu-box")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def address_of(host: str, port: int) -> str:
    """
    >>> address_of("127.0.0.1", 8443), address_of("::1", 8443)
    ('127.0.0.1:8443', '[::1]:8443')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def proof_of(token: str | bytes, nonce: str, address: str) -> str:
    key = token.encode() if isinstance(token, str) else token
    return hmac.new(key, f"aiaas-proof|{nonce}|{address}".encode(), hashlib.sha256).hexdigest()


def answer(key_of: Callable[[str], bytes], query: bytes, accepted_at: tuple[str, int] | None) -> bytes | None:
    """The server's answer to the question in `query`; None where it is no such question.

    Args:
        key_of: gives the key for the public part of a token; for "" that of the server's own token.
    """
    query_match = QUERY.fullmatch(query)
    if query_match is None or accepted_at is None:
        return None
    address, key = address_of(*accepted_at), key_of((query_match[2] or b"").decode())
    return wire.encode(ServerProof(address=address, proof=proof_of(key, query_match[1].decode(), address)))


class Challenge:
    """The client's question on one new connection. Send `request`, then give what comes to `is_proven` until it says True."""

    def __init__(self, url: str, *, token: str, peer: tuple[str, int]) -> None:
        if not token:  # every server of ours has one, so this request would be refused anyway
            raise NotAuthorised(url)
        self._url, self._key, self._address = url, proof_key_of(token), address_of(*peer)
        self._nonce = secrets.token_hex(32)
        which = f"&id={token_id}" if (token_id := id_of_token(token)) else ""
        self.request = f"GET {PATH}?nonce={self._nonce}{which} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n\r\n".encode()

    def is_proven(self, received: bytes) -> bool:
        """Whether the server knows the token; False while its answer is not whole.

        Raises:
            BackendNotProven: it does not, or it listens at another address than the one that was dialled.
        """
        head, separator, body = received.partition(b"\r\n\r\n")
        if not separator:
            if len(received) > ANSWER_BYTES or not b"HTTP/1.1 200 ".startswith(received[:13]):
                raise BackendNotProven(self._url)
            return False
        length = LENGTH.search(head + b"\r\n")
        if not head.startswith(b"HTTP/1.1 200 ") or length is None or CLOSES.search(head + b"\r\n"):
            raise BackendNotProven(self._url)
        if len(body) < int(length[1]):
            return False
        try:
            proof = wire.decode(body, ServerProof)
        except wire.Malformed:
            raise BackendNotProven(self._url) from None
        if not hmac.compare_digest(proof.proof.encode(), proof_of(self._key, self._nonce, proof.address).encode()):
            raise BackendNotProven(self._url)
        if proof.address != self._address:
            raise BackendNotProven(self._url, proof.address)
        return True
