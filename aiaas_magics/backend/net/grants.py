"""Grants: tokens that ask some endpoints for predictions, and nothing else.

Owns what the API server, which gives grants out, and the inference process, which checks them, agree on: the values in the file
`serving/grants.json`, the arithmetic of tokens, and the check of one token with its rate. Who is granted what is decided in
`server.identity`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable, Iterable

from aiaas_magics.backend.net.rates import Rate
from aiaas_magics.core.accounts import id_of_token, proof_key_of
from aiaas_magics.core.value import Value


class Grant(Value, frozen=True, kw_only=True):
    """What one token opens. Nothing of this lets anybody in."""

    token_id: str
    digest: str  # hexadecimal: see `digest_of`
    proof_key: str  # hexadecimal: with what the process proves that it knows the token
    names: tuple[str, ...]  # of endpoints
    requests_per_s: float = 0.0  # 0: no limit
    expires_s: float | None = None  # unix time


def digest_of(token: str, key: bytes) -> bytes:
    """What is kept of a token: HMAC-SHA256 under the server's key."""
    return hmac.new(key, token.encode("latin-1", "replace"), hashlib.sha256).digest()


def endpoint_token(key: str, *, endpoint: str, owner: str, user: str) -> str:
    """The token by which a user asks one endpoint, made from the inference process' own token: nothing has to be kept."""

    def mac(word: str) -> bytes:
        return hmac.new(key.encode(), f"{word}|{endpoint}|{owner}|{user}".encode(), hashlib.sha256).digest()

    secret = base64.urlsafe_b64encode(mac("secret")).decode().rstrip("=")
    return f"aiaas.{mac('id').hex()[:12]}.{secret}"


def grant_of(token: str, key: bytes, *, names: tuple[str, ...]) -> Grant:
    """The grant that lets `token` ask the endpoints `names`."""
    return Grant(token_id=id_of_token(token), digest=digest_of(token, key).hex(), proof_key=proof_key_of(token).hex(), names=names)


class LiveGrant:
    """A grant with its rate. One object for as long as the grant is in force, so that connections may hold on to it."""

    __slots__ = ("_now_s", "_rate", "grant", "is_revoked", "names")

    def __init__(self, grant: Grant, *, now_s: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic) -> None:
        self.grant, self.names, self.is_revoked = grant, frozenset(grant.names), False
        self._now_s = now_s
        rate = grant.requests_per_s
        self._rate = Rate(rate, burst=max(1.0, rate), clock=clock) if rate else None

    @property
    def is_valid(self) -> bool:
        return not self.is_revoked and (self.grant.expires_s is None or self._now_s() < self.grant.expires_s)

    def permits(self, endpoint: str) -> bool:
        return endpoint in self.names

    def take(self) -> bool:
        """Whether one more request is within the rate; it counts."""
        return self._rate is None or self._rate.take()


class GrantBook:
    """The grants in force."""

    def __init__(self, *, now_s: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic) -> None:
        self._now_s, self._clock = now_s, clock
        self._key = b""
        self._grants: dict[str, LiveGrant] = {}

    def replace(self, grants: Iterable[Grant], *, key: bytes) -> None:
        """These grants and no others from now on. One that stays as it was keeps its object, and so its rate."""
        fresh = {
            grant.token_id: before
            if (before := self._grants.get(grant.token_id)) is not None and before.grant == grant
            else LiveGrant(grant, now_s=self._now_s, clock=self._clock)
            for grant in grants
        }
        for token_id, live in self._grants.items():
            live.is_revoked = fresh.get(token_id) is not live
        self._key, self._grants = key, fresh

    def recognize(self, token: bytes) -> LiveGrant | None:
        """The grant of this token, if it is in force."""
        text = token.decode("latin-1")
        live = self._grants.get(id_of_token(text))
        if live is None or not self._key:
            return None
        is_right = hmac.compare_digest(digest_of(text, self._key).hex(), live.grant.digest)
        return live if is_right and live.is_valid else None

    def proof_key(self, token_id: str) -> bytes:
        """For a token that there is not, a key that proves nothing."""
        live = self._grants.get(token_id)
        return bytes.fromhex(live.grant.proof_key) if live is not None else digest_of("no such token|" + token_id, self._key or b"none")
