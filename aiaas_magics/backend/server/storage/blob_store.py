"""Blob store: immutable bytes, named by their SHA-256, as files.

Owns writing them whole or not at all, checking that they are what they are called, and
removing those that nobody refers to. Who may refer to which belongs to `app`.

A blob's file is complete from the moment it has its name, because it is forced to disk and
then gets the name by rename. Beside it stands XXH3 of its bytes, 128 bits, by which workers
see at every use whether the disk still has what was sent: SHA-256 takes six times as long (1.9 instead of
0.3 s a GB, measured).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import BinaryIO, Final

import xxhash

from aiaas_magics.backend.folders.small_files import NotPlainFile, open_plain, read_plain, write_private
from aiaas_magics.backend.server.storage.quota import not_writable
from aiaas_magics.core.errors import BlobDamaged, InvalidSpec, UnknownName
from aiaas_magics.core.spec import SHA256

GATHER_BYTES: Final = 1024 * 1024  # network chunks are 64 KB; a hop into a thread for each would cost more than the write
READ_BYTES: Final = 1024 * 1024
BLOB_BYTES: Final = 256 * 1024**3  # guess: what is larger is no array that a kernel holds
CHECK: Final = ".xxh3"
CHECK_DIGITS: Final = 32
DAY_S: Final = 24 * 3600.0


class BlobStore:
    """Blobs below `folder`. A client of the same account may put files into `dropbox` and have them adopted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._partial = folder / "partial"
        self.dropbox = folder.parent / "dropbox"
        for needed in (folder, self._partial, self.dropbox):
            needed.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, sha: str) -> Path:
        """Where the blob is or would be.

        Raises:
            InvalidSpec: that is no name of a blob; nothing else ever reaches a path.
        """
        if not SHA256.fullmatch(sha):
            raise InvalidSpec(f"{sha[:80]!r} is not a SHA-256. Name a blob by the 64 hexadecimal digits of its bytes' hash.")
        return self._folder / sha[:2] / sha

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are not here. Those that are count as used now, so that they are still here in a moment."""
        absent = []
        for sha in names:
            try:
                os.utime(self.path(sha))
            except FileNotFoundError:
                absent.append(sha)
        return absent

    def get_path(self, sha: str) -> Path:
        """The blob's file; raises `UnknownName`."""
        path = self.path(sha)
        if not path.is_file():
            raise UnknownName("blob", sha)
        return path

    async def put(self, sha: str, body: AsyncIterator[bytes]) -> None:
        """Store what `body` brings, if it is what `sha` says.

        Raises:
            BlobDamaged: it is something else; nothing was kept.
            StoreNotWritable: the disk took no more; nothing was kept.
        """
        target, partial = self.path(sha), self._new_partial()
        digests = _Digests()
        try:
            with _our_errors(self._folder):
                file = await asyncio.to_thread(_create, partial)
                with file:
                    async for pieces in _gathered(body):
                        await asyncio.to_thread(_write, file, digests, pieces)
                    if digests.sha256.hexdigest() != sha:
                        raise BlobDamaged(sha, f"what arrived has the hash {digests.sha256.hexdigest()[:12]}")
                    await asyncio.to_thread(os.fsync, file.fileno())
                await asyncio.to_thread(_give_name, partial, target, digests.xxh3.hexdigest())
        finally:
            partial.unlink(missing_ok=True)

    def adopt(self, sha: str, name: str) -> None:
        """Take a file out of the dropbox as the blob `sha`. Its owner is this account, which hashed it while writing.

        Raises:
            UnknownName: there is no such file, and no such blob either.
            InvalidSpec: it is not a plain file of this account in the dropbox.
        """
        target = self.path(sha)
        if name != Path(name).name or name.startswith("."):
            raise InvalidSpec(f"{name[:80]!r} is not a file in the dropbox. Pass the name of a file, without a folder.")
        source = self.dropbox / name
        try:
            status = source.lstat()
        except FileNotFoundError:
            if target.is_file():  # asked again after the answer was lost
                return
            raise UnknownName("file in the dropbox", name) from None
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
            raise InvalidSpec(f"{name[:80]!r} is not a plain file of this account. Send the bytes over HTTP instead.")
        check = xxhash.xxh3_128()
        with _our_errors(self._folder):
            with open_plain(source) as file:
                while piece := file.read(READ_BYTES):
                    check.update(piece)
                os.fsync(file.fileno())
            _give_name(source, target, check.hexdigest())

    def keep(self, path: Path) -> str:
        """Store a file that was made here and that nobody writes any more, safe against a power cut; its name. The file stays.

        Raises:
            NotPlain: it is a link or a device, or larger than a blob may be.
        """
        partial = self._new_partial()
        digests = _Digests()
        try:
            with _our_errors(self._folder), open_plain(path, most_bytes=BLOB_BYTES, links=None) as file:
                while piece := file.read(READ_BYTES):
                    digests.update(piece)
                os.fsync(file.fileno())
                sha = digests.sha256.hexdigest()
                self._check_names(os.fstat(file.fileno()), self.path(sha))
                _link(path, partial)
                _give_name(partial, self.path(sha), digests.xxh3.hexdigest())
                _sync_folder(self.path(sha).parent)
        finally:
            partial.unlink(missing_ok=True)
        return sha

    def check_of(self, sha: str) -> str:
        """XXH3 of what was stored as `sha`; empty for a blob of a server that did not keep it."""
        try:
            return read_plain(_check_path(self.path(sha)), most_bytes=CHECK_DIGITS).decode("ascii")
        except (OSError, NotPlainFile, UnicodeDecodeError):
            return ""

    def drop(self, sha: str) -> None:
        """Forget a blob whose bytes are not those that it is named by: whoever wants it sends it again."""
        self._remove(self.path(sha))

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        _check_path(path).unlink(missing_ok=True)

    def _check_names(self, status: os.stat_result, target: Path) -> None:
        """A file of several names is somebody else's too, unless the other one is the blob's, of a `keep` that was interrupted."""
        if status.st_nlink > 1 and not (status.st_nlink == 2 and target.exists() and os.path.samestat(status, target.stat())):
            raise NotPlainFile("has another name elsewhere (a hard link)")

    def sizes(self) -> dict[str, tuple[int, float]]:
        """Every blob's size, and when it was used last (unix time)."""
        sizes = {}
        for path in self._folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                if SHA256.fullmatch(path.name):
                    status = path.stat()
                    sizes[path.name] = (status.st_size, status.st_mtime)
        return sizes

    def sweep(self, referred: set[str], *, now_s: float, older_than_s: float = DAY_S) -> int:
        """Remove blobs that nothing refers to and that were not used for a while, and what broken uploads left; how many."""
        removed = 0
        for path in self._folder.glob("*/*"):
            if path.parent != self._partial and path.name.removesuffix(CHECK) in referred:
                continue
            with contextlib.suppress(FileNotFoundError):  # its blob was removed a moment ago
                if path.name.endswith(CHECK) and path.with_name(path.name.removesuffix(CHECK)).exists():
                    continue
                if now_s - path.stat().st_mtime > older_than_s:
                    self._remove(path)
                    removed += 1
        for path in self.dropbox.iterdir():
            if now_s - path.lstat().st_mtime > older_than_s:
                path.unlink(missing_ok=True)
        return removed

    def _new_partial(self) -> Path:
        return self._partial / secrets.token_hex(16)


