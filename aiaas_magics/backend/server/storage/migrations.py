"""Migrations: bring records of an earlier version up to date, and report records that cannot be read.

Owns the schema's number, which the file carries (SQLite's `user_version`), the steps from each number to the next, and setting
records aside. What the tables are today belongs to `records`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from aiaas_magics.backend.server.storage.quota import not_writable
from aiaas_magics.core.errors import RecordsUnreadable

SCHEMA: Final = 3
NOT_NUMBERED: Final = 1  # the first had no number: a file that has tables and 0
# From a number to the next: what is done once, all of it or nothing. A step never changes after its release.
STEPS: Final[Mapping[int, tuple[str, ...]]] = {
    1: ("ALTER TABLE jobs ADD COLUMN removed_s FLOAT",),
    2: (
        "ALTER TABLE jobs ADD COLUMN owner TEXT DEFAULT '' NOT NULL",
        "CREATE TABLE users (name TEXT NOT NULL, view BLOB NOT NULL, PRIMARY KEY (name)) WITHOUT ROWID",
        "CREATE TABLE tokens (id TEXT NOT NULL, digest BLOB NOT NULL, proof_key BLOB NOT NULL, view BLOB NOT NULL, PRIMARY KEY (id)) "
        "WITHOUT ROWID",
        "CREATE TABLE blob_owners (owner TEXT NOT NULL, sha TEXT NOT NULL, bytes INTEGER NOT NULL, used_s FLOAT NOT NULL, "
        "PRIMARY KEY (owner, sha)) WITHOUT ROWID",
        "CREATE TABLE endpoint_owners (endpoint TEXT NOT NULL, owner TEXT NOT NULL, groups BLOB NOT NULL, PRIMARY KEY (endpoint)) "
        "WITHOUT ROWID",
    ),
}


def prepare(engine: sa.Engine, tables: sa.MetaData, path: Path) -> None:
    """Have today's tables in the records at `path`, whatever was there.

    Raises:
        RecordsUnreadable: they are damaged, no records, or of a newer version.
        StoreNotWritable: they cannot be written.
    """
    number_on_disk = _checked(path) if path.exists() else 0
    for number in range(number_on_disk, SCHEMA) if number_on_disk else ():
        with our_errors(path), engine.connect() as connection:
            # By hand: the driver begins no transaction before statements that change tables.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                for statement in (*STEPS[number], f"PRAGMA user_version = {number + 1}"):
                    connection.exec_driver_sql(statement)
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
    if not number_on_disk:
        with our_errors(path), engine.begin() as connection:
            tables.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA}")


def _checked(path: Path) -> int:
    """The schema's number of records that can be used. Read on a connection of its own, which sets nothing in the file."""
    looking = sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool)
    with our_errors(path), looking.connect() as connection:
        number = _number_of(connection)
        if number > SCHEMA:
            raise RecordsUnreadable(str(path.parent), f"they are of schema {number}, and this version of aiaas_magics reads up to {SCHEMA}")
        if number:
            report = " ".join(str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()).split())
            if report != "ok":
                raise RecordsUnreadable(str(path.parent), f"the file is damaged ({report[:100]})")
    return number


def _number_of(connection: sa.Connection) -> int:
    """The schema's number; 0 of a file without tables."""
    number = int(connection.exec_driver_sql("PRAGMA user_version").scalar() or 0)
    has_tables = connection.exec_driver_sql("SELECT count(*) FROM sqlite_master WHERE name = 'jobs'").scalar()
    return number or (NOT_NUMBERED if has_tables else 0)


@contextlib.contextmanager
def our_errors(path: Path) -> Iterator[None]:
    """Turn what the database says into ours. No other module than this and `store` knows its names."""
    try:
        yield
    except sa.exc.OperationalError as error:  # read-only, full, or gone
        raise not_writable(path.parent, str(error.orig)) from error
    except sa.exc.DatabaseError as error:
        raise RecordsUnreadable(str(path.parent), f"the file is damaged ({error.orig})") from error


def set_aside(state: Path) -> Path:
    """Move the records, and the folders of the jobs that they speak of, out of the way; where they are now.

    The numbers of jobs begin anew, so that a folder of an old job could be taken for a new one's. No server may be running.
    """
    aside = state / time.strftime("set-aside-%Y%m%d-%H%M%S")
    aside.mkdir(mode=0o700)
    for source in (*state.glob("records.sqlite*"), state / "jobs"):
        if source.exists():
            source.rename(aside / source.name)
    return aside
