"""Storage usage: measures the state folder, and deletes what nothing needs.

Owns going through the folder and the removing. Which results are old enough is `retention`'s rule, how much is to stay free
is `quota`'s. What a job that is not over, a live endpoint or a job that can be gone on from needs is never removed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from aiaas_magics.backend.server.conductor import Conductor, end_attempts
from aiaas_magics.backend.server.identity.blob_spaces import BlobSpaces
from aiaas_magics.backend.server.storage import migrations
from aiaas_magics.backend.server.storage.account_records import AccountRecords
from aiaas_magics.backend.server.storage.blob_store import BlobStore
from aiaas_magics.backend.server.storage.quota import Room
from aiaas_magics.backend.server.storage.records import JobRecord, Store
from aiaas_magics.backend.server.storage.retention import DAY_S, Ended, expired
from aiaas_magics.backend.server.storage.state_folder import StateFolder
from aiaas_magics.backend.workers.pool import PoolFactory, PoolSetting
from aiaas_magics.backend.workers.pools import POOLS
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.spec import Freed, StoragePart, StorageView

log = logging.getLogger(__name__)

SWEEP_S: Final = 3600.0  # guess: a day's blobs go within 25 hours
ASKED_S: Final = 3600.0  # guess: when somebody asks for room, what was sent in the last hour may still be wanted by a cell that runs
EVENTS_KEPT: Final = 10_000  # guess: of one job that is over; a view shows some hundreds
SETTLED_S: Final = 3600.0  # guess: nobody follows a job that ended an hour ago
COMPACT_BYTES: Final = 16 * 1024**2  # guess: less than that in free pages is used again soon


class Storage:
    """The state folder of one running server."""

    def __init__(self, *, state: StateFolder, store: Store, blobs: BlobStore, spaces: BlobSpaces, conductor: Conductor, room: Room) -> None:
        self._state, self._store, self._blobs, self._conductor, self._room = state, store, blobs, conductor, room
        self._spaces, self._accounts = spaces, AccountRecords(store)
        self._turn = asyncio.Lock()

    async def view(self) -> StorageView:
        """What uses how much, and what of that nothing needs."""
        uses = await self._store.call(self._store.blob_uses)
        records = self._conductor.records()
        parts = await asyncio.to_thread(self._parts, uses, records)
        usage = await asyncio.to_thread(shutil.disk_usage, self._state.path)
        return StorageView(
            folder=str(self._state.path),
            parts=parts,
            disk_bytes=usage.total,
            free_bytes=usage.free,
            keep_free_bytes=self._room.keep_free.of(usage.total),
        )

    def _parts(self, uses: dict[str, str], records: list[JobRecord]) -> tuple[StoragePart, ...]:
        now_s = time.time()
        sizes = {use: [0, 0] for use in ("inputs", "results", "endpoints", "")}
        unneeded = 0
        for sha, (size, used_s) in self._blobs.sizes().items():
            use = uses.get(sha, "")
            sizes[use][0] += size
            sizes[use][1] += 1
            unneeded += size if not use and now_s - used_s > ASKED_S else 0
        missing = -self._room.free_bytes()
        old = expired(self._ended(records), now_s=now_s, missing_bytes=max(0, missing))
        folders = [self._state.job(record.job.id) for record in records]
        checkpoints = [folder.checkpoints for folder in folders]
        files = [folder.files for folder in folders]
        figures = [folder.figures for folder in folders]
        jobs = size_of([self._state.jobs])
        of_jobs = size_of(checkpoints), size_of([*files, *figures])
        path = self._state.path
        return (
            StoragePart(contents="data of jobs that are not over", bytes=sizes["inputs"][0], count=sizes["inputs"][1]),
            StoragePart(
                contents="results",
                bytes=sizes["results"][0],
                count=sizes["results"][1],
                freeable_bytes=sum(ended.bytes for ended in self._ended(records) if ended.job in old),
            ),
            StoragePart(contents="models of endpoints", bytes=sizes["endpoints"][0], count=sizes["endpoints"][1]),
            StoragePart(contents="data kept for the next run", bytes=sizes[""][0], count=sizes[""][1], freeable_bytes=unneeded),
            StoragePart(contents="checkpoints", bytes=of_jobs[0], count=sum(entry.is_dir() for entry in checkpoints)),
            StoragePart(contents="files of callbacks", bytes=of_jobs[1], count=sum(one.is_dir() for one in files)),
            StoragePart(contents="running attempts", bytes=max(0, jobs - sum(of_jobs))),
            StoragePart(contents="records and logs of jobs", bytes=size_of(path.glob("records.sqlite*")), count=len(records)),
            StoragePart(contents="audit log", bytes=size_of([self._state.audit])),
            StoragePart(contents="recorded requests of endpoints", bytes=size_of([path / "serving" / "recorded"])),
            StoragePart(contents="logs of processes", bytes=size_of(path.rglob("*.log"))),
            StoragePart(contents="set aside", bytes=size_of(path.glob("set-aside-*"))),
        )

    def _ended(self, records: list[JobRecord]) -> list[Ended]:
        """Jobs that are over and have not given back anything yet."""
        return [
            Ended(job=record.job.id, ended_s=record.ended_s, bytes=self._bytes_of(record))
            for record in records
            if record.job.state.final and record.ended_s is not None and record.removed_s is None
        ]

    def _bytes_of(self, record: JobRecord) -> int:
        blobs = [self._blobs.path(record.result)] if record.result else []
        folder = self._state.job(record.job.id)
        return size_of([*blobs, folder.files, folder.figures])

    async def sweep(self) -> Freed:
        """What is done without being asked: what was of no use for a day, results by their age, long logs."""
        return await self._free(older_than_s=DAY_S, compact=False)

    async def free(self) -> Freed:
        """Give back what nothing needs, now."""
        return await self._free(older_than_s=ASKED_S, compact=True)

    async def _free(self, *, older_than_s: float, compact: bool) -> Freed:
        async with self._turn:
            places = [self._state.blobs, self._blobs.dropbox, self._state.jobs, self._state.records]
            before = await asyncio.to_thread(size_of, places)
            now_s = time.time()
            records = self._conductor.records()
            missing = max(0, -self._room.free_bytes())
            # First what needs no record: on a full disk that makes room for the rest.
            job_ids = {record.job.id for record in records}
            await asyncio.to_thread(self._remove_strays, job_ids, now_s - older_than_s)
            blobs = await self._sweep_blobs(now_s=now_s, older_than_s=older_than_s)
            removed = await asyncio.to_thread(lambda: expired(self._ended(records), now_s=now_s, missing_bytes=missing))
            if removed:
                await self._conductor.remove_results(removed)
                for job in removed:
                    folder = self._state.job(job)
                    for path in (folder.files, folder.figures):
                        await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
                blobs += await self._sweep_blobs(now_s=now_s, older_than_s=older_than_s)
            for record in records:
                if record.job.state.final and now_s - (record.ended_s or now_s) > SETTLED_S and record.last_seq > EVENTS_KEPT:
                    await self._store.call(self._store.thin_log, record.job.id, keep=EVENTS_KEPT)
            if await self._store.call(self._store.unused_bytes) > (0 if compact else COMPACT_BYTES) and self._has_room_to_compact():
                await self._store.call(self._store.compact)
            freed = before - await asyncio.to_thread(size_of, places)
        log.info("removed %d blobs that nothing needs and the results of %d jobs", blobs, len(removed))
        return Freed(bytes=max(0, freed), blobs=blobs, results=len(removed))

    async def _sweep_blobs(self, *, now_s: float, older_than_s: float) -> int:
        uses = await self._store.call(self._store.blob_uses)
        removed = await asyncio.to_thread(self._blobs.sweep, set(uses), now_s=now_s, older_than_s=older_than_s)
        await self._spaces.sweep(await self._needed(), await asyncio.to_thread(self._blobs.sizes), older_than_s=older_than_s)
        return removed

    async def _needed(self) -> dict[str, set[str]]:
        """For each user the blobs that jobs and endpoints of theirs need."""
        needed: dict[str, set[str]] = {}
        for record in self._conductor.records():
            inputs = () if record.job.state.final else (record.spec.payload, *record.spec.arrays)
            needed.setdefault(record.owner, set()).update(inputs, (record.result,) if record.result else ())
        owners = await self._store.call(self._accounts.endpoint_owners)
        for version in await self._store.call(self._store.versions):
            owner = owners[version.spec.name].owner if version.spec.name in owners else ""
            needed.setdefault(owner, set()).update((version.spec.artefact, version.spec.samples))
        return needed

    def _has_room_to_compact(self) -> bool:
        return shutil.disk_usage(self._state.path).free > 2 * self._state.records.stat().st_size

    def _remove_strays(self, job_ids: set[str], before_s: float) -> None:
        """Folders of jobs that no record speaks of."""
        for path in self._state.jobs.iterdir():
            if path.name not in job_ids and path.lstat().st_mtime < before_s:
                shutil.rmtree(path, ignore_errors=True)


def size_of(paths: Iterable[Path]) -> int:
    """Bytes of the files at and below `paths`; links are not followed, and of a file with several names each counts."""
    total = 0
    waiting = [os.fspath(path) for path in paths]
    while waiting:
        path = waiting.pop()
        try:
            if os.path.isdir(path) and not os.path.islink(path):
                waiting += [entry.path for entry in os.scandir(path)]
            else:
                total += os.lstat(path).st_size
        except OSError:  # removed meanwhile
            continue
    return total


def set_records_aside(path: Path, *, pools: Mapping[str, PoolFactory] = POOLS) -> Path:
    """See `migrations.set_aside`; ends the workers of the jobs that are forgotten by that, in whichever pool they are.

    Raises:
        InvalidSpec: a server runs on this folder, or there are no records.
    """
    if not (path / "records.sqlite").exists():
        raise InvalidSpec(f"There are no records in {path}. Pass the server's folder as --state.")
    state = StateFolder.open(path)
    try:
        asyncio.run(_end_workers(state, pools))
        return migrations.set_aside(state.path)
    finally:
        state.close()


async def _end_workers(state: StateFolder, pools: Mapping[str, PoolFactory]) -> None:
    for make in pools.values():
        pool = make(PoolSetting(state=state.path))
        for job in state.jobs.iterdir():
            await end_attempts(pool, job.name)
        await pool.close()