async def receive(body: AsyncIterator[bytes], target: Path) -> None:
    """Write `body` to the file `target`, which is there when it is whole; raises `StoreNotWritable`. What came in part is removed."""
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        with _our_errors(target.parent):
            with await asyncio.to_thread(_create, partial) as file:
                async for pieces in _gathered(body):
                    await asyncio.to_thread(_write_all, file, pieces)
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


async def read_chunks(file: BinaryIO, size: int) -> AsyncIterator[bytes]:
    """The first `size` bytes of the open file, read outside the event loop; closes it."""
    with file:
        while size and (piece := await asyncio.to_thread(file.read, min(size, READ_BYTES))):
            size -= len(piece)
            yield piece


async def _gathered(body: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    pieces: list[bytes] = []
    size = 0
    async for piece in body:
        pieces.append(piece)
        size += len(piece)
        if size >= GATHER_BYTES:
            yield pieces
            pieces, size = [], 0
    if pieces:
        yield pieces


def _create(path: Path):  # type: ignore[no-untyped-def]
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)


class _Digests:
    """Of the same bytes the hash that names a blob, and the quick one."""

    def __init__(self) -> None:
        self.sha256, self.xxh3 = hashlib.sha256(), xxhash.xxh3_128()

    def update(self, piece: bytes) -> None:
        self.sha256.update(piece)
        self.xxh3.update(piece)


def _write(file, digests: _Digests, pieces: list[bytes]) -> None:  # type: ignore[no-untyped-def]
    for piece in pieces:
        digests.update(piece)
    _write_all(file, pieces)


def _write_all(file, pieces: list[bytes]) -> None:  # type: ignore[no-untyped-def]
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            rest = rest[file.write(rest) :]


def _check_path(path: Path) -> Path:
    return path.with_name(path.name + CHECK)


def _give_name(source: Path, target: Path, check: str) -> None:
    target.parent.mkdir(mode=0o700, exist_ok=True)
    os.chmod(source, 0o400)
    write_private(_check_path(target), check.encode("ascii"), durable=True)
    os.replace(source, target)
    os.utime(target, (time.time(), time.time()))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there, and a rename is durable without
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _our_errors:
    """Turn what the disk says into ours."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
            raise not_writable(self._folder, error.strerror or str(error)) from error
