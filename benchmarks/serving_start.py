"""Serving's start costs: deploying the article's model to its first answer, and the inference process's memory.

The peer of the deploy is what has to happen in any case: opening the same file in ONNX Runtime
and computing one row, in a fresh process. The model is exported once, beforehand.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from benchmarks.report import Sample, interleaved, ratio, save

REPEATS = 5

EXPORT = """
import sys, keras, numpy as np
from safetensors.numpy import save_file
layers = keras.layers
dense = [layers.Dense(64, "relu"), layers.Dense(32, "relu"), layers.Dense(1, "sigmoid", name="y")]
model = keras.Sequential([keras.Input((100,), name="x"), *dense])
x = np.random.default_rng(0).normal(size=(64, 100)).astype("float32")
y = model.predict(x, verbose=0)
model.export(sys.argv[1] + "/article.onnx", format="onnx", verbose=False)
save_file({"input/x": x, "output/y": np.asarray(y)}, sys.argv[1] + "/article.safetensors")
"""

BARE = """
import sys, time
began = time.perf_counter()
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + "/article.onnx", providers=["CPUExecutionProvider"])
session.run(None, {session.get_inputs()[0].name: numpy.zeros((1, 100), "float32")})
print(time.perf_counter() - began)
"""


def bare_engine(folder: Path) -> float:
    return float(subprocess.run([sys.executable, "-c", BARE, str(folder)], check=True, capture_output=True, text=True).stdout)


async def start_and_deploy(folder: Path) -> dict[str, float]:
    """Seconds of each part, and megabytes, with a state folder of its own."""
    from aiaas_magics.backend.serving.process.supervisor import InferenceHost
    from aiaas_magics.core.integrity import file_hash
    from aiaas_magics.core.routing import Routing
    from aiaas_magics.core.spec import DeploySpec, TensorSpec

    spec = DeploySpec(
        name="article",
        artefact=file_hash(folder / "article.onnx"),
        format="onnx",
        samples=file_hash(folder / "article.safetensors"),
        inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 100)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(-1, 1)),),
    )
    host = InferenceHost()
    with tempfile.TemporaryDirectory(prefix="aiaas-bench-") as state:
        began = time.perf_counter()
        await host.start(Path(state))
        started = time.perf_counter()
        try:
            empty = psutil.Process(host.pid).memory_info().rss / 1e6
            deploying = time.perf_counter()
            await host.load(spec, 1, folder / "article.onnx", folder / "article.safetensors")
            await host.route("article", Routing(live=1))
            request = urllib.request.Request(
                f"{host.url}/v1/models/article:predict",
                json.dumps({"instances": [[0.5] * 100]}).encode(),
                {"Authorization": f"Bearer {host.token}"},
            )
            (await asyncio.to_thread(urllib.request.urlopen, request, None, 30)).read()
            answered = time.perf_counter()
            serving = psutil.Process(host.pid).memory_info().rss / 1e6
        finally:
            await host.stop()
    return {"start": started - began, "deploy": answered - deploying, "empty_mb": empty, "serving_mb": serving}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="aiaas-bench-") as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-c", EXPORT, name], check=True, capture_output=True)
        found: list[dict[str, float]] = []

        def ours() -> float:
            found.append(asyncio.run(start_and_deploy(folder)))
            return found[-1]["start"] + found[-1]["deploy"]

        seconds = interleaved({"ours": ours, "bare": lambda: bare_engine(folder)}, repeats=REPEATS)

    def sample(key: str) -> str:
        return str(Sample(tuple(one[key] for one in found)))

    save(
        "serving_start",
        [
            {"what": "inference process, start to listening", "seconds": sample("start")},
            {"what": "deploy of the article's model to its first answer", "seconds": sample("deploy")},
            {
                "what": "both",
                "seconds": str(seconds["ours"]),
                "to_bare_engine_in_a_fresh_process": str(ratio(seconds["ours"], seconds["bare"])),
            },
            {"what": "inference process without a model, resident", "MB": sample("empty_mb")},
            {"what": "inference process with the article's model, resident", "MB": sample("serving_mb")},
        ],
    )


if __name__ == "__main__":
    main()
