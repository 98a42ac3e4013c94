"""Attempt folder: the files through which the local pool and its workers talk.

Owns the names of the files, reading and writing them, and who a process is. The folder
outlives both sides, so that a server that comes back goes on reading where it stopped.

    command-<r>.json    what rank r is to do            written by the server
    events-<r>.jsonl    what happens in it              appended by the rank
    output-<r>.txt      what it prints
    pid-<r>.json        which process it is             written by whoever starts it
    exit-<r>.json       how it ended                    written by whoever reaps it
    stop                nobody may start here any more  written by the server
    result.safetensors  written by rank 0, by rename, before it says that it finished
    files-<r>/          scratch working directory of ranks > 0
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from aiaas_magics.backend.folders.small_files import NotPlainFile, read_plain, write_private
from aiaas_magics.core import wire
from aiaas_magics.core.process_id import ProcessId

T = TypeVar("T")

VALUE_BYTES: Final = 64 * 1024  # guess: the longest of ours, a launcher's, has some hundred bytes
COMMAND_BYTES: Final = 64 * 1024 * 1024  # guess: a command that names 100,000 arrays has 15 MB
REDUCE_NAME: Final = re.compile(r"aiaas-[0-9a-z-]{6,60}", re.ASCII)  # names the shared memory of an attempt
EXIT_FINISHED: Final = 0
EXIT_CRASHED: Final = 3  # the user's code raised, and the rank said so
EXIT_ALONE: Final = 4  # another rank is gone; why, that one's end says


class RunningLauncher(msgspec.Struct, frozen=True, kw_only=True):
    """What a launcher says of itself in `launcher.json`."""

    process: ProcessId
    socket: str  # a name inside the folder
    version: str
    entry: str


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """How a process ended: by itself with `code`, or by `signal`; neither is known when nobody reaped it."""

    code: int | None = None
    signal: int | None = None
    out_of_memory: bool = False

    @property
    def how(self) -> str:
        """A clause with the worker as its subject."""
        if self.out_of_memory:
            return "was killed because the machine ran out of memory"
        if self.signal is not None:
            return f"was killed by signal {self.signal}"
        if self.code is None:
            return "ended without a word"
        return f"exited with code {self.code} before it was done"


@dataclass(frozen=True, slots=True)
class AttemptFolder:
    path: Path

    def command(self, rank: int) -> Path:
        return self.path / f"command-{rank}.json"

    def events(self, rank: int) -> Path:
        return self.path / f"events-{rank}.jsonl"

    def output(self, rank: int) -> Path:
        return self.path / f"output-{rank}.txt"

    def pid(self, rank: int) -> Path:
        return self.path / f"pid-{rank}.json"

    def exit(self, rank: int) -> Path:
        return self.path / f"exit-{rank}.json"

    @property
    def result(self) -> Path:
        return self.path / "result.safetensors"

    @property
    def stop(self) -> Path:
        return self.path / "stop"

    @classmethod
    def of_command(cls, command: Path) -> tuple[AttemptFolder, int]:
        """The folder and the rank that a command file belongs to."""
        return cls(command.parent), int(command.stem.removeprefix("command-"))

    def process(self, rank: int) -> ProcessId | None:
        return read_value(self.pid(rank), ProcessId)

    def ending(self, rank: int) -> Exit | None:
        """How the rank's process ended, as its reaper saw it; None before that, and for ever when nobody reaps it."""
        return read_value(self.exit(rank), Exit)


def write_value(path: Path, value: object) -> None:
    """Write by rename: a reader sees all of it or nothing."""
    write_private(path, wire.encode(value))


def read_value(path: Path, of: type[T], *, most_bytes: int = VALUE_BYTES) -> T | None:
    """The value in the file, None where there is no such plain file or not such a value."""
    try:
        return wire.decode(read_plain(path, most_bytes=most_bytes), of)
    except (OSError, NotPlainFile, wire.Malformed):
        return None
