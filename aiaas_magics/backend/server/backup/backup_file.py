"""Backup file: a tar stream of plain files, with a manifest of their hashes at its end.

Owns the form and what is refused when one is read. Which files belong in it is decided in `state_backup`, where they go in
`state_restore`.

The manifest comes last, so that a backup can be written into a pipe; a file without one was cut off, and is refused. Hashes show rot
and cuts. They show no forgery: whoever can write the file can write its manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, BinaryIO, Final, cast

from aiaas_magics.core import wire
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.value import Value

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
MANIFEST_BYTES: Final = 256 * 1024**2  # some million files
PIECE_BYTES: Final = 1024 * 1024
MOST_DEPTH: Final = 64  # guess: folders that a job's callbacks made
# What a state folder's backup may hold, and nothing else is written anywhere.
ALLOWED: Final = re.compile(
    r"records\.sqlite|token|token_key|serving/token|blobs/[0-9a-f]{64}|audit/audit-\d{12}\.jsonl"
    r"|jobs/\d+/(?:opened\.jsonl|files/.+|figures/[^/]+|explained/[^/]+|checkpoints/[^/]+/[^/]+)",
    re.ASCII | re.DOTALL,
)


class BackedUpFile(Value, frozen=True):
    name: str
    size: int
    sha256: str


class BackupManifest(Value, frozen=True, kw_only=True):
    """What a backup holds. `damaged` are blobs whose bytes were not there, or not those of their name, when it was made."""

    format: int
    version: str  # of aiaas_magics
    made_s: float  # unix time
    has_tokens: bool
    audit_head: str
    files: tuple[BackedUpFile, ...]
    damaged: tuple[str, ...] = ()


class BackupWriter:
    """Writes files into `stream`, one after the other, and the manifest at the end."""

    def __init__(self, stream: BinaryIO) -> None:
        # Not mode "w|": its buffer is written when it is collected, after a failure too.
        target = cast("BinaryIO", _Forward(stream))
        self._tar = tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - `finish` closes
        self._files: list[BackedUpFile] = []

    def add(self, name: str, file: BinaryIO, size: int, *, pads: bool = False) -> str:
        """Add the first `size` bytes of `file`; their SHA-256.

        Args:
            pads: a file that became shorter meanwhile ends with zeros.

        Raises:
            EOFError: it has fewer bytes.
        """
        reader = _HashingReader(file, size, pads=pads)
        try:
            self._tar.addfile(_header(name, size), reader)
        except OSError as error:
            if reader.is_short:
                raise EOFError(f"{name} became shorter while it was read") from error
            raise
        entry = BackedUpFile(name, size, reader.digest.hexdigest())
        self._files.append(entry)
        return entry.sha256

    def add_bytes(self, name: str, data: bytes) -> None:
        self.add(name, io.BytesIO(data), len(data))

    def finish(self, *, version: str, made_s: float, has_tokens: bool, audit_head: str, damaged: tuple[str, ...]) -> BackupManifest:
        manifest = BackupManifest(
            format=FORMAT,
            version=version,
            made_s=made_s,
            has_tokens=has_tokens,
            audit_head=audit_head,
            files=tuple(self._files),
            damaged=damaged,
        )
        data = wire.encode(manifest)
        self._tar.addfile(_header(MANIFEST, len(data)), io.BytesIO(data))
        self._tar.close()
        return manifest


class BackupReader:
    """Reads `stream` from its beginning to its end.

    Promises: only plain files with the names of a state folder's are handed out, none twice; after the last one `manifest` has been
    compared with what was read.
    """

    manifest: BackupManifest

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def files(self) -> Iterator[tuple[str, int, BinaryIO]]:
        """Name, size and bytes of each file. Its bytes must be read before the next one is asked for.

        Raises:
            InvalidSpec: this is no backup, it was cut off, or its bytes are not those that were written.
        """
        by_name: dict[str, BackedUpFile] = {}
        try:
            with tarfile.open(fileobj=self._stream, mode="r|", bufsize=PIECE_BYTES) as tar:
                for member in tar:
                    if not member.isreg():
                        raise _broken(f"{member.name[:80]!r} in it is no plain file")
                    body = tar.extractfile(member)
                    assert body is not None
                    if member.name == MANIFEST:
                        self._check(_manifest_in(body, member.size), by_name)
                        return
                    check_name(member.name)
                    if member.name in by_name:
                        raise _broken(f"{member.name[:80]!r} is in it twice")
                    reader = _HashingReader(body, member.size)
                    yield member.name, member.size, reader  # type: ignore[misc]
                    while reader.read(PIECE_BYTES):
                        pass
                    if reader.rest:
                        raise _broken("it was cut off")
                    by_name[member.name] = BackedUpFile(member.name, member.size, reader.digest.hexdigest())
        except (tarfile.TarError, EOFError) as error:
            raise _broken(f"it is no backup, or was cut off ({error})") from error
        raise _broken("it was cut off: its manifest is missing")

    def _check(self, manifest: BackupManifest, by_name: dict[str, BackedUpFile]) -> None:
        for expected in manifest.files:
            if by_name.get(expected.name) != expected:
                raise _broken(f"{expected.name[:80]!r} in it has other bytes than were written")
        if len(by_name) != len(manifest.files):
            raise _broken("it holds files that its manifest does not name")
        self.manifest = manifest


def check_name(name: str) -> None:
    """Raises `InvalidSpec` for a name that is none of a state folder's."""
    parts = PurePosixPath(name).parts
    is_plain = "/".join(parts) == name and ".." not in parts and "\0" not in name and len(parts) <= MOST_DEPTH
    if not is_plain or not ALLOWED.fullmatch(name):
        raise _broken(f"{name[:80]!r} in it is no file of a server")


def _manifest_in(body: IO[bytes], size: int) -> BackupManifest:
    if size > MANIFEST_BYTES:
        raise _broken("its manifest is too large")
    try:
        manifest = wire.decode(body.read(), BackupManifest)
    except wire.Malformed as error:
        raise _broken(f"its manifest cannot be read ({error})") from error
    if manifest.format != FORMAT:
        raise InvalidSpec(
            f"This backup has format {manifest.format} and this version of aiaas_magics reads {FORMAT}. "
            f"Use aiaas_magics {manifest.version}, which wrote it."
        )
    return manifest


def _broken(why: str) -> InvalidSpec:
    return InvalidSpec(f"This backup cannot be restored: {why}. Use another one; nothing was kept of this.")


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o600
    return header


class _Forward:
    """A stream that is written from its beginning to its end, a pipe too."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._offset = stream, 0

    def write(self, data: bytes) -> int:
        self._stream.write(data)
        self._offset += len(data)
        return len(data)

    def tell(self) -> int:
        return self._offset


class _HashingReader:
    """The first `size` bytes of a file, hashed while they are read."""

    def __init__(self, file: IO[bytes], size: int, *, pads: bool = False) -> None:
        self._file, self.rest, self._pads, self.digest = file, size, pads, hashlib.sha256()
        self.is_short = False

    def read(self, size: int = -1) -> bytes:
        count = self.rest if size < 0 else min(size, self.rest)
        data = b""
        with contextlib.suppress(tarfile.ReadError):  # a backup that was cut off: `rest` says so
            while len(data) < count and (piece := self._file.read(count - len(data))):
                data = data + piece if data else piece
        self.is_short = self.is_short or len(data) < count
        if self._pads:
            data = data.ljust(count, b"\0")
        self.rest -= len(data)
        self.digest.update(data)
        return data
