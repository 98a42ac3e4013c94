"""Table of pools: the name that `aiaas serve --pool` takes, and what makes the pool.

Owns the table. A pool is its folder beside this file and a row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiaas_magics.backend.workers.local.local_pool import LocalPool
from aiaas_magics.backend.workers.pool import PoolFactory

POOLS: Final[Mapping[str, PoolFactory]] = {
    "local": LocalPool.open,
}
