"""Account calls: users and tokens of a backend, for whoever may administer them.

Owns the calls of the API; what a role may do is the backend's to say. The command line and notebooks use the same calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from aiaas_magics.client.transport import Transport
from aiaas_magics.core.accounts import EndpointSharing, MadeToken, NewToken, Quotas, Role, TokenView, UserChange, UserView
from aiaas_magics.core.spec import EndpointView


class AccountCalls:
    """Users, tokens and shared endpoints of a backend. `Backend.accounts` makes it.

    Each call raises `RoleTooLow` where your role does not include it, and `UnknownName` for what is not there.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def users(self) -> list[UserView]:
        """List every user, by name."""
        return self._transport.get("/v1/users", list[UserView])

    def add_user(self, name: str, *, role: Role | str = Role.USER, groups: Sequence[str] = (), quotas: Quotas | None = None) -> UserView:
        """Add a user.

        Args:
            name: lower-case letters, digits, `_` and `-`. A name is never given twice.
            role: "viewer", "predictor", "user" or "admin".
            groups: groups whose members see endpoints that are shared with them.
            quotas: the most that the user may have at once; None is no limit.

        Raises:
            InvalidName: the name of the user or of a group is not allowed.
            InvalidSpec: the name was given before.
        """
        user = UserView(name=name, role=Role(role), groups=tuple(groups), quotas=quotas or Quotas())
        return self._transport.post("/v1/users", user, UserView)

    def change_user(
        self,
        name: str,
        *,
        role: Role | str | None = None,
        groups: Sequence[str] | None = None,
        quotas: Quotas | None = None,
    ) -> UserView:
        """Give a user another role, other groups or other quotas, from the next request on. None stays as it is."""
        change = UserChange(role=None if role is None else Role(role), groups=None if groups is None else tuple(groups), quotas=quotas)
        return self._transport.post(f"/v1/users/{_part(name)}", change, UserView)

    def remove_user(self, name: str) -> None:
        """Remove a user, whose tokens open nothing from now on. Jobs and endpoints stay, for admins."""
        self._transport.delete(f"/v1/users/{_part(name)}")

    def tokens(self) -> list[TokenView]:
        """List your tokens without their secrets, the oldest first. An admin's list has everybody's."""
        return self._transport.get("/v1/tokens", list[TokenView])

    def make_token(
        self,
        user: str,
        *,
        label: str = "",
        endpoints: Sequence[str] = (),
        requests_per_s: float = 0.0,
        lives_s: float = 0.0,
    ) -> MadeToken:
        """Make a token. It is shown this once: the backend keeps a hash of it.

        Args:
            user: whose it is. Users make tokens for their own endpoints; only admins make those that open the API.
            label: what it is for, at most 60 characters.
            endpoints: the endpoints that it asks for predictions, and it opens nothing else; none is a token for the API.
            requests_per_s: the most predictions per second, for a token with `endpoints`; 0 is no limit.
            lives_s: seconds until it expires; 0 is until it is revoked.
        """
        request = NewToken(user=user, label=label, endpoints=tuple(endpoints), requests_per_s=requests_per_s, lives_s=lives_s)
        return self._transport.post("/v1/tokens", request, MadeToken)

    def revoke_token(self, token_id: str) -> TokenView:
        """Revoke a token, by its id. It opens nothing from now on: at endpoints within a second."""
        return self._transport.post(f"/v1/tokens/{_part(token_id)}/revoke", None, TokenView)

    def rotate_token(self, token_id: str) -> MadeToken:
        """Make a new token in the place of one, which goes on for an hour."""
        return self._transport.post(f"/v1/tokens/{_part(token_id)}/rotate", None, MadeToken)

    def share(self, endpoint: str, groups: Sequence[str]) -> EndpointView:
        """Let members of these groups see and ask an endpoint of yours; no groups: nobody any more."""
        return self._transport.post(f"/v1/endpoints/{_part(endpoint)}/groups", EndpointSharing(groups=tuple(groups)), EndpointView)


def _part(name: str) -> str:
    """`name` as one part of a path, whatever it holds."""
    return quote(name, safe="")
