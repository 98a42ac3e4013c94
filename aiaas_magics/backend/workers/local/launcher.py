"""Launcher: the preloaded process that workers fork from.

Owns importing the libraries once without touching a device, forking one child a command,
reaping it, and seeing to it that nothing of a rank outlives the rank. It is detached from
the server, so that a job outlives the server; it ends by itself when nobody asks for it.
What runs in a child belongs to `worker_main`, what is imported for it to the table of `core.engines`.

    python -m aiaas_magics.backend.workers.local.launcher --folder DIR

Requests are JSON lines on a Unix socket in DIR: {"commands": [paths]}, {"ping": true},
{"stop": true}; each gets one line back.
"""

from __future__ import annotations

import os

# Before numpy and TensorFlow are imported: a process with threads must not fork, and OpenBLAS starts its own.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import argparse
import contextlib
import ctypes
import gc
import importlib
import json
import logging
import secrets
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import psutil

from aiaas_magics.backend.folders.small_files import is_no_room
from aiaas_magics.backend.workers.local import out_of_memory
from aiaas_magics.backend.workers.local import spare_worker as spares
from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder, Exit, RunningLauncher, read_value, write_value
from aiaas_magics.backend.workers.local.deferred_imports import deferring
from aiaas_magics.backend.workers.rank_output import text_output
from aiaas_magics.core import settings, wire
from aiaas_magics.core.engines import ENGINES, of_keras_backend
from aiaas_magics.core.process_id import ProcessId

log = logging.getLogger(__name__)

ENTRY: Final = "aiaas_magics.backend.workers.worker_main:main"
IDLE_S: Final = 600.0  # guess: a user who reads a result for ten minutes does not mind one slow start
LOOK_S: Final = 1.0
ACCEPT_AGAIN_S: Final = 0.2  # guess: without a pause the loop would spin while no descriptor is left
REQUEST_S: Final = 2.0  # a request is one line of a program of ours; whoever is slower is none
REQUEST_BYTES: Final = 1024 * 1024
EXIT_BROKEN: Final = 70  # the rank failed outside the user's code
WORKER_OOM_SCORE: Final = 500  # the kernel shall choose a worker, never the server (facts/reliability F17)
PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h


@dataclass(slots=True)
class Rank:
    """A living child: which rank of which attempt, and the kernel's count of memory kills when it began."""

    folder: AttemptFolder
    rank: int
    kills: int


