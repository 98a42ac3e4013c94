"""Stands for worker processes: forks a fresh one for each folder named on standard input, and trains there.

It has imported the libraries and nothing of the test's: no `__main__` of a cell, no helper module.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path


def train(folder: Path) -> None:
    import keras
    import numpy as np

    from aiaas_magics.packing.fitcall import fit_call

    os.chdir(folder)
    arrays = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))]
    unpacked = fit_call.unpack((folder / "payload").read_bytes(), arrays)
    history = keras.Model.fit(unpacked.model, **{**unpacked.arguments, "verbose": 0})
    fit_call.write_result(folder / "result.safetensors", unpacked, history)
    check = folder / "check.py"
    if check.exists():
        exec(compile(check.read_text(), str(check), "exec"), {"model": unpacked.model, "arguments": unpacked.arguments})


def main() -> None:
    import keras  # noqa: F401 - imported once, for all the children
    import tensorflow as tf  # noqa: F401

    from aiaas_magics.packing.fitcall import fit_call  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        folder = Path(line.strip())
        child = os.fork()
        if child == 0:
            try:
                train(folder)
            except BaseException:  # noqa: BLE001 - border: what went wrong is the test's to read
                (folder / "failure.txt").write_text(traceback.format_exc())
            os._exit(0)
        os.waitpid(child, 0)
        print("done", flush=True)


if __name__ == "__main__":
    main()
