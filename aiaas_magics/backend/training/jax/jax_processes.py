"""Processes on JAX: several that run one program, each with its devices.

Owns their meeting: through JAX's own coordination, which joins their devices, and as a `ProcessGroup`, in which they agree on what
each decides by its own clock. The coordinator listens on loopback only and knows no secret, so that whoever has an account on
this machine can disturb it (docs/lab/training.md). What is computed, and exchanged (by gloo on a CPU), is JAX's.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import jax

from aiaas_magics.backend.folders.small_files import write_private
from aiaas_magics.backend.training.comm.process_group import MEET_S, ProcessGroup, RankMissing
from aiaas_magics.backend.training.comm.shared_memory_group import SharedMemoryGroup
from aiaas_magics.backend.training.worker_command import WorkerCommand

ADDRESS: Final = "coordinator.txt"  # in the attempt's folder
LOOK_S: Final = 0.02
GONE_S: Final = 2.0  # for the end of a process to be seen by those that it exchanged with (guess)
LAST_WORD_S: Final = 0.5  # as in `worker_main`: for the server to see the end that came first (guess)


def join(command: WorkerCommand) -> None:
    """Make the devices of all processes one machine. Must come before anything touches a device."""
    path = Path(command.attempt_dir) / ADDRESS
    if command.rank == 0:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        write_private(path, address.encode())
    else:
        address = _read(path)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM for a notice, and whoever ends a worker means it
    jax.distributed.initialize(
        address,
        command.ranks,
        command.rank,
        initialization_timeout=round(MEET_S),
        coordinator_bind_address=address,  # without it the coordinator, which asks for no secret, listens on all interfaces
    )


def _read(path: Path) -> str:
    deadline = time.monotonic() + MEET_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise RankMissing(0, f"did not come within {MEET_S:g} s")
        time.sleep(LOOK_S)
    return path.read_text()


@contextlib.contextmanager
def meeting(command: WorkerCommand) -> Iterator[ProcessGroup]:
    """The processes as ranks. An exchange of JAX's that fails because one of them is gone is told as that.

    All leave together: JAX ends those that are left behind.
    """
    with SharedMemoryGroup(
        rank=command.rank, ranks=command.ranks, name=command.reduce_name, folder=Path(command.attempt_dir), spin=False
    ) as group:
        try:
            yield group
        except jax.errors.JaxRuntimeError as error:
            if (missing := group.missing(within_s=GONE_S)) is not None:
                raise missing from error
            raise
        group.barrier()
        jax.distributed.shutdown()


def let_others_end(error: BaseException, *, ranks: int) -> None:
    """Before `error` is told: if it is an exchange that failed because another process is gone, the server sees that first."""
    if ranks > 1 and isinstance(error, jax.errors.JaxRuntimeError):
        time.sleep(LAST_WORD_S)
