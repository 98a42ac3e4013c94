"""Accounts: who may do what on a server, as values that both sides write down.

Owns roles, quotas, the views of users and tokens, and the form of a user's token. Storing and checking them belongs to
`backend.server.identity`.
"""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Final

from aiaas_magics.core.errors import InvalidName, InvalidSpec
from aiaas_magics.core.value import Value

# No dot: the first one of an endpoint's name ends its owner's.
USER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}", re.ASCII)
TOKEN: Final = re.compile(r"aiaas\.([a-z0-9]{12})\.[A-Za-z0-9_-]{43}", re.ASCII)
LABEL_CHARACTERS: Final = 60


class Role(StrEnum):
    """Each role may do what the ones before it may."""

    VIEWER = "viewer"  # look at one's own jobs, and at endpoints that a group shares
    PREDICTOR = "predictor"  # get the token of these endpoints
    USER = "user"  # train and deploy
    ADMIN = "admin"  # everything of everybody; users, tokens, the server itself

    def includes(self, other: Role) -> bool:
        """
        >>> Role.USER.includes(Role.VIEWER), Role.VIEWER.includes(Role.USER)
        (True, False)
        """
        order = list(Role)
        return order.index(self) >= order.index(other)


class Quotas(Value, frozen=True, kw_only=True):
    """The most that a user may have at once. 0 is no limit."""

    devices: int = 0  # held by running jobs
    running_jobs: int = 0
    waiting_jobs: int = 0
    storage_bytes: int = 0  # blobs in the user's space
    endpoints: int = 0
    requests_per_s: float = 0.0  # of the API

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not 0 <= getattr(self, name) < 2**53:
                raise InvalidSpec(f"{name}={getattr(self, name)}: a quota is 0 or more. Use 0 for no limit.")


NO_QUOTAS: Final = Quotas()


class UserView(Value, frozen=True, kw_only=True):
    """A user of a server."""

    name: str
    role: Role
    groups: tuple[str, ...] = ()  # whose members see each other's shared endpoints
    quotas: Quotas = Quotas()
    created_s: float = 0.0  # unix time

    def __post_init__(self) -> None:
        for kind, names in (("a user", (self.name,)), ("a group", self.groups)):
            for name in names:
                if not USER_NAME.fullmatch(name):
                    raise InvalidName(kind, name)


class UserChange(Value, frozen=True, kw_only=True):
    """What of a user is to be different; None stays."""

    role: Role | None = None
    groups: tuple[str, ...] | None = None
    quotas: Quotas | None = None


class NewToken(Value, frozen=True, kw_only=True):
    """A token to make. With `endpoints` it asks these for predictions, and nothing else."""

    user: str
    label: str = ""
    endpoints: tuple[str, ...] = ()
    requests_per_s: float = 0.0  # 0: no limit
    lives_s: float = 0.0  # from now; 0: until it is revoked

    def __post_init__(self) -> None:
        if len(self.label) > LABEL_CHARACTERS or not self.label.isprintable():
            raise InvalidSpec(f"A token's label has at most {LABEL_CHARACTERS} printable characters. Give a shorter --label.")
        if not 0 <= self.requests_per_s < 1e9 or not 0 <= self.lives_s < 1e11:
            raise InvalidSpec("The rate and the lifetime of a token are 0 or more. Use 0 for no limit.")


class TokenView(Value, frozen=True, kw_only=True):
    """A token without its secret."""

    id: str
    user: str
    label: str = ""
    endpoints: tuple[str, ...] = ()
    requests_per_s: float = 0.0
    created_s: float = 0.0  # unix time
    expires_s: float | None = None  # unix time
    revoked_s: float | None = None  # unix time
    used_s: float | None = None  # unix time of the last use, give or take half a minute

    def is_valid(self, now_s: float) -> bool:
        return self.revoked_s is None and (self.expires_s is None or now_s < self.expires_s)


class MadeToken(Value, frozen=True, kw_only=True):
    """A new token. The server keeps only a hash of it, so this is the only time that it is shown."""

    token: str
    view: TokenView


class WhoAmI(Value, frozen=True, kw_only=True):
    """As whom a server knows its caller. An empty `user` is the server's own account."""

    user: str
    role: Role
    groups: tuple[str, ...] = ()
    quotas: Quotas = Quotas()
    token_id: str = ""
    expires_s: float | None = None  # unix time, of the token


class EndpointSharing(Value, frozen=True, kw_only=True):
    """The groups whose members may see an endpoint and ask it."""

    groups: tuple[str, ...]


def id_of_token(token: str) -> str:
    """The public part of a user's token; "" of the token of a state folder, and of what is no token.

    >>> id_of_token("aiaas.0123456789ab." + "x" * 43), id_of_token("aiaas_x")
    ('0123456789ab', '')
    """
    match = TOKEN.fullmatch(token)
    return match[1] if match else ""


def proof_key_of(token: str) -> bytes:
    """With what a server proves that it knows `token`: of a user's token it keeps no more than this, and nobody gets in with it."""
    if not id_of_token(token):
        return token.encode()
    return hashlib.sha256(b"aiaas-proof-key|" + token.encode()).digest()


def qualified(endpoint: str, user: str) -> str:
    """The name under which a user's endpoint is served: two users may both have a "churn", and neither hears of the other's.

    >>> qualified("churn", "ada"), qualified("ada.churn", "ada"), qualified("churn", "")
    ('ada.churn', 'ada.churn', 'churn')
    """
    return endpoint if not user or endpoint.startswith(f"{user}.") else f"{user}.{endpoint}"
