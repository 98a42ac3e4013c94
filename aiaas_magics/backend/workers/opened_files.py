"""Record of opened files: whether a file of a callback is new, or is added to what the user has.

Owns the record: a worker writes it as files are opened, the server reads it when the job is over. A worker's folder is empty at first, so
that `open("mine.txt", "a")` looks like a new file there; beside the notebook it is not.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aiaas_magics.backend.folders.job_folder import JobFolder
from aiaas_magics.core.contract import APPENDED

WRITES: Final = os.O_WRONLY | os.O_RDWR
ANEW: Final = os.O_TRUNC | os.O_CREAT | os.O_EXCL
WRITTEN: Final = "written"


def record(job_folder: JobFolder) -> None:
    """From now on keep a record of the files below the current folder that this process writes.

    An audit hook (PEP 578) sees `open` and `os.open` of any library in Python, and cannot be taken away again. What native code opens
    (TensorFlow's own files) it does not see: those count as written anew.
    """
    sink = os.open(job_folder.opened, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.addaudithook(_hook(os.getcwd(), sink))


def _hook(base: str, sink: int) -> Callable[[str, tuple[Any, ...]], None]:
    modes: dict[str, str] = {}

    def note(path: Any, how: str) -> None:
        if isinstance(path, int):
            return
        name = os.path.relpath(os.path.abspath(os.fsdecode(path)), base)
        if name.split(os.sep)[0] == os.pardir or modes.get(name) in (how, WRITTEN):
            return
        modes[name] = how
        os.write(sink, json.dumps([how, Path(name).as_posix()]).encode() + b"\n")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        try:
            match event:
                case "open":
                    path, _, flags = arguments
                    if flags & WRITES and flags & os.O_APPEND and not flags & os.O_TRUNC:
                        note(path, APPENDED)
                    elif flags & WRITES and flags & ANEW:
                        note(path, WRITTEN)
                case "os.rename":
                    note(arguments[1], WRITTEN)
                case "os.remove" | "os.truncate" | "os.link" | "os.symlink":
                    note(arguments[0] if event in ("os.remove", "os.truncate") else arguments[1], WRITTEN)
        except Exception:  # noqa: BLE001 - border: what is raised in a hook would come out of the user's own `open`
            return

    return hook


def appended(job_folder: JobFolder) -> frozenset[str]:
    """Names of the files that were only ever opened to be added to, over all attempts of a job."""
    only_appended: dict[str, bool] = {}
    try:
        lines = job_folder.opened.read_bytes().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        try:
            how, name = json.loads(line)
            only_appended[str(name)] = how == APPENDED and only_appended.get(str(name), True)
        except (ValueError, TypeError):  # the user's own code can write here too
            continue
    return frozenset(name for name, only in only_appended.items() if only)
