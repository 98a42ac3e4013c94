"""JAX engine beside plain Keras on JAX, on a GPU: equal weights, steps/s, memory, and the time to the first step.

    python -m benchmarks.gpu

It needs jax, keras, numpy and the package's light dependencies, no TensorFlow, and takes under 8 minutes. Where JAX sees no
GPU it runs small models on simulated devices, which share the cores of the CPU; the table and the JSON say so. Such a run
shows that the check works, not how fast a GPU is.

Each fit call is packed here, and trained by a worker that a launcher forks, as a job is. Plain Keras then trains the same
model from the same weights in a fresh process. float32 is real float32: TF32 is off on both sides, so that weights can be compared.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.report import RESULTS, Sample, hardware, ratio

ROOT: Final = Path(__file__).parents[1]
EPOCHS: Final = 8
SKIPPED: Final = 2  # first epochs: they compile, and find the length of a call
LIMIT_S: Final = 150.0  # for one training (guess: compiling a Transformer takes a tenth of it)
DTYPES: Final = ("float32", "mixed_bfloat16")
# See `gap` (guesses). A loop and single steps are two programs, whose sums have other orders. On a CPU, XLA adds bfloat16 up in
# bfloat16, so that two devices and one differ by 0.06 in a single gradient of the Transformer.
TOLERANCES: Final = {"float32": 1e-3, "mixed_bfloat16": 0.2}
SIMULATED: Final = 2  # devices


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a model and its data are."""

    rows: int
    batch: int
    inputs: tuple[int, ...]
    width: int
    depth: int
    words: int = 0


SIZES: Final = {
    "gpu": {
        "MLP": Size(rows=16_384, batch=512, inputs=(1024,), width=2048, depth=4),
        "CNN": Size(rows=8_192, batch=256, inputs=(32, 32, 3), width=64, depth=3),
        "Transformer": Size(rows=4_096, batch=128, inputs=(128,), width=256, depth=4, words=8192),
    },
    "simulated": {
        "MLP": Size(rows=2_048, batch=64, inputs=(64,), width=128, depth=2),
        "CNN": Size(rows=512, batch=64, inputs=(12, 12, 1), width=8, depth=2),
        "Transformer": Size(rows=512, batch=32, inputs=(16,), width=32, depth=1, words=512),
    },
}


# --------------------------------------------------------------------------- models


def mlp(size: Size) -> Any:
    from keras import Sequential, layers

    hidden = [layers.Dense(size.width, activation="relu") for _ in range(size.depth)]
    return Sequential([layers.Input(size.inputs), *hidden, layers.Dense(10, activation="softmax", dtype="float32")])


def cnn(size: Size) -> Any:
    from keras import Sequential, layers

    hidden: list[Any] = []
    for depth in range(size.depth):
        hidden += [layers.Conv2D(size.width << depth, 3, padding="same", activation="relu"), layers.MaxPooling2D()]
    return Sequential(
        [layers.Input(size.inputs), *hidden, layers.GlobalAveragePooling2D(), layers.Dense(10, activation="softmax", dtype="float32")]
    )


