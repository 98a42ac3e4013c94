"""Launcher client: the server's side of the launcher, which it starts when there is none.

Owns the server's side of the launcher's socket. Blocking; call it in a thread.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import psutil

from aiaas_magics.backend.workers.local.attempt_folder import RunningLauncher, read_value
from aiaas_magics.backend.workers.local.spawn import worker_environment
from aiaas_magics.core import settings
from aiaas_magics.core.child_process import ChildEnded, last_words, until_there
from aiaas_magics.core.engines import HOME
from aiaas_magics.core.process_id import ProcessId

log = logging.getLogger(__name__)

T = TypeVar("T")

# Importing TensorFlow and Keras takes 4 to 8 s here (design, section 6), several times that on a machine at full load.
READY_S: Final = 90.0
ANSWER_S: Final = 30.0  # guess: of one that has imported everything; a fork takes 20 ms here
SILENT_LOOK_S: Final = 0.5
STOPPED_S: Final = 5.0  # guess: nobody has it in a terminal, where a Ctrl-Z may be thought better of
BOUND_S: Final = 30.0  # the interpreter and our own modules only
END_S: Final = 10.0
LOOK_S: Final = 0.02
ADDRESS_BYTES: Final = 100  # sockaddr_un holds 108 on Linux, 104 on macOS


class LauncherGone(RuntimeError):
    """The launcher ended before it answered."""


class LauncherClient:
    """One launcher, which keeps its socket, its file and its log in `folder`. `backend` is what Keras runs on in it."""

    def __init__(self, folder: Path, *, options: Sequence[str] = (), backend: str = HOME.keras_backend) -> None:
        self._folder = folder
        self._options = options
        self._backend = backend
        self._started: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()
        self._closed = False
        self._ready: ProcessId | None = None  # the launcher that has answered once, and so has imported everything

    def running(self) -> RunningLauncher | None:
        """What a living launcher of this version said of itself; None when there is none."""
        launcher = read_value(self._folder / "launcher.json", RunningLauncher)
        if self._started is not None:
            self._started.poll()  # reaps it when it has ended
        if launcher is None or launcher.version != settings.package_version() or not launcher.process.is_alive():
            return None
        return launcher

    def ensure(self) -> None:
        """Have a launcher that takes requests; it may still be importing.

        Raises:
            RuntimeError: it ended instead; the text has its last words.
            TimeoutError: it did not come up in time.
        """
        with self._starting:
            if self.running() is None:
                self._start()

    def _start(self) -> None:
        self._check_open()
        self._reap()
        log_path = self._folder / "launcher.log"
        with log_path.open("wb") as log:
            self._started = subprocess.Popen(
                [sys.executable, "-P", "-m", "aiaas_magics.backend.workers.local.launcher", *self._arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=worker_environment(self._backend),
            )
        try:
            until_there(self._running_while_open, self._started, limit_s=BOUND_S)
        except ChildEnded as end:
            raise RuntimeError(f"the launcher of workers ended with {end.code}: {last_words(log_path)}") from None
        except TimeoutError:
            raise TimeoutError(f"the launcher of workers did not come up within {BOUND_S:g} s") from None

    def _running_while_open(self) -> RunningLauncher | None:
        self._check_open()
        return self.running()

    def _arguments(self) -> list[str]:
        return ["--folder", str(self._folder), "--parent", str(os.getpid()), *self._options]

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the server ends; no launcher of workers is started any more")

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The launcher's answer to one request.

        Raises:
            OSError, RuntimeError: it is gone, or said no.
            TimeoutError: it did not answer in time.
        """
        launcher = self.running()
        if launcher is None:
            raise LauncherGone(f"the launcher of workers is gone: {last_words(self._folder / 'launcher.log')}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(SILENT_LOOK_S)
            silence = _Silence(launcher, is_ready=self._ready == launcher.process)
            try:
                with _short(self._folder / launcher.socket) as address:
                    silence.outlast(lambda: connection.connect(address))
            except FileNotFoundError as error:
                raise LauncherGone("the launcher of workers has come to its end") from error
            connection.sendall(json.dumps(request).encode() + b"\n")
            line = b""
            while not line.endswith(b"\n") and (piece := silence.outlast(lambda: connection.recv(65536))):
                line += piece
        if line:
            self._ready = launcher.process
        else:
            raise LauncherGone(f"the launcher of workers hung up: {last_words(self._folder / 'launcher.log')}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the launcher of workers refused: {answer['error']}")
        return answer

    def stop(self) -> None:
        """End the launcher, by force when it does not listen. Nothing happens when there is none."""
        self._closed = True
        with self._starting:
            self._stop()

    def _stop(self) -> None:
        launcher = self.running()
        if launcher is None:
            if self._started is not None:  # it is about to say that it is there
                self._started.kill()
            self._reap()
            return
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(launcher.process.pid)
            process.terminate()
            deadline = time.monotonic() + END_S
            while launcher.process.is_alive() and time.monotonic() < deadline:
                if time.monotonic() > deadline - END_S + 1.0:  # it is importing, or has children that the caller ended
                    process.kill()
                time.sleep(LOOK_S)
        self._reap()
        for leftover in (self._folder / launcher.socket, self._folder / "launcher.json"):
            leftover.unlink(missing_ok=True)

    def _reap(self) -> None:
        """Collect a launcher that was our child and has ended, or is about to."""
        if self._started is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._started.wait(END_S)


class _Silence:
    """A launcher that does not answer. One that is stopped, or was quick before, is ended, so that another takes its place.

    Its workers live on: they are processes of their own, and what they say goes to files.
    """

    def __init__(self, running: RunningLauncher, *, is_ready: bool) -> None:
        self._process = running.process
        self._began_s = time.monotonic()
        self._stopped_s: float | None = None
        self._patience_s = ANSWER_S if is_ready else READY_S

    def outlast(self, ask: Callable[[], T]) -> T:
        """What `ask`, which gives up after a moment, gives in the end.

        Raises:
            LauncherGone: the launcher was ended, because it was stopped or did not answer any more.
            TimeoutError: it has never answered, and did not come up in time.
        """
        while True:
            try:
                return ask()
            except (TimeoutError, BlockingIOError):  # nothing came, or too many others wait for it
                self._judge()

    def _judge(self) -> None:
        now_s = time.monotonic()
        if self._process.stopped_after_s() is None:
            self._stopped_s = None
        elif self._stopped_s is None:
            self._stopped_s = now_s
        elif now_s - self._stopped_s > STOPPED_S:
            self._end(f"was stopped (SIGSTOP) for {STOPPED_S:g} s")
        if now_s - self._began_s > self._patience_s:
            if self._patience_s == READY_S:
                raise TimeoutError(f"the launcher of workers did not answer within {READY_S:g} s")
            self._end(f"did not answer for {self._patience_s:g} s")
        time.sleep(LOOK_S)  # a socket that is full says so at once

    def _end(self, why: str) -> NoReturn:
        log.warning("the launcher of workers, process %d, %s: it is ended, and another one started", self._process.pid, why)
        with contextlib.suppress(psutil.Error):
            if self._process.is_alive():
                psutil.Process(self._process.pid).kill()
        deadline = time.monotonic() + END_S
        while self._process.is_alive() and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        raise LauncherGone(f"the launcher of workers {why}")


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """An address for a socket whose path may be too long for one."""
    if len(os.fsencode(path)) < ADDRESS_BYTES or sys.platform != "linux":
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
