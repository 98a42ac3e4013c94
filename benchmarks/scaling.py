"""Two workers against one, one core each: the CNN of the design, 28x28 images, 4,096 rows, batch 256.

Real worker processes of the training runtime. Each round measures one worker, then two, and the ratio is
taken within the round; of an attempt's repeats the fastest counts, because what others on the machine take
away from one of two cores, two workers lose twice. Compiling is left out.

The bound beside it is what this machine gives two processes at all: two workers at once that have nothing
to do with one another, each with half the batch.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from aiaas_magics import wire
from aiaas_magics.backend.training.command import WorkerCommand, WorkerLine
from aiaas_magics.backend.workers.attempt import AttemptFolder, write_value
from aiaas_magics.spec import Measured, MeasureSpec
from benchmarks.report import interleaved, ratio, save

ROWS, BATCH = 4096, 256
STEPS = 4  # a repeat: short, so that some repeats see a quiet machine
ROUNDS = 5
REPEATS = 16
WAIT_S = 600.0


def cnn() -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def mlp() -> Any:
    """5.2 million parameters: much to exchange for little to compute."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input((784,)),
            layers.Dense(2048, activation="relu"),
            layers.Dense(1536, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def pack(folder: Path, model: Any, shape: tuple[int, ...], batch: int) -> dict[str, Any]:
    """The fit call in files; what every command has in common."""
    from aiaas_magics.packing import fitcall

    folder.mkdir()
    random = np.random.default_rng(0)
    x, y = random.random((ROWS, *shape), dtype=np.float32), random.integers(0, 10, ROWS)
    packed = fitcall.pack(fitcall.FitCall(model, {"x": x, "y": y, "batch_size": batch}), workers=2)
    (folder / "payload").write_bytes(packed.payload)
    for place, array in enumerate(packed.arrays):
        np.save(folder / f"{place}.npy", array)
    return {"payload": str(folder / "payload"), "arrays": tuple(str(folder / f"{place}.npy") for place in range(len(packed.arrays)))}


def measure(folder: Path, sent: dict[str, Any], *, ranks: int, steps: int, attempts: int = 1) -> float:
    """Seconds of one repeat on `ranks` workers, the fastest of one attempt; of several attempts at once, the slowest's."""
    cores = iter(sorted(os.sched_getaffinity(0)) * 2)
    begun = [start(folder, sent, ranks=ranks, steps=steps, cores=[next(cores) for _ in range(ranks)]) for _ in range(attempts)]
    processes = [process for _, started in begun for process in started]
    try:
        codes = [process.wait(WAIT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        raise SystemExit("\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*/output-*.txt"))))
    return max(min(measured_in(attempt)) for attempt, _ in begun)


def start(
    folder: Path, sent: dict[str, Any], *, ranks: int, steps: int, cores: list[int]
) -> tuple[AttemptFolder, list[subprocess.Popen[bytes]]]:
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
            measure=MeasureSpec(steps=steps, repeats=REPEATS),
            reduce_name=name,
            **sent,
        )
        write_value(attempt.command(rank), command)
        arguments = [sys.executable, "-m", "aiaas_magics.backend.workers.child", str(attempt.command(rank))]
        with attempt.output(rank).open("wb") as output:
            processes.append(subprocess.Popen(arguments, stdout=output, stderr=output, env=environment))
    return attempt, processes


def measured_in(attempt: AttemptFolder) -> tuple[float, ...]:
    events = [wire.decode(line, WorkerLine).event for line in attempt.events(0).read_bytes().splitlines()]
    [measured] = [event for event in events if isinstance(event, Measured)]
    return measured.seconds


def compare(what: str, model: Any, shape: tuple[int, ...], *, batch: int, steps: int, rounds: int = ROUNDS) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="aiaas-scaling-") as name:
        folder = Path(name)
        sent, half = pack(folder / "whole", model, shape, batch), pack(folder / "half", model, shape, batch // 2)
        found = interleaved(
            {
                "one": lambda: measure(folder, sent, ranks=1, steps=steps),
                "two": lambda: measure(folder, sent, ranks=2, steps=steps),
                "apart": lambda: measure(folder, half, ranks=1, steps=steps, attempts=2),
            },
            repeats=rounds,
        )
    speedup = ratio(found["one"], found["two"])
    return {
        "what": what,
        "steps": steps,
        "one_worker_s": str(found["one"]),
        "two_workers_s": str(found["two"]),
        "two_apart_s": str(found["apart"]),
        "speedup": str(speedup),
        "bound": str(ratio(found["one"], found["apart"])),
        "rounds": json.dumps([round(value, 3) for value in speedup.values]),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    save(
        "scaling",
        [
            compare("CNN 28x28, batch 256", cnn(), (28, 28, 1), batch=BATCH, steps=STEPS) | {"goal": "1.8"},
            compare("MLP 5.2 M parameters, batch 512", mlp(), (784,), batch=512, steps=STEPS, rounds=3),
        ],
    )


if __name__ == "__main__":
    main()
