"""Start costs: importing the package, the server before any model, and a second job's way to its first step.

The peer of the import is `import numpy`; of the second job plain `fit` of a fresh model in a
warm process, which must trace and compile as well.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.environments import python_of
from benchmarks.report import Sample, compared, interleaved, ratio, save

REPEATS = 5


@contextmanager
def own_home() -> Iterator[Path]:
    from aiaas_magics.client import embedded

    with tempfile.TemporaryDirectory(prefix="aiaas-bench-") as folder:
        os.environ["AIAAS_HOME"] = folder
        try:
            yield Path(folder)
        finally:
            embedded.stop_local()


def seconds_to_import(module: str) -> float:
    probe = f"import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"
    return float(subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True).stdout)


def imports() -> list[dict[str, object]]:
    found = interleaved(
        {
            "aiaas_magics": lambda: seconds_to_import("aiaas_magics"),
            "aiaas_magics.client.client": lambda: seconds_to_import("aiaas_magics.client.client"),
            "numpy": lambda: seconds_to_import("numpy"),
        },
        repeats=REPEATS,
    )
    return [
        {"what": f"import {name}", "seconds": str(sample), "to_numpy": str(ratio(sample, found["numpy"]))} for name, sample in found.items()
    ]


def server() -> list[dict[str, object]]:
    """Start of the local server until it answers, and its resident memory before any model."""
    from aiaas_magics.client import embedded

    starts, memory = [], []
    for _ in range(REPEATS):
        with own_home() as home:
            began = time.perf_counter()
            embedded.ensure_local()
            starts.append(time.perf_counter() - began)
            time.sleep(1.0)
            memory.append(server_memory_mb(home))
    return [
        {"what": "server start to first answer", "seconds": str(Sample(tuple(starts)))},
        {"what": "server's resident memory", "MB": str(Sample(tuple(memory)))},
    ]


def server_memory_mb(home: Path) -> float:
    told = json.loads(next(home.glob("local-*/server.json")).read_text())
    return psutil.Process(told["pid"]).memory_info().rss / 1e6


def second_job() -> list[dict[str, object]]:
    """Submit to the end of the first step, for a second job; beside plain `fit` of one step in this warm process."""
    import keras
    import numpy as np

    import aiaas_magics
    from aiaas_magics.events import Compiled

    x = np.random.default_rng(0).normal(size=(640, 100)).astype("float32")
    y = (x[:, 0] > 0).astype("float32")

    def model() -> keras.Model:
        made = keras.Sequential(
            [keras.Input((100,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(32, "relu"), keras.layers.Dense(1, "sigmoid")]
        )
        made.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
        return made

    def plain() -> float:
        fresh = model()
        began = time.perf_counter()
        fresh.fit(x[:32], y[:32], epochs=1, verbose=0)
        return time.perf_counter() - began

    with own_home(), aiaas_magics.connect() as backend:

        def ours() -> float:
            fresh = model()
            began = time.time()
            job = backend.train(fresh, x, y, epochs=1, batch_size=32)
            job.result(120)
            return next(entry.at_s for entry in job.entries() if isinstance(entry.event, Compiled)) - began

        ours()  # the first job: the launcher imports the libraries
        plain()
        found = interleaved({"submit to first step": ours, "plain fit, one step": plain}, repeats=REPEATS)
    gap = statistics.median(a - b for a, b in zip(*(sample.values for sample in found.values()), strict=True))
    rays = ray_train()
    ours_s = Sample(found["submit to first step"].values[: len(rays.values)])
    return [
        *({"what": name, "seconds": str(sample)} for name, sample in found.items()),
        {"what": "beyond plain trace and compile", "seconds": f"{gap:.3g}", "goal": 1},
        {"what": "Ray Train 2.60, fit() to first step, Ray up and warm", "seconds": str(rays)},
        compared("submit to first step, warm", "Ray Train 2.60", ratio(ours_s, rays), goal=0.1),
    ]


def ray_train() -> Sample:
    """Seconds to a first step with Ray Train, in an environment of its own, on the same machine right after."""
    python = python_of("ray", ["ray[train]==2.60.0"], sees_ours=True)
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    told = subprocess.run([str(python), "-m", "benchmarks.ray_train"], check=True, capture_output=True, text=True, env=environment)
    return Sample(tuple(json.loads(told.stdout.splitlines()[-1])))


if __name__ == "__main__":
    save("start", [*imports(), *server(), *second_job()])
