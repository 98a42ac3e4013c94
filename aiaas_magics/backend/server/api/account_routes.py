"""Account routes: who one is, and, for admins, users and their tokens.

Owns these routes of the API; the rest are `api_app`'s. Users and tokens themselves belong to `identity.directory`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from aiaas_magics.backend.server.api.api_answers import answer, body_of
from aiaas_magics.backend.server.api.ownership import Ownership
from aiaas_magics.backend.server.api.route_needs import DeclaredRoute, Need, caller_of
from aiaas_magics.backend.server.identity.blob_spaces import BlobSpaces
from aiaas_magics.backend.server.identity.directory import Directory
from aiaas_magics.core.accounts import NewToken, Role, UserChange, UserView
from aiaas_magics.core.errors import RoleTooLow

OPERATE: Final = Need(role=Role.ADMIN)
OWN_TOKENS: Final = Need(role=Role.USER)


@dataclass(frozen=True, slots=True)
class Accounts:
    """What these routes stand on."""

    directory: Directory
    ownership: Ownership
    spaces: BlobSpaces


def account_routes() -> list[DeclaredRoute]:
    return [
        DeclaredRoute("GET", "/v1/whoami", whoami, Need(role=Role.VIEWER, any_token=True)),
        DeclaredRoute("GET", "/v1/users", list_users, OPERATE),
        DeclaredRoute("POST", "/v1/users", add_user, OPERATE),
        DeclaredRoute("POST", "/v1/users/{user}", change_user, OPERATE),
        DeclaredRoute("DELETE", "/v1/users/{user}", remove_user, OPERATE),
        DeclaredRoute("GET", "/v1/tokens", list_tokens, Need(role=Role.VIEWER)),
        DeclaredRoute("POST", "/v1/tokens", make_token, OWN_TOKENS),
        DeclaredRoute("POST", "/v1/tokens/{token}/revoke", revoke_token, Need(role=Role.VIEWER)),
        DeclaredRoute("POST", "/v1/tokens/{token}/rotate", rotate_token, Need(role=Role.VIEWER)),
    ]


def _accounts(request: Request) -> Accounts:
    accounts: Accounts = request.app.state.accounts
    return accounts


async def whoami(request: Request) -> Response:
    """As whom the server knows you: `WhoAmI`."""
    return answer(caller_of(request).whoami())


async def list_users(request: Request) -> Response:
    """Every user: a list of `UserView`."""
    return answer(_accounts(request).directory.users())


async def add_user(request: Request) -> Response:
    """Add a user (`UserView`). A name is never given twice."""
    accounts = _accounts(request)
    user = await body_of(request, UserView)
    return answer(await accounts.directory.add_user(user, owners=accounts.ownership.names_used()), 201)


async def change_user(request: Request) -> Response:
    """Give a user another role, other groups or quotas (`UserChange`): `UserView`."""
    return answer(await _accounts(request).directory.change_user(request.path_params["user"], await body_of(request, UserChange)))


async def remove_user(request: Request) -> Response:
    """Remove a user: the tokens open nothing from now on. Jobs and endpoints stay, for admins."""
    accounts, name = _accounts(request), request.path_params["user"]
    await accounts.directory.remove_user(name)
    accounts.spaces.forget_user(name)
    return Response(status_code=204)


async def list_tokens(request: Request) -> Response:
    """Your tokens, without their secrets: a list of `TokenView`. An admin's are everybody's."""
    caller = caller_of(request)
    return answer(_accounts(request).directory.tokens(user=None if caller.is_admin else caller.user))


async def make_token(request: Request) -> Response:
    """Make a token (`NewToken`): `MadeToken`, the only answer that shows its secret. A user makes their own, for endpoints only."""
    accounts, caller = _accounts(request), caller_of(request)
    request_body = await body_of(request, NewToken)
    if not caller.is_admin and (request_body.user != caller.user or not request_body.endpoints):
        # Whoever has a token for an hour must not make one for ever.
        raise RoleTooLow(Role.ADMIN, caller.role)
    names = tuple(accounts.ownership.find_endpoint(name, caller, shared=False) for name in request_body.endpoints)
    new = NewToken(
        user=request_body.user,
        label=request_body.label,
        endpoints=names,
        requests_per_s=request_body.requests_per_s,
        lives_s=request_body.lives_s,
    )
    return answer(await accounts.directory.make_token(new), 201)


async def revoke_token(request: Request) -> Response:
    """Revoke a token, from the next request on: `TokenView`."""
    caller = caller_of(request)
    return answer(await _accounts(request).directory.revoke(request.path_params["token"], user=None if caller.is_admin else caller.user))


async def rotate_token(request: Request) -> Response:
    """Make a new token in the place of one, which goes on for an hour: `MadeToken`."""
    caller = caller_of(request)
    return answer(
        await _accounts(request).directory.rotate(request.path_params["token"], user=None if caller.is_admin else caller.user), 201
    )
