"""Returned files: brings the files that a job's callbacks wrote into the notebook's folder.

Owns where each may go. A backend's word for a name is not enough: whoever runs it, or has a job on it, could name any file of the user's.

* Beside the notebook: a name that did not exist, or that a job of this kernel wrote before. A file that a job of an earlier kernel wrote
  counts too, while nobody has changed it since.
* Added to the file that is there: text that the callback opened with mode "a".
* Into aiaas_files/JOB/: what would replace another file, what goes through a link, and what Python, Jupyter, a shell or the linker runs.
* Left on the backend: absolute and hidden names, "..", control characters.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from aiaas_magics.core import settings
from aiaas_magics.core.errors import AiaasBug

ASIDE: Final = "aiaas_files"
RUNS: Final = re.compile(
    r"py[cdowx]?|ipynb|pth|egg|whl|so|dylib|dll|(ba|z|c|tc|k|fi)?sh|ps1|bat|cmd|com|exe|msi|scr|vbs|m?js|jar|desktop|command", re.ASCII
)
RUNS_BY_NAME: Final = frozenset({"makefile", "gnumakefile", "dockerfile", "pyproject.toml", "setup.cfg", "tox.ini", "pytest.ini"})
TEXT: Final = frozenset({"csv", "tsv", "txt", "log", "json", "jsonl", "ndjson", "md"})  # what lines of a callback may be added to
JOB: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
SHOWN: Final = 8  # names in a sentence; guess
REMEMBERED: Final = 10_000  # files written by jobs of this account; guess


class Incoming(Protocol):
    """A file of `size` bytes as the backend sends it."""

    @property
    def size(self) -> int: ...
    @property
    def chunks(self) -> Iterable[bytes]: ...
    @property
    def appended(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnedFile:
    """One file of a job: where it is now (None: on the backend only), and why not under its own name ("": it is)."""

    name: str
    path: Path | None
    why: str = ""
    appended: bool = False


def fault_of(name: str) -> str:
    """Why a file of this name is not taken at all; "" where it may be.

    >>> fault_of("logs/run 1.csv"), fault_of("../x"), fault_of(".ssh/config")
    ('', 'it leads out of the folder', 'it is hidden')
    """
    parts = name.split("/")
    odd = name.startswith(("/", "~")) or "\\" in name or (os.name == "nt" and ":" in name)
    if odd or any(part in ("", "..") for part in parts):
        return "it leads out of the folder"
    if any(part.startswith(".") for part in parts):
        return "it is hidden"
    if not name.isprintable() or any(part != part.rstrip(" .") or len(os.fsencode(part)) > 255 for part in parts):
        return "its name is no plain one"
    return ""


def is_run(name: str) -> bool:
    """Whether Python, Jupyter, a shell or the linker would run a file of this name.

    >>> is_run("numpy_helpers.py"), is_run("libm.so.6"), is_run("best.keras")
    (True, True, False)
    """
    last = name.rpartition("/")[2].lower()
    return last in RUNS_BY_NAME or any(RUNS.fullmatch(part) for part in last.split(".")[1:])


class WrittenFiles:
    """The files that jobs wrote here: of this kernel in memory, of earlier ones in a file of the state folder (0600)."""

    def __init__(self) -> None:
        self._here: set[str] = set()

    def has(self, target: Path) -> bool:
        if str(target) in self._here:
            return True
        try:
            status = target.stat()
        except OSError:
            return False
        return self._kept().get(str(target)) == [status.st_size, status.st_mtime_ns]

    def add(self, targets: Sequence[Path]) -> None:
        self._here.update(map(str, targets))
        kept = self._kept()
        for target in targets:
            with contextlib.suppress(OSError):
                status = target.stat()
                kept.pop(str(target), None)
                kept[str(target)] = [status.st_size, status.st_mtime_ns]
        # Without the note a later kernel puts files aside that it might have replaced; no reason to fail over it.
        with contextlib.suppress(OSError):
            self._keep(dict(list(kept.items())[-REMEMBERED:]))

    def _kept(self) -> dict[str, list[int]]:
        try:
            kept = json.loads(_note().read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def _keep(self, kept: dict[str, list[int]]) -> None:
        note = _note()
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = note.with_name(f".{note.name}.{secrets.token_hex(4)}")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(kept, file)
        fresh.replace(note)


def _note() -> Path:
    return settings.home() / "written_files.json"


_written = WrittenFiles()


def save(
    job: str,
    names: Sequence[str],
    folder: Path,
    *,
    fetch: Callable[[str], AbstractContextManager[Incoming]],
    logs: Container[str] = (),
) -> tuple[ReturnedFile, ...]:
    """Bring the files of `job` home, below `folder`; see the rules above.

    Args:
        logs: names of tables whose first line is not added again, as Keras' CSVLogger does not.
    """
    if not JOB.fullmatch(job):
        raise AiaasBug(f"the backend calls a job {job[:80]!r}")
    root, files = folder.resolve(), []
    try:
        for name in names:
            if fault := fault_of(name):
                files.append(ReturnedFile(name=name, path=None, why=fault))
                continue
            with fetch(name) as incoming:
                files.append(_save_one(job, name, root, incoming, is_log=name in logs))
    finally:
        _written.add([file.path for file in files if file.path is not None])
    return tuple(files)


def _save_one(job: str, name: str, root: Path, incoming: Incoming, *, is_log: bool) -> ReturnedFile:
    target = root / name
    why = _obstacle(target, root, name, appended=incoming.appended or is_log)
    if why:
        target = _aside(job, name, root)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if incoming.size > free:
        return ReturnedFile(name=name, path=None, why=f"it has {incoming.size:,} bytes, {free:,} are free here")
    partial = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with partial.open("xb") as file:
            file.writelines(incoming.chunks)
        appends = not why and (incoming.appended or is_log) and target.exists()
        if appends:
            _add_to(target, partial, is_log=is_log)
        else:
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return ReturnedFile(name=name, path=target, why=why, appended=appends)


def _obstacle(target: Path, root: Path, name: str, *, appended: bool) -> str:
    """Why the file must not stand under its own name; "" where it may."""
    if is_run(name):
        return "it could be run"
    if target.is_symlink() or _blocked(target, root):
        return "a link or a file is in its way"
    if not os.path.lexists(target) or _written.has(target):
        return ""
    if appended and target.is_file() and target.suffix[1:].lower() in TEXT:
        return ""
    return "a file of that name is there, which no job wrote"


def _blocked(target: Path, root: Path) -> bool:
    """Whether a folder on the way is a link, or no folder."""
    way = [parent for parent in target.parents if parent != root and parent.is_relative_to(root)]
    return any(parent.is_symlink() or (parent.exists() and not parent.is_dir()) for parent in way)


def _aside(job: str, name: str, root: Path) -> Path:
    """A place in aiaas_files/JOB/; another backend's job of that number may have been here before."""
    number = 1
    while True:
        target = root / ASIDE / (job if number == 1 else f"{job}-{number}") / name
        if not _blocked(target, root) and not target.is_symlink() and (not os.path.lexists(target) or _written.has(target)):
            return target
        number += 1


