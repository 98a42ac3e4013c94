"""One process that has imported what launchers import, and forks them: a launcher costs 20 ms instead of 4 s of CPU time.

It ends with the test session. Where it cannot serve (another backend of Keras, another setting that the libraries read
while they are imported), `stand_in` returns, and the launcher starts as it does for users.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SOCKET = "mother.sock"
READY_S = 120.0  # an import on a busy machine
LOOK_S = 0.5
# What TensorFlow, Keras and numpy read while they are imported.
IMPORT_SETTINGS = ("TF_", "XLA_", "KERAS_", "CUDA", "OMP_", "OPENBLAS_", "LD_", "MALLOC_", "JAX_")


def stand_in(folder: str, arguments: list[str]) -> None:
    """Have `mother` fork this launcher, and end as it ends; return where that cannot be."""
    if os.environ.get("KERAS_BACKEND") != "tensorflow":
        return
    with _connected(Path(folder)) as connection:
        request = {
            "arguments": arguments,
            "environment": dict(os.environ),
            "cwd": os.getcwd(),
            "pid": os.getpid(),
            "settings": _settings(os.environ),
        }
        socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
        answers = connection.makefile("rb")
        if json.loads(answers.readline() or b"false"):
            status = json.loads(answers.readline() or str(signal.SIGKILL.value))
            if os.WIFSIGNALED(status):
                with contextlib.suppress(OSError):  # SIGKILL cannot be set
                    signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
                os.kill(os.getpid(), os.WTERMSIG(status))
            os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1)


def _settings(environment: Any) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(IMPORT_SETTINGS)}


def _parent_of(pid: int) -> int:
    """0 where there is no such process."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _connected(folder: Path) -> socket.socket:
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            return _connect(folder)
        if (pid := os.fork()) == 0:  # so that it is nobody's child: a launcher's children are its workers
            _start(folder)
            os._exit(0)
        os.waitpid(pid, 0)
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                return _connect(folder)
            time.sleep(0.02)
    raise TimeoutError(f"no mother of launchers came up: {(folder / 'mother.log').read_text()[-500:]}")


def _start(folder: Path) -> None:
    with (folder / "mother.log").open("ab") as log:
        subprocess.Popen(
            # As text: a traceback of a worker would show the frames of a file as the user's.
            [sys.executable, "-P", "-c", Path(__file__).read_text(), str(folder), os.environ["AIAAS_TEST_SESSION"]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=folder,  # not that of a server whose folder is looked through for processes that are left
        )


def _connect(folder: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(folder / SOCKET))
    except OSError:
        connection.close()
        raise
    return connection


class Mother:
    """Forks a launcher a connection; whoever hangs up has its launcher killed."""

    def __init__(self, folder: Path, session: int) -> None:
        self._session = session
        self._children: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._waker, self._wakes = socket.socketpair()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        (folder / SOCKET).unlink(missing_ok=True)  # of one that is gone: only who holds the lock starts another
        self._listener.bind(str(folder / SOCKET))
        self._listener.listen(64)

    def run(self) -> None:
        from aiaas_magics.backend.workers.local import launcher
        from aiaas_magics.core.engines import HOME

        settings = _settings(os.environ)
        launcher.preload(HOME.preload)
        for side in (self._waker, self._wakes):
            side.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wakes, selectors.EVENT_READ)
        while os.path.exists(f"/proc/{self._session}"):
            for key, _ in self._selector.select(LOOK_S):
                if key.fileobj is self._listener:
                    self._fork(settings)
                elif key.fileobj is self._wakes:
                    self._wakes.recv(4096)
                else:
                    self._hang_up(key.data)
            self._reap()
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)

    def _fork(self, settings: dict[str, str]) -> None:
        connection, _ = self._listener.accept()
        line, descriptors, _, _ = socket.recv_fds(connection, 65536, 3)
        while not line.endswith(b"\n"):
            if not (more := connection.recv(65536)):  # killed while it asked
                connection.close()
                return
            line += more
        request = json.loads(line)
        is_same = request["settings"] == settings
        pid = 0
        if is_same and (pid := os.fork()) == 0:
            self._become(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(OSError):  # whoever asked is gone; that a child of it has to end is read from its connection
            connection.sendall(json.dumps(is_same).encode() + b"\n")
        if not is_same:
            connection.close()
            return
        self._children[pid] = connection
        self._selector.register(connection, selectors.EVENT_READ, pid)

    def _become(self, request: dict[str, Any], descriptors: list[int]) -> None:
        code = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
            os.closerange(3, 1024)
            os.environ.clear()
            os.environ.update(request["environment"])
            os.chdir(request["cwd"])
            path = [entry for entry in request["environment"].get("PYTHONPATH", "").split(os.pathsep) if entry]
            sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
            from aiaas_magics.backend.workers.local import launcher

            # A launcher ends where its server died before it came up; its own parent is the mother, and the stand-in's is the server.
            os.getppid = lambda: _parent_of(request["pid"])
            code = launcher.main(request["arguments"])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:  # noqa: BLE001 - border: nothing may return into the mother's loop
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _hang_up(self, pid: int) -> None:
        """Nobody waits for it any more."""
        self._selector.unregister(self._children[pid])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                connection = self._children.pop(pid)
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(connection)
                with contextlib.suppress(OSError):
                    connection.sendall(json.dumps(status).encode() + b"\n")
                connection.close()


if __name__ == "__main__":
    Mother(Path(sys.argv[1]), int(sys.argv[2])).run()