class Launcher:
    """One process, one thread. `run` returns when it was told to stop, or nobody asked for long."""

    def __init__(
        self,
        folder: Path,
        listener: socket.socket,
        entry: Callable[[str], int],
        *,
        idle_s: float,
        make_ready: Callable[[spares.Cores], None] | None = None,
    ) -> None:
        self._folder = folder
        self._listener = listener
        self._entry = entry
        self._idle_s = idle_s
        self._ranks: dict[int, Rank] = {}
        self._make_ready = make_ready
        self._spare: spares.Spare | None = None
        self._spare_for: spares.Cores | None = None  # what the next one is made for: commands like the last
        self._asked_s = time.monotonic()
        self._stopping = False
        self._is_starved = False  # of descriptors, when it wanted to accept last

    def run(self) -> None:
        waker, wakes = socket.socketpair()
        waker.setblocking(False)
        wakes.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        self._to_close = (waker, wakes, self._listener)  # by a child, with the connection that asked for it
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(wakes, selectors.EVENT_READ)
            self._selector = selector
            try:
                while not self._is_over():
                    for key, _ in selector.select(LOOK_S):
                        if key.fileobj is wakes:
                            with contextlib.suppress(BlockingIOError):
                                wakes.recv(4096)
                        else:
                            self._serve()
                    self._reap()
                    self._keep_spare()
            finally:
                if self._spare is not None:
                    self._spare.end()

    def _is_over(self) -> bool:
        if self._ranks:
            return False
        return self._stopping or not self._is_wanted() or time.monotonic() - self._asked_s > self._idle_s

    def _is_wanted(self) -> bool:
        """Whether the folder still names this process: another launcher has taken over otherwise, or the state is gone.

        A file that cannot be read now (no descriptors are left, say) says neither.
        """
        try:
            running = wire.decode((self._folder / "launcher.json").read_bytes(), RunningLauncher)
        except (FileNotFoundError, wire.Malformed):
            return False
        except OSError:
            return True
        return running.process.pid == os.getpid()

    def _stop(self) -> None:
        self._stopping = True

    def _serve(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # no descriptors are left, say: whoever asks waits in the queue, and ranks are reaped meanwhile
            if not self._is_starved:
                log.warning("a connection could not be accepted: %s; trying again", error)
            self._is_starved = True
            time.sleep(ACCEPT_AGAIN_S)
            return
        self._is_starved = False
        self._asking = connection
        with connection:
            connection.settimeout(REQUEST_S)
            try:
                answer = self._answer(json.loads(_line(connection)))
            except (OSError, ValueError) as error:
                log.warning("a request was not understood: %s", error)
                answer = {"error": str(error)}
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(answer).encode() + b"\n")

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self._asked_s = time.monotonic()
        if request.get("stop"):
            self._stop()
        started = [self._fork(Path(command)) for command in request.get("commands", ())]
        return {"pid": os.getpid(), "started": sum(started)}

    def _fork(self, command: Path) -> bool:
        folder, rank = AttemptFolder.of_command(command)
        if folder.stop.exists() or folder.pid(rank).exists():
            return False
        kills = out_of_memory.kills()
        pid = self._from_spare(command)
        if pid is None:
            pid = os.fork()
            if pid == 0:
                self._become(lambda: self._run(command))
        self._ranks[pid] = Rank(folder, rank, kills)
        try:
            write_value(folder.pid(rank), ProcessId.of(pid))
        except OSError as error:  # the attempt was stopped and cleared in this very moment
            kill_group(pid, signal.SIGKILL)
            if is_no_room(error):
                raise
            return False
        # Whoever stops an attempt writes `stop` first and then reads the pids: either it saw ours, or we see its file.
        if folder.stop.exists():
            kill_group(pid, signal.SIGKILL)
        return True

    def _from_spare(self, command: Path) -> int | None:
        """The spare worker's process, which runs the command now; None where there is none for it. It is not kept for another one."""
        self._spare_for = spares.cores_of(command) if self._make_ready is not None else None
        spare, self._spare = self._spare, None
        if spare is None:
            return None
        if self._spare_for == spare.cores and spare.hand_over(command):
            return spare.pid
        spare.end()
        return None

    def _keep_spare(self) -> None:
        """Have one while nobody trains: a job that runs has the cores, and the memory, to itself."""
        if self._spare is not None and (self._spare.is_idle_for_long or not spares.has_memory()):
            self._spare.end()
            self._spare = self._spare_for = None
        if self._spare is None and self._spare_for is not None and not self._ranks and not self._stopping and spares.has_memory():
            self._spare = self._fork_spare(self._spare_for)

    def _fork_spare(self, cores: spares.Cores) -> spares.Spare:
        parent_end, child_end = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            parent_end.close()
            self._become(lambda: self._stand_by(child_end, cores))
        child_end.close()
        return spares.Spare(pid, parent_end, cores)

    def _become(self, work: Callable[[], int]) -> NoReturn:
        """The child's side of the fork: nothing of the launcher's may be left in it."""
        code = EXIT_BROKEN
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            self._selector.close()
            for side in (*self._to_close, self._asking, *((self._spare,) if self._spare is not None else ())):
                side.close()
            take_orphans()
            code = work()
        except SystemExit as error:  # user code may call sys.exit
            code = error.code if isinstance(error.code, int) else EXIT_BROKEN
        except BaseException:  # noqa: BLE001 - border: whatever happens in a rank, it never returns into the launcher's loop
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _run(self, command: Path) -> int:
        folder, rank = AttemptFolder.of_command(command)
        redirect(folder.output(rank))
        prepare_process()
        return self._entry(str(command))

    def _stand_by(self, connection: socket.socket, cores: spares.Cores) -> int:
        assert self._make_ready is not None
        prepare_process()
        self._make_ready(cores)
        with connection:
            command = spares.wait_for_command(connection)
        return 0 if command is None else self._run(command)

    def _reap(self) -> None:
        """Write how each dead child ended. Its process group dies before its pid is given back."""
        while True:
            try:
                child = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if child is None:
                return
            if child.si_pid in self._ranks:
                kill_group(child.si_pid, signal.SIGKILL)
            _, status = os.waitpid(child.si_pid, 0)
            if self._spare is not None and self._spare.pid == child.si_pid:  # whatever ended it, another would not do better
                self._spare.close()
                self._spare = self._spare_for = None
            rank = self._ranks.pop(child.si_pid, None)
            if rank is not None:
                self._record(rank, status)
                self._kill_orphans()

    def _record(self, rank: Rank, status: int) -> None:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        starved = number == signal.SIGKILL and not rank.folder.stop.exists() and out_of_memory.kills() > rank.kills
        # The folder is gone when its job was cleared already.
        with contextlib.suppress(OSError):
            write_value(rank.folder.exit(rank.rank), Exit(code=code, signal=number, out_of_memory=starved))

    def _kill_orphans(self) -> None:
        """Processes that a dead rank's code put into sessions of their own fall to us: nobody else knows them."""
        try:
            children = psutil.Process().children()
        except OSError as error:  # no descriptors are left, say: the next rank that ends takes them along
            log.warning("what a rank may have left behind cannot be looked for: %s", error)
            return
        for child in children:
            if child.pid not in self._ranks and (self._spare is None or child.pid != self._spare.pid):
                with contextlib.suppress(psutil.Error):
                    child.kill()


