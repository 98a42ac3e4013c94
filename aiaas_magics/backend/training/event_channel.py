"""Event channel: a rank's events, one line each, appended to its file in the attempt's folder.

Owns the writing only. Who reads the file, and when, is `attempt_watch`.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Final, Protocol

from aiaas_magics.backend.folders.small_files import is_no_room
from aiaas_magics.backend.training.worker_command import WorkerLine
from aiaas_magics.core import wire
from aiaas_magics.core.events import AnyEvent, Crashed, Finished

WAITING_BYTES: Final = 4 * 1024 * 1024  # guess: a day of events of one rank
ROOM_LOOK_S: Final = 0.2


class EventChannel(Protocol):
    """Where a rank's events go. `send` returns when the event outlives the process, or waits in memory for room on a full disk."""

    def send(self, event: AnyEvent, /) -> None: ...


class FileChannel:
    """Events as lines of a file, each written by one system call, so that a killed rank tears none but the last.

    What finds no room on the disk is kept in memory and written with the next event that does: a training goes on meanwhile.
    Only a rank's last word, and what would be too much to keep, waits for room.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.Lock()
        self._unwritten = b""

    def send(self, event: AnyEvent) -> None:
        line = wire.encode(WorkerLine(at_s=time.time(), event=event)) + b"\n"
        last = isinstance(event, Finished | Crashed)
        with self._lock:
            self._unwritten += line
            while not self._write() and (last or len(self._unwritten) > WAITING_BYTES):
                time.sleep(ROOM_LOOK_S)

    def _write(self) -> bool:
        """Whether everything was written."""
        while self._unwritten:
            try:
                self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]
            except OSError as error:
                if not is_no_room(error):
                    raise
                return False
        return True

    def close(self) -> None:
        os.close(self._file)
