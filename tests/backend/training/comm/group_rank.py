"""One rank of a group, without TensorFlow: does what it is told, and prints what it got as JSON.

python group_rank.py RANK RANKS NAME FOLDER WHAT
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from aiaas_magics.backend.training.comm.shared_memory_group import SharedMemoryGroup


def everything(group: SharedMemoryGroup) -> dict[str, object]:
    mine = np.arange(3.0) + 10 * group.rank
    shapes = [(5,), (2, 3), (), (1000, 7)]
    arrays = [np.full(shape, 1.0 + group.rank, dtype=np.float32) for shape in shapes]
    sums = [group.all_reduce(arrays, 0.5, site="sums") for _ in range(5)][-1]
    rows = [group.concatenate(np.full((group.rank * turn, 2), group.rank), site="rows").tolist() for turn in range(3)]
    return {
        "sum": group.sum(mine, site="sum").tolist(),
        "gathered": group.all_gather(mine, site="gather").tolist(),
        "weighted": [float(found.mean()) for found in sums],
        "shapes": [found.shape for found in sums] == shapes,
        "aligned": all(found.ctypes.data % 64 == 0 for found in sums),
        "rows": rows,
        "any": [group.any(group.rank == 1, site="any"), group.any(False, site="any")],
        "first": group.broadcast(5 if group.rank == 0 else 6.5, site="first"),
        "same": group.mean_of_different(np.array([0.1, float(group.rank)]), site="mean").tolist(),
        "many": float(sum(group.sum(np.array([turn + group.rank]), site="many")[0] for turn in range(300))),
    }


def late(group: SharedMemoryGroup) -> dict[str, object]:
    if group.rank == 1:
        time.sleep(60)
    return {"sum": group.sum(np.ones(1), site="sum").tolist()}


def leaves(group: SharedMemoryGroup) -> dict[str, object]:
    return {} if group.rank == 1 else {"sum": group.sum(np.ones(1), site="sum").tolist()}


def dies(group: SharedMemoryGroup) -> dict[str, object]:
    if group.rank == 0:
        os._exit(9)
    return {"sum": group.sum(np.ones(1), site="sum").tolist()}


def disagrees(group: SharedMemoryGroup) -> dict[str, object]:
    return {"sum": group.sum(np.ones(1 + group.rank), site="sum").tolist()}


def main() -> None:
    rank, ranks, name, folder, what = sys.argv[1:]
    with SharedMemoryGroup(
        rank=int(rank), ranks=int(ranks), name=name, folder=Path(folder), spin=False, meet_s=20.0, wait_s=60.0 if what == "dies" else 2.0
    ) as group:
        print(json.dumps({"everything": everything, "late": late, "leaves": leaves, "dies": dies, "disagrees": disagrees}[what](group)))


if __name__ == "__main__":
    main()
