"""Owner tables: users, their tokens, and whose each blob and endpoint is.

Owns the tables only, and the metadata that all tables of the records share. Reading and writing them belongs to
`account_records`; the owner of a job is a column of `records.jobs`.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

tables: Final = sa.MetaData()

users = sa.Table(
    "users",
    tables,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("view", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
tokens = sa.Table(
    "tokens",
    tables,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False),  # see `token_secrets`
    sa.Column("proof_key", sa.LargeBinary, nullable=False),
    sa.Column("view", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
blob_owners = sa.Table(
    "blob_owners",
    tables,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("sha", sa.Text, primary_key=True),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("used_s", sa.Float, nullable=False),
    sqlite_with_rowid=False,
)
endpoint_owners = sa.Table(
    "endpoint_owners",
    tables,
    sa.Column("endpoint", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("groups", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
