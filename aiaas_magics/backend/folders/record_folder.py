"""Record folder: the files with an endpoint's recorded requests.

Owns their names, their bounds on size and age, and reading them. The inference process writes here and nobody else does; the server
reads. Which requests are chosen belongs to `serving.models.recorder`, the bytes of one to `core.recording`.

    NNNNNNNN-MILLISECONDS.frames    requests in the order of their answers, from that unix time on

Files are only appended to. One that a crash cut off ends with a frame that its checksum refuses; readers stop there, and the next
process begins a new file. A file is removed as soon as its oldest request is too old, or the space is needed.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from aiaas_magics.backend.folders.small_files import open_plain
from aiaas_magics.core.recording import PARTS, RecordedRequest, RecordingPolicy, frames_in, requests_in

log = logging.getLogger(__name__)

FILE: Final = re.compile(r"(\d{8})-(\d{1,16})\.frames", re.ASCII)


def open_record(path: Path) -> BinaryIO:
    """`path` for appending, 0600. The one place where bytes of recorded requests reach the disk; encryption at rest goes in here."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o600)
    return open(descriptor, "ab", buffering=0)


def read_record(path: Path) -> bytes:
    """What was written through `open_record`; nothing of a file that is gone."""
    try:
        with open_plain(path) as file:
            return file.read()
    except FileNotFoundError:
        return b""


@dataclass(slots=True)
class RecordFile:
    """A file, with what is in it."""

    path: Path
    number: int
    since_s: float  # unix time of its oldest request
    bytes: int = 0
    requests: int = 0
    rows: int = 0
    newest_s: float = 0.0


class RecordFolder:
    """The recorded requests of one endpoint. One process writes, in one thread at a time; the folder is made by the first request."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = [_looked_into(file) for file in files_in(path)]
        self._appends = False  # to the last file: one of a process of before may end in the middle of a frame

    @property
    def files(self) -> Sequence[RecordFile]:
        """Oldest first."""
        return self._files

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(file.bytes for file in self._files)

    def append(self, frames: Sequence[tuple[RecordedRequest, bytes]], policy: RecordingPolicy) -> int:
        """Write requests, in the order of their times, and remove as many old ones as the bounds want.

        Returns:
            How many were written; fewer than all where the disk is full.
        """
        written = 0
        for file, batch in self._placed(frames, policy):
            data = b"".join(frame for _, frame in batch)
            self._make_room(len(data), policy)
            try:
                self._write(file, data)
            except OSError as error:
                log.warning("recorded requests were not written to %s: %s", file.path, error.strerror)
                self._appends = False
                break
            file.bytes += len(data)
            file.requests += len(batch)
            file.rows += sum(request.rows for request, _ in batch)
            file.newest_s = batch[-1][0].time_s
            written += len(batch)
        return written

    def _placed(
        self, frames: Sequence[tuple[RecordedRequest, bytes]], policy: RecordingPolicy
    ) -> Iterator[tuple[RecordFile, list[tuple[RecordedRequest, bytes]]]]:
        """The file that each run of requests goes to."""
        file, batch, size = self._last(), list[tuple[RecordedRequest, bytes]](), 0
        for request, frame in frames:
            is_full = file is None or file.bytes + size + len(frame) > policy.part_bytes
            if file is None or is_full or request.time_s - file.since_s > policy.most_age_s / PARTS:
                if file is not None and batch:
                    yield file, batch
                file, batch, size = self._begin(request.time_s), [], 0
            batch.append((request, frame))
            size += len(frame)
        if file is not None and batch:
            yield file, batch

    def _last(self) -> RecordFile | None:
        return self._files[-1] if self._appends and self._files else None

    def _begin(self, since_s: float) -> RecordFile:
        number = self._files[-1].number + 1 if self._files else 1
        file = RecordFile(self.path / f"{number:08d}-{max(0, int(since_s * 1000))}.frames", number, since_s)
        self._files.append(file)
        self._appends = True
        return file

    def _write(self, file: RecordFile, data: bytes) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open_record(file.path) as out:
            view = memoryview(data)
            while view:
                view = view[out.write(view) :]

    def _make_room(self, size: int, policy: RecordingPolicy) -> None:
        while self.size + size > policy.most_bytes and len(self._files) > 1:
            self._remove(self._files[0])

    def sweep(self, policy: RecordingPolicy, now_s: float) -> None:
        """Remove what is older than it may be, or more than there may be since the policy was changed."""
        while self._files and now_s - self._files[0].since_s > policy.most_age_s:
            self._remove(self._files[0])
        while self._files and self.size > policy.most_bytes:
            self._remove(self._files[0])

    def _remove(self, file: RecordFile) -> None:
        file.path.unlink(missing_ok=True)
        self._files.remove(file)

    def clear(self) -> None:
        """Remove everything, and the folder."""
        self._files.clear()
        self._appends = False
        shutil.rmtree(self.path, ignore_errors=True)


def files_in(folder: Path) -> list[RecordFile]:
    """Oldest first, by their names; what is in them was not looked at."""
    try:
        matches = [(path, FILE.fullmatch(path.name)) for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    files = [RecordFile(path, int(match[1]), int(match[2]) / 1000) for path, match in matches if match]
    return sorted(files, key=lambda file: file.number)


def _looked_into(file: RecordFile) -> RecordFile:
    data = read_record(file.path)
    file.bytes = len(data)
    for request, _ in requests_in(data):
        file.requests += 1
        file.rows += request.rows
        file.newest_s = request.time_s
    return file


def newest_frames(folder: Path, *, most_bytes: int) -> list[bytes]:
    """The newest requests as frames, file after file, oldest first; at most so many bytes of them."""
    parts: list[bytes] = []
    room = most_bytes
    for file in reversed(files_in(folder)):
        frames = list(frames_in(read_record(file.path)))
        count = 0
        for frame in reversed(frames):
            if len(frame) > room:
                break
            room -= len(frame)
            count += 1
        parts.append(b"".join(frames[len(frames) - count :]))
        if count < len(frames):
            break
    return parts[::-1]
