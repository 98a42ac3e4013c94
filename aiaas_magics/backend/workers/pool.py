"""Where worker processes live, as a list of promises.

Owns the Protocol. `local_pool` keeps it with processes of this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aiaas_magics.backend.training.worker_command import WorkerCommand as WorkerCommand  # given on: what `start` takes
from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder


class WorkerPool(Protocol):
    """Starts and stops the processes of attempts; what they say stands in the attempt's folder.

    Promises, tested for every pool in tests/backend/workers/test_worker_pool.py:

    * `start` returns when a process exists for each command, not when it is ready; when it
      raises, `stop` still ends what was started.
    * Each process has a pid file from its beginning and, while the pool's own helper lives, an
      exit file from its end.
    * `stop` may be called twice, at the same time, and for processes that are dead already.
      When it returns, no process of the attempt lives, and none will start.
    * `clear` removes what an ended attempt left outside the job: its folder, its shared memory.
    * Workers outlive the server where `survives_server_restart` says so.
    * After `close` no process started here is alive, helpers included.
    """

    survives_server_restart: bool

    def warm(self) -> None:
        """Begin to get ready; returns at once, and what goes wrong shows at `start`."""

    async def start(self, folder: AttemptFolder, commands: Sequence[WorkerCommand], /) -> None: ...

    async def stop(self, folder: AttemptFolder, /, *, ranks: int, patience_s: float = 0.0, grace_s: float = 1.0) -> None: ...

    async def clear(self, folder: AttemptFolder, /) -> None: ...

    async def close(self) -> None: ...
