"""The article's model as a whole cell and an epoch at a time, beside plain `fit` and the quickest loops that one can write by hand.

    python -m benchmarks.training

All forms are measured in turn, round by round; a ratio is taken within its round. The server is warm and its own; plain
`fit` runs in this process on the same cores, with a fresh model each time, as a notebook would have it.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.report import compared, interleaved, ratio, save

ROWS, FEATURES, BATCH = 20_000, 100, 32
ROUNDS = 5
STEADY = 20  # epochs, of which the median counts
OTHERS = {"lstm": "LSTM", "transformer": "Transformer block"}


def data() -> tuple[Any, Any]:
    return models.data(models.article(), ROWS)


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def plain_epochs(name: str, epochs: int) -> float:
    """Seconds of a steady epoch of plain `fit`."""
    import keras

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.at = [time.perf_counter()]

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.at.append(time.perf_counter())

    clock, model = Clock(), models.ALL[name]()
    model.fit(*models.data(model, ROWS), epochs=epochs, batch_size=BATCH, verbose=0, callbacks=[clock])
    return float(np.median(np.diff(clock.at)[1:]))


def our_epochs(backend: Any, name: str, epochs: int) -> float:
    """Seconds between the ends of steady epochs, as the worker wrote them."""
    from aiaas_magics.core.events import EpochEnded

    model = models.ALL[name]()
    job = backend.train(model, *models.data(model, ROWS), epochs=epochs, batch_size=BATCH, name="steady")
    job.result()
    ends = [entry.at_s for entry in job.entries() if isinstance(entry.event, EpochEnded)]
    return float(np.median(np.diff(ends)[1:]))


def by_hand() -> Callable[[], float]:
    """One epoch in one XLA call around the stock `train_step`, data on the device: the floor for TensorFlow."""
    import tensorflow as tf

    x, y = (tf.constant(array) for array in data())
    model = models.article()
    model.optimizer.build(model.trainable_variables)
    model.train_on_batch(x[:2], y[:2])
    steps = ROWS // BATCH

    @tf.function(jit_compile=True)
    def epoch(x: Any, y: Any, order: Any) -> Any:
        for step in tf.range(steps):
            rows = order[step]
            model.train_step((tf.gather(x, rows), tf.gather(y, rows)))
        return model.metrics[0].result()

    def run() -> float:
        order = tf.constant(np.random.permutation(ROWS).astype(np.int32).reshape(steps, BATCH))
        return seconds(lambda: epoch(x, y, order).numpy())

    run()
    return run


def by_scan() -> Callable[[], float]:
    """The same mathematics as `jax.lax.scan` over a whole epoch, Adam written out: the floor for JAX."""
    import jax
    import jax.numpy as jnp

    x, y = (jnp.asarray(array) for array in data())
    random = np.random.default_rng(0)
    sizes = [(FEATURES, 64), (64, 32), (32, 1)]
    weights = [(jnp.asarray(random.normal(size=size, scale=0.1), jnp.float32), jnp.zeros(size[1])) for size in sizes]
    zeros = jax.tree.map(jnp.zeros_like, weights)

    def loss(weights: Any, x: Any, y: Any) -> Any:
        for place, (kernel, bias) in enumerate(weights):
            x = x @ kernel + bias
            x = jax.nn.relu(x) if place < 2 else x
        z = x
        accuracy = jnp.mean((z > 0) == (y > 0.5))
        return jnp.mean(jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z)))), accuracy

    def step(state: Any, rows: Any) -> Any:
        weights, m, v, at, seen, right = state
        (value, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(weights, x[rows], y[rows])
        at = at + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
        rate = 1e-3 * jnp.sqrt(1 - 0.999**at) / (1 - 0.9**at)
        weights = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-7), weights, m, v)
        return (weights, m, v, at, seen + value, right + accuracy), None

    epoch = jax.jit(lambda state, order: jax.lax.scan(step, state, order)[0])
    kept = [(weights, zeros, zeros, jnp.float32(0), jnp.float32(0), jnp.float32(0))]

    def run() -> float:
        order = jnp.asarray(np.random.permutation(ROWS).astype(np.int32).reshape(-1, BATCH))
        began = time.perf_counter()
        kept[0] = jax.block_until_ready(epoch(kept[0], order))
        return time.perf_counter() - began

    run()
    return run


def main() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory(prefix="aiaas-training-") as home:
        os.environ["AIAAS_HOME"] = home
        import aiaas_magics
        from aiaas_magics.client import local_server

        x, y = data()
        try:
            with aiaas_magics.connect() as backend:

                def cell(epochs: int) -> Callable[[], float]:
                    return lambda: seconds(lambda: backend.train(models.article(), x, y, epochs=epochs, batch_size=BATCH).result())

                def plain(epochs: int) -> Callable[[], float]:
                    return lambda: seconds(lambda: models.article().fit(x, y, epochs=epochs, batch_size=BATCH, verbose=0))

                cell(1)()  # the server, the launcher and the data are there then
                hand, scan = by_hand(), by_scan()
                found = interleaved(
                    {
                        "cell_10": cell(10),
                        "plain_10": plain(10),
                        "cell_30": cell(30),
                        "plain_30": plain(30),
                        "epoch": lambda: our_epochs(backend, "article", STEADY),
                        "plain_epoch": lambda: plain_epochs("article", 4),
                        "hand_epoch": lambda: float(np.median([hand() for _ in range(STEADY)])),
                        "scan_epoch": lambda: float(np.median([scan() for _ in range(STEADY)])),
                    },
                    repeats=ROUNDS,
                )
                others = interleaved(
                    {
                        f"{who}_{name}": functools.partial(measure, name, epochs)
                        for name in OTHERS
                        for who, measure, epochs in (("our", functools.partial(our_epochs, backend), 5), ("plain", plain_epochs, 3))
                    },
                    repeats=ROUNDS,
                )
        finally:
            local_server.stop_local()
    save(
        "training",
        [
            compared("article's model, 10 epochs, whole cell", "plain fit", ratio(found["cell_10"], found["plain_10"]), goal=1 / 3),
            compared("article's model, 30 epochs, whole cell", "plain fit", ratio(found["cell_30"], found["plain_30"]), goal=1 / 6),
            compared("article's model, steady epoch", "plain fit", ratio(found["epoch"], found["plain_epoch"]), goal=1 / 20),
            compared("article's model, steady epoch", "a loop by hand, XLA", ratio(found["epoch"], found["hand_epoch"]), goal=1.15),
            compared("article's model, steady epoch", "lax.scan by hand, JAX", ratio(found["epoch"], found["scan_epoch"]), goal=1.15),
            *(
                compared(f"small {said}, steady epoch", "plain fit", ratio(others[f"our_{name}"], others[f"plain_{name}"]), goal=1.0)
                for name, said in OTHERS.items()
            ),
        ],
    )


if __name__ == "__main__":
    main()
