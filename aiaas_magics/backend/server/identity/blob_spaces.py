"""Blob spaces: which blobs are whose.

Owns the answer to "have you got these" for each user. The bytes are stored once, in `storage.blob_store`; a user who has not sent
them is neither given them nor told that they are here, and sends them as if they were not. The server's own account and admins
read everything anyway, so nothing is kept for the server's own account: a local server works as if there were no users.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from aiaas_magics.backend.server.identity.callers import ApiCaller
from aiaas_magics.backend.server.storage.account_records import AccountRecords, OwnedBlob
from aiaas_magics.backend.server.storage.blob_store import BlobStore
from aiaas_magics.backend.server.storage.records import Store
from aiaas_magics.core.clock import Clock

KEPT_S: Final = 24 * 3600.0  # as `blob_store.DAY_S`: how long what nothing needs is kept for the next run


class BlobSpaces:
    """The spaces of all users. `start` before anything else; called from the server's loop."""

    def __init__(self, store: Store, blobs: BlobStore, clock: Clock) -> None:
        self._store, self._blobs, self._clock, self._records = store, blobs, clock, AccountRecords(store)
        self._spaces: dict[str, dict[str, OwnedBlob]] = {}

    async def start(self) -> None:
        for blob in await self._store.call(self._records.blobs):
            self._spaces.setdefault(blob.owner, {})[blob.sha] = blob

    async def missing(self, names: Collection[str], caller: ApiCaller) -> list[str]:
        """Those of `names` that the caller has to send, in their order. The others count as used now.

        Raises:
            InvalidSpec: one of them is no name of a blob.
        """
        if caller.is_admin:
            return await asyncio.to_thread(self._blobs.missing, names)
        space, now_s = self._spaces.get(caller.user, {}), self._clock.now_s()
        for sha in names:
            self._blobs.path(sha)
        # The disk is asked about one's own only: what others have neither takes time nor counts as used.
        own = [sha for sha in names if sha in space]
        absent = set(await asyncio.to_thread(self._blobs.missing, own))
        for sha in own:
            if sha not in absent and sha in space:
                space[sha] = OwnedBlob(caller.user, sha, space[sha].bytes, now_s)
        return [sha for sha in names if sha not in space or sha in absent]

    def has(self, sha: str, caller: ApiCaller) -> bool:
        """Whether the caller may read this blob, if it is here."""
        return caller.is_admin or sha in self._spaces.get(caller.user, {})

    async def add(self, sha: str, owner: str, *, size: int) -> None:
        """The user has sent these bytes, or a job of theirs has made them."""
        if owner:
            blob = OwnedBlob(owner, sha, size, self._clock.now_s())
            await self._store.call(self._records.keep_blob, blob)
            self._spaces.setdefault(owner, {})[sha] = blob

    def bytes_of(self, owner: str) -> int:
        return sum(blob.bytes for blob in self._spaces.get(owner, {}).values())

    def forget_user(self, owner: str) -> None:
        self._spaces.pop(owner, None)

    async def sweep(self, needed: Mapping[str, Collection[str]], on_disk: Iterable[str], *, older_than_s: float = KEPT_S) -> None:
        """Forget what is gone from the disk, and what of a user was not used for a while: else one would see that another uses it.

        Args:
            needed: for each user what jobs and endpoints of theirs need.
            on_disk: the blobs that are on the disk.
        """
        stored, now_s = set(on_disk), self._clock.now_s()
        for owner, space in list(self._spaces.items()):
            keeps = needed.get(owner, ())
            old = [sha for sha, blob in space.items() if sha not in stored or (sha not in keeps and now_s - blob.used_s > older_than_s)]
            if old:
                await self._store.call(self._records.forget_blobs, owner, old)
                for sha in old:
                    space.pop(sha, None)