def transformer(size: Size) -> Any:
    import keras
    from keras import layers

    words = keras.Input(size.inputs, dtype="int32")
    x = layers.Embedding(size.words, size.width)(words)
    for _ in range(size.depth):
        attended = layers.MultiHeadAttention(4, size.width // 4)(x, x)
        x = layers.LayerNormalization()(layers.Add()([x, attended]))
        hidden = layers.Dense(size.width, activation="gelu")(layers.Dense(4 * size.width, activation="gelu")(x))
        x = layers.LayerNormalization()(layers.Add()([x, hidden]))
    return keras.Model(words, layers.Dense(10, activation="softmax", dtype="float32")(layers.GlobalAveragePooling1D()(x)))


MODELS: Final[dict[str, Callable[[Size], Any]]] = {"MLP": mlp, "CNN": cnn, "Transformer": transformer}


def built(name: str, size: Size, dtype: str) -> Any:
    """The model, compiled, with weights that follow from its name alone."""
    import keras

    keras.config.set_dtype_policy(dtype)
    model = MODELS[name](size)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    return model


def data(size: Size) -> dict[str, Any]:
    """The arguments of `fit`."""
    generator = np.random.default_rng(1)
    shape = (size.rows, *size.inputs)
    x = generator.integers(0, size.words, shape).astype("int32") if size.words else generator.normal(size=shape).astype("float32")
    y = generator.integers(0, 10, size.rows).astype("int32")
    return {"x": x, "y": y, "batch_size": size.batch, "epochs": EPOCHS, "shuffle": False}


# --------------------------------------------------------------------------- trainings


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One training: seconds of each epoch and until the first step was done, bytes that it held, and its weights."""

    epochs_s: tuple[float, ...]
    first_step_s: float
    memory_bytes: int
    weights: tuple[Any, ...]

    def steps_per_s(self, size: Size) -> Sample:
        return Sample(tuple(-(-size.rows // size.batch) / seconds for seconds in self.epochs_s[SKIPPED:]))


def worker(command_path: str) -> int:
    """A launcher's child: the worker of a job, which leaves beside its result how much memory it held."""
    from aiaas_magics.backend.training.engine import load
    from aiaas_magics.backend.workers import worker_main
    from aiaas_magics.core.engines import ENGINES

    code = worker_main.main(command_path)
    Path(command_path).with_name("memory.txt").write_text(str(load(ENGINES["jax"]).memory_bytes()))
    return code


def by_engine(pool: Any, folder: Path, model: Any, arguments: dict[str, Any], *, gpus: int) -> Trained:
    """Pack the fit call, and have a worker of the JAX engine train it."""
    from aiaas_magics.backend.training.jax.jax_engine import numbers_of
    from aiaas_magics.backend.training.worker_command import WorkerCommand, WorkerLine
    from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder
    from aiaas_magics.core import wire
    from aiaas_magics.core.events import Compiled, Crashed, EpochEnded
    from aiaas_magics.core.execution import Execution
    from aiaas_magics.packing.fitcall.fit_result import read_result
    from aiaas_magics.packing.portable.stock_call import pack_stock

    submitted_s = time.time()
    call = pack_stock(model, arguments, compute=numbers_of)
    attempt = AttemptFolder(folder / "attempt-1")
    attempt.path.mkdir(parents=True)
    (folder / "payload").write_bytes(call.payload)
    for place, array in enumerate(call.arrays):
        np.save(folder / f"array-{place}.npy", array)
    command = WorkerCommand(
        job="gpu",
        attempt=1,
        rank=0,
        ranks=1,
        attempt_dir=str(attempt.path),
        job_dir=str(folder),
        payload=str(folder / "payload"),
        arrays=tuple(str(folder / f"array-{place}.npy") for place in range(len(call.arrays))),
        seed=0,
        gpus=(0,) if gpus else (),
        devices=1 if gpus else SIMULATED,
        execution=Execution(engine="jax", strategy="single" if gpus else "spmd", checkpoint_epochs=0),
    )
    asyncio.run(pool.start(attempt, [command]))
    deadline = time.monotonic() + LIMIT_S
    while (ending := attempt.ending(0)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"The worker trains for more than {LIMIT_S:.0f} s. Its output is in {attempt.output(0)}.")
        time.sleep(0.05)
    lines = [wire.decode(line, WorkerLine) for line in attempt.events(0).read_bytes().splitlines()]
    crashes = [line.event.report.message for line in lines if isinstance(line.event, Crashed)]
    if ending.code or crashes:
        raise RuntimeError(f"The worker failed: {crashes or ending}\n{attempt.output(0).read_text(errors='replace')[-3000:]}")
    result = read_result(attempt.result.read_bytes())
    return Trained(
        epochs_s=tuple(line.event.seconds for line in lines if isinstance(line.event, EpochEnded)),
        first_step_s=next(line.at_s for line in lines if isinstance(line.event, Compiled)) - submitted_s,
        memory_bytes=int(attempt.command(0).with_name("memory.txt").read_text()),
        weights=tuple(result.variables[place] for place in result.roles["weights"]),
    )


def by_plain_keras(folder: Path, name: str, kind: str, dtype: str) -> Trained:
    """Stock `fit` in a fresh process, from the weights in `folder`."""
    began_s = time.time()
    subprocess.run([sys.executable, "-m", "benchmarks.gpu", "plain", str(folder), name, kind, dtype], check=True, timeout=LIMIT_S, cwd=ROOT)
    told = json.loads((folder / "plain.json").read_text())
    with np.load(folder / "plain.npz") as arrays:
        weights = tuple(arrays[f"arr_{place}"] for place in range(len(arrays.files)))
    return Trained(
        epochs_s=tuple(told["epochs_s"]), first_step_s=told["first_step_s"] - began_s, memory_bytes=told["memory_bytes"], weights=weights
    )


def plain(folder: Path, name: str, kind: str, dtype: str) -> None:
    """The fresh process: nothing of ours but models and data."""
    import jax
    import keras
    import psutil

    size, first_step_s, epochs_s = SIZES[kind][name], list[float](), list[float]()

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if not first_step_s:
                jax.block_until_ready(self.model._jax_state)
                first_step_s.append(time.time())

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._began_s = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            epochs_s.append(time.perf_counter() - self._began_s)

    model = built(name, size, dtype)
    with np.load(folder / "weights.npz") as arrays:
        model.set_weights([arrays[f"arr_{place}"] for place in range(len(arrays.files))])
    model.fit(**data(size), verbose=0, callbacks=[Clock()])
    stats = jax.local_devices()[0].memory_stats()
    memory = stats["peak_bytes_in_use"] if stats else psutil.Process().memory_full_info().uss
    np.savez(folder / "plain.npz", *model.get_weights())
    (folder / "plain.json").write_text(json.dumps({"epochs_s": epochs_s, "first_step_s": first_step_s[0], "memory_bytes": int(memory)}))


# --------------------------------------------------------------------------- report


def devices() -> list[str]:
    """The GPUs that JAX sees, asked in a process of its own: this one must leave their memory alone."""
    probe = "import json, jax; print(json.dumps([d.device_kind for d in jax.devices() if d.platform != 'cpu']))"
    told = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, check=False)
    return list(json.loads(told.stdout.splitlines()[-1])) if told.returncode == 0 and told.stdout else []


