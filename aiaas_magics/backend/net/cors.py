"""CORS: which origins' pages may call a server, and the headers that tell their browsers.

Owns the list as it was typed and the headers that follow from it. Refusing other pages belongs to `guard`, sending to `serving.app`.

A listed page needs the token all the same. Only the question that a browser asks first (a preflight) is answered without:
browsers send no token with it. Rules: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aiaas_magics.core.errors import InvalidSpec

Headers = tuple[tuple[bytes, bytes], ...]

EVERY: Final = "every-origin"  # a word, so that nobody writes it by habit as one does "*"
ORIGIN: Final = re.compile(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?", re.ASCII)
DEFAULT_PORTS: Final[Mapping[str, str]] = {"http": "80", "https": "443"}
# What the protocols read of a request and tell in an answer, besides what every page may send and see.
REQUEST_HEADERS: Final = (
    b"authorization, content-type, content-encoding, inference-header-content-length, aiaas-sticky-key, traceparent, tracestate"
)
ANSWER_HEADERS: Final = b"inference-header-content-length, retry-after"
MAX_AGE_S: Final = 600  # as Starlette's; Chrome keeps an answer for two hours at most
VARY: Final = (b"vary", b"origin")


@dataclass(frozen=True, slots=True)
class Cors:
    """The origins whose pages may call; none in it, and `every` false, is nobody."""

    origins: frozenset[bytes] = frozenset()
    every: bool = False

    @classmethod
    def parse(cls, origins: Sequence[str]) -> Cors | None:
        """What --cors said, once or several times; None if it was not said.

        Raises:
            InvalidSpec: one of them is no origin.
        """
        if not origins:
            return None
        listed = frozenset(parse_origin(origin).encode() for origin in origins if origin != EVERY)
        return cls(listed, EVERY in origins)

    def allows(self, origins: Sequence[bytes]) -> bool:
        """Whether a request with these Origin headers comes from a page that may call."""
        return len(origins) == 1 and (self.every or origins[0].lower() in self.origins)

    def headers(self, origins: Sequence[bytes]) -> Headers:
        """What is added to every answer; also where there is no page, so that no cache gives a page the answer of another."""
        if not self.allows(origins):
            return (VARY,)
        return (b"access-control-allow-origin", origins[0]), (b"access-control-expose-headers", ANSWER_HEADERS), VARY

    def preflight(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> Headers | None:
        """What the answer to a listed page's preflight adds to `headers`; None of a request that is none."""
        names = {name for name, _ in headers}
        if method != "OPTIONS" or b"access-control-request-method" not in names:
            return None
        answer: Headers = (
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", REQUEST_HEADERS),
            (b"access-control-max-age", b"%d" % MAX_AGE_S),
        )
        # A page of the internet asks a server of this machine: some browsers want that said, too.
        if b"access-control-request-private-network" in names:
            answer += ((b"access-control-allow-private-network", b"true"),)
        return answer


def parse_origin(text: str) -> str:
    """An origin as browsers write it.

    >>> parse_origin("https://Notebooks.example:443")
    'https://notebooks.example'

    Raises:
        InvalidSpec: it is none.
    """
    if text == "*":
        raise InvalidSpec(
            f"--cors '*' lets the pages of every website call this server from your browser. "
            f"Give the origins that shall, like --cors https://app.example, or write --cors {EVERY} if you mean all."
        )
    match = ORIGIN.fullmatch(text.lower())
    if match is None:
        raise InvalidSpec(
            f"--cors {text[:100]} is no origin. Give scheme, host and port as the browser's address line has them, like "
            "https://app.example or http://localhost:8888, without a path or a slash at the end."
        )
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" if port in (None, DEFAULT_PORTS[scheme]) else f"{scheme}://{host}:{int(port)}"
