"""Start costs: importing the package, the server before any model, a second job's way to its first step, and whole short fits.

The peer of the import is `import numpy`; of the second job plain `fit` of a fresh model in a
warm process, which must trace and compile as well; of each kind of short fit the same in plain Keras.

    python -m benchmarks.start [fits]         (with `fits` those rows only; the others stay as they were)
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.environments import python_of
from benchmarks.report import RESULTS, Sample, compared, interleaved, ratio, save

REPEATS = 5


@contextmanager
def own_home() -> Iterator[Path]:
    from aiaas_magics.client import local_server

    with tempfile.TemporaryDirectory(prefix="aiaas-bench-") as folder:
        os.environ["AIAAS_HOME"] = folder
        try:
            yield Path(folder)
        finally:
            local_server.stop_local()


def seconds_to_import(module: str) -> float:
    probe = f"import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"
    return float(subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True).stdout)


def imports() -> list[dict[str, object]]:
    found = interleaved(
        {
            "aiaas_magics": lambda: seconds_to_import("aiaas_magics"),
            "aiaas_magics.client.backend": lambda: seconds_to_import("aiaas_magics.client.backend"),
            "numpy": lambda: seconds_to_import("numpy"),
        },
        repeats=REPEATS,
    )
    return [
        {"what": f"import {name}", "seconds": str(sample), "to_numpy": str(ratio(sample, found["numpy"]))} for name, sample in found.items()
    ]


def server() -> list[dict[str, object]]:
    """Start of the local server until it answers, and its resident memory before any model."""
    from aiaas_magics.client import local_server

    starts, memory = [], []
    for _ in range(REPEATS):
        with own_home() as home:
            began = time.perf_counter()
            local_server.ensure_local()
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


def rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(640, 100)).astype("float32")
    return x, (x[:, 0] > 0).astype("float32")


def model(units: int = 64, rate: float = 1e-3) -> Any:
    import keras

    made = keras.Sequential(
        [keras.Input((100,)), keras.layers.Dense(units, "relu"), keras.layers.Dense(32, "relu"), keras.layers.Dense(1, "sigmoid")]
    )
    made.compile(optimizer=keras.optimizers.Adam(rate), loss="binary_crossentropy", metrics=["accuracy"])
    return made


Fit = Callable[..., Any]  # as `model.fit(model, x, y)`: returns the `History`


def short_fits() -> list[dict[str, object]]:
    """Whole fits of one epoch of 20 steps, from the call to the trained model, ours beside plain ones."""
    import aiaas_magics

    with own_home(), aiaas_magics.connect() as backend:

        def ours(model: Any, x: np.ndarray, y: np.ndarray, **more: Any) -> Any:
            return backend.train(model, x, y, epochs=1, batch_size=32, **more).result(120)

        def plain(model: Any, x: np.ndarray, y: np.ndarray, **more: Any) -> Any:
            return model.fit(x, y, epochs=1, batch_size=32, verbose=0, **more)

        kinds = {"first fit": first_fit, "refit": refit(), "refit, other rows": refit(other=True), "5-fold cross-validation": folds}
        kinds |= {"a KerasTuner search of 10 trials": search} if find_spec("keras_tuner") and find_spec("tensorboard") else {}
        found: list[dict[str, object]] = []
        for name, kind in kinds.items():
            for fit in (ours, plain):  # the launcher imports its libraries, and a refit has had its first fit
                kind(fit)
            samples = interleaved(
                {"ours": partial(kind, ours), "plain": partial(kind, plain)}, repeats=3 if "fold" in name or "search" in name else REPEATS
            )
            beyond = statistics.median(a - b for a, b in zip(samples["ours"].values, samples["plain"].values, strict=True))
            found.append(
                {"what": name, "seconds": str(samples["ours"]), "plain_seconds": str(samples["plain"]), "beyond_plain": f"{beyond:.3g}"}
            )
            found.append(compared(f"{name}, whole", "plain fit", ratio(samples["ours"], samples["plain"])))
    return found


_units = itertools.count(65)  # a model that nobody has seen


def first_fit(fit: Fit) -> float:
    fresh = model(next(_units))
    return seconds_of(lambda: fit(fresh, *rows()))


def refit(*, other: bool = False) -> Callable[[Fit], float]:
    models: dict[Fit, Any] = {}
    seeds = itertools.count(1)

    def again(fit: Fit) -> float:
        known, given = models.setdefault(fit, model()), rows(next(seeds) if other else 0)
        return seconds_of(lambda: fit(known, *given))

    return again


def folds(fit: Fit) -> float:
    """Each fold a model built anew, as scikit-learn's `clone` or a function of the user's does."""
    x, y = rows()
    parts = np.arange(len(x)) % 5

    def all_folds() -> None:
        for fold in range(5):
            fit(model(), x[parts != fold], y[parts != fold], validation_data=(x[parts == fold], y[parts == fold]))

    return seconds_of(all_folds)


def search(fit: Fit) -> float:
    """Random search over a width and a learning rate, one epoch a trial."""
    import keras_tuner

    x, y = rows()

    class Built(keras_tuner.HyperModel):  # type: ignore[misc,name-defined]
        def build(self, hp: Any) -> Any:
            return model(hp.Choice("units", [32, 64]), hp.Float("rate", 1e-4, 1e-2, sampling="log"))

        def fit(self, hp: Any, model: Any, *args: Any, **kwargs: Any) -> float:
            return float(fit(model, x[:512], y[:512], validation_data=(x[512:], y[512:])).history["val_loss"][-1])

    with tempfile.TemporaryDirectory(prefix="aiaas-bench-") as folder:
        tuner = keras_tuner.RandomSearch(Built(), max_trials=10, seed=1, overwrite=True, directory=folder)
        return seconds_of(lambda: tuner.search(verbose=0))


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def second_job() -> list[dict[str, object]]:
    """Submit to the end of the first step, for a second job; beside plain `fit` of one step in this warm process."""
    import aiaas_magics
    from aiaas_magics.core.events import Compiled

    x, y = rows()

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


def kept() -> list[dict[str, object]]:
    """The rows of the last run but those of short fits."""
    told: list[dict[str, object]] = json.loads((RESULTS / "start.json").read_text())["rows"]
    return [row for row in told if "plain_seconds" not in row and not str(row["what"]).endswith(", whole")]


if __name__ == "__main__":
    save("start", [*(kept() if sys.argv[1:] == ["fits"] else [*imports(), *server(), *second_job()]), *short_fits()])
