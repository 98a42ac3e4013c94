"""Records: jobs, their logs, endpoints. What was acknowledged survives a power cut.

Owns the tables and the transactions. Blobs are files and belong to `blobs`; what a job
does next belongs to `jobs.machine`. Everything here blocks: `Store` is called from one
thread of its own (`in_store`), so that a transaction never stops the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import sqlalchemy as sa

from aiaas_magics.backend.jobs.states import JobStatus
from aiaas_magics.backend.server.storage import migrations
from aiaas_magics.backend.server.storage.migrations import our_errors
from aiaas_magics.backend.server.storage.owner_tables import tables
from aiaas_magics.core import wire
from aiaas_magics.core.errors import RecordsUnreadable
from aiaas_magics.core.events import AnyEvent, Entry
from aiaas_magics.core.routing import Routing
from aiaas_magics.core.spec import DeploySpec, FitSpec, JobState, JobView, VersionView

P = ParamSpec("P")
T = TypeVar("T")

ENTRIES_AT_ONCE: Final = 1000
# How an entry of a kind begins.
STEPS_KIND: Final = b'{"kind":"steps"'
STATE_KIND: Final = b'{"kind":"state"'

jobs = sa.Table(
    "jobs",
    tables,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("key", sa.Text, unique=True),  # the client's idempotency key
    sa.Column("spec", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("lost", sa.Integer, nullable=False, default=0),
    sa.Column("ranks", sa.Integer, nullable=False, default=0),
    sa.Column("seats", sa.LargeBinary),  # of the running attempt
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("started_s", sa.Float),
    sa.Column("ended_s", sa.Float),
    sa.Column("result", sa.Text),
    sa.Column("files", sa.LargeBinary),
    sa.Column("removed_s", sa.Float),  # when its result, files and log were removed to make room
    sa.Column("owner", sa.Text, nullable=False, server_default=""),  # a user's name; "" is the server's own account
    sqlite_autoincrement=True,  # a number is never given twice, or a folder of an old job could be taken for a new one's
)
events = sa.Table(
    "events",
    tables,
    sa.Column("job", sa.Integer, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("at_s", sa.Float, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("rank", sa.Integer),
    sa.Column("event", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
offsets = sa.Table(
    "offsets",
    tables,
    sa.Column("job", sa.Integer, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("file", sa.Text, primary_key=True),
    sa.Column("offset", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)
routings = sa.Table(
    "routings",
    tables,
    sa.Column("endpoint", sa.Text, primary_key=True),
    sa.Column("routing", sa.LargeBinary, nullable=False),
)
versions = sa.Table(
    "versions",
    tables,
    sa.Column("endpoint", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("spec", sa.LargeBinary, nullable=False),
    sa.Column("view", sa.LargeBinary, nullable=False),
    sa.Column("live", sa.Boolean, nullable=False),
)


# A job with the number of its last entry: a look-up of the events' primary key for each job that is read.
_LAST = sa.select(sa.func.max(events.c.seq)).where(events.c.job == jobs.c.number).scalar_subquery()
_JOBS = sa.select(jobs, _LAST.label("seq"))


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEntry:
    """An entry that has no sequence number yet."""

    at_s: float
    attempt: int
    rank: int | None
    event: AnyEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A job as it is kept."""

    job: JobStatus
    spec: FitSpec
    created_s: float
    started_s: float | None = None
    ended_s: float | None = None
    result: str | None = None
    files: tuple[str, ...] = ()
    seats: bytes | None = None
    removed_s: float | None = None
    last_seq: int = 0
    owner: str = ""

    def stamped(self, now_s: float) -> JobRecord:
        """The record with the times that its state implies."""
        state = self.job.state
        if state is JobState.RUNNING and self.started_s is None:
            return replace(self, started_s=now_s)
        if state.final and self.ended_s is None:
            return replace(self, ended_s=now_s)
        return self

    def view(self) -> JobView:
        return JobView(
            id=self.job.id,
            spec=self.spec,
            state=self.job.state,
            reason=self.job.reason,
            attempt=self.job.attempt,
            created_s=self.created_s,
            started_s=self.started_s,
            ended_s=self.ended_s,
            last_seq=self.last_seq,
            result=self.result,
            files=self.files,
            removed_s=self.removed_s,
            owner=self.owner,
        )


