"""Guard: decides from a request's headers alone who may speak to a server.

Owns the decision, and nothing else: no socket, no clock, no framework, so that every
server and every path inside a server (ASGI or below it) gives the same answer. Reading
the headers off the wire and sending the refusal belong to the caller.

What it keeps out: a stranger without the token; a web page open in the user's browser,
which can reach loopback (foreign `Origin`, cross-site fetches) or give its own name to
loopback's address (DNS rebinding: the `Host` check).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from aiaas_magics.backend.net.cors import Cors

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
# A query string ends up in logs and histories, so a token there is refused even when it is right.
TOKEN_WORDS: Final = (b"token=", b"authorization=", b"api_key=")
SAME_SITE: Final = frozenset({b"same-origin", b"none"})  # what a browser says of a page of ours, or of a typed address


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the decision rests on. Each header may have been sent any number of times."""

    hosts: tuple[bytes, ...] = ()
    origins: tuple[bytes, ...] = ()
    fetch_sites: tuple[bytes, ...] = ()
    authorizations: tuple[bytes, ...] = field(default=(), repr=False)
    query: bytes = b""


@dataclass(frozen=True, slots=True)
class Allow:
    """Go on. `page`: for a page of another origin that is listed, whose browser wants to read that in the answer.

    `by` is whose token it was, as `Guard.recognize` says; None for the server's own.
    """

    page: bool = False
    by: Any = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer this and do nothing else."""

    status: int
    text: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


ALLOW: Final = Allow()
ALLOW_PAGE: Final = Allow(page=True)
ASKS: Final = ((b"www-authenticate", b'Bearer realm="aiaas"'),)
NO_TOKEN: Final = Refuse(401, "A token is needed. Send it in the header 'Authorization: Bearer TOKEN'.", ASKS)
WRONG_TOKEN: Final = Refuse(401, "This is not the token of this server. Send its own in the header 'Authorization: Bearer TOKEN'.", ASKS)
SLOWED: Final = Refuse(
    429, "Too many wrong tokens came from this address. Wait a minute, and send the right one.", ((b"retry-after", b"60"),)
)
OVER_RATE: Final = Refuse(
    429, "Your quota of requests per second is used up. Send fewer, or ask an admin of the backend for more.", ((b"retry-after", b"1"),)
)
PREDICTS_ONLY: Final = Refuse(403, "This token is for predictions only. Send the API token of this server to load or unload a model.")
STRANGERS: Final = (NO_TOKEN, WRONG_TOKEN)
TOKEN_IN_QUERY: Final = Refuse(400, "A token does not belong into an address. Send it in the header 'Authorization: Bearer TOKEN'.")
ONE_HOST: Final = Refuse(400, "Exactly one Host header is needed. Check what sends this request.")
WRONG_HOST: Final = Refuse(421, "This server does not answer to that Host. Use the address that it was started with.")
FOREIGN_PAGE: Final = Refuse(
    403,
    "Requests from a web page of another origin are refused. Call this address from a program, or, for predictions, start the "
    "server with --cors and that page's origin.",
)


def facts_of(headers: Iterable[tuple[bytes, bytes]], query: bytes = b"") -> Facts:
    """The facts in `headers`, whose names are in lower case as ASGI gives them."""
    values: dict[bytes, list[bytes]] = {b"host": [], b"origin": [], b"sec-fetch-site": [], b"authorization": []}
    for name, value in headers:
        if name in values:
            values[name].append(value)
    return Facts(
        hosts=tuple(values[b"host"]),
        origins=tuple(values[b"origin"]),
        fetch_sites=tuple(values[b"sec-fetch-site"]),
        authorizations=tuple(values[b"authorization"]),
        query=query,
    )


@dataclass(frozen=True, slots=True, repr=False)
class Guard:
    """The rule of one server: its token, and the names it answers to.

    `manager` gives the token for requests that manage what others use, where that is another one; asked each time, since it may
    be replaced while this process runs. Empty bytes let nobody in.
    `hosts` of None answers to any name: right only behind TLS, where the certificate
    has told the client already whom it speaks to.
    `cors` are the pages of other origins that may ask; None: none may.
    `recognize` says whose another token is, None for nobody's. `proof_key` gives the key that belongs to the public part of one.
    """

    token: bytes
    hosts: frozenset[str] | None = LOOPBACK
    manager: Callable[[], bytes] | None = None
    cors: Cors | None = None
    recognize: Callable[[bytes], Any] | None = None
    proof_key: Callable[[str], bytes] | None = None

    def key_of(self, token_id: str) -> bytes:
        """With what this server proves that it knows a token; see `server_proof.answer`."""
        return self.proof_key(token_id) if token_id and self.proof_key is not None else self.token

    def decide(self, facts: Facts, *, manages: bool = False) -> Allow | Refuse:
        """The strictest refusal first: what is asked for is looked at only after all of this.

        `manages`: the request would change what others use, so a token for predictions does not do.
        """
        if len(facts.hosts) != 1:
            return ONE_HOST
        host = facts.hosts[0].decode("latin-1").lower()
        if self.hosts is not None and host_name(host) not in self.hosts:
            return WRONG_HOST
        is_listed = self.cors is not None and self.cors.allows(facts.origins)
        if not is_listed and any(not is_own_origin(origin, host) for origin in facts.origins):
            return FOREIGN_PAGE
        if not is_listed and any(site not in SAME_SITE for site in facts.fetch_sites):
            return FOREIGN_PAGE
        if facts.query and any(word in unquote_to_bytes(facts.query).lower() for word in TOKEN_WORDS):
            return TOKEN_IN_QUERY
        if manages and self.manager is not None:
            if is_right(facts.authorizations, self.manager()):
                return ALLOW_PAGE if is_listed else ALLOW
            if is_right(facts.authorizations, self.token):
                return PREDICTS_ONLY
        elif is_right(facts.authorizations, self.token):
            return ALLOW_PAGE if is_listed else ALLOW
        if self.recognize is not None and (by := self.recognize(bearer_of(facts.authorizations))) is not None:
            return PREDICTS_ONLY if manages else Allow(page=is_listed, by=by)
        return WRONG_TOKEN if facts.authorizations else NO_TOKEN


def is_right(authorizations: tuple[bytes, ...], right: bytes) -> bool:
    """Whether exactly one bearer token came and it is `right`, in a time that tells nothing about that."""
    if len(authorizations) != 1 or not right:
        return False
    scheme, _, token = authorizations[0].partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(token, right)


def bearer_of(authorizations: tuple[bytes, ...]) -> bytes:
    """The one bearer token that came; empty where none or several did."""
    scheme, _, token = authorizations[0].partition(b" ") if len(authorizations) == 1 else (b"", b"", b"")
    return token if scheme.lower() == b"bearer" else b""


def host_name(host: str) -> str:
    """The name in a Host header, without its port.

    >>> host_name("127.0.0.1:8501"), host_name("[::1]:8501")
    ('127.0.0.1', '[::1]')
    """
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0]


def is_own_origin(origin: bytes, host: str) -> bool:
    """Whether a page of `origin` came from this very server: the same name and port."""
    scheme, separator, where = origin.decode("latin-1").lower().partition("://")
    return bool(separator) and scheme in {"http", "https"} and where == host
