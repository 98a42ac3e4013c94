"""Worker pool: the seam between a server and the places where worker processes live.

Owns the Protocol and the setting that each pool is made from. `pools` has the table of pools, `attempt` the handle that they hand out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aiaas_magics.backend.workers.attempt import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSetting:
    """What a pool is made from: the server's state folder, in which jobs/<id>/ is each job's, and options of its own."""

    state: Path
    launcher_options: Sequence[str] = ()


class WorkerPool(Protocol):
    """Hands out attempts, and ends with nothing left behind.

    Promises, tested for every pool in tests/contracts/test_worker_pool.py:

    * `attempt` hands out a new one: what an earlier attempt of that number left is cleared.
    * `adopt` hands out one that an earlier pool on the same state started, from `offsets` on. Where
      `survives_server_restart` says so its workers go on meanwhile; elsewhere every rank has ended.
    * `attempts_of` finds every attempt of a job that left something, alive or not.
    * After `close` no process started here is alive, helpers included.
    """

    survives_server_restart: bool

    def warm(self) -> None:
        """Begin to get ready; returns at once, and what goes wrong shows at `Attempt.start`."""

    async def keep_house(self, *, is_wanted: bool) -> None:
        """Called twice a minute; `is_wanted` says that jobs run, or that a client was here since the last call."""

    async def attempt(self, job: str, number: int, /, *, ranks: int) -> Attempt: ...

    async def adopt(self, job: str, number: int, /, *, ranks: int, offsets: Mapping[str, int]) -> Attempt: ...

    async def attempts_of(self, job: str, /) -> Sequence[Attempt]: ...

    async def close(self) -> None: ...


PoolFactory = Callable[[PoolSetting], WorkerPool]
