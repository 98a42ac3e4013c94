"""What recording costs: requests/s of an endpoint with nothing recorded, with 1 % and with all, in turns on one process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import timeit
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from aiaas_magics.backend.serving.models.recorder import ChosenRequest, Recorder, recorded
from aiaas_magics.core.recording import RecordingPolicy, frame_of
from aiaas_magics.core.scaling.endpoint_samples import counts_in
from aiaas_magics.core.spec import RecordingChange
from benchmarks import serving
from benchmarks.report import Sample, compared, ratio, save
from benchmarks.serving import EXPORT, Measured, Ours, Target, binary_target, load

ROUNDS = 7
CONNECTIONS = 16
SHARES = {"off": 0.0, "1 %": 0.01, "100 %": 1.0}


@dataclass
class Turns(Measured):
    """What rounds found of one share, and the server's CPU time per request."""

    cpu_us: list[float] = field(default_factory=list)


def measured(ours: Ours, target: Target) -> dict[str, Turns]:
    found = {name: Turns() for name in SHARES}
    for _ in range(ROUNDS):
        for name, share in SHARES.items():
            ours.record("article", RecordingChange(policy=RecordingPolicy(share=share)))
            spent_s, answers = cpu_s(ours), answered(ours)
            found[name].add(load(target, CONNECTIONS))
            found[name].cpu_us.append(1e6 * (cpu_s(ours) - spent_s) / (answered(ours) - answers))
    return found


def cpu_s(ours: Ours) -> float:
    times = ours.process.cpu_times()
    return float(times.user + times.system)


def answered(ours: Ours) -> float:
    target = ours.target("/metrics", Path())
    request = urllib.request.Request(target.url, headers={"Authorization": f"Bearer {target.token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return sum(counts.answered for counts in counts_in(answer.read().decode(), "article").values())


def rows_of(what: str, found: dict[str, Turns]) -> list[dict[str, object]]:
    off = found["off"]
    rows: list[dict[str, object]] = [{"what": f"{what}, nothing recorded", "requests/s": str(off.sample("rate"))}]
    for name, goal in (("1 %", 0.97), ("100 %", 0.5)):
        times = ratio(found[name].sample("rate"), off.sample("rate"))
        rows.append(compared(f"{what}, {name} recorded: requests/s", "nothing recorded", times, goal=goal, higher_is_better=True))
        spent = ratio(found[name].sample("cpu_us"), off.sample("cpu_us"))
        rows.append(compared(f"same, {name} recorded: the server's CPU time per request", "nothing recorded", spent))
        late = ratio(found[name].sample("p99_us"), off.sample("p99_us"))
        rows.append(compared(f"same, {name} recorded: p99", "nothing recorded", late))
    # What two halves of the same differ by: below that nothing can be said.
    half = ROUNDS // 2
    again = ratio(Sample(tuple(off.cpu_us[:half])), Sample(tuple(off.cpu_us[-half:])))
    rows.append(compared("same, nothing recorded: the server's CPU time per request", "the same again", again))
    return rows


def per_request() -> list[dict[str, object]]:
    """What a request of 100 numbers costs in the event loop, and in the thread that writes: alone, without a server around it."""
    x, y = {"x": np.zeros((1, 100), "float32")}, {"y": np.zeros((1, 1), "float32")}
    count, repeats = 10_000, 30

    def offering(share: float) -> Callable[[], None]:
        recorder = Recorder(RecordingPolicy(share=share))

        def offer() -> None:
            for number in range(count):
                recorder.offer(1, x, y, rows=1, id=None)
                if number % 500 == 0:
                    recorder.take()

        return offer

    def looking() -> None:
        version = SimpleNamespace(recorder=None)
        for _ in range(count):
            if version.recorder is not None:
                raise AssertionError

    def writing() -> None:
        for _ in range(count // 10):
            request = recorded(ChosenRequest(0.0, 1, "", 1, x, y), 4_000_000)
            assert request is not None
            frame_of(request)

    def quickest_ns(run: Callable[[], None], calls: int) -> float:
        return round(1e9 * min(timeit.repeat(run, number=1, repeat=repeats)) / calls)

    return [
        {
            "what": "the recorder alone, ns per request (quickest of 30)",
            "off": quickest_ns(looking, count),
            "1 % recorded": quickest_ns(offering(0.01), count),
            "100 % recorded": quickest_ns(offering(1.0), count),
            "bytes of a recorded request, in the thread": quickest_ns(writing, count // 10),
        }
    ]


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
            *per_request(),
            *rows_of(f"one JSON row of 100 numbers, {CONNECTIONS} connections", measured(ours, json_row)),
            *rows_of(f"64 rows as a binary tensor, {CONNECTIONS} connections", measured(ours, binary_rows)),
        ]
        counts = ours.recorded_counts("article")
        rows.append({"what": "after the last round with all recorded", "recorded": str(counts)})
    save("recording", rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        ROUNDS, serving.SECONDS = int(sys.argv[1]), 1.0  # to look at it quickly
    main()
