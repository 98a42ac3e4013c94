"""Callers: who asks, and what of the server is theirs.

Owns the value that the guard puts into a request, and the rules of ownership as plain functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aiaas_magics.core.accounts import NO_QUOTAS, Quotas, Role, WhoAmI


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiCaller:
    """A user by one of their tokens. An empty `user` is the server's own account, by the token in its state folder."""

    user: str
    role: Role
    groups: frozenset[str] = frozenset()
    quotas: Quotas = NO_QUOTAS
    token_id: str = ""
    expires_s: float | None = None  # unix time, of the token
    endpoints: tuple[str, ...] = ()  # the token asks only these for predictions

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN and not self.endpoints

    def owns(self, owner: str) -> bool:
        """Whether what belongs to `owner` is this caller's to read and to change. Everything is an admin's."""
        return self.is_admin or (owner == self.user and not self.endpoints)

    def sees(self, owner: str, groups: tuple[str, ...]) -> bool:
        """Whether what belongs to `owner` and is shared with `groups` may be looked at."""
        return self.owns(owner) or (not self.endpoints and not self.groups.isdisjoint(groups))

    def whoami(self) -> WhoAmI:
        return WhoAmI(
            user=self.user,
            role=self.role,
            groups=tuple(sorted(self.groups)),
            quotas=self.quotas,
            token_id=self.token_id,
            expires_s=self.expires_s,
        )


ROOT: Final = ApiCaller(user="", role=Role.ADMIN)
