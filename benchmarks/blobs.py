"""One gigabyte of arrays on its way to the workers, beside `numpy.save` of the same array."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import interleaved, ratio, save
from benchmarks.start import own_home

BYTES = 2**30
REPEATS = 4


def main() -> None:
    import aiaas_magics

    array = np.random.default_rng(0).random(BYTES // 8)
    with own_home() as home, aiaas_magics.connect() as backend, tempfile.TemporaryDirectory(dir=home) as folder:
        numbers = itertools.count()

        def peer() -> float:
            # A file of its own each time, as each blob is one: memory that was just freed is written ten times faster.
            target = Path(folder) / f"peer-{next(numbers)}.npy"
            began = time.perf_counter()
            np.save(target, array)
            return time.perf_counter() - began

        def first() -> float:
            array[0] += 1  # other bytes, another blob
            began = time.perf_counter()
            backend.blobs.send_arrays(backend.blobs.look_up([array]))
            return time.perf_counter() - began

        def again() -> float:
            began = time.perf_counter()
            backend.blobs.send_arrays(backend.blobs.look_up([array]))
            return time.perf_counter() - began

        found = interleaved({"numpy.save": peer, "send": first, "send again": again}, repeats=REPEATS)
    save(
        "blobs",
        [
            {"what": name, "seconds": str(sample), "to_numpy_save": str(ratio(sample, found["numpy.save"]))}
            for name, sample in found.items()
        ],
    )


if __name__ == "__main__":
    main()
