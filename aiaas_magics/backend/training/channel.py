"""What a rank says: one line an event, appended to its file in the attempt's folder.

Owns the writing only. Who reads the file, and when, is `workers.watch`.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Protocol

from aiaas_magics import wire
from aiaas_magics.backend.training.command import WorkerLine
from aiaas_magics.events import AnyEvent


class Channel(Protocol):
    """Where a rank's events go. `send` returns when the event outlives the process."""

    def send(self, event: AnyEvent, /) -> None: ...


class FileChannel:
    """Events as lines of a file, each written by one system call, so that a killed rank tears none but the last."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.Lock()

    def send(self, event: AnyEvent) -> None:
        line = wire.encode(WorkerLine(at_s=time.time(), event=event)) + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._file, line) :]

    def close(self) -> None:
        os.close(self._file)