def gap(ours: Sequence[Any], theirs: Sequence[Any], initial: Sequence[Any]) -> float:
    """The largest difference of a variable, as a share of how far plain Keras moved all of them; infinite where a number is missing.

    Not of the variable's own norm: the loss does not depend on the bias of an attention's keys, so what that holds is rounding alone.
    """
    moved = float(np.sqrt(sum(float(np.linalg.norm(b - start)) ** 2 for b, start in zip(theirs, initial, strict=True))))
    gaps = [float(np.linalg.norm(a - b)) / moved for a, b in zip(ours, theirs, strict=True)]
    return max(value if np.isfinite(value) else np.inf for value in gaps)


def row_of(pool: Any, folder: Path, name: str, kind: str, dtype: str) -> dict[str, Any]:
    size = SIZES[kind][name]
    random.seed(3)  # from which Keras draws the seeds of its initializers
    model, arguments = built(name, size, dtype), data(size)
    initial = model.get_weights()
    np.savez(folder / "weights.npz", *initial)
    ours = by_engine(pool, folder, model, arguments, gpus=int(kind == "gpu"))
    theirs = by_plain_keras(folder, name, kind, dtype)
    off, times = gap(ours.weights, theirs.weights, initial), ratio(ours.steps_per_s(size), theirs.steps_per_s(size))
    return {
        "model": name,
        "dtype": dtype,
        "gap": off,
        "equal": off <= TOLERANCES[dtype],
        "ratio": round(times.median, 3),
        "spread": round(times.spread, 3),
        "steps_per_s": round(ours.steps_per_s(size).median, 1),
        "plain_steps_per_s": round(theirs.steps_per_s(size).median, 1),
        "memory_mb": round(ours.memory_bytes / 1e6),
        "plain_memory_mb": round(theirs.memory_bytes / 1e6),
        "first_step_s": round(ours.first_step_s, 2),
        "plain_first_step_s": round(theirs.first_step_s, 2),
        "size": asdict(size),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [
        "| model | dtype | weights equal (largest difference, of how far all moved) | steps/s, times plain Keras | memory, plain (MB) "
        "| submit to first step, plain start (s) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['model']} | {row['dtype']} | {'yes' if row['equal'] else 'NO'} ({row['gap']:.1e}) "
        f"| {row['ratio']:.2f} ±{row['spread']:.0%} ({row['steps_per_s']:,} of {row['plain_steps_per_s']:,}) "
        f"| {row['memory_mb']:,}, {row['plain_memory_mb']:,} | {row['first_step_s']}, {row['plain_first_step_s']} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    began_s = time.monotonic()
    gpus = devices()
    kind = "gpu" if gpus else "simulated"
    import jax
    import keras

    jax.config.update("jax_platforms", "cpu")  # this process packs, and leaves the GPU to those that train
    from aiaas_magics.backend.workers.local.local_pool import LocalPool
    from aiaas_magics.core.engines import ENGINES

    what = gpus[0] if gpus else f"SIMULATED: no GPU here, {SIMULATED} devices that share the cores of the CPU"
    print(f"{what}; {hardware()}; jax {jax.__version__}, keras {keras.__version__}", flush=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    preload = ",".join([*ENGINES["jax"].preload, "benchmarks.gpu"])
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        pool = LocalPool(Path(scratch, "launcher"), launcher_options=("--entry", "benchmarks.gpu:worker", "--preload", preload))
        try:
            for name in MODELS:
                for dtype in DTYPES:
                    folder = Path(scratch, f"{name}-{dtype}")
                    folder.mkdir()
                    rows.append(row_of(pool, folder, name, kind, dtype))
                    print(f"  {name} {dtype}: {rows[-1]['ratio']} times plain Keras, gap {rows[-1]['gap']:.1e}", flush=True)
        finally:
            asyncio.run(pool.close())
    took_s = time.monotonic() - began_s
    print(f"\n{table(rows)}\n\n{what}. The first row includes the start of the launcher. {took_s:.0f} s in all.")
    report = {
        "device": gpus[0] if gpus else f"{SIMULATED} simulated devices of the CPU",
        "simulated": not gpus,
        "hardware": hardware(),
        "versions": {"jax": jax.__version__, "keras": keras.__version__, "tensorflow_imported": "tensorflow" in sys.modules},
        "took_s": round(took_s),
        "median_ratio": round(statistics.median(row["ratio"] for row in rows), 3),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["equal"] for row in rows) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["plain"]:
        plain(Path(sys.argv[2]), *sys.argv[3:])
        sys.exit()
    sys.exit(main())
