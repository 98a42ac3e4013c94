"""State folder: the layout of a server's folder, its lock, and its token.

Owns creating it for this account alone, the lock that keeps a second server out, the
token, the port of last time, and the note by which clients find the server.

    lock              held by the server that serves this folder
    server.json       who serves it now, and where
    token, port       survive a restart, so that clients and endpoints' users need not notice one; both are new if the port is taken
    records.sqlite    see `records`; blobs/, dropbox/: see `blobs`
    jobs/<id>/        see `job_folder`; of a job that failed or was cancelled the last checkpoint stays. Pools may keep attempts there
    reserve           part of the disk for the day when it is full: see `quota`
    serving/          the inference process
    audit/            who did what: see `audit.audit_log`
    other names       what a pool keeps: see its folder in `workers`
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from aiaas_magics.backend.folders.job_folder import JobFolder
from aiaas_magics.backend.folders.small_files import write_private
from aiaas_magics.core import process_id, settings, wire
from aiaas_magics.core.contract import ServerNote
from aiaas_magics.core.errors import InvalidSpec, StoreNotWritable

TOKEN_CHARACTERS: Final = 32  # 128 bits in hexadecimal digits, if somebody made one by hand
TOKEN_BYTES: Final = 32  # 256 random bits need no slow hash and no lock-out (facts/reliability 4.1)
# A predecessor that was told to end, or was killed, lets go of the lock within this time; guess.
LOCK_S: Final = 2.0


@dataclass(slots=True)
class StateFolder:
    """An open state folder: this process is the only server on it until `close`."""

    path: Path
    _lock: IO[bytes] | None = None

    @classmethod
    def open(cls, path: Path) -> StateFolder:
        """Create the folder, make it private and take its lock.

        Raises:
            StoreNotWritable: it cannot be written, or belongs to another account.
            InvalidSpec: another server serves it.
        """
        folder = cls(path.expanduser().resolve())
        try:
            folder._make_private()
            folder._lock = _take_lock(folder.path / "lock")
        except OSError as error:
            raise StoreNotWritable(str(folder.path), error.strerror or str(error)) from error
        if folder._lock is None:
            note = folder.serving()
            who = f"Process {note.pid}" if note else "Another process"
            raise InvalidSpec(f"{who} already serves {folder.path}. Stop it with `aiaas stop`, or use another folder with --state.")
        return folder

    def _make_private(self) -> None:
        settings.make_private(self.path)
        if hasattr(os, "getuid") and self.path.stat().st_uid != os.getuid():
            raise StoreNotWritable(str(self.path), "it belongs to another account")
        self.path.chmod(0o700)
        for name in ("jobs", "serving"):
            (self.path / name).mkdir(mode=0o700, exist_ok=True)
        probe = self.path / f".probe-{secrets.token_hex(4)}"
        probe.write_bytes(b"")
        probe.unlink()

    @property
    def records(self) -> Path:
        return self.path / "records.sqlite"

    @property
    def blobs(self) -> Path:
        return self.path / "blobs"

    @property
    def audit(self) -> Path:
        return self.path / "audit"

    @property
    def jobs(self) -> Path:
        return self.path / "jobs"

    def job(self, job: str) -> JobFolder:
        return JobFolder(self.jobs / job)

    def token(self) -> str:
        """The token of this folder, made when there is none.

        Raises:
            InvalidSpec: the file holds what is no token, or one that could be guessed.
        """
        file = self.path / "token"
        with contextlib.suppress(FileNotFoundError):
            if token := file.read_text(encoding="ascii", errors="replace").strip():
                if len(token) < TOKEN_CHARACTERS or not token.isascii() or not token.isprintable():
                    raise InvalidSpec(
                        f"The token in {file} is shorter than {TOKEN_CHARACTERS} characters or malformed, so it could be guessed. "
                        "Delete the file; the server makes a new one."
                    )
                file.chmod(0o600)
                return token
        return self.new_token()

    def new_token(self) -> str:
        token = "aiaas_" + secrets.token_urlsafe(TOKEN_BYTES)
        write_private(self.path / "token", (token + "\n").encode(), durable=True)
        return token

    def last_port(self) -> int:
        """The port of last time; 0 when there was none."""
        try:
            port = int((self.path / "port").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0
        return port if 0 < port < 65536 else 0

    def announce(self, url: str, port: int) -> None:
        """Say where the server is; called when it listens."""
        write_private(self.path / "port", f"{port}\n".encode(), durable=True)
        pid = os.getpid()
        note = ServerNote(pid=pid, started=process_id.start_mark(pid), url=url, version=settings.package_version())
        write_private(self.path / "server.json", wire.encode(note) + b"\n", durable=True)

    def serving(self) -> ServerNote | None:
        try:
            return wire.decode((self.path / "server.json").read_bytes(), ServerNote)
        except (OSError, wire.Malformed):
            return None

    def close(self) -> None:
        """Take back the note and give up the lock."""
        note = self.serving()
        if note is not None and note.pid == os.getpid():
            (self.path / "server.json").unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _take_lock(path: Path) -> IO[bytes] | None:
    """The open, locked file; None when somebody else keeps it locked. The system unlocks it when its process ends."""
    file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)  # noqa: SIM115 - it stays open as long as the lock is held
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            _lock(file)
        except OSError:
            if time.monotonic() > deadline:
                file.close()
                return None
            time.sleep(0.05)
        else:
            return file


def _lock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
