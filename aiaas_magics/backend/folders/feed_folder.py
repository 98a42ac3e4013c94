"""Feed folder: batches on their way to a reader, as numbered files.

Owns the names of the files and the waiting for one. A reader removes what it has read, so what lies
there is what is still to be read. Passes are counted from 0 and begun by the reader; within a pass
batches come in order. Written by the server (batches of a kernel) or by rank 0 (parts of other ranks).

    form                        left by a sender that knows what it will send
    pass                        which pass the reader is in
    alive                       touched whenever the sender is heard of
    frame-<pass>-<batch>        see `frames`; moved here when it is whole
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiaas_magics.backend.folders.small_files import NotPlainFile, read_plain, when_there_is_room, write_private

LOOK_S: Final = 0.001  # what waiting may cost a step; a look is one stat
PASS_DIGITS: Final = 15  # of the number of a pass, which travels as an integer of 64 bits
ASK_S: Final = 0.2  # how often it is asked whether the sender is lost


class SenderSilent(Exception):
    """Nobody sends any more. The argument is for how many seconds nothing was heard."""


@dataclass(frozen=True, slots=True)
class FeedFolder:
    path: Path

    def made(self) -> FeedFolder:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    # ---- the sender's side

    @property
    def reading(self) -> int:
        """The pass that the reader is in; -1 before it has begun one."""
        try:
            return int(read_plain(self.path / "pass", most_bytes=PASS_DIGITS))
        except (OSError, NotPlainFile, ValueError):
            return -1

    def waiting(self) -> int:
        """How many frames of the present pass are not read yet."""
        return len(list(self.path.glob(f"frame-{self.reading}-*")))

    def frame(self, number: int, index: int) -> Path:
        return self.path / f"frame-{number}-{index}"

    def put(self, number: int, index: int, frame: bytes) -> None:
        when_there_is_room(lambda: write_private(self.frame(number, index), frame))

    def leave(self, name: str, data: bytes) -> None:
        write_private(self.path / name, data)

    def touch(self) -> None:
        (self.path / "alive").touch(mode=0o600)

    # ---- the reader's side

    def begin(self, number: int) -> None:
        """Begin a pass: what is left of earlier ones is of no use any more."""
        for leftover in self.path.glob("frame-*"):
            if int(leftover.name.split("-")[1]) < number:
                leftover.unlink(missing_ok=True)
        when_there_is_room(lambda: write_private(self.path / "pass", str(number).encode()))

    def take(self, number: int, index: int, *, silent_s: float | None = None, lost: Callable[[], Exception | None] | None = None) -> bytes:
        """Wait for a frame, read and remove it.

        Raises:
            SenderSilent: the sender was not heard of for `silent_s`; None waits as long as it takes.
            Exception: what `lost` told, so that nothing will come any more.
        """
        path = self.frame(number, index)
        frame = self.wait_for(path.name, silent_s=silent_s, lost=lost)
        path.unlink()
        return frame

    def wait_for(self, name: str, *, silent_s: float | None = None, lost: Callable[[], Exception | None] | None = None) -> bytes:
        # Silence is what this process has seen of it. The time in the file is of a clock that may be set, and that goes on
        # while a laptop sleeps.
        heartbeat, heard_s = self._heard(), time.monotonic()
        asked_s, gone = heard_s, None
        while True:
            with contextlib.suppress(FileNotFoundError):
                return (self.path / name).read_bytes()
            if gone is not None:  # and it was not the last that was written
                raise gone
            if lost is not None and time.monotonic() - asked_s > ASK_S:
                gone, asked_s = lost(), time.monotonic()
                continue
            if silent_s is not None:
                if (now_heard := self._heard()) != heartbeat:
                    heartbeat, heard_s = now_heard, time.monotonic()
                elif (silence_s := time.monotonic() - heard_s) > silent_s:
                    raise SenderSilent(round(silence_s))
            time.sleep(LOOK_S)

    def _heard(self) -> int:
        """Another number whenever the sender was heard of anew."""
        try:
            return os.stat(self.path / "alive").st_mtime_ns
        except OSError:
            return 0
