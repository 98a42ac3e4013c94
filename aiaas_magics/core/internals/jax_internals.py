"""Private names of JAX 0.10: their paths.

Owns the table. `tests/packing/test_internals.py` holds it against what is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiaas_magics.core.internals import look_up

# Behind a colon stands a name in a module; without one it is the module itself.
PATHS: Final[Mapping[str, str]] = {
    "xla_bridge": "jax._src.xla_bridge",
}


def __getattr__(name: str) -> Any:
    return look_up("jax", PATHS, name, globals())
