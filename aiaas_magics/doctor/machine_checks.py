"""Machine checks: disk, shared memory, ports, cgroups, isolation and open files of the machine that this runs on.

Owns those checks. Each reads the system itself, at a place that a test can choose, and judges by plain numbers.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from aiaas_magics.core import host
from aiaas_magics.doctor.finding import Finding, fails, note, ok

SHARED_MEMORY: Final = Path("/dev/shm")
KEEP_FREE_BYTES: Final = 1024**3  # as `aiaas serve --keep-free` by default
KEEP_FREE_SHARE: Final = 0.05
HALVES: Final = 2  # the workers' shared segment has two, so that a step may begin before all have read the last one
WORKER_BYTES: Final = 750 * 10**6  # TensorFlow and Keras imported, measured (docs/how-it-works)
WORKER_TASKS: Final = 60  # guess: threads of one worker on a few cores
SERVER_TASKS: Final = 100  # guess: server, inference process, launcher
FEW_FILES: Final = 256  # below that a server with some notebooks runs out of descriptors; guess
GOOD_FILES: Final = 1024
PROBE_S: Final = 10.0


def check_disk(folder: Path) -> Finding:
    """Whether the state folder, or the nearest folder above that there is, can be written and has room."""
    place = next(path for path in (folder, *folder.parents) if path.is_dir())
    probe = place / f".aiaas-doctor-{secrets.token_hex(4)}"
    try:
        with probe.open("xb") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return fails("state folder", f"{place} cannot be written ({error.strerror})", "Use another folder: set AIAAS_HOME, or --state.")
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    usage = shutil.disk_usage(place)
    keep = min(KEEP_FREE_BYTES, int(KEEP_FREE_SHARE * usage.total))
    text = f"{folder}: {usage.free / 1e9:,.3g} of {usage.total / 1e9:,.3g} GB free"
    if usage.free <= keep:
        text = f"{text}, and {keep / 1e9:,.2g} GB are kept free: {(keep - usage.free) / 1e9:,.2g} GB are missing for any job"
        return fails("state folder", text, "Free some with `aiaas storage --free`, or move the folder: set AIAAS_HOME.")
    return ok("state folder", text)


def check_shared_memory(*, workers: int, model_bytes: float, path: Path = SHARED_MEMORY, state: Path | None = None) -> Finding:
    """Whether `workers` processes can exchange the gradients of a model of `model_bytes` through shared memory."""
    needed = HALVES * workers * model_bytes if workers > 1 else 0.0
    wish = f"{workers} workers with a model of {model_bytes / 1e6:,.0f} MB exchange through {needed / 1e6:,.0f} MB"
    if not path.is_dir() or not os.access(path, os.W_OK):
        return note("shared memory", f"{path} cannot be used; {wish} of a file in the state folder instead", "Mount a tmpfs there.")
    free = shutil.disk_usage(path).free
    if free >= needed:
        return ok("shared memory", f"{path} has {free / 1e6:,.0f} MB free; {wish}")
    text = f"{path} has {free / 1e6:,.0f} MB free; {wish}, so {(needed - free) / 1e6:,.0f} MB are missing"
    fix = f"Start the container with --shm-size={-(-int(2 * needed) // 10**6)}m, or use fewer --workers."
    if state is not None:
        place = next(folder for folder in (state, *state.parents) if folder.is_dir())
        if shutil.disk_usage(place).free < needed:
            return fails("shared memory", f"{text}, and the state folder's disk has no room for it either", fix)
    return note("shared memory", f"{text}; a file in the state folder is used instead, which is slower", fix)


def check_ports(host_name: str, ports: Sequence[int]) -> Finding:
    """Whether the ports can be listened on; 0 is any port of the system's choice."""
    for port in ports:
        family = socket.AF_INET6 if ":" in host_name else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            if os.name != "nt":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host_name, port))
            except OSError as error:
                fix = "Choose another with `aiaas serve --port`, or end the program that has it (`ss -ltnp` names it)."
                return fails("ports", f"could not listen on {host_name}:{port} ({error.strerror})", fix)
    shown = ", ".join(str(port) for port in ports if port) or "any"
    return ok("ports", f"can listen on {host_name}, port {shown}")


def check_cgroup(*, workers: int, root: Path = host.CGROUPS) -> Finding:
    """The limits of the control group that this process is in, against what so many workers need."""
    if not (root / "cgroup.controllers").exists() and not (root / "memory.max").exists():
        return note(
            "cgroup", "no cgroup v2 is mounted: jobs cannot be given limits of their own", "Boot with systemd.unified_cgroup_hierarchy=1."
        )
    memory, tasks, cores = _limit(root / "memory.max"), _limit(root / "pids.max"), host.cpu_quota(root)
    shown = f"v2; memory {_gigabytes(memory)}, processes {tasks or 'unlimited'}, cores {'unlimited' if cores is None else f'{cores:g}'}"
    needed_bytes, needed_tasks = workers * WORKER_BYTES, SERVER_TASKS + workers * WORKER_TASKS
    if memory and memory < needed_bytes:
        text = (
            f"{shown}; {workers} workers need at least {needed_bytes / 1e9:.2g} GB, so {(needed_bytes - memory) / 1e9:.2g} GB are missing"
        )
        return fails("cgroup", text, "Raise the container's memory limit (docker run --memory), or use fewer --workers.")
    if tasks and tasks < needed_tasks:
        text = f"{shown}; {workers} workers need some {needed_tasks}"
        return fails("cgroup", text, "Raise the limit (docker run --pids-limit, TasksMax= of the systemd unit).")
    return ok("cgroup", shown)


def _limit(file: Path) -> int:
    """A number in a cgroup's file; 0 without a limit."""
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text(encoding="ascii"))
    return 0


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.3g} GB" if count else "unlimited"


def check_isolation(path: str | None = None) -> Finding:
    """Whether a process can be started in namespaces of its own here: by bubblewrap, else by `unshare`."""
    for program, arguments in (
        ("bwrap", ("--ro-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "true")),
        ("unshare", ("--user", "--map-root-user", "--pid", "--fork", "true")),
    ):
        command = shutil.which(program, path=path)
        if command is None:
            continue
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if subprocess.run([command, *arguments], capture_output=True, timeout=PROBE_S).returncode == 0:
                return ok("isolation", f"{program} works here. Jobs do not use it yet: each runs as the server's account")
    return note(
        "isolation",
        "processes cannot be put into namespaces of their own. Jobs run as the server's account in any case",
        "Install bubblewrap (`apt install bubblewrap`), and allow user namespaces.",
    )


def check_open_files(limits: tuple[int, int] | None = None) -> Finding:
    """The limit of open files (soft, hard)."""
    if limits is None:
        try:
            import resource
        except ImportError:  # Windows has no such limit
            return ok("open files", "this system sets no limit")
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (2**31 if limit < 0 else limit for limit in limits)
    fix = f"Run `ulimit -n {min(hard, 65536)}` before the server starts, or set LimitNOFILE= in its systemd unit."
    if soft < FEW_FILES:
        return fails("open files", f"at most {soft} per process; at least {FEW_FILES} are needed", fix)
    if soft < GOOD_FILES:
        return note("open files", f"at most {soft} per process, which is enough for a few notebooks", fix)
    return ok("open files", f"at most {soft:,} per process")
