"""State backup: what of a server's state folder goes into a backup, taken so that it fits together while the server runs.

Owns the choice and the order. The form of the file belongs to `backup_file`, coming back to `state_restore`.

First the records, by SQLite's online backup: one moment, which nobody waits for. Then everything that they refer to. Blobs that they
refer to are marked as used now, so that a sweep of the running server spares them; one that was swept before that is met with
another look at the records.

Not in it: sockets, pids, logs of processes, the port, data kept for the next run, compiled code and timings, data that a kernel was
sending, recorded requests of endpoints.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from aiaas_magics.backend.folders import checkpoint_folder
from aiaas_magics.backend.folders.job_folder import JobFolder
from aiaas_magics.backend.folders.small_files import NotPlainFile, open_plain
from aiaas_magics.backend.server.audit.audit_chain import AuditHead, entry_in
from aiaas_magics.backend.server.audit.audit_log import files_of as audit_files
from aiaas_magics.backend.server.backup.backup_file import PIECE_BYTES, BackupManifest, BackupWriter, check_name
from aiaas_magics.backend.server.job_files import files_of
from aiaas_magics.backend.server.storage.quota import not_writable
from aiaas_magics.backend.server.storage.records import JobRecord, Store
from aiaas_magics.core import settings
from aiaas_magics.core.errors import BlobDamaged, InvalidSpec, RecordsUnreadable, StoreNotWritable
from aiaas_magics.core.spec import JobState

LOOKS: Final = 5  # guess: a sweep comes once per hour
TOUCH_S: Final = 600.0  # a sweep spares what was used within the hour
TOKENS: Final = ("token", "token_key", "serving/token")
SECRET_TABLES: Final = ("tokens",)  # of the records, where users have tokens: their hashes


@dataclass(frozen=True, slots=True)
class _RecordsCopy:
    """The records of one moment, and what they refer to."""

    records: Path
    jobs: tuple[JobRecord, ...]
    blobs: tuple[str, ...]


def back_up(state: Path, stream: BinaryIO, *, scratch: Path, with_tokens: bool = False, skip_damaged: bool = False) -> BackupManifest:
    """Write a backup of the state folder, of a server that runs or not, to `stream`.

    Args:
        scratch: a folder with room for another copy of the records; nothing stays there.
        with_tokens: the tokens too, which open whatever server has the backup restored.
        skip_damaged: go on without blobs that are missing or have other bytes than their name says; the manifest names them.

    Raises:
        InvalidSpec: no server has ever been here.
        RecordsUnreadable: the records are damaged.
        BlobDamaged: a blob that the records refer to is missing or damaged.
        StoreNotWritable: `scratch` or `stream` takes no more.
    """
    if not (state / "records.sqlite").exists():
        raise InvalidSpec(f"There are no records in {state}. Pass the server's folder as --state.")
    made_s = time.time()
    with tempfile.TemporaryDirectory(prefix=".aiaas-backup-", dir=scratch) as folder, _our_errors(scratch):
        snapshot = _snapshot(state, Path(folder), with_tokens=with_tokens, skip_damaged=skip_damaged)
        writer = BackupWriter(stream)
        _add_file(writer, "records.sqlite", snapshot.records)
        damaged = _add_blobs(writer, state, snapshot.blobs, skip_damaged=skip_damaged)
        for record in snapshot.jobs:
            _add_job(writer, JobFolder(state / "jobs" / record.job.id), record)
        head = _add_audit(writer, state / "audit")
        for name in TOKENS if with_tokens else ():
            if (state / name).exists():
                _add_file(writer, name, state / name)
        return writer.finish(
            version=settings.package_version(), made_s=made_s, has_tokens=with_tokens, audit_head=str(head), damaged=tuple(damaged)
        )


def back_up_into(state: Path, file: Path, *, with_tokens: bool = False, skip_damaged: bool = False) -> BackupManifest:
    """The same into `file` (0600), which is there when it is whole and safe against a power cut. See `back_up`.

    Raises:
        InvalidSpec: there is such a file already.
    """
    if file.exists():
        raise InvalidSpec(f"{file} exists already. Use another name, or delete it first.")
    partial = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with _our_errors(file.parent):
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=PIECE_BYTES) as stream:
                manifest = back_up(state, stream, scratch=file.parent, with_tokens=with_tokens, skip_damaged=skip_damaged)
                stream.flush()
                os.fsync(stream.fileno())
            os.link(partial, file)  # not a rename: it would replace a file that came meanwhile
        return manifest
    finally:
        partial.unlink(missing_ok=True)


# --------------------------------------------------------------------------- the records of one moment


def _snapshot(state: Path, scratch: Path, *, with_tokens: bool, skip_damaged: bool) -> _RecordsCopy:
    missing: list[str] = []
    for look in range(LOOKS):
        copy = scratch / f"records-{look}.sqlite"
        _copy_records(state / "records.sqlite", copy, with_tokens=with_tokens)
        store = Store(copy)
        try:
            jobs, blobs = tuple(store.jobs()), tuple(sorted(store.blob_uses()))
        finally:
            store.close()
        missing = _touch(state, blobs)
        if not missing or skip_damaged:
            return _RecordsCopy(copy, jobs, blobs)
        copy.unlink()
        time.sleep(0.1)
    raise BlobDamaged(missing[0], "it is missing, though the records refer to it")


def _copy_records(source: Path, target: Path, *, with_tokens: bool) -> None:
    try:
        with contextlib.closing(sqlite3.connect(source)) as live, contextlib.closing(sqlite3.connect(target)) as copy:
            live.backup(copy)
            copy.execute("PRAGMA secure_delete = ON")
            has_tables = {name for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for table in () if with_tokens else SECRET_TABLES:
                if table in has_tables:
                    copy.execute(f"DELETE FROM {table}")
            copy.commit()
            copy.execute("PRAGMA journal_mode = DELETE")
            copy.execute("VACUUM")
    except sqlite3.OperationalError as error:
        raise not_writable(target.parent, str(error)) from error
    except sqlite3.DatabaseError as error:
        raise RecordsUnreadable(str(source.parent), f"the file is damaged ({error})") from error


def blob_path(state: Path, sha: str) -> Path:
    return state / "blobs" / sha[:2] / sha


def _touch(state: Path, blobs: tuple[str, ...]) -> list[str]:
    """Have blobs count as used now; those that are missing."""
    missing = []
    for sha in blobs:
        try:
            os.utime(blob_path(state, sha))
        except FileNotFoundError:
            missing.append(sha)
    return missing


# --------------------------------------------------------------------------- files


def _add_file(writer: BackupWriter, name: str, path: Path, *, links: int | None = 1) -> str:
    with open_plain(path, links=links) as file:
        return writer.add(name, file, os.fstat(file.fileno()).st_size)


def _add_blobs(writer: BackupWriter, state: Path, blobs: tuple[str, ...], *, skip_damaged: bool) -> list[str]:
    damaged, touched_s = [], time.monotonic()
    for place, sha in enumerate(blobs):
        if time.monotonic() - touched_s > TOUCH_S:
            touched_s = time.monotonic()
            _touch(state, blobs[place:])
        why = ""
        try:
            if _add_file(writer, f"blobs/{sha}", blob_path(state, sha), links=None) != sha:
                why = "its bytes on the disk have another hash"
        except FileNotFoundError:
            why = "it is missing, though the records refer to it"
        if why and not skip_damaged:
            raise BlobDamaged(sha, why)
        if why:
            damaged.append(sha)
    return damaged


def _add_job(writer: BackupWriter, folder: JobFolder, record: JobRecord) -> None:
    """What of a job's folder its records speak of, and what it goes on from. A worker ran the user's code in it: only plain files."""
    root = f"jobs/{record.job.id}"
    for name in files_of(folder.files):
        _add_left(writer, f"{root}/files/{name}", folder.files / name)
    for below in (folder.figures, folder.explained):
        if below.is_dir() and not below.is_symlink():
            for path in sorted(below.iterdir()):
                if not path.name.startswith((".", "claim-")):
                    _add_left(writer, f"{root}/{below.name}/{path.name}", path)
    _add_left(writer, f"{root}/opened.jsonl", folder.opened)
    if record.job.state is not JobState.SUCCEEDED:
        _add_checkpoint(writer, f"{root}/checkpoints", folder.checkpoints)


def _add_left(writer: BackupWriter, name: str, path: Path) -> None:
    """A file that a job left. One that runs may remove it, or write into it meanwhile."""
    try:
        check_name(name)
        file = open_plain(path)
    except (OSError, NotPlainFile, InvalidSpec):
        return
    with file:
        writer.add(name, file, os.fstat(file.fileno()).st_size, pads=True)


def _add_checkpoint(writer: BackupWriter, root: str, folder: Path) -> None:
    """The newest whole checkpoint. Its files are opened all at once: a job that runs may remove it meanwhile."""
    for _ in range(LOOKS):
        newest = checkpoint_folder.newest_whole(folder) if folder.is_dir() and not folder.is_symlink() else None
        if newest is None:
            return
        _, path = newest
        with contextlib.ExitStack() as stack:
            try:
                opened = [(name.name, stack.enter_context(open_plain(name, links=None))) for name in sorted(path.iterdir())]
            except (OSError, NotPlainFile):
                continue
            for name, file in opened:
                writer.add(f"{root}/{path.name}/{name}", file, os.fstat(file.fileno()).st_size)
            return


def _add_audit(writer: BackupWriter, folder: Path) -> AuditHead:
    """The audit log up to its last whole entry; where it ends."""
    head = AuditHead()
    for path in audit_files(folder):
        with open_plain(path) as file:
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        writer.add_bytes(f"audit/{path.name}", data)
        if data and (members := entry_in(data.splitlines()[-1])) is not None:
            head = AuditHead(seq=members["seq"], hash=members["hash"])
    return head


@contextlib.contextmanager
def _our_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except NotPlainFile as error:
        raise StoreNotWritable(str(folder), f"a file of the server {error}") from error
    except EOFError as error:
        raise StoreNotWritable(str(folder), str(error)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise not_writable(folder, error.strerror or str(error)) from error
