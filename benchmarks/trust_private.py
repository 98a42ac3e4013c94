"""Private training: what a step of DP-SGD costs beside a plain step and beside jax_privacy alone, and what a budget costs in accuracy.

jax_privacy runs in an environment of its own, through its Keras API, on the same model and rows: with Poisson sampling, as here, where each
new size of a batch is compiled, and with batches of one size, which costs it nothing but the step. Accuracy is measured on handwritten
digits (scikit-learn).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environments import python_of
from benchmarks.report import compared, hardware, interleaved, ratio, save

ROUNDS = 3
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "privacy_price.png"
ROWS, COLUMNS, BATCH, EPOCHS = 20_000, 100, 256, 3
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
REPEATS = 3  # of each budget: noise is another one in each run
PEERS = ("jax>=0.10,<0.11", "keras>=3.15.1,<3.16", "jax-privacy==2.0.0", "dp-accounting==0.6.0")

LIBRARY = """
import os, sys, time, json
os.environ["KERAS_BACKEND"] = "jax"
import keras, numpy as np
from jax_privacy import keras_api
data = np.load(sys.argv[1])
batch, epochs, sampled = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "poisson"
steps = len(data["x"]) // batch
x, y = data["x"][: steps * batch], data["y"][: steps * batch]
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((x.shape[1],)), keras.layers.Dense(64, "relu"), keras.layers.Dense(32, "relu"),
                          keras.layers.Dense(1, "sigmoid")])
model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
config = keras_api.DPKerasConfig(epsilon=100.0, delta=1e-5, clipping_norm=1.0, batch_size=batch, gradient_accumulation_steps=1,
    train_steps=10**6, train_size=len(x), noise_multiplier=50.0, poisson_sampling_in_fit=sampled)
model = keras_api.make_private(model, config)
ends = []
class Clock(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        ends.append(time.perf_counter())
model.fit(x, y, batch_size=batch, epochs=epochs + 2, verbose=0, callbacks=[Clock()])
print(json.dumps((ends[-1] - ends[1]) / (epochs * steps)))
"""


def mlp(columns: int = COLUMNS, outputs: int = 1) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    last = keras.layers.Dense(1, "sigmoid") if outputs == 1 else keras.layers.Dense(outputs, "softmax")
    model = keras.Sequential([keras.Input((columns,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(32, "relu"), last])
    model.compile("adam", "binary_crossentropy" if outputs == 1 else "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def steps() -> list[dict[str, object]]:
    import aiaas_magics
    from aiaas_magics.client import local_server
    from aiaas_magics.core.execution import Execution
    from aiaas_magics.core.privacy import Privacy

    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, COLUMNS)).astype("float32")
    y = (x[:, :5].sum(axis=1) > 0).astype("float32")[:, None]
    python = str(python_of("jax-privacy", PEERS))
    with tempfile.TemporaryDirectory(prefix="aiaas-bench-") as folder:
        os.environ["AIAAS_HOME"] = folder
        data = Path(folder) / "rows.npz"
        np.savez(data, x=x, y=y)

        def library(batches: str) -> float:
            command = [python, "-c", LIBRARY, str(data), str(BATCH), str(EPOCHS), batches]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            return float(json.loads(done.stdout.splitlines()[-1]))

        with aiaas_magics.connect() as backend:

            def ours(engine: str, private: Privacy | None) -> float:
                """Seconds per step, the first two epochs aside."""
                execution = Execution(engine=engine, strategy="single", private=private)
                job = backend.train(mlp(), x, y, batch_size=BATCH, epochs=EPOCHS + 2, execution=execution)
                job.result()
                rows = job.story().rows[2:]
                return sum(row.seconds for row in rows) / (len(rows) * -(-ROWS // BATCH))

            budget = Privacy(delta=1e-5, noise=50.0)
            found = interleaved(
                {
                    "jax": lambda: ours("jax", budget),
                    "plain jax": lambda: ours("jax", None),
                    "tensorflow": lambda: ours("tensorflow", budget),
                    "plain tensorflow": lambda: ours("tensorflow", None),
                    "jax_privacy, Poisson": lambda: library("poisson"),
                    "jax_privacy, one size": lambda: library("one size"),
                },
                repeats=ROUNDS,
            )
        local_server.stop_local()
    what = f"DP-SGD step of an MLP, batch {BATCH}: s"
    return [
        compared(f"{what}, JAX", "jax_privacy's Keras API, Poisson", ratio(found["jax"], found["jax_privacy, Poisson"]), goal=1.1),
        compared(
            f"{what}, JAX", "jax_privacy's Keras API, batches of one size", ratio(found["jax"], found["jax_privacy, one size"]), goal=1.1
        ),
        compared(f"{what}, JAX", "plain step, JAX", ratio(found["jax"], found["plain jax"])),
        compared(f"{what}, TensorFlow", "plain step, TensorFlow", ratio(found["tensorflow"], found["plain tensorflow"])),
        compared(f"{what}, TensorFlow", "private step, JAX", ratio(found["tensorflow"], found["jax"])),
        {"what": "seconds per step", **{name: str(sample) for name, sample in found.items()}},
    ]


def accuracies() -> list[dict[str, object]]:
    """Accuracy on rows that were kept back, by the budget; the last point is without privacy."""
    from sklearn.datasets import load_digits

    import aiaas_magics
    from aiaas_magics.client import local_server
    from aiaas_magics.core.execution import Execution
    from aiaas_magics.core.privacy import Privacy

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype("float32"), y[order].astype("int32")
    train, test = slice(0, 1437), slice(1437, None)
    points: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="aiaas-bench-") as folder:
        os.environ["AIAAS_HOME"] = folder
        with aiaas_magics.connect() as backend:
            for epsilon in (*EPSILONS, None):
                private = None if epsilon is None else Privacy(epsilon=epsilon, delta=1e-4, clip=1.0)
                scores, noise = [], 0.0
                for _ in range(REPEATS):
                    model = mlp(64, 10)
                    model.optimizer.learning_rate = 0.01
                    job = backend.train(
                        model,
                        x[train],
                        y[train],
                        batch_size=256,
                        epochs=30,
                        execution=Execution(engine="jax", strategy="single", private=private),
                    )
                    job.result()
                    scores.append(float(model.evaluate(x[test], y[test], verbose=0)[1]))
                    noise = 0.0 if job.privacy is None else job.privacy.fits[-1].noise
                points.append({"epsilon": epsilon, "noise": round(noise, 3), "accuracy": [round(score, 4) for score in scores]})
        local_server.stop_local()
    return [{"what": "accuracy on 360 kept-back digits by epsilon (delta 1e-4, 30 epochs, batch 256)", "points": points}]


def draw(points: list[dict[str, Any]]) -> None:
    from aiaas_magics.plots.figure_style import as_png
    from aiaas_magics.plots.privacy_figure import BudgetPoint, privacy_figure

    budgets = [BudgetPoint(epsilon=point["epsilon"], scores=tuple(point["accuracy"])) for point in points]
    caption = f"Handwritten digits: 1,437 rows, batch 256, 30 epochs, delta 1e-4, {REPEATS} runs per budget. {hardware()}"
    FIGURE.write_bytes(as_png(privacy_figure(budgets, metric="accuracy", caption=caption)))


if __name__ == "__main__":
    began = time.perf_counter()
    prices = accuracies()
    draw(prices[0]["points"])  # type: ignore[arg-type]
    save("trust_private", [*steps(), *prices])
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
