"""Local server: finds it, starts it, and stops it.

Owns the server's life as the client sees it, through the files in its state folder and one
question over HTTP. It is a child on loopback, spoken to like a remote one, and it may
import nothing of `backend`.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

import psutil

from aiaas_magics.core import environment, process_id, settings, wire
from aiaas_magics.core.child_process import ChildEnded, last_line, until_there
from aiaas_magics.core.contract import Health, ServerNote
from aiaas_magics.core.errors import BackendStopped, CannotStart, StoreNotWritable, VersionSkew

START_S: Final = 15.0  # a start takes under 2 s here; a machine at full load takes several times that
HEALTH_S: Final = 5.0
STOP_S: Final = 20.0  # workers get 8 s, the inference process 10 s to answer what it is answering
KILLED_S: Final = 5.0
LOOK_S: Final = 0.02


def ensure_local() -> tuple[str, str]:
    """The URL and the token of this environment's local server, started if it does not run.

    Safe to call from several processes at once: they get the same server.

    Raises:
        CannotStart: it did not come up; the text names its log.
        StoreNotWritable: the state folder cannot be written.
        VersionSkew: a server of another version of this package serves the folder.
    """
    folder = settings.local_state()
    if note := _living(folder):
        return note.url, _token(folder)
    try:
        settings.make_private(folder)
        with _one_at_a_time(folder / "starting"):
            note = _living(folder) or _start(folder)
            return note.url, _token(folder)
    except OSError as error:
        raise StoreNotWritable(str(folder), error.strerror or str(error)) from error


def find_local() -> tuple[str, str] | None:
    """The URL and the token of the local server, if it runs; nothing is started."""
    return find_at(settings.local_state())


def find_at(folder: Path) -> tuple[str, str] | None:
    """The URL and the token of the server on this state folder, if it runs."""
    note = _living(folder)
    return (note.url, _token(folder)) if note else None


def stop_local() -> bool:
    """End the local server with its workers and endpoints; whether there was one.

    When this returns, its process is gone: it is asked first, and killed when it does not go.
    """
    return stop_at(settings.local_state())


def stop_at(folder: Path) -> bool:
    """The same for the server on this state folder."""
    note = _note(folder)
    process = _process(note) if note else None
    if note is None or process is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
        if not _is_gone_within(note, STOP_S):
            process.kill()
            _is_gone_within(note, KILLED_S)
    return True


def _is_gone_within(note: ServerNote, wait_s: float) -> bool:
    """Whether the process ended in time. One whose parent has not asked for its end yet has ended all the same."""
    deadline = time.monotonic() + wait_s
    while _process(note) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True


def _living(folder: Path) -> ServerNote | None:
    """The server of this folder, if its process lives and answers.

    Raises:
        VersionSkew: it is of another version of this package.
        BackendStopped: its process was stopped (SIGSTOP), so that it does nothing until it is told to go on.
    """
    note = _note(folder)
    if note is None or _process(note) is None:
        return None
    version = _health(note.url)
    if version is not None and version != settings.package_version():
        raise VersionSkew("aiaas_magics (stop the running server with `aiaas stop`)", settings.package_version(), version)
    if version is None:
        _check_goes_on(note)
    return note if version is not None else None


def check_local_goes_on() -> None:
    """Raises `BackendStopped` when somebody stopped the local server's process."""
    note = _note(settings.local_state())
    if note is not None:
        _check_goes_on(note)


def _check_goes_on(note: ServerNote) -> None:
    process = _process(note)
    with contextlib.suppress(psutil.Error):
        if process is not None and process.status() == psutil.STATUS_STOPPED:
            raise BackendStopped(note.url, note.pid)


def _note(folder: Path) -> ServerNote | None:
    try:
        return wire.decode((folder / "server.json").read_bytes(), ServerNote)
    except (OSError, wire.Malformed):
        return None


def _process(note: ServerNote) -> psutil.Process | None:
    """The very process that wrote the note, if it lives: its pid alone may be another's by now."""
    _reap()
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(note.pid)  # first, so that it is this one that is told to end
        if process_id.is_alive(note.pid, started=note.started):
            return process
    return None


def _health(url: str) -> str | None:
    """The version that answers at `url`; None when nobody does. No token is sent: this only asks who is there."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=HEALTH_S)
    try:
        connection.request("GET", "/v1/health")
        return wire.decode(connection.getresponse().read(1000), Health).aiaas
    except (OSError, http.client.HTTPException, wire.Malformed):
        return None
    finally:
        connection.close()


def _token(folder: Path) -> str:
    return (folder / "token").read_text(encoding="ascii").strip()


_children: list[subprocess.Popen[bytes]] = []  # servers that this process started; reaped when they end


def _reap() -> None:
    _children[:] = [child for child in _children if child.poll() is None]


def _start(folder: Path) -> ServerNote:
    log = folder / "server.log"
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
        child = subprocess.Popen(
            # -P: the notebook's folder is no place for the server to import from.
            [sys.executable, "-P", "-m", "aiaas_magics", "serve", "--local", "--state", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment.of_server(os.environ, environment.initial()),
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "DETACHED_PROCESS", 0),
        )
    _children.append(child)
    try:
        return until_there(lambda: _living(folder), child, limit_s=START_S)
    except ChildEnded as end:
        raise CannotStart("The local server", f"it ended with code {end.code} ({last_line(log)})", str(log)) from None
    except TimeoutError:
        child.kill()
        child.wait(KILLED_S)
        raise CannotStart("The local server", f"it did not answer within {START_S:g} s", str(log)) from None


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Whoever is inside has the lock on `path`; others wait until it is over, at most as long as a start may take."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
        deadline = time.monotonic() + START_S + KILLED_S
        while not _locked(file):
            if time.monotonic() > deadline:
                raise CannotStart("The local server", "another process is starting it and does not come to an end", str(path.parent))
            time.sleep(LOOK_S)
        yield


def _locked(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
