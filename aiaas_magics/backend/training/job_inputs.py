"""Job inputs: the bytes of a fit call on the backend's disk, checked, then read or mapped.

Owns the check, since a disk may give back other bytes than it was given, and the training would go on with them.
Storing the bytes, and what they should be, belongs to `blob_store`.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash

from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.core.errors import BlobDamaged

BLOCK_BYTES: Final = 4 * 1024 * 1024
SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def payload_of(command: WorkerCommand) -> bytes:
    """Raises `BlobDamaged`."""
    _check(Path(command.payload), command.checks[0] if command.checks else "")
    return Path(command.payload).read_bytes()


def arrays_of(command: WorkerCommand) -> list[npt.NDArray[Any]]:
    """The arrays, mapped, not read: all ranks share one copy in memory, and only what is used is read at all.

    Each array is checked by one rank: a damaged one fails the job whichever rank finds it.

    Raises:
        BlobDamaged: naming the first that is not what was sent.
    """
    checks = command.checks[1:] or ("",) * len(command.arrays)
    for path, check in list(zip(command.arrays, checks, strict=True))[command.rank :: command.ranks]:
        _check(Path(path), check)
    return [np.load(path, mmap_mode="r", allow_pickle=False) for path in command.arrays]


def _check(path: Path, check: str) -> None:
    """`check` is the 128 bits of XXH3 that were kept beside the blob; a blob of an older server has its name only."""
    if not check and not SHA256.fullmatch(path.name):  # no blob: a file of a test's
        return
    digest = xxhash.xxh3_128() if check else hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != (check or path.name):
        raise BlobDamaged(path.name, "its bytes changed on the backend's disk")
