"""Trust: explanations beside what one would use instead, and what they cost those who only want predictions.

Kernel SHAP of 1,000 rows by a job on one and on two workers stands beside `shap.KernelExplainer` on `model.predict` in one process, with as
many samples on the same background. Predictions are asked for at a fixed rate while an endpoint explains, and while it does not.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.report import Sample, compared, interleaved, ratio, save
from benchmarks.serving import EXPORT, Ours

ROUNDS = 3
ROWS, COLUMNS, BACKGROUND, SAMPLES = 1000, 20, 50, 256
SHAP_ROWS = 5  # of the library: its rows take equally long each
CONNECTIONS, EVERY_S, SECONDS = 4, 0.01, 4.0  # 400 requests/s: well below what the process answers
P99 = 0.99

SHAP = """
import json, sys, time
import keras, numpy as np, shap
data = np.load(sys.argv[1])
model = keras.models.load_model(sys.argv[2])
explainer = shap.KernelExplainer(lambda x: model.predict(x, verbose=0).ravel(), data["background"])
explainer.shap_values(data["rows"][:1], nsamples=int(sys.argv[3]), silent=True)
for line in sys.stdin:
    began = time.perf_counter()
    values = explainer.shap_values(data["rows"][: int(line)], nsamples=int(sys.argv[3]), silent=True, l1_reg=False)
    print(json.dumps({"seconds": time.perf_counter() - began, "values": np.asarray(values).tolist()}), flush=True)
