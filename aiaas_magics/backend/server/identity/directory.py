"""Directory: the users of one server and their tokens.

Owns who there is, and recognizing a token. All of it is in memory, because each request asks; what changes is on disk first.
What a role may do is declared at each route (`api.route_needs`).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Collection
from typing import Final

import msgspec

from aiaas_magics.backend.net.grants import digest_of
from aiaas_magics.backend.server.identity.callers import ApiCaller
from aiaas_magics.backend.server.identity.token_secrets import fake_proof_key, new_token
from aiaas_magics.backend.server.storage.account_records import AccountRecords, TokenRecord
from aiaas_magics.backend.server.storage.records import Store
from aiaas_magics.core.accounts import (
    NO_QUOTAS,
    MadeToken,
    NewToken,
    Quotas,
    Role,
    TokenView,
    UserChange,
    UserView,
    id_of_token,
    proof_key_of,
)
from aiaas_magics.core.clock import Clock
from aiaas_magics.core.errors import InvalidSpec, UnknownName

FIRST_ADMIN: Final = "admin"
ROTATION_S: Final = 3600.0  # guess: a notebook that runs a cell gets to its next token within an hour
TOKENS_PER_USER: Final = 1000  # guess: somebody who has more makes them in a loop


class Directory:
    """Users and tokens. `start` before anything else; called from the server's loop."""

    def __init__(self, store: Store, *, key: bytes, clock: Clock) -> None:
        self._store, self._records, self._key, self._clock = store, AccountRecords(store), key, clock
        self._users: dict[str, UserView] = {}
        self._tokens: dict[str, TokenRecord] = {}
        self._unsaved: set[str] = set()  # tokens that were used since that was written
        self._turn = asyncio.Lock()
        self.on_change: Callable[[], None] = lambda: None

    async def start(self) -> None:
        self._users = {user.name: user for user in await self._store.call(self._records.users)}
        self._tokens = {record.view.id: record for record in await self._store.call(self._records.tokens)}

    @property
    def is_empty(self) -> bool:
        """Whether the server's own account is the only one that ever was."""
        return not self._users and not self._tokens

    # ----------------------------------------------------------------- the guard's questions

    def recognize(self, token: bytes) -> ApiCaller | None:
        """Whose valid token this is."""
        text = token.decode("latin-1")
        token_id = id_of_token(text)
        record = self._tokens.get(token_id)
        digest = digest_of(text, self._key)
        if not hmac.compare_digest(digest, record.digest if record else bytes(32)) or record is None:
            return None
        now_s, view = self._clock.now_s(), record.view
        user = self._users.get(view.user)
        if user is None or not view.is_valid(now_s):
            return None
        if view.used_s is None or now_s - view.used_s >= 1.0:
            self._keep_used(record, now_s)
        return ApiCaller(
            user=user.name,
            role=user.role,
            groups=frozenset(user.groups),
            quotas=user.quotas,
            token_id=token_id,
            expires_s=view.expires_s,
            endpoints=view.endpoints,
        )

    def _keep_used(self, record: TokenRecord, now_s: float) -> None:
        self._tokens[record.view.id] = TokenRecord(msgspec.structs.replace(record.view, used_s=now_s), record.digest, record.proof_key)
        self._unsaved.add(record.view.id)

    def proof_key(self, token_id: str) -> bytes:
        """With what the server proves that it knows this token. One that there is not looks the same, and proves nothing."""
        record = self._tokens.get(token_id)
        return record.proof_key if record is not None else fake_proof_key(token_id, self._key)

    async def write_uses(self) -> None:
        """Write down when tokens were used last."""
        used, self._unsaved = self._unsaved, set()
        if used:
            await self._store.call(self._records.keep_tokens, [self._tokens[token_id] for token_id in used])

    # ----------------------------------------------------------------- users

    def users(self) -> list[UserView]:
        return sorted(self._users.values(), key=lambda user: user.name)

    def user(self, name: str) -> UserView:
        """Raises `UnknownName`."""
        if name not in self._users:
            raise UnknownName("user", name, tuple(self._users))
        return self._users[name]

    def role_of(self, name: str) -> Role | None:
        return self._users[name].role if name in self._users else None

    def quotas_of(self, name: str) -> Quotas:
        return self._users[name].quotas if name in self._users else NO_QUOTAS

    async def add_user(self, user: UserView, *, owners: Collection[str]) -> UserView:
        """Raises `InvalidSpec`: there is, or was, a user of that name. `owners` are the names that something belongs to."""
        async with self._turn:
            if user.name in self._users:
                raise InvalidSpec(f"There is a user {user.name} already. Use `aiaas user role` to change the role.")
            if user.name in owners or any(record.view.user == user.name for record in self._tokens.values()):
                raise InvalidSpec(f"{user.name} was a user before, and things of that user may be here. Use another name.")
            user = msgspec.structs.replace(user, created_s=self._clock.now_s())
            await self._store.call(self._records.keep_user, user)
            self._users[user.name] = user
            self.on_change()
            return user

    async def add_first_admin(self) -> MadeToken:
        """A user `admin` with a token, for a server that has no user yet."""
        await self.add_user(UserView(name=FIRST_ADMIN, role=Role.ADMIN), owners=())
        return await self.make_token(NewToken(user=FIRST_ADMIN, label="first token"))

    async def change_user(self, name: str, change: UserChange) -> UserView:
        """Raises `UnknownName`."""
        async with self._turn:
            before = self.user(name)
            changes = {field: value for field in change.__struct_fields__ if (value := getattr(change, field)) is not None}
            user = UserView(**{field: getattr(before, field) for field in before.__struct_fields__} | changes)
            await self._store.call(self._records.keep_user, user)
            self._users[name] = user
            self.on_change()
            return user

    async def remove_user(self, name: str) -> None:
        """Nobody gets in by the user's tokens from now on; the name is not given again. Raises `UnknownName`."""
        async with self._turn:
            self.user(name)
            now_s = self._clock.now_s()
            revoked = [_revoked(record, now_s) for record in self._tokens.values() if record.view.user == name]
            await self._store.call(self._records.remove_user, name, revoked)
            self._users.pop(name)
            self._tokens |= {record.view.id: record for record in revoked}
            self.on_change()

    # ----------------------------------------------------------------- tokens

    def tokens(self, *, user: str | None = None) -> list[TokenView]:
        """All, or those of one user; oldest first."""
        views = [record.view for record in self._tokens.values() if user is None or record.view.user == user]
        return sorted(views, key=lambda view: (view.created_s, view.id))

    def token_records(self) -> list[TokenRecord]:
        return list(self._tokens.values())

    def token(self, token_id: str, *, user: str | None = None) -> TokenView:
        """Raises `UnknownName`, also for the token of another user where `user` is given."""
        record = self._tokens.get(token_id)
        if record is None or (user is not None and record.view.user != user):
            raise UnknownName("token", token_id, tuple(view.id for view in self.tokens(user=user))[-100:])
        return record.view

    async def make_token(self, request: NewToken) -> MadeToken:
        """Raises `UnknownName`: there is no such user. `InvalidSpec`: the user has too many."""
        async with self._turn:
            self.user(request.user)
            now_s = self._clock.now_s()
            if sum(view.is_valid(now_s) for view in self.tokens(user=request.user)) >= TOKENS_PER_USER:
                raise InvalidSpec(f"{request.user} has {TOKENS_PER_USER} valid tokens, which is the limit. Use `aiaas token revoke` first.")
            new = self._new(request, now_s)
            return await self._keep(new)

    def _new(self, request: NewToken, now_s: float) -> MadeToken:
        token = new_token()
        view = TokenView(
            id=id_of_token(token),
            user=request.user,
            label=request.label,
            endpoints=request.endpoints,
            requests_per_s=request.requests_per_s,
            created_s=now_s,
            expires_s=now_s + request.lives_s if request.lives_s else None,
        )
        return MadeToken(token=token, view=view)

    async def _keep(self, new: MadeToken, *replaced: TokenRecord) -> MadeToken:
        record = TokenRecord(new.view, digest_of(new.token, self._key), proof_key_of(new.token))
        await self._store.call(self._records.keep_tokens, [record, *replaced])
        self._tokens |= {record.view.id: record for record in (record, *replaced)}
        self.on_change()
        return new

    async def revoke(self, token_id: str, *, user: str | None = None) -> TokenView:
        """Raises `UnknownName`."""
        async with self._turn:
            self.token(token_id, user=user)
            record = _revoked(self._tokens[token_id], self._clock.now_s())
            await self._store.call(self._records.keep_tokens, [record])
            self._tokens[token_id] = record
            self.on_change()
            return record.view

    async def rotate(self, token_id: str, *, user: str | None = None) -> MadeToken:
        """A new token in the place of one, which goes on for `ROTATION_S`, so that nothing fails meanwhile.

        Raises:
            UnknownName: there is no such token.
            InvalidSpec: it is not valid any more.
        """
        async with self._turn:
            before, now_s = self.token(token_id, user=user), self._clock.now_s()
            if not before.is_valid(now_s):
                raise InvalidSpec(f"Token {token_id} is revoked or has expired. Use `aiaas token make` for a new one.")
            lives_s = before.expires_s - before.created_s if before.expires_s is not None else 0.0
            new = self._new(
                NewToken(
                    user=before.user,
                    label=before.label,
                    endpoints=before.endpoints,
                    requests_per_s=before.requests_per_s,
                    lives_s=lives_s,
                ),
                now_s,
            )
            old = self._tokens[token_id]
            ends_s = min(now_s + ROTATION_S, before.expires_s if before.expires_s is not None else now_s + ROTATION_S)
            ending = TokenRecord(msgspec.structs.replace(old.view, expires_s=ends_s), old.digest, old.proof_key)
            return await self._keep(new, ending)


def _revoked(record: TokenRecord, now_s: float) -> TokenRecord:
    view = record.view if record.view.revoked_s is not None else msgspec.structs.replace(record.view, revoked_s=now_s)
    return TokenRecord(view, record.digest, record.proof_key)
