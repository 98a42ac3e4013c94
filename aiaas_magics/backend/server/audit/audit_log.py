"""Audit log: the files of the audit chain, appended to and never changed.

Owns the files below `audit/` in the state folder (0600), their order, their size, and what happens when the disk takes no more.
What an entry says belongs to `audit_chain`, what is worth one to `audited`.

    audit/audit-000000000001.jsonl      entries from number 1
    audit/audit-000000214748.jsonl      the next file; the chain goes on across files

Promises: an entry is on the disk when `record` returns, or a line of ERROR in the server's log says why it is not. A full disk fails
no request: what could not be written waits in memory, up to `WAITING` entries, and is written in its order when there is room; what
is lost beyond that is counted in an entry of its own. (Vault stops answering when its audit log cannot be written, which makes
a full disk an outage; here what needs room is refused on a full disk anyway, and cancelling and stopping must work.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from aiaas_magics.backend.folders.small_files import NO_LINK, NotPlainFile, open_plain
from aiaas_magics.backend.server.audit.audit_chain import AuditFact, AuditHead, entry_in, linked
from aiaas_magics.core.errors import StoreNotWritable

log = logging.getLogger(__name__)

FILE_BYTES: Final = 64 * 1024**2  # some 170,000 entries
WAITING: Final = 10_000  # guess: some 5 MB of memory
PATIENCE_S: Final = 2.0  # what a request waits for a disk that takes long; guess
COMPLAIN_S: Final = 60.0
SETTLE_S: Final = 0.1
TAIL_BYTES: Final = 64 * 1024  # holds the last entry, which has at most some 4 KB
NAME: Final = "audit-{:012d}.jsonl"


def files_of(folder: Path) -> list[Path]:
    """The log's files, oldest first."""
    return sorted(folder.glob("audit-" + "[0-9]" * 12 + ".jsonl"))


def lines_of(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    """File, number of the line and bytes of each line, oldest first.

    Raises:
        NotPlainFile: a file is a link or a device.
    """
    for path in files_of(folder):
        with open_plain(path) as raw, open(raw.fileno(), "rb", closefd=False) as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):  # a server that runs may be in the middle of it
                    time.sleep(SETTLE_S)
                    line += file.readline()
                yield path.name, number, line


class AuditLog:
    """The audit log in `folder`. One process writes it: the server that holds the state folder's lock.

    Raises:
        StoreNotWritable: the files that are there cannot be opened.
    """

    def __init__(self, folder: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self._folder, self._file_bytes = folder, file_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aiaas-audit")
        self._waiting: deque[AuditFact] = deque()
        self._lost = 0
        self._complained_s = -COMPLAIN_S
        self._descriptor = -1
        self._path = folder
        self._size = 0
        self._head = AuditHead()
        try:
            torn_bytes = self._find_end()
        except (OSError, NotPlainFile) as error:
            raise StoreNotWritable(str(folder), str(error)) from error
        if self._head.seq:
            log.info("the audit log ends at %s", self._head)
        if torn_bytes:
            self._waiting.append(
                AuditFact(at_s=time.time(), who="server", action="audit_recovered", outcome="done", on={"torn_bytes": str(torn_bytes)})
            )

    @property
    def head(self) -> AuditHead:
        return self._head

    @property
    def unwritten(self) -> int:
        """How many entries wait for room."""
        return len(self._waiting) + self._lost

    async def record(self, fact: AuditFact) -> None:
        """Append an entry. When this returns it is on the disk, or the server's log says that it is not."""
        append = asyncio.wrap_future(self.begin(fact))
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.shield(append)
        except TimeoutError:
            self._complain(f"its disk took more than {PATIENCE_S:g} s")

    def begin(self, fact: AuditFact) -> Future[None]:
        """The same without waiting."""
        if len(self._waiting) >= WAITING:
            self._lost += 1
        else:
            self._waiting.append(fact)
        return self._thread.submit(self._write_waiting)

    def close(self) -> None:
        """Write what waits, if there is room, and close the file."""
        self._thread.submit(self._write_waiting)
        self._thread.shutdown(wait=True)
        if self._waiting or self._lost:
            log.error("%d entries of the audit log could not be written", self.unwritten)
        if self._head.seq:
            log.info("the audit log ends at %s", self._head)
        self._close_file()

    # ---------------------------------------------------------------------- in the thread

    def _write_waiting(self) -> None:
        """Entries that came together are forced to disk together."""
        facts = [*self._waiting]
        if not facts and not self._lost:
            return
        lost = self._lost
        if lost:
            facts.append(AuditFact(at_s=time.time(), who="server", action="audit_lost", outcome="failed", count=lost))
        try:
            self._append(facts)
        except (OSError, NotPlainFile) as error:
            self._complain(str(error))
            return
        for _ in range(len(facts) - bool(lost)):
            self._waiting.popleft()
        self._lost -= lost

    def _append(self, facts: list[AuditFact]) -> None:
        self._open_file()
        data, head = bytearray(), self._head
        for fact in facts:
            line, head = linked(fact, head)
            data += line
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)  # of an entry that nobody was told about
            raise
        self._size += len(data)
        self._head = head

    def _open_file(self) -> None:
        """Have the file that the next entry goes into: another one when it is full, or is not the one any more that was opened."""
        if self._descriptor >= 0:
            status = os.fstat(self._descriptor)
            if status.st_size != self._size or not status.st_nlink:
                log.error("somebody else changed %s: entries before %d may be missing there", self._path, self._head.seq + 1)
                self._close_file()
            elif self._size >= self._file_bytes:
                log.info("the audit log goes on in another file after %s", self._head)
                self._close_file()
            else:
                return
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._path = self._folder / NAME.format(self._head.seq + 1)
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_LINK | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _find_end(self) -> int:
        """Open the last file and learn its last entry. Of an entry that a dying machine left half, remove the half: how many bytes."""
        files = files_of(self._folder)
        if not files:
            return 0
        self._path = files[-1]
        with open_plain(self._path, os.O_RDWR) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            tail = file.read(TAIL_BYTES)
            whole = tail[: tail.rfind(b"\n") + 1]
            torn_bytes = len(tail) - len(whole)
            if torn_bytes:
                file.truncate(size - torn_bytes)
            last = whole.splitlines()[-1] if whole else b""
            self._head = self._head_of(last, file_first=int(self._path.stem.removeprefix("audit-")))
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | NO_LINK | os.O_CLOEXEC)
        self._size = os.fstat(self._descriptor).st_size
        return torn_bytes

    def _head_of(self, last: bytes, *, file_first: int) -> AuditHead:
        members = entry_in(last)
        if members is not None:
            return AuditHead(seq=members["seq"], hash=members["hash"])
        if last:
            log.error("the last entry of %s was altered; the audit log goes on behind it. Run `aiaas audit verify`.", self._path)
        with self._path.open("rb") as file:
            count = sum(1 for _ in file)
        return AuditHead(seq=file_first - 1 + count)

    def _complain(self, why: str) -> None:
        now_s = time.monotonic()
        if now_s - self._complained_s >= COMPLAIN_S:
            self._complained_s = now_s
            log.error("the audit log cannot be written (%s); %d entries wait in memory, requests go on", why, self.unwritten)
