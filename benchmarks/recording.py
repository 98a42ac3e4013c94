"""What recording costs: requests/s of an endpoint with nothing recorded, with 1 % and with all, in turns on one process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from aiaas_magics.core.recording import RecordingPolicy
from aiaas_magics.core.spec import RecordingChange
from benchmarks import serving
from benchmarks.report import Sample, compared, ratio, save
from benchmarks.serving import EXPORT, Measured, Ours, Target, binary_target, load

ROUNDS = 7
CONNECTIONS = 16
SHARES = {"off": 0.0, "1 %": 0.01, "100 %": 1.0}


def measured(ours: Ours, target: Target) -> dict[str, Measured]:
    found = {name: Measured() for name in SHARES}
    for _ in range(ROUNDS):
        for name, share in SHARES.items():
            ours.record("article", RecordingChange(policy=RecordingPolicy(share=share)))
            found[name].add(load(target, CONNECTIONS))
    return found


def rows_of(what: str, found: dict[str, Measured]) -> list[dict[str, object]]:
    off = found["off"]
    rows: list[dict[str, object]] = [{"what": f"{what}, nothing recorded", "requests/s": str(off.sample("rate"))}]
    for name, goal in (("1 %", 0.97), ("100 %", 0.5)):
        times = ratio(found[name].sample("rate"), off.sample("rate"))
        rows.append(compared(f"{what}, {name} recorded: requests/s", "nothing recorded", times, goal=goal, higher_is_better=True))
        late = ratio(found[name].sample("p99_us"), off.sample("p99_us"))
        rows.append(compared(f"same, {name} recorded: p99", "nothing recorded", late))
    # What two halves of the same differ by: below that nothing can be said.
    first, second = off.rate[: ROUNDS // 2], off.rate[-(ROUNDS // 2) :]
    rows.append(compared(f"{what}, nothing recorded: requests/s", "the same again", ratio(Sample(tuple(first)), Sample(tuple(second)))))
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="aiaas-recording-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        subprocess.run([sys.executable, "-c", EXPORT, name], check=True, capture_output=True, env=environment)
        ours = stack.enter_context(Ours(folder))
        body = folder / "row.json"
        body.write_text(json.dumps({"instances": np.random.default_rng(0).random((1, 100)).round(6).tolist()}))
        json_row = ours.target("/v1/models/article:predict", body)
        binary_rows = binary_target(ours, "article", folder / "rows.bin", np.random.default_rng(0).random((64, 100), dtype=np.float32))
        rows = [
            *rows_of(f"one JSON row of 100 numbers, {CONNECTIONS} connections", measured(ours, json_row)),
            *rows_of(f"64 rows as a binary tensor, {CONNECTIONS} connections", measured(ours, binary_rows)),
        ]
        counts = ours.recorded_counts("article")
        rows.append({"what": "after the last round with all recorded", "recorded": str(counts)})
    save("recording", rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        ROUNDS, serving.SECONDS = int(sys.argv[1]), 1.0
    main()