@dataclass(frozen=True, slots=True)
class VersionRecord:
    spec: DeploySpec
    view: VersionView
    live: bool


class Store:
    """The records in one SQLite file; one thread, one connection.

    Promises: a method that writes returns after the disk has it; a job's entries have the
    sequence numbers 1, 2, 3, ... without a gap; entries and the offsets they were read at
    are written together or not at all.
    """

    def __init__(self, path: Path) -> None:
        """Open the records at `path`, or begin new ones.

        Raises:
            RecordsUnreadable: they are damaged, or of a newer version.
            StoreNotWritable: they cannot be written.
        """
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aiaas-store")
        self._engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.StaticPool, connect_args={"check_same_thread": False})
        sa.event.listen(self._engine, "connect", _configure)
        self._last: dict[int, int] = {}  # the last sequence number of each job
        try:
            migrations.prepare(self._engine, tables, path)
        except BaseException:
            self.close()
            raise
        path.chmod(0o600)

    async def call(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Run one of the methods below in the store's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **options))

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._engine.dispose()

    def add_job(self, spec: FitSpec, *, key: str | None, at_s: float, words: Sequence[AnyEvent] = (), owner: str = "") -> tuple[str, bool]:
        """The id of the job for `spec`, and whether it is new; with a `key` that this owner has used it is the job of that time.

        A new job's log begins with `words`, kept together with it.
        """
        if key is not None and owner:
            key = f"{owner}\0{key}"  # a header holds no NUL, so nobody else's key is this one
        with self.writing() as connection:
            if key is not None:
                earlier = connection.execute(sa.select(jobs.c.number).where(jobs.c.key == key)).scalar()
                if earlier is not None:
                    return str(earlier), False
            values = {"key": key, "spec": wire.encode(spec), "state": JobState.QUEUED.value, "created_s": at_s, "owner": owner}
            number = connection.execute(sa.insert(jobs).values(values)).inserted_primary_key[0]  # type: ignore[index]
            rows = [
                {"job": number, "seq": seq, "at_s": at_s, "attempt": 0, "rank": None, "event": wire.encode(word)}
                for seq, word in enumerate(words, start=1)
            ]
            if rows:
                connection.execute(sa.insert(events), rows)
        return str(number), True

    def save(self, record: JobRecord) -> None:
        with self.writing() as connection:
            _update_job(connection, record)

    def append(
        self,
        job: str,
        entries: Sequence[NewEntry],
        *,
        record: JobRecord | None = None,
        attempt: int = 0,
        read: dict[str, int] | None = None,
    ) -> int:
        """Append to the job's log, keep the job's record and how far the attempt's files were read; the last number."""
        number = int(job)
        with self.writing() as connection:
            last = self._last_seq(connection, number)
            rows = [
                {"job": number, "seq": seq, "at_s": e.at_s, "attempt": e.attempt, "rank": e.rank, "event": wire.encode(e.event)}
                for seq, e in enumerate(entries, start=last + 1)
            ]
            if rows:
                connection.execute(sa.insert(events), rows)
            if record is not None:
                _update_job(connection, record)
            for file, offset in (read or {}).items():
                connection.execute(
                    sa.text("INSERT OR REPLACE INTO offsets (job, attempt, file, offset) VALUES (:job, :attempt, :file, :offset)"),
                    {"job": number, "attempt": attempt, "file": file, "offset": offset},
                )
        # Only after the commit: a transaction that failed has given out no number.
        self._last[number] = last + len(rows)
        return self._last[number]

    def _last_seq(self, connection: sa.Connection, number: int) -> int:
        if number not in self._last:
            self._last[number] = connection.execute(sa.select(sa.func.max(events.c.seq)).where(events.c.job == number)).scalar() or 0
        return self._last[number]

    def entries(self, job: str, *, after: int, attempt: int | None = None, limit: int = ENTRIES_AT_ONCE) -> list[Entry]:
        query = sa.select(events).where(events.c.job == int(job), events.c.seq > after).order_by(events.c.seq).limit(limit)
        if attempt is not None:
            query = query.where(events.c.attempt == attempt)
        with self.reading() as connection:
            return [
                Entry(seq=row.seq, at_s=row.at_s, attempt=row.attempt, rank=row.rank, event=wire.decode(row.event, AnyEvent))  # type: ignore[arg-type]
                for row in connection.execute(query)
            ]

    def read_offsets(self, job: str, attempt: int) -> dict[str, int]:
        query = sa.select(offsets.c.file, offsets.c.offset).where(offsets.c.job == int(job), offsets.c.attempt == attempt)
        with self.reading() as connection:
            return {row.file: row.offset for row in connection.execute(query)}

    def jobs(self) -> list[JobRecord]:
        """Every job, oldest first."""
        with self.reading() as connection:
            return [_job_record(row) for row in connection.execute(_JOBS.order_by(jobs.c.number))]

    def job(self, job: str) -> JobRecord:
        """The job with this id, which there is."""
        with self.reading() as connection:
            return _job_record(connection.execute(_JOBS.where(jobs.c.number == int(job))).one())

    def keep_routing(self, endpoint: str, routing: Routing, record: VersionRecord | None = None) -> None:
        """Requests go as `routing` says now, in which `record` may be a new version; versions that it does not name are over."""
        condition = versions.c.endpoint == endpoint
        with self.writing() as connection:
            if record is not None:
                row = {"endpoint": endpoint, "version": record.view.version, "live": True}
                connection.execute(sa.insert(versions).values(**row, spec=wire.encode(record.spec), view=wire.encode(record.view)))
            connection.execute(sa.update(versions).where(condition).values(live=versions.c.version.in_(routing.loaded)))
            connection.execute(sa.delete(routings).where(routings.c.endpoint == endpoint))
            connection.execute(sa.insert(routings).values(endpoint=endpoint, routing=wire.encode(routing)))

    def keep_spec(self, record: VersionRecord) -> None:
        """A version as it is from now on: with other replicas."""
        condition = (versions.c.endpoint == record.spec.name) & (versions.c.version == record.view.version)
        with self.writing() as connection:
            connection.execute(sa.update(versions).where(condition).values(spec=wire.encode(record.spec)))

    def routings(self) -> dict[str, Routing]:
        with self.reading() as connection:
            return {row.endpoint: wire.decode(row.routing, Routing) for row in connection.execute(sa.select(routings))}

    def versions(self, *, live: bool = True) -> list[VersionRecord]:
        query = sa.select(versions).order_by(versions.c.endpoint, versions.c.version)
        if live:
            query = query.where(versions.c.live)
        with self.reading() as connection:
            return [
                VersionRecord(wire.decode(row.spec, DeploySpec), wire.decode(row.view, VersionView), row.live)
                for row in connection.execute(query)
            ]

    def last_version(self, endpoint: str) -> int:
        with self.reading() as connection:
            return connection.execute(sa.select(sa.func.max(versions.c.version)).where(versions.c.endpoint == endpoint)).scalar() or 0

    def retire(self, endpoint: str) -> None:
        with self.writing() as connection:
            connection.execute(sa.update(versions).where(versions.c.endpoint == endpoint).values(live=False))
            connection.execute(sa.delete(routings).where(routings.c.endpoint == endpoint))

    def blob_uses(self) -> dict[str, str]:
        """The blobs that something still needs, and what for: inputs of jobs that are not over, results, and what is served."""
        uses: dict[str, str] = {}
        for record in self.jobs():
            if record.result:
                uses[record.result] = "results"
            if record.spec.record and record.removed_s is None:
                uses[record.spec.record] = "results"
            if not record.job.state.final:
                uses |= dict.fromkeys((record.spec.payload, *record.spec.arrays), "inputs")
        for version in self.versions():
            uses |= dict.fromkeys((version.spec.artefact, version.spec.samples), "endpoints")
        return uses

    def remove_results(self, ids: Sequence[str], *, at_s: float) -> None:
        """Forget results, files and logs of jobs that are over; that they were there, and how they ended, stays."""
        numbers = [int(job) for job in ids]
        with self.writing() as connection:
            connection.execute(sa.update(jobs).where(jobs.c.number.in_(numbers)).values(result=None, files=None, removed_s=at_s))
            # Whoever follows such a job reads that it is over.
            connection.execute(sa.delete(events).where(events.c.job.in_(numbers), ~_is_kind(STATE_KIND)))
            connection.execute(sa.delete(offsets).where(offsets.c.job.in_(numbers)))

    def thin_log(self, job: str, *, keep: int) -> None:
        """Of a job that is over keep so many entries: progress within its epochs goes first, then what is neither first nor last."""
        condition = events.c.job == int(job)
        with self.writing() as connection:
            count = connection.execute(sa.select(sa.func.count()).where(condition)).scalar() or 0
            if count > keep:
                # In the middle only: whoever reads on from a number finds the first and the last entry where they were.
                last = connection.execute(sa.select(sa.func.max(events.c.seq)).where(condition)).scalar() or 0
                count -= connection.execute(sa.delete(events).where(condition, _is_kind(STEPS_KIND), events.c.seq < last)).rowcount
            if count > keep:
                remaining = sa.select(events.c.seq).where(condition).order_by(events.c.seq)
                first = connection.execute(remaining.offset(keep // 10).limit(1)).scalar() or 0
                final = connection.execute(remaining.offset(count - (keep - keep // 10)).limit(1)).scalar() or 0
                connection.execute(sa.delete(events).where(condition, events.c.seq >= first, events.c.seq < final))

    def unused_bytes(self) -> int:
        """Of the file, what removed entries left."""
        with self.reading() as connection:
            free, size = (connection.exec_driver_sql(f"PRAGMA {name}").scalar() or 0 for name in ("freelist_count", "page_size"))
            return int(free) * int(size)

    def compact(self) -> None:
        """Give what removed entries left back to the disk. It takes as much room again while it runs."""
        with our_errors(self._path), self._engine.connect() as connection:
            connection.exec_driver_sql("VACUUM")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction. Like `reading` for this thread only, and for the records beside this module."""
        with our_errors(self._path), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """What cannot be understood is damaged too: every value was written by this package."""
        try:
            with our_errors(self._path), self._engine.connect() as connection:
                yield connection
        except wire.Malformed as error:
            raise RecordsUnreadable(str(self._path.parent), f"a value in them is damaged ({error})") from error


def _configure(connection: Any, _: object) -> None:
    # FULL: an acknowledged record survives a power cut (facts/reliability 1.1); NORMAL would not promise that.
    for line in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {line}").close()


def _is_kind(kind: bytes) -> sa.ColumnElement[bool]:
    return sa.func.substr(events.c.event, 1, len(kind)) == kind


def _update_job(connection: sa.Connection, record: JobRecord) -> None:
    job = record.job
    connection.execute(
        sa.update(jobs)
        .where(jobs.c.number == int(job.id))
        .values(
            state=job.state.value,
            reason=job.reason,
            attempt=job.attempt,
            lost=job.lost,
            ranks=job.ranks,
            seats=record.seats,
            started_s=record.started_s,
            ended_s=record.ended_s,
            result=record.result,
            files=wire.encode(record.files),
        )
    )


def _job_record(row: Any) -> JobRecord:
    spec = wire.decode(row.spec, FitSpec)
    job = JobStatus(
        id=str(row.number),
        retries=spec.retries,
        state=JobState(row.state),
        reason=row.reason,
        attempt=row.attempt,
        lost=row.lost,
        ranks=row.ranks,
    )
    return JobRecord(
        job=job,
        spec=spec,
        created_s=row.created_s,
        started_s=row.started_s,
        ended_s=row.ended_s,
        result=row.result,
        files=tuple(wire.decode(row.files, list[str])) if row.files else (),
        seats=row.seats,
        removed_s=row.removed_s,
        owner=row.owner,
        last_seq=row.seq or 0,
    )
