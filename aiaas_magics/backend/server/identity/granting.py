"""Granting: which tokens ask which endpoints, as the inference process has to know it.

Owns the rule (`grants_of`), and the file by which the API server tells it. Checking a request belongs to the inference process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from aiaas_magics.backend.folders.small_files import write_private
from aiaas_magics.backend.net.grants import Grant, grant_of
from aiaas_magics.backend.server.identity.callers import ApiCaller
from aiaas_magics.backend.server.storage.account_records import EndpointOwner, TokenRecord
from aiaas_magics.core import wire
from aiaas_magics.core.accounts import Role, UserView


def grants_of(
    users: Iterable[UserView],
    tokens: Iterable[TokenRecord],
    owners: Mapping[str, EndpointOwner],
    *,
    token_of: Callable[[str, str], str],
    key: bytes,
    now_s: float,
) -> list[Grant]:
    """Every grant there is.

    A user who may predict has a token for each endpoint that is theirs or shared with them. A token that was made for endpoints
    opens those of them that are still its maker's. Admins have the inference process' own.

    Args:
        token_of: the token by which a user asks an endpoint: (endpoint, user).
        key: under which tokens are hashed.
    """
    by_name = {user.name: user for user in users if user.role.includes(Role.PREDICTOR)}
    callers = {name: ApiCaller(user=name, role=user.role, groups=frozenset(user.groups)) for name, user in by_name.items()}
    grants = [
        grant_of(token_of(endpoint, name), key, names=(endpoint,))
        for endpoint, owner in owners.items()
        for name, caller in callers.items()
        if not caller.is_admin and caller.sees(owner.owner, owner.groups)
    ]
    for record in tokens:
        view = record.view
        caller = callers.get(view.user)
        if caller is None or not view.endpoints or not view.is_valid(now_s):
            continue
        grants.append(
            Grant(
                token_id=view.id,
                digest=record.digest.hex(),
                proof_key=record.proof_key.hex(),
                names=tuple(name for name in view.endpoints if name in owners and caller.owns(owners[name].owner)),
                requests_per_s=view.requests_per_s,
                expires_s=view.expires_s,
            )
        )
    return grants


def write_grants(file: Path, grants: Iterable[Grant]) -> None:
    write_private(file, wire.encode(list(grants)))
