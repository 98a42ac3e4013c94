"""Checkpoint folder: its name, when it is whole, and which one is the newest.

Owns the form that the server and the workers share: written beside its place and renamed, so that it
is whole or not there; its files are named with their hashes, so that one torn by a power cut is passed
over. The server reads what a worker wrote, in which the user's code ran: only plain files of the folder
itself are opened. What stands in the files belongs to `checkpoint_contents`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import xxhash

from aiaas_magics.backend.folders.small_files import NotPlainFile, open_plain, read_plain

CHECKPOINTS_KEPT: Final = 2  # the newest, and one more for when the newest is torn
MANIFEST: Final = "manifest.json"
STATE: Final = "state.json"  # everything that is no array
JSON_BYTES: Final = 256 * 1024 * 1024  # guess: histories and attributes of callbacks, whose arrays stand elsewhere
FILE_BYTES: Final = 64 * 1024**3  # guess: 17 billion numbers of 4 bytes
FILES: Final = 10_000  # guess: two, and one for each rank
# At most as many digits as numbers of 64 bits have, in which they travel.
NAME: Final = re.compile(r"epoch-(\d{5,12})(?:-step-(\d{8,15}))?", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class TrainingPosition:
    """Where a training goes on: the first step that is left to do. Both count from 0."""

    epoch: int
    step: int = 0

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}" + (f", step {self.step + 1}" if self.step else "")

    @property
    def name(self) -> str:
        return f"epoch-{self.epoch:05d}" + (f"-step-{self.step:08d}" if self.step else "")

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """What a folder's name says; None when it is no checkpoint's."""
        match = NAME.fullmatch(path.name)
        return cls(int(match[1]), int(match[2] or 0)) if match else None


@contextlib.contextmanager
def written(folder: Path, place: TrainingPosition) -> Iterator[Path]:
    """A folder to put files into; on the way out it gets its name, and all but the newest few are removed.

    What has a name outlives a power cut; what an error interrupts leaves nothing.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    final = folder / place.name
    partial = folder / f".{final.name}.{os.getpid()}.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    try:
        yield partial
        hashes = {path.name: _hash(path) for path in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps(hashes), encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            _flush(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if final.exists():  # of an attempt that was lost before it could say so
        shutil.rmtree(final)
    partial.rename(final)
    _flush(folder)
    _prune(folder, place)


def newest_whole(folder: Path) -> tuple[TrainingPosition, Path] | None:
    """The newest checkpoint in `folder` that is not damaged."""
    return next(((place, path) for place, path in _newest_first(folder) if is_whole(path)), None)


def is_whole(path: Path) -> bool:
    """Whether the manifest names plain files of this folder, and each has the hash that it says."""
    try:
        return all(_hash(path / name) == expected for name, expected in _manifest(path).items())
    except (OSError, NotPlainFile):
        return False


def _manifest(path: Path) -> dict[str, str]:
    """The hashes of the files by their names.

    Raises:
        NotPlain: it is no such thing, or names what is not in this folder.
    """
    try:
        hashes = json.loads(read_plain(path / MANIFEST, most_bytes=JSON_BYTES, links=None))
    except (ValueError, RecursionError) as error:
        raise NotPlainFile("is no JSON") from error
    if not isinstance(hashes, dict) or not 0 < len(hashes) <= FILES:
        raise NotPlainFile("names no files")
    for name in hashes:
        if name != os.path.basename(name) or name in ("", os.curdir, os.pardir) or "\0" in name:
            raise NotPlainFile("names a file elsewhere")
    return hashes


def state_in(path: Path) -> dict[str, Any]:
    """What a whole checkpoint says in JSON.

    Raises:
        OSError, ValueError, RecursionError, NotPlain: it is none of ours.
    """
    state: dict[str, Any] = json.loads(read_plain(path / STATE, most_bytes=JSON_BYTES, links=None))
    return state


def adopt(path: Path, folder: Path) -> None:
    """Have the checkpoint `path` in `folder` too. Its files never change, so that a link is as good as a copy."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = folder / f".{path.name}.{os.getpid()}.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    for name in (MANIFEST, *_manifest(path)):
        _link(str(path / name), str(partial / name))
    partial.rename(folder / path.name)


def keep_newest(folder: Path) -> None:
    """Remove all but the newest whole checkpoint."""
    newest_folders = newest_whole(folder)
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if newest_folders is None or path != newest_folders[1]:
            shutil.rmtree(path, ignore_errors=True)


def _newest_first(folder: Path) -> list[tuple[TrainingPosition, Path]]:
    checkpoints = [
        (place, path) for path in folder.glob("epoch-*") if (place := TrainingPosition.of(path)) and path.is_dir() and not path.is_symlink()
    ]
    return sorted(checkpoints, reverse=True)


def _prune(folder: Path, newest: TrainingPosition) -> None:
    """What stands after `newest` was passed over when the attempt began: it is damaged."""
    before = [path for place, path in _newest_first(folder) if place <= newest]
    for _, path in _newest_first(folder):
        if path not in before[:CHECKPOINTS_KEPT]:
            shutil.rmtree(path, ignore_errors=True)
    for partial in folder.glob(".epoch-*.part"):
        shutil.rmtree(partial, ignore_errors=True)


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open_plain(path, most_bytes=FILE_BYTES, links=None) as file:  # a checkpoint that was adopted has two names, see `adopt`
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    if sys.platform == "win32":  # knows no flushing of a folder, or of a file that is not being written
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without links, or too many of them
        shutil.copy2(source, target)
