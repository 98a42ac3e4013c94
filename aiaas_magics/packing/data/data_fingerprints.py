"""Data fingerprints: SHA-256 of the arrays that a fit is given and that travel within its payload.

Owns the hash, which is that of the array's `.npy` file, as for arrays that travel apart and are named by it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from aiaas_magics.core.training_record import DataFingerprint


def of_inline(leaves: Iterable[tuple[str, np.ndarray]], *, apart: Sequence[np.ndarray]) -> Iterator[DataFingerprint]:
    """One for each array of the arguments that is not among those that travel apart.

    Args:
        leaves: arrays with their paths, "x" or "validation_data[0]".
    """
    apart_ids = {id(array) for array in apart}
    for path, array in leaves:
        if id(array) not in apart_ids:
            yield DataFingerprint(name=path, dtype=str(array.dtype), shape=array.shape, sha256=npy_sha256(array))


def npy_sha256(array: np.ndarray) -> str:
    """SHA-256 of the `.npy` file of `array`; of Python objects that of their texts."""
    if array.dtype.hasobject:
        return hashlib.sha256(repr(array.tolist()).encode()).hexdigest()
    flat = np.ascontiguousarray(array)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(flat))
    return hashlib.sha256(head.getvalue() + flat.tobytes()).hexdigest()
