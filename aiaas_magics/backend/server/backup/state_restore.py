"""State restore: makes a server's state folder of a backup.

Owns that the folder was empty, that everything the records refer to is there before it gets its name, and what becomes of jobs that
were running. The form of the file belongs to `backup_file`.

A restore that fails leaves the folder as empty as it was. Whoever made a backup can have code run on the server that it is
restored on, since jobs hold code: restore your own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

from aiaas_magics.backend.folders.small_files import NotPlainFile
from aiaas_magics.backend.jobs.states import check_move
from aiaas_magics.backend.server.audit.audit_chain import AuditFact
from aiaas_magics.backend.server.audit.audit_log import AuditLog
from aiaas_magics.backend.server.backup.backup_file import PIECE_BYTES, BackupManifest, BackupReader
from aiaas_magics.backend.server.storage.blob_store import BlobStore
from aiaas_magics.backend.server.storage.quota import not_writable
from aiaas_magics.backend.server.storage.records import JobRecord, NewEntry, Store
from aiaas_magics.backend.server.storage.state_folder import StateFolder
from aiaas_magics.core.errors import BlobDamaged, InvalidSpec
from aiaas_magics.core.events import StateChanged
from aiaas_magics.core.spec import JobState

STAGE: Final = "restoring"
AGAIN: Final = "restored from a backup; the job goes on where the backup has it"
# What a job that had workers becomes without them.
WITHOUT_WORKERS: Final = {
    JobState.RUNNING: (JobState.QUEUED, AGAIN),
    JobState.STOPPING: (JobState.CANCELLED, "cancelled; its workers were gone when it was restored from a backup"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredState:
    """What a folder holds now."""

    manifest: BackupManifest
    jobs: int
    requeued: tuple[str, ...]  # jobs that had been running
    endpoints: tuple[str, ...]
    blobs: int


def restore(stream: BinaryIO, into: Path) -> RestoredState:
    """Make `into`, which must be empty or not there, a state folder with what the backup holds. A server on it takes up from there.

    Raises:
        InvalidSpec: the folder is not empty, or this is no whole backup.
        BlobDamaged: a blob in it has other bytes than its name says, or one that the records refer to is not in it.
        RecordsUnreadable: the records in it are damaged, or of a newer version.
        StoreNotWritable: the folder cannot be written, or is full.
    """
    into = into.expanduser().resolve()
    if into.is_dir() and any(into.iterdir()):
        raise InvalidSpec(f"{into} is not empty. Use a folder that is empty or does not exist, so that nothing there is lost.")
    existed, umask = into.is_dir(), os.umask(0o077)
    try:
        state = StateFolder.open(into)
        try:
            with _our_errors(into):
                return _restore(stream, state)
        except BaseException:
            state.close()
            _empty(into, keep_folder=existed)
            raise
        finally:
            state.close()
    finally:
        os.umask(umask)


def _restore(stream: BinaryIO, state: StateFolder) -> RestoredState:
    stage = state.path / STAGE
    stage.mkdir(mode=0o700)
    blobs = BlobStore(stage / "blobs")
    reader, loose = BackupReader(stream), set()
    for name, _, body in reader.files():
        folder, _, rest = name.partition("/")
        path = stage / (f"blob-{rest}" if folder == "blobs" else name)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            shutil.copyfileobj(body, file, PIECE_BYTES)
        if folder == "blobs":
            if blobs.keep(path) != rest:
                loose.add(rest)  # right if the manifest says so
            path.unlink()
    manifest = reader.manifest
    for sha in loose - set(manifest.damaged):
        raise BlobDamaged(sha, "its bytes in the backup have another hash")
    if not (stage / "records.sqlite").exists():
        raise InvalidSpec("This backup has no records. Use another one; nothing was kept of this.")
    restored = _settle(stage, blobs, manifest)
    audit = AuditLog(stage / "audit")
    audit.begin(
        AuditFact(at_s=time.time(), who="server", action="restored", outcome="done", on={"backup_of": f"{manifest.made_s:.0f}"})
    ).result()
    audit.close()
    # The records last: a folder without them is no server's.
    for path in sorted(stage.iterdir(), key=lambda path: path.name.startswith("records")):
        _move(path, state.path / path.name)
    stage.rmdir()
    _sync()
    return restored


def _settle(stage: Path, blobs: BlobStore, manifest: BackupManifest) -> RestoredState:
    """Bring the records up to date, see that all they refer to is there, and put jobs whose workers are elsewhere back into the queue."""
    store = Store(stage / "records.sqlite")
    try:
        jobs = store.jobs()
        for sha in blobs.missing(store.blob_uses()):
            if sha not in manifest.damaged:
                raise BlobDamaged(sha, "the records in the backup refer to it, and it is not there")
        requeued = []
        for record in jobs:
            if (after := WITHOUT_WORKERS.get(record.job.state)) is not None:
                _leave_workers(store, record, *after)
                requeued.append(record.job.id)
        endpoints = sorted({version.spec.name for version in store.versions()})
    finally:
        store.close()
    return RestoredState(manifest=manifest, jobs=len(jobs), requeued=tuple(requeued), endpoints=tuple(endpoints), blobs=len(blobs.sizes()))


def _leave_workers(store: Store, record: JobRecord, state: JobState, reason: str) -> None:
    check_move(record.job, state)
    now_s = time.time()
    record = replace(record, job=replace(record.job, state=state, reason=reason)).stamped(now_s)
    entry = NewEntry(at_s=now_s, attempt=record.job.attempt, rank=None, event=StateChanged(state=state, reason=reason))
    store.append(record.job.id, [entry], record=record)


def _move(source: Path, target: Path) -> None:
    if target.is_dir():
        target.rmdir()  # made empty by whoever opened the folder
    os.rename(source, target)


def _sync() -> None:
    if hasattr(os, "sync"):  # thousands of files: one call for all of them
        os.sync()


def _empty(folder: Path, *, keep_folder: bool) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if not keep_folder:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def _our_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except NotPlainFile as error:
        raise InvalidSpec(f"A file of the backup {error}. Use another backup; nothing was kept of this.") from error
    except OSError as error:
        raise not_writable(folder, error.strerror or str(error)) from error
