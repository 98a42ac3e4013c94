"""Spare worker: a forked worker that waits for its command, with TensorFlow's devices and threads already made.

Owns which commands may go to one, when it is given up, and handing a command over. It is forked like any worker, nothing of a user's
has run in it, and it runs one command and ends. Forking and reaping belong to `launcher`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.backend.workers.local.attempt_folder import COMMAND_BYTES, read_value

IDLE_S: Final = 60.0  # guess: whoever fits again does so soon; it holds some 100 MB
LEAST_FREE_BYTES: Final = 2 * 1024**3  # guess: with less than this the next job needs the memory more
MOST_PATH_BYTES: Final = 64 * 1024

Cores = tuple[int, ...]


class Spare:
    """The launcher's side of one. `clock` is monotonic."""

    def __init__(self, pid: int, connection: socket.socket, cores: Cores, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.pid, self.cores = pid, cores
        self._connection, self._clock, self._made_s = connection, clock, clock()

    @property
    def is_idle_for_long(self) -> bool:
        return self._clock() - self._made_s > IDLE_S

    def hand_over(self, command: Path) -> bool:
        """Give it its command, which it finds when it is ready: before a new process would be. False where it has ended."""
        with self._connection:
            try:
                self._connection.sendall(os.fsencode(command) + b"\n")
            except OSError:
                return False
        return True

    def close(self) -> None:
        """In another process: it ends with the last that could give it a command."""
        self._connection.close()

    def end(self) -> None:
        self.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def cores_of(command: Path) -> Cores | None:
    """The cores of a command that a spare worker may run; None where it needs a process that has touched no device.

    Variables of the environment count when TensorFlow starts, as GPUs and several devices of a process do; ranks find their cores together.
    """
    content = read_value(command, WorkerCommand, most_bytes=COMMAND_BYTES)
    if content is None or content.sets_environment or content.gpus or content.ranks > 1 or content.devices > 1 or content.execution.on_jax:
        return None
    return content.cores


def has_memory() -> bool:
    return int(psutil.virtual_memory().available) >= LEAST_FREE_BYTES


def wait_for_command(connection: socket.socket) -> Path | None:
    """In the spare worker: its command, or None when the launcher wants none of it, or is gone."""
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(MOST_PATH_BYTES)
        if not part or len(data) > MOST_PATH_BYTES:
            return None
        data += part
    return Path(os.fsdecode(data[:-1]))
