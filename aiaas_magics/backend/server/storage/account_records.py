"""Account records: reads and writes users, tokens, and whose each blob and endpoint is.

Owns the queries. Everything here blocks and runs in the store's thread, as `records` does; what follows from the values
belongs to `identity`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from aiaas_magics.backend.server.storage.owner_tables import blob_owners, endpoint_owners, tokens, users
from aiaas_magics.backend.server.storage.records import Store
from aiaas_magics.core import wire
from aiaas_magics.core.accounts import TokenView, UserView

AT_ONCE: Final = 500  # variables of one statement; older SQLite takes 999


@dataclass(frozen=True, slots=True, repr=False)
class TokenRecord:
    """A token as it is kept: no secret that gets in is among it."""

    view: TokenView
    digest: bytes
    proof_key: bytes


@dataclass(frozen=True, slots=True)
class EndpointOwner:
    owner: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OwnedBlob:
    owner: str
    sha: str
    bytes: int
    used_s: float  # unix time


class AccountRecords:
    """The accounts in the records of one server. Call each method by `Store.call`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def users(self) -> list[UserView]:
        with self._store.reading() as connection:
            return [wire.decode(row.view, UserView) for row in connection.execute(sa.select(users).order_by(users.c.name))]

    def keep_user(self, user: UserView) -> None:
        with self._store.writing() as connection:
            connection.execute(sa.delete(users).where(users.c.name == user.name))
            connection.execute(sa.insert(users).values(name=user.name, view=wire.encode(user)))

    def remove_user(self, name: str, revoked: Collection[TokenRecord]) -> None:
        """Forget the user; the tokens stay, revoked. Jobs and endpoints keep their owner's name."""
        with self._store.writing() as connection:
            connection.execute(sa.delete(users).where(users.c.name == name))
            connection.execute(sa.delete(blob_owners).where(blob_owners.c.owner == name))
            for record in revoked:
                _replace_token(connection, record)

    def tokens(self) -> list[TokenRecord]:
        with self._store.reading() as connection:
            return [
                TokenRecord(view=wire.decode(row.view, TokenView), digest=row.digest, proof_key=row.proof_key)
                for row in connection.execute(sa.select(tokens))
            ]

    def keep_tokens(self, records: Collection[TokenRecord]) -> None:
        with self._store.writing() as connection:
            for record in records:
                _replace_token(connection, record)

    def blobs(self) -> list[OwnedBlob]:
        with self._store.reading() as connection:
            return [OwnedBlob(row.owner, row.sha, row.bytes, row.used_s) for row in connection.execute(sa.select(blob_owners))]

    def keep_blob(self, blob: OwnedBlob) -> None:
        with self._store.writing() as connection:
            connection.execute(sa.delete(blob_owners).where(blob_owners.c.owner == blob.owner, blob_owners.c.sha == blob.sha))
            connection.execute(sa.insert(blob_owners).values(owner=blob.owner, sha=blob.sha, bytes=blob.bytes, used_s=blob.used_s))

    def forget_blobs(self, owner: str, shas: Collection[str]) -> None:
        names = list(shas)
        with self._store.writing() as connection:
            for start in range(0, len(names), AT_ONCE):
                some = names[start : start + AT_ONCE]
                connection.execute(sa.delete(blob_owners).where(blob_owners.c.owner == owner, blob_owners.c.sha.in_(some)))

    def endpoint_owners(self) -> Mapping[str, EndpointOwner]:
        with self._store.reading() as connection:
            return {
                row.endpoint: EndpointOwner(row.owner, tuple(wire.decode(row.groups, list[str])))
                for row in connection.execute(sa.select(endpoint_owners))
            }

    def keep_endpoint(self, endpoint: str, owner: EndpointOwner | None) -> None:
        """None: nobody's any more."""
        with self._store.writing() as connection:
            connection.execute(sa.delete(endpoint_owners).where(endpoint_owners.c.endpoint == endpoint))
            if owner is not None:
                row = {"endpoint": endpoint, "owner": owner.owner, "groups": wire.encode(owner.groups)}
                connection.execute(sa.insert(endpoint_owners).values(row))


def _replace_token(connection: sa.Connection, record: TokenRecord) -> None:
    connection.execute(sa.delete(tokens).where(tokens.c.id == record.view.id))
    connection.execute(
        sa.insert(tokens).values(id=record.view.id, digest=record.digest, proof_key=record.proof_key, view=wire.encode(record.view))
    )
