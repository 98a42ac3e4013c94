"""Route needs: what each route asks of its caller, and the check before the route runs.

Owns the declaration (role, and whose the thing in the path must be) and its enforcement. A route without a declaration is refused.
Who the caller is was decided in `auth`; what is whose is asked of `Ownership`.

What belongs to somebody else is answered as what does not exist: the same status, the same sentence, by the same steps.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aiaas_magics.backend.server.api.ownership import Ownership
from aiaas_magics.backend.server.identity.callers import ApiCaller
from aiaas_magics.core.accounts import Role
from aiaas_magics.core.errors import AiaasBug, RoleTooLow

CALLER: Final = "aiaas.caller"  # of an ASGI scope
PREDICTION_TOKEN: Final = "a token for predictions only"
Handler = Callable[[Request], Awaitable[Response]]


class Of(StrEnum):
    """The kind of thing that a route's path names."""

    SERVER = "server"
    JOB = "job"
    BLOB = "blob"
    ENDPOINT = "endpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a route asks of its caller.

    Args:
        role: the least; None is a route for everybody, without a token.
        of: what the path names: it must be the caller's own.
        shared: whether a group's endpoint will do too.
        any_token: whether a token for predictions will do too.
    """

    role: Role | None
    of: Of = Of.SERVER
    shared: bool = False
    any_token: bool = False


def caller_of(request: Request) -> ApiCaller:
    caller: ApiCaller = request.scope[CALLER]
    return caller


class DeclaredRoute(Route):
    """A route with its need."""

    def __init__(self, method: str, path: str, handler: Handler, need: Need | None = None) -> None:
        super().__init__(path, _checked(handler, need), methods=[method])
        self.need = need


def _checked(handler: Handler, need: Need | None) -> Handler:
    @functools.wraps(handler)
    async def checked(request: Request) -> Response:
        if need is None:
            raise AiaasBug(f"{request.method} {request.scope['path'][:80]} declares no need, so nobody may ask it")
        if need.role is not None:
            _check(request, need, need.role)
        return await handler(request)

    return checked


def _check(request: Request, need: Need, role: Role) -> None:
    """Raises `RoleTooLow`; `UnknownName` for what is not there, or not for this caller."""
    caller = caller_of(request)
    if caller.endpoints and not need.any_token:
        raise RoleTooLow(role, PREDICTION_TOKEN)
    if not caller.role.includes(role):
        raise RoleTooLow(role, caller.role)
    ownership: Ownership = request.app.state.ownership
    match need.of:
        case Of.JOB:
            ownership.check_job(request.path_params["job"], caller)
        case Of.BLOB:
            ownership.check_blob(request.path_params["sha"], caller)
        case Of.ENDPOINT:
            name = ownership.find_endpoint(request.path_params["name"], caller, shared=need.shared)
            request.path_params["name"] = name
        case Of.SERVER:
            pass