def kill_group(pid: int, number: int) -> None:
    """Send a signal to the process group that `pid` leads, or to `pid` alone before it leads one."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    except PermissionError:  # macOS says so of a group of zombies
        pass


def take_orphans() -> None:
    """Descendants whose parent died become children of this process, where the system can do that (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def redirect(output: Path) -> None:
    """Standard output and error into `output`, standard input from nothing."""
    null_device = os.open(os.devnull, os.O_RDONLY)
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, number in ((null_device, 0), (target, 1), (target, 2)):
        os.dup2(source, number)
    os.close(null_device)
    os.close(target)
    sys.stdout, sys.stderr = text_output(1), text_output(2)


def prepare_process() -> None:
    """What every rank has, before anything of the user's runs."""
    os.umask(0o077)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(WORKER_OOM_SCORE), encoding="ascii")
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(secrets.randbits(32))  # forked siblings share its state otherwise


def preload(modules: Sequence[str]) -> None:
    """Import what workers need; raises when that touched a device, because nothing could fork after that."""
    engines = [info for info in ENGINES.values() if info.module in modules]
    with deferring(without=tuple(module for info in engines for module in info.keeps_out)):
        for module in modules:
            importlib.import_module(module)
    for info in engines:
        sys.modules[info.module].ENGINE.assert_fork_safe()
    threads = len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 1
    if threads > 1:
        log.warning("%d threads are alive before the fork", threads)
    # What the collector never walks stays in pages that all ranks share.
    gc.collect()
    gc.freeze()


def bind(folder: Path) -> tuple[socket.socket, str]:
    """A listening socket in `folder`, whose path may be longer than a socket's address can be."""
    name = f"launcher-{secrets.token_hex(4)}.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.chdir(folder)
    os.umask(0o077)
    listener.bind(name)
    listener.listen(16)
    listener.setblocking(True)
    return listener, name


def _line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(65536)
        if not part or len(data) > REQUEST_BYTES:
            raise ValueError("a request is one line")
        data += part
    return data


def find_entry(name: str) -> tuple[Callable[[str], int], Callable[[spares.Cores], None] | None]:
    """A worker's first function, and what makes a process ready for it before it has a command, where there is such a thing."""
    name, _, function = name.partition(":")
    module = importlib.import_module(name)
    return getattr(module, function), getattr(module, "make_ready", None)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="launcher", description="forks workers for a server of aiaas_magics")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--entry", default=ENTRY)
    parser.add_argument("--preload", default=",".join(of_keras_backend(os.environ["KERAS_BACKEND"]).preload))
    parser.add_argument("--idle-s", type=float, default=IDLE_S)
    parser.add_argument("--parent", type=int, default=0, help="process that starts this one, which ends if that is gone too early")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    take_orphans()
    # Bound before the slow part, so that whoever asks meanwhile waits in the queue instead of trying again.
    listener, name = bind(options.folder)
    if options.parent and os.getppid() != options.parent:
        log.warning("whoever started this launcher ended first, so that nobody would find it; ending")
        (options.folder / name).unlink()
        return 0
    file = options.folder / "launcher.json"
    write_value(
        file, RunningLauncher(process=ProcessId.of(os.getpid()), socket=name, version=settings.package_version(), entry=options.entry)
    )
    try:
        preload([module for module in options.preload.split(",") if module])
        entry, make_ready = find_entry(options.entry)
        Launcher(options.folder, listener, entry, idle_s=options.idle_s, make_ready=make_ready).run()
    finally:
        (options.folder / name).unlink(missing_ok=True)
        own_note = read_value(file, RunningLauncher)
        if own_note is not None and own_note.process.pid == os.getpid():
            file.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
