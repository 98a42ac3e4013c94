"""Workers as processes: what n of them take of memory beside n plain processes, and how soon a killed one is made good.

Memory is the proportional set size (PSS): what processes share counts once. Ours includes the launcher that workers fork from.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil

from benchmarks import models
from benchmarks.report import Sample, compared, interleaved, ratio, save
from benchmarks.start import own_home

ROUNDS = 3
COUNTS = (2, 4)
SETTLED_S = 3.0

PLAIN = """
import time
from benchmarks import models
model = models.article()
x, y = models.data(model, 20_000)
model.fit(x, y, epochs=1, verbose=0)
print("ready", flush=True)
model.fit(x, y, epochs=10_000, verbose=0)
"""


def pss_mb(processes: list[psutil.Process]) -> float:
    return sum(process.memory_full_info().pss for process in processes) / 1e6


def plain_mb(count: int) -> float:
    """`count` processes, each in a plain `fit`."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    running = [
        subprocess.Popen([sys.executable, "-c", PLAIN], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        for _ in range(count)
    ]
    try:
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()
        time.sleep(SETTLED_S)
        return pss_mb([psutil.Process(process.pid) for process in running])
    finally:
        for process in running:
            process.kill()
            process.wait()


def begun(backend: Any, count: int) -> tuple[Any, list[int]]:
    """A job on `count` workers that will not end by itself, once it makes steps; and the workers' processes by rank."""
    from aiaas_magics.core.events import StepsDone, WorkerStarted
    from aiaas_magics.core.execution import Execution

    model = models.article()
    x, y = models.data(model, 20_000)
    job = backend.train(
        model, x, y, epochs=100_000, workers=count, oversubscribe=True, execution=Execution(checkpoint_s=1.0), name=f"workers-{count}"
    )
    while not any(isinstance(entry.event, StepsDone) for entry in job.entries()):
        time.sleep(0.05)
    started = {entry.rank: entry.event.pid for entry in job.entries() if isinstance(entry.event, WorkerStarted)}
    return job, [started[rank] for rank in sorted(started)]


def our_mb(backend: Any, count: int, *, launcher: bool) -> float:
    job, workers = begun(backend, count)
    time.sleep(SETTLED_S)
    processes = [psutil.Process(pid) for pid in workers]
    above = processes[0].parent()
    assert above is not None
    found = pss_mb([above, *processes] if launcher else processes)
    job.cancel()
    job.wait()
    return found


def recovered_s(backend: Any, count: int) -> float:
    """From SIGKILL of the last rank to the first progress of the attempt that follows."""
    from aiaas_magics.core.events import StepsDone

    job, workers = begun(backend, count)
    time.sleep(SETTLED_S)
    os.kill(workers[-1], signal.SIGKILL)
    killed = time.time()
    while True:
        after = [entry.at_s for entry in job.entries() if entry.attempt == 2 and isinstance(entry.event, StepsDone)]
        if after:
            break
        time.sleep(0.05)
    job.cancel()
    job.wait()
    return after[0] - killed


def main() -> None:
    import aiaas_magics

    with own_home(), aiaas_magics.connect() as backend:
        memory = interleaved(
            {
                name: functools.partial(measure, count)
                for count in COUNTS
                for name, measure in (
                    (f"workers_{count}", functools.partial(our_mb, backend, launcher=False)),
                    (f"all_{count}", functools.partial(our_mb, backend, launcher=True)),
                    (f"plain_{count}", plain_mb),
                )
            },
            repeats=ROUNDS,
        )
        recovery = {count: Sample(tuple(recovered_s(backend, count) for _ in range(ROUNDS))) for count in (1, 2)}
    rows = []
    for count in COUNTS:
        plain = memory[f"plain_{count}"]
        rows.append(compared(f"memory of {count} workers", f"{count} plain processes", ratio(memory[f"workers_{count}"], plain), goal=0.6))
        with_launcher = ratio(memory[f"all_{count}"], plain)
        rows.append(compared(f"memory of {count} workers and their launcher", f"{count} plain processes", with_launcher, goal=0.6))
    save(
        "workers",
        [
            *rows,
            *({"what": f"next step after SIGKILL, {count} workers", "seconds": str(found), "goal": 5} for count, found in recovery.items()),
        ],
    )


if __name__ == "__main__":
    main()