"""


# --------------------------------------------------------------------------- rows on workers


def rows_on_workers() -> list[dict[str, object]]:
    import keras

    import aiaas_magics
    from aiaas_magics.client import local_server
    from aiaas_magics.explain.attribution_bytes import read_explain_result

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(64, "relu"), keras.layers.Dense(32, "relu"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((COLUMNS,)), *layers])
    x = np.random.default_rng(0).normal(size=(ROWS + BACKGROUND, COLUMNS)).astype("float32")
    rows, background = x[:ROWS], x[ROWS:]
    with tempfile.TemporaryDirectory(prefix="aiaas-bench-") as folder:
        os.environ["AIAAS_HOME"] = folder
        try:
            with aiaas_magics.connect() as backend, library(model, rows, background, Path(folder)) as explain_by_library:

                def on(workers: int) -> float:
                    job = backend.explain(model, rows, background=background, method="shap", samples=SAMPLES, workers=workers)
                    job.wait()
                    return ROWS / job.seconds

                found = interleaved({"two": lambda: on(2), "one": lambda: on(1), "shap": explain_by_library}, repeats=ROUNDS)
                job = backend.explain(model, rows[:SHAP_ROWS], background=background, method="shap", samples=2**COLUMNS // 64)
                job.wait()
                attributed = read_explain_result(job.result_bytes()).attributions
        finally:
            local_server.stop_local()
    what = f"Kernel SHAP of {ROWS:,} rows ({COLUMNS} columns, {SAMPLES} samples, {BACKGROUND} background rows): rows/s"
    return [
        compared(f"{what}, 2 workers", "1 worker", ratio(found["two"], found["one"]), goal=1.8, higher_is_better=True),
        compared(f"{what}, 1 worker", "shap on model.predict", ratio(found["one"], found["shap"]), goal=3.0, higher_is_better=True),
        compared(f"{what}, 2 workers", "shap on model.predict", ratio(found["two"], found["shap"]), higher_is_better=True),
        {"what": "rows/s", "two": str(found["two"]), "one": str(found["one"]), "shap": str(found["shap"])},
        {"what": "largest completeness error", "error": float(np.max(attributed.completeness_errors))},
    ]


@contextmanager
def library(model: Any, rows: np.ndarray, background: np.ndarray, folder: Path) -> Iterator[Any]:
    """`shap` in a process of its own: a function that has it explain some rows and gives rows/s."""
    data, file = folder / "rows.npz", folder / "model.keras"
    np.savez(data, rows=rows, background=background)
    model.save(file)
    command = [sys.executable, "-c", SHAP, str(data), str(file), str(SAMPLES)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdin
        assert process.stdout

        def explain() -> float:
            process.stdin.write(f"{SHAP_ROWS}\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            return SHAP_ROWS / float(answer["seconds"])

        try:
            yield explain
        finally:
            process.stdin.close()


# --------------------------------------------------------------------------- predictions beside explanations


def beside_explanations() -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory(prefix="aiaas-bench-") as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-c", EXPORT, str(folder)], check=True, capture_output=True)
        with Ours(folder) as ours:
            rows = np.random.default_rng(0).random((4, 100)).round(6).tolist()
            target = ours.target("/v1/models/article:predict", folder)
            explain = ours.target("/v1/models/article:explain", folder)
            body = json.dumps({"instances": rows[:1]}).encode()
            asked = json.dumps({"instances": rows, "parameters": {"method": "kernel_shap"}}).encode()
            counts: list[int] = []

            def alone() -> float:
                return p99_ms(target.url, target.token, body)

            def beside() -> float:
                with explaining(explain.url, explain.token, asked) as count:
                    measured = p99_ms(target.url, target.token, body)
                counts.append(max(1, count.value))
                return measured

            found = interleaved({"beside": beside, "alone": alone}, repeats=2 * ROUNDS)
    what = f"article's model, one JSON row, {CONNECTIONS / EVERY_S:.0f} requests/s: p99 while two callers have 4 rows explained in a loop"
    explanations = Sample(tuple(count / SECONDS for count in counts))
    return [
        compared(what, "p99 alone", ratio(found["beside"], found["alone"]), goal=1.5),
        {"what": "p99 in ms", "beside": str(found["beside"]), "alone": str(found["alone"])},
        {"what": "explanations/s of 4 rows meanwhile", "rate": str(explanations)},
    ]


def p99_ms(url: str, token: str, body: bytes) -> float:
    """Of predictions on a schedule, each counted from when it was due."""
    took = asyncio.run(_scheduled(url, token, body))
    if os.environ.get("SHOW"):
        print([round(sorted(took)[int(len(took) * p)] * 1e3, 2) for p in (0.5, 0.75, 0.9, 0.99)], flush=True)
    return sorted(took)[int(len(took) * P99)] * 1e3


async def _scheduled(url: str, token: str, body: bytes) -> list[float]:
    where = urlsplit(url)
    head = f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Length: {len(body)}\r\nAuthorization: Bearer {token}\r\n\r\n"
    took: list[float] = []

    async def caller(place: int) -> None:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        loop = asyncio.get_running_loop()
        due_s = loop.time() + place * EVERY_S / CONNECTIONS
        until_s = due_s + SECONDS
        while due_s < until_s:
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"{url} answered {answer[:200]!r}")
            took.append(loop.time() - due_s)
            due_s += EVERY_S
        writer.close()

    await asyncio.gather(*map(caller, range(CONNECTIONS)))
    return took


@contextmanager
def explaining(url: str, token: str, body: bytes) -> Iterator[Any]:
    """Two callers, in a process of their own, that have rows explained again and again; gives the number of answers."""
    context = multiprocessing.get_context("spawn")
    count, stop = context.Value("i", 0), context.Event()
    process = context.Process(target=_explain_again, args=(url, token, body, count, stop), daemon=True)
    process.start()
    while not count.value and process.is_alive():
        time.sleep(0.02)
    before = count.value
    try:
        yield count
    finally:
        count.value -= before
        stop.set()
        process.join(60)
        if process.exitcode:
            raise SystemExit("the caller of explanations failed")


def _explain_again(url: str, token: str, body: bytes, count: Any, stop: Any) -> None:
    import threading

    def again() -> None:
        while not stop.is_set():
            request = urllib.request.Request(url, body, {"Authorization": f"Bearer {token}"})
            with urllib.request.urlopen(request, timeout=120) as answer:
                answer.read()
            with count.get_lock():
                count.value += 1

    threads = [threading.Thread(target=again) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


PARTS = {"rows": rows_on_workers, "beside": beside_explanations}

if __name__ == "__main__":
    save("trust", [row for name in sys.argv[1:] or PARTS for row in PARTS[name]()])
