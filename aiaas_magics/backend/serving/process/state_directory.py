"""State directory: the folder of the inference process, which only its owner reads.

Owns names, modes and atomic writing. What the numbers mean belongs to `inference_process`, which writes
them, and to `supervisor`, which reads them.

    token          the bearer token for predictions; made once, the same after a restart
    port           the port that was listened on last; taken again if it is free
    grpc_port      the same for gRPC
    process.json   who runs now: see `RunningProcess`
    control.sock   where `control` listens, on systems that have Unix sockets
    grants.json    tokens that ask some endpoints only, as the API server wrote them: see `net.grants`
    lock           held by the living process
    log.txt        what it said
    scratch/       unpacked SavedModels; emptied at each start
    recorded/      a folder for each endpoint whose requests are recorded: see `record_folder`
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from aiaas_magics.backend.folders.small_files import write_private
from aiaas_magics.backend.net.grants import Grant
from aiaas_magics.core import process_id, wire
from aiaas_magics.core.errors import StoreNotWritable
from aiaas_magics.core.value import Value


class RunningProcess(Value, frozen=True, kw_only=True):
    """The living process, as it describes itself. `control` is "unix:PATH" or "tcp:PORT"."""

    pid: int
    started: int  # `process_id.start_mark`, so that a pid used again is not taken for it
    url: str
    host: str
    tls: str  # the certificate's path, or empty
    control: str
    secret: str
    version: str
    grpc: str = ""  # host:port for gRPC
    cors: tuple[str, ...] = ()  # origins of pages that may ask
    trusted_keys: tuple[str, ...] = ()  # public keys, one of which must have signed what is loaded

    @property
    def settings(self) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
        """What a server that wants others cannot adopt."""
        return self.host, self.tls, self.cors, self.trusted_keys


class Files:
    """The folder `serving` below a state folder."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "serving"
        self.log = self.folder / "log.txt"
        self.scratch = self.folder / "scratch"
        self.recorded = self.folder / "recorded"
        self.socket = self.folder / "control.sock"
        self._process = self.folder / "process.json"

    def make(self) -> None:
        """Create the folder, 0700.

        Raises:
            StoreNotWritable: it cannot be created or written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
            write_private(self.folder / "writable", b"")
        except OSError as error:
            raise StoreNotWritable(str(self.folder), error.strerror or str(error)) from error

    def token(self) -> str:
        """The token for predictions; made when there is none."""
        path = self.folder / "token"
        with contextlib.suppress(FileNotFoundError):
            if stored := path.read_text(encoding="ascii").strip():
                return stored
        return self.new_token()

    def new_token(self) -> str:
        token = "aiaas_" + secrets.token_urlsafe(32)
        write_private(self.folder / "token", token.encode())
        return token

    def api_token(self) -> bytes:
        """The token of the API server whose folder this is; empty where there is none. It is read anew each time: it may be replaced."""
        try:
            return (self.folder.parent / "token").read_bytes().strip()
        except OSError:
            return b""

    def grants(self) -> list[Grant]:
        """What the API server granted last; nothing where that cannot be read."""
        try:
            return wire.decode((self.folder / "grants.json").read_bytes(), list[Grant])
        except (OSError, wire.Malformed):
            return []

    def grants_mark(self) -> tuple[int, int]:
        """Differs once the file was written anew."""
        try:
            status = (self.folder / "grants.json").stat()
        except OSError:
            return 0, 0
        return status.st_mtime_ns, status.st_ino

    def token_key(self) -> bytes:
        """The key under which the API server hashes tokens; empty where there is none."""
        try:
            return (self.folder.parent / "token_key").read_bytes()
        except OSError:
            return b""

    def port(self, name: str) -> int:
        """The port of last time, or 0. `name` is the file's: port or grpc_port."""
        try:
            return int((self.folder / name).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def keep_port(self, name: str, port: int) -> None:
        write_private(self.folder / name, str(port).encode())

    def withdrawn(self) -> list[str]:
        """The endpoints that were withdrawn when the process of last time ended."""
        try:
            return wire.decode((self.folder / "withdrawn.json").read_bytes(), list[str])
        except (OSError, wire.Malformed):
            return []

    def keep_withdrawn(self, names: Collection[str]) -> None:
        write_private(self.folder / "withdrawn.json", wire.encode(sorted(names)))

    def expected(self) -> list[str]:
        """The endpoints that a process which starts now will be given."""
        return self.expected_names() or []

    def expected_names(self) -> list[str] | None:
        """The same; None where nobody said so."""
        try:
            return wire.decode((self.folder / "expected.json").read_bytes(), list[str])
        except (OSError, wire.Malformed):
            return None

    def keep_expected(self, names: Collection[str]) -> None:
        write_private(self.folder / "expected.json", wire.encode(sorted(names)))

    def running(self) -> RunningProcess | None:
        """Who ran last; whether it still lives is for the caller to find out.

        Raises:
            OSError: the file cannot be read now (no descriptors are left, say), which says nothing of who runs.
        """
        try:
            return wire.decode(self._process.read_bytes(), RunningProcess)
        except (FileNotFoundError, wire.Malformed):
            return None

    def disowns(self, pid: int) -> bool:
        """Whether the folder names another process, or none. A file that cannot be read now says neither."""
        try:
            running = self.running()
        except OSError:
            return False
        return running is None or running.pid != pid

    def keep_running(self, running: RunningProcess) -> None:
        write_private(self._process, wire.encode(running))

    def forget_running(self) -> None:
        self._process.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """False where another process lives in the folder; else it is locked to the end of the `with`."""
        with (self.folder / "lock").open("a") as handle:
            yield _locked(handle.fileno())

    def log_tail(self, lines: int = 5) -> str:
        try:
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def is_alive(started: RunningProcess) -> bool:
    """Whether that very process lives: a pid that was given out again is another process."""
    return process_id.is_alive(started.pid, started=started.started)


def _locked(descriptor: int) -> bool:
    if os.name != "posix":
        return True  # the port, taken again without sharing, decides there
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
