"""What one would use instead, each in processes of its own: `python -m benchmarks.peers PEER MODEL BATCH STEPS`.

Prints the seconds of `STEPS` steps, the fastest of `REPEATS` in a row, compiling left out: as `scaling` measures us.

    plain        plain `fit`, in one process, on all cores that it may use
    jax          plain `fit` on JAX with `keras.distribution.DataParallel` over two devices of one process
    collectives  TensorFlow's own collectives over gRPC, one process a core, Adam and the MLP written out: Keras 3 has no
                 `fit` for several processes on TensorFlow
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

ROWS, WARM, REPEATS = 4096, 4, 16


def measured(peer: str, model: str, *, batch: int, steps: int) -> float:
    """Seconds of `steps` steps of a peer, started here."""
    cores = sorted(os.sched_getaffinity(0))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "benchmarks.peers", peer, model, str(batch), str(steps)]
    if peer != "collectives":
        if peer == "jax":
            environment |= {"KERAS_BACKEND": "jax", "XLA_FLAGS": f"--xla_force_host_platform_device_count={min(2, len(cores))}"}
        return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()[-1])
    ports = free_ports(2)
    processes = []
    for rank, core in zip(range(2), cores * 2, strict=False):
        told = {"cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]}, "task": {"type": "worker", "index": rank}}
        alone = environment | {"TF_CONFIG": json.dumps(told), "TF_NUM_INTRAOP_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        processes.append(subprocess.Popen([*command, str(core)], env=alone, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
    try:
        return max(float(process.communicate(timeout=300)[0].split()[-1]) for process in processes)
    finally:
        for process in processes:
            process.kill()


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def fastest(ends: Sequence[float], steps: int) -> float:
    """Seconds of the fastest `steps` steps in a row, of the times at which steps ended."""
    marks = ends[WARM::steps]
    return min(after - before for before, after in pairwise(marks))


def fitted(model: str, *, batch: int, steps: int) -> float:
    import keras

    from benchmarks import models

    if keras.backend.backend() == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    made = models.ALL[model]()
    x, y = models.data(made, ROWS)
    ends: list[float] = []

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            ends.append(time.perf_counter())
            if len(ends) > WARM + steps * REPEATS:
                self.model.stop_training = True

    epochs = -(-(WARM + 1 + steps * REPEATS) * batch // ROWS)
    made.fit(x, y, batch_size=batch, epochs=epochs, verbose=0, callbacks=[Clock()])
    return fastest(ends, steps)


def collectives(*, batch: int, steps: int, core: int) -> float:
    os.sched_setaffinity(0, {core})
    import numpy as np
    import tensorflow as tf

    from benchmarks.models import MLP_SIZES

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    random = np.random.default_rng(0)
    mine = batch // strategy.num_replicas_in_sync
    x = tf.constant(random.random((ROWS, MLP_SIZES[0]), dtype=np.float32))
    y = tf.constant(random.integers(0, MLP_SIZES[-1], ROWS))
    shapes = [shape for size in pairwise(MLP_SIZES) for shape in (size, size[1:])]
    weights = [tf.Variable(random.normal(size=shape, scale=0.03).astype(np.float32)) for shape in shapes]
    moments = [[tf.Variable(tf.zeros_like(weight)) for weight in weights] for _ in range(2)]
    made = tf.Variable(0.0)

    def replica(rows: Any) -> None:
        with tf.GradientTape() as tape:
            hidden = tf.gather(x, rows)
            for place in range(0, len(weights), 2):
                hidden = hidden @ weights[place] + weights[place + 1]
                hidden = tf.nn.relu(hidden) if place < len(weights) - 2 else hidden
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.gather(y, rows), hidden)) / batch
        grads = tape.gradient(loss, weights)
        grads = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, grads)
        made.assign_add(1.0)
        rate = 1e-3 * tf.sqrt(1 - 0.999**made) / (1 - 0.9**made)
        for weight, m, v, grad in zip(weights, *moments, grads, strict=True):
            m.assign(0.9 * m + 0.1 * grad)
            v.assign(0.999 * v + 0.001 * grad * grad)
            weight.assign_sub(rate * m / (tf.sqrt(v) + 1e-7))

    @tf.function
    def step(rows: Any) -> None:
        strategy.run(replica, (rows,))

    ends = []
    for _ in range(WARM + 1 + steps * REPEATS):
        step(tf.constant(random.integers(0, ROWS, mine)))
        ends.append(time.perf_counter())
    return fastest(ends, steps)


if __name__ == "__main__":
    peer, model, batch, steps, *core = sys.argv[1:]
    sizes = {"batch": int(batch), "steps": int(steps)}
    print(collectives(**sizes, core=int(core[0])) if peer == "collectives" else fitted(model, **sizes))
