"""Two workers against one, one core each, and against what one would use instead on both cores (`peers`).

Real worker processes of the training runtime. Each round measures one worker, then two, and the ratio is
taken within the round; of an attempt's repeats the fastest counts, because what others on the machine take
away from one of two cores, two workers lose twice. Compiling is left out.

The bound beside it is what this machine gives two processes at all: two workers at once that have nothing
to do with one another, each with half the batch.
"""

from __future__ import annotations

import functools
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aiaas_magics.backend.training.worker_command import WorkerCommand, WorkerLine
from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder, write_value
from aiaas_magics.core import wire
from aiaas_magics.core.events import Measured
from aiaas_magics.core.spec import MeasureSpec
from benchmarks import models, peers
from benchmarks.report import compared, interleaved, ratio, save

STEPS = 4  # a repeat: short, so that some repeats see a quiet machine
ROUNDS = 5
EPOCHS = 100  # of the fit whose steps are measured: the plan's form of a step is that of a fit for which one takes several workers
WAIT_S = 600.0


def pack(folder: Path, model: Any, batch: int) -> dict[str, Any]:
    """The fit call in files; what every command has in common."""
    from aiaas_magics.packing.fitcall import fit_call

    folder.mkdir()
    x, y = models.data(model, peers.ROWS)
    packed = fit_call.pack(fit_call.FitCall(model, {"x": x, "y": y, "batch_size": batch, "epochs": EPOCHS}), workers=2)
    (folder / "payload").write_bytes(packed.payload)
    for place, array in enumerate(packed.arrays):
        np.save(folder / f"{place}.npy", array)
    return {"payload": str(folder / "payload"), "arrays": tuple(str(folder / f"{place}.npy") for place in range(len(packed.arrays)))}


def measure(folder: Path, sent: dict[str, Any], *, ranks: int, attempts: int = 1) -> float:
    """Seconds of one repeat on `ranks` workers, the fastest of one attempt; of several attempts at once, the slowest's."""
    cores = iter(sorted(os.sched_getaffinity(0)) * 2)
    begun = [start(folder, sent, ranks=ranks, cores=[next(cores) for _ in range(ranks)]) for _ in range(attempts)]
    processes = [process for _, started in begun for process in started]
    try:
        codes = [process.wait(WAIT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        raise SystemExit("\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*/output-*.txt"))))
    return max(min(measured_in(attempt)) for attempt, _ in begun)


def start(folder: Path, sent: dict[str, Any], *, ranks: int, cores: list[int]) -> tuple[AttemptFolder, list[subprocess.Popen[bytes]]]:
    name = f"aiaas-{secrets.token_hex(6)}"
    attempt = AttemptFolder(folder / name)
    attempt.path.mkdir()
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    processes = []
    for rank in range(ranks):
        command = WorkerCommand(
            job="scaling",
            attempt=1,
            rank=rank,
            ranks=ranks,
            attempt_dir=str(attempt.path),
            job_dir=str(folder),
            seed=1,
            cores=(cores[rank],),
            measure=MeasureSpec(steps=STEPS, repeats=peers.REPEATS),
            reduce_name=name,
            **sent,
        )
        write_value(attempt.command(rank), command)
        arguments = [sys.executable, "-m", "aiaas_magics.backend.workers.worker_main", str(attempt.command(rank))]
        with attempt.output(rank).open("wb") as output:
            processes.append(subprocess.Popen(arguments, stdout=output, stderr=output, env=environment))
    return attempt, processes


def measured_in(attempt: AttemptFolder) -> tuple[float, ...]:
    events = [wire.decode(line, WorkerLine).event for line in attempt.events(0).read_bytes().splitlines()]
    [measured] = [event for event in events if isinstance(event, Measured)]
    return measured.seconds


def compare(what: str, name: str, *, batch: int, goal: float, others: Mapping[str, str]) -> list[dict[str, object]]:
    """How many times as quick two workers are as one, as each of `others` (peer: what it is), and what the machine allows."""
    with tempfile.TemporaryDirectory(prefix="aiaas-scaling-") as temporary:
        folder, model = Path(temporary), models.ALL[name]()
        sent, half = pack(folder / "whole", model, batch), pack(folder / "half", model, batch // 2)
        found = interleaved(
            {
                "one": lambda: measure(folder, sent, ranks=1),
                "two": lambda: measure(folder, sent, ranks=2),
                "apart": lambda: measure(folder, half, ranks=1, attempts=2),
                **{peer: functools.partial(peers.measured, peer, name, batch=batch, steps=STEPS) for peer in others},
            },
            repeats=ROUNDS,
        )
    times = functools.partial(compared, higher_is_better=True)
    return [
        times(f"{what}: two workers", "one worker", ratio(found["one"], found["two"]), goal=goal),
        times(f"{what}: two independent processes (upper bound)", "one worker", ratio(found["one"], found["apart"])),
        *(times(f"{what}: two workers", said, ratio(found[peer], found["two"]), goal=1.0) for peer, said in others.items()),
    ]


PLAIN = {"plain": "plain fit on both cores"}
DISTRIBUTED = {"collectives": "TensorFlow's collectives over gRPC, two processes", "jax": "Keras' DataParallel on JAX, two devices"}


def main() -> None:
    save(
        "scaling",
        [
            *compare("CNN 28x28, batch 256", "cnn", batch=256, goal=1.95, others=PLAIN),
            *compare("MLP 5.2 M parameters, batch 512", "mlp", batch=512, goal=1.7, others=PLAIN | DISTRIBUTED),
        ],
    )


if __name__ == "__main__":
    main()
