"""Attempt watch: reads what the workers of an attempt write, from where it stopped before.

Owns offsets, the bounds on what is read at once, and noticing that a rank has ended, or does nothing any more.
What that means belongs to `jobs.machine`; keeping it belongs to `records`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiaas_magics.backend.folders.small_files import NotPlainFile, open_plain
from aiaas_magics.backend.training.worker_command import WorkerLine
from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder, Exit
from aiaas_magics.core import wire
from aiaas_magics.core.events import Output
from aiaas_magics.core.process_id import ProcessId

log = logging.getLogger(__name__)

LOOK_BYTES: Final = 1024 * 1024  # guess: what is read of one file at a time, and the longest line of the event file
OUTPUT_LOOK_BYTES: Final = 64 * 1024
OUTPUT_BYTES: Final = 1024 * 1024  # guess: what is kept of one rank's output in one attempt
REAP_S: Final = 2.0  # guess: how long a launcher on a machine at full load may take to see that a child of its own has died
STOPPED_LOOK_S: Final = 0.5
STOPPED_S: Final = 10.0  # guess: long enough for a user's Ctrl-Z and second thought, short against waiting for nothing
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")  # Keras' progress bar has some; bounded by its first character, so linear
OUTPUT_SLACK_BYTES: Final = 1024 * 1024  # guess: what a rank may print beyond that before its file is cut


@dataclass(slots=True)
class FolderNews:
    """What one look brought: lines and output with their ranks, processes that began, ranks that ended."""

    lines: list[tuple[int, WorkerLine]] = field(default_factory=list)
    began: list[tuple[int, ProcessId]] = field(default_factory=list)
    ended: list[tuple[int, Exit]] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)  # somebody stops these ranks just now
    stuck: list[int] = field(default_factory=list)  # and these for `STOPPED_S` already
    offsets: dict[str, int] = field(default_factory=dict)  # of the files that were read further

    def __bool__(self) -> bool:
        return bool(self.lines or self.began or self.ended or self.offsets or self.stopped or self.stuck)


@dataclass(frozen=True, slots=True)
class _Stop:
    since_s: float
    spent_s: float  # the process' CPU time then


class AttemptWatch:
    """Looks into an attempt's folder. `offsets` is where an earlier watch of it came to, by file name.

    Promises: a line is given once for the offsets that are kept with it; a rank's end is given after
    everything that the rank wrote; a torn last line is never given; a rank that goes on in time is never stuck.
    """

    def __init__(self, folder: AttemptFolder, *, ranks: int, offsets: dict[str, int] | None = None) -> None:
        self.folder = folder
        self._open = set(range(ranks))
        self._dead_since_s: dict[int, float] = {}
        self._stops: dict[int, _Stop] = {}
        self._stuck: set[int] = set()
        self._unread: set[str] = set()  # files that are no plain files any more, told once
        self._next_stopped_look_s = 0.0
        self._offsets = dict(offsets or {})
        self._began = {int(name.removeprefix("began-")) for name in self._offsets if name.startswith("began-")}

    @property
    def is_over(self) -> bool:
        return not self._open

    def look(self) -> FolderNews:
        """What is new since the last look. Reads a bounded amount; never waits."""
        news = FolderNews()
        for rank in sorted(self._open):
            if rank not in self._began and (process := self.folder.process(rank)):
                self._began.add(rank)
                news.began.append((rank, process))
                news.offsets[f"began-{rank}"] = 1
            # Asked before reading: whatever the rank wrote was written before it ended.
            ending = self._ending(rank)
            read = self._read_events(rank, news) and self._read_output(rank, news, last=ending is not None)
            if ending is not None and read:
                self._open.discard(rank)
                news.ended.append((rank, ending))
        self._offsets |= news.offsets
        if time.monotonic() >= self._next_stopped_look_s:
            self._next_stopped_look_s = time.monotonic() + STOPPED_LOOK_S
            self._look_for_stopped(news)
        return news

    def _look_for_stopped(self, news: FolderNews) -> None:
        now = time.monotonic()
        for rank in sorted(self._open & self._began):
            process = self.folder.process(rank)
            spent_s = process.stopped_after_s() if process is not None else None
            before = self._stops.get(rank)
            if spent_s is None:
                self._stops.pop(rank, None)
            elif before is None or spent_s > before.spent_s:  # it may have gone on, and be stopped again, between two looks
                self._stops[rank] = _Stop(now, spent_s)
                news.stopped += [rank] if before is None else []
            elif now - before.since_s >= STOPPED_S and rank not in self._stuck:
                self._stuck.add(rank)
                news.stuck.append(rank)

    def _ending(self, rank: int) -> Exit | None:
        """How the rank ended. Of a process that is dead its reaper tells more in a moment, if there still is one."""
        if (ending := self.folder.ending(rank)) is not None:
            return ending
        process = self.folder.process(rank)
        if process is None or process.is_alive():
            return None
        dead_since_s = self._dead_since_s.setdefault(rank, time.monotonic())
        return Exit() if time.monotonic() - dead_since_s > REAP_S else None

    def end_unstarted(self) -> list[int]:
        """Ranks without a process, given up: for an attempt that nobody starts any more."""
        ranks_gone = [rank for rank in sorted(self._open) if self.folder.process(rank) is None]
        self._open -= set(ranks_gone)
        return ranks_gone

    def _read_events(self, rank: int, news: FolderNews) -> bool:
        """Whether everything there is was read."""
        path = self.folder.events(rank)
        data, offset = self._next(path, LOOK_BYTES)
        whole = data.rfind(b"\n") + 1
        if not whole and len(data) == LOOK_BYTES:
            log.warning("%s: a line of more than %d bytes is left out", path.name, LOOK_BYTES)
            whole = len(data)
        for line in data[:whole].splitlines():
            try:
                news.lines.append((rank, wire.decode(line, WorkerLine)))
            except wire.Malformed as error:
                log.warning("%s: a line is not understood: %s", path.name, error)
        if whole:
            news.offsets[path.name] = offset + whole
        return len(data) < LOOK_BYTES

    def _read_output(self, rank: int, news: FolderNews, *, last: bool) -> bool:
        path = self.folder.output(rank)
        if self._offsets.get(path.name, 0) >= OUTPUT_BYTES:
            _cut(path)
            return True
        data, offset = self._next(path, OUTPUT_LOOK_BYTES)
        whole = data.rfind(b"\n") + 1
        if (last and len(data) < OUTPUT_LOOK_BYTES) or (not whole and len(data) == OUTPUT_LOOK_BYTES):
            whole = len(data)
        if not whole:
            return True
        news.offsets[path.name] = offset + whole
        text = shown(data[:whole])
        if offset + whole >= OUTPUT_BYTES:
            text += f"\n(more than {OUTPUT_BYTES // 2**20} MB were printed; the rest is left out)"
        news.lines.append((rank, WorkerLine(at_s=time.time(), event=Output(text=text))))
        return len(data) < OUTPUT_LOOK_BYTES

    def _next(self, path: Path, limit: int) -> tuple[bytes, int]:
        offset = self._offsets.get(path.name, 0)
        try:
            with open_plain(path) as file:
                file.seek(offset)
                return file.read(limit), offset
        except FileNotFoundError:
            pass
        except (OSError, NotPlainFile) as error:
            if path.name not in self._unread:
                self._unread.add(path.name)
                log.warning("%s is not read: %s", path, error)
        return b"", offset


def shown(data: bytes) -> str:
    """Output as a terminal would have left it, without its colours: of a line that was overwritten, the last state.

    >>> shown(b"1/2\\r2/2\\n")
    '2/2'
    """
    # No regular expression: one that looks for a `\\r` from every position takes quadratic time on a long line without any.
    lines = _COLOUR.sub("", data.decode(errors="replace")).split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines).removesuffix("\n")


def _cut(path: Path) -> None:
    """Give back the disk that output beyond the bound takes. A rank appends, so that it goes on behind the cut."""
    with contextlib.suppress(OSError, NotPlainFile), open_plain(path, os.O_RDWR) as file:
        if os.fstat(file.fileno()).st_size > OUTPUT_BYTES + OUTPUT_SLACK_BYTES:
            os.ftruncate(file.fileno(), OUTPUT_BYTES)
