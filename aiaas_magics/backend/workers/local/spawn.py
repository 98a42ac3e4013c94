"""Spawn: starts a worker where there is no fork, as a fresh interpreter that imports the libraries itself.

Owns the process and its files; `launcher` does the same where there is a fork.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder, Exit, write_value
from aiaas_magics.core.process_id import ProcessId

MODULE: Final = "aiaas_magics.backend.workers.worker_main"


def spawn(command: Path, *, backend: str = "tensorflow") -> None:
    """Start the rank that the command file describes, detached; its end is written by a thread of ours."""
    folder, rank = AttemptFolder.of_command(command)
    if folder.stop.exists():
        return
    with folder.output(rank).open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE, str(command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "DETACHED_PROCESS", 0),
            env={**worker_environment(backend), "PYTHONUNBUFFERED": "1"},
        )
    write_value(folder.pid(rank), ProcessId.of(process.pid))
    if folder.stop.exists():
        process.kill()
    threading.Thread(target=_reap, args=(process, folder, rank), name=f"aiaas-reap-{process.pid}", daemon=True).start()


def _reap(process: subprocess.Popen[bytes], folder: AttemptFolder, rank: int) -> None:
    code = process.wait()
    with contextlib.suppress(OSError):  # the folder is gone when its job was cleared already
        write_value(folder.exit(rank), Exit(code=code if code >= 0 else None, signal=-code if code < 0 else None))


# Tokens, ours and those for a receiver of traces, are nothing for the user's code.
SECRETS: Final = frozenset({"AIAAS_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"})


def worker_environment(backend: str) -> dict[str, str]:
    """The environment of workers and of the launcher: ours without secrets, and what Keras runs on."""
    return {name: value for name, value in os.environ.items() if name not in SECRETS} | {"KERAS_BACKEND": backend}