def _add_to(target: Path, partial: Path, *, is_log: bool) -> None:
    with partial.open("rb") as fresh, target.open("r+b") as file:
        if is_log and file.readline().rstrip(b"\r\n") != fresh.readline().rstrip(b"\r\n"):
            fresh.seek(0)
        file.seek(0, os.SEEK_END)
        shutil.copyfileobj(fresh, file)


def sentences(job: str, files: Sequence[ReturnedFile]) -> tuple[str, ...]:
    """What the user reads about them: a line for those that came under their own names, one for others, one for those that did not come."""
    own = [f"{file.name} (added to)" if file.appended else file.name for file in files if file.path is not None and not file.why]
    aside = [file for file in files if file.path is not None and file.why]
    files_left = [file for file in files if file.path is None]
    lines = []
    if own:
        lines.append(f"Files of the callbacks: {_listed(own)}.")
    if aside:
        reasons = " and ".join(dict.fromkeys(file.why for file in aside))
        lines.append(f"Put into {ASIDE}/{job}/ instead: {_listed([file.name for file in aside])} ({reasons}). Move what you want to keep.")
    if files_left:
        reasons = " and ".join(dict.fromkeys(file.why for file in files_left))
        lines.append(
            f"Left on the backend: {_listed([file.name for file in files_left])} ({reasons}). Use another name, or make room, to get it."
        )
    return tuple(lines)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names[:SHOWN]) + more
