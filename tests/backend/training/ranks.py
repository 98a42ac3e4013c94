"""Real processes for the tests of training: a fit call is packed here, trained there, and its result read back."""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aiaas_magics.backend.training.worker_command import WorkerCommand, WorkerLine
from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder, Exit, write_value
from aiaas_magics.backend.workers.local.launcher_client import LauncherClient
from aiaas_magics.backend.workers.local.local_pool import LocalPool
from aiaas_magics.core import wire
from aiaas_magics.core.events import AnyEvent
from aiaas_magics.core.execution import Execution
from aiaas_magics.packing.fitcall import fit_call
from tests.support import waiting
from tests.support.launchers import ROOT

WAIT_S = 240.0


@dataclass(frozen=True)
class Sent:
    """A fit call in files, as the server would have them."""

    packed: fit_call.PackedFitCall
    payload: Path
    arrays: tuple[Path, ...]


def send(folder: Path, model: Any, workers: int = 2, execution: Execution | None = None, **arguments: Any) -> Sent:
    folder.mkdir(parents=True, exist_ok=True)
    packed = fit_call.pack(fit_call.FitCall(model, arguments), workers=workers, execution=execution)
    payload = folder / "payload"
    payload.write_bytes(packed.payload)
    paths = []
    for place, array in enumerate(packed.arrays):
        paths.append(folder / f"array-{place}.npy")
        np.save(paths[-1], array, allow_pickle=False)
    return Sent(packed, payload, tuple(paths))


def command_for(sent: Sent, folder: Path, *, rank: int, ranks: int, name: str, attempt: int = 1, **more: Any) -> WorkerCommand:
    attempt_dir = folder / f"attempt-{attempt}"
    attempt_dir.mkdir(exist_ok=True)
    given = {"seed": 7, "cores": (rank % (os.cpu_count() or 1),)} | more
    return WorkerCommand(
        job="test",
        attempt=attempt,
        rank=rank,
        ranks=ranks,
        attempt_dir=str(attempt_dir),
        job_dir=str(folder),
        payload=str(sent.payload),
        arrays=tuple(map(str, sent.arrays)),
        reduce_name=name,
        **given,
    )


def commands_for(sent: Sent, folder: Path, *, ranks: int, attempt: int = 1, **more: Any) -> list[WorkerCommand]:
    """Those of every rank of one attempt, which meet under one name."""
    name = f"aiaas-test-{secrets.token_hex(4)}"
    return [command_for(sent, folder, rank=rank, ranks=ranks, name=name, attempt=attempt, **more) for rank in range(ranks)]


def commands(sent: Sent, folder: Path, *, ranks: int, attempt: int = 1, **more: Any) -> list[Path]:
    """Command files for every rank of one attempt."""
    there = AttemptFolder(folder / f"attempt-{attempt}")
    for command in commands_for(sent, folder, ranks=ranks, attempt=attempt, **more):
        write_value(there.command(command.rank), command)
    return [there.command(rank) for rank in range(ranks)]


def spawn(*arguments: str, output: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with output.open("ab") as file:
        return subprocess.Popen([sys.executable, *arguments], stdout=file, stderr=file, env=environment)


def start(paths: Sequence[Path]) -> list[subprocess.Popen[bytes]]:
    """One process a rank, as the pool starts them where there is no fork."""
    return [
        spawn("-m", "aiaas_magics.backend.workers.worker_main", str(path), output=path.with_name(f"output-{place}.txt"))
        for place, path in enumerate(paths)
    ]


def carry_out(launcher: LauncherClient, files: Sequence[Sequence[Path]], folder: Path, *, wait_s: float = WAIT_S) -> None:
    """Processes that `run_cases` runs in, each over its command files one after the other, to their good end."""
    there = AttemptFolder(folder / "processes")
    there.path.mkdir()
    paths = [there.command(number) for number in range(len(files))]
    for path, commands in zip(paths, files, strict=True):
        path.write_text("\n".join(map(str, commands)))
    launcher.ask({"commands": [str(path) for path in paths]})
    ended = endings(there, len(files), wait_s=wait_s)
    output = "\n".join(there.output(number).read_text(errors="replace")[-6000:] for number in range(len(files)))
    assert ended == [Exit(code=0)] * len(files), output


def endings(there: AttemptFolder, processes: int, *, wait_s: float = WAIT_S) -> list[Exit | None]:
    """How processes that a launcher forked ended; those that do not within `wait_s` are killed."""
    try:
        waiting.until(lambda: all(there.ending(number) for number in range(processes)), "a process did not end", wait_s)
    finally:
        kill(there, processes)
    return [there.ending(number) for number in range(processes)]


def kill(there: AttemptFolder, processes: int) -> None:
    """Those of a launcher's processes that still live."""
    for number in range(processes):
        process = there.process(number)
        if process is not None and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)


def finish(processes: Sequence[subprocess.Popen[bytes]], wait_s: float = WAIT_S) -> list[int]:
    try:
        return [process.wait(wait_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def fork(pool: LocalPool, sent: Sent, folder: Path, *, ranks: int, attempt: int = 1, **more: Any) -> list[int | None]:
    """How the processes of one attempt ended, which `pool` forks."""
    there = AttemptFolder(folder / f"attempt-{attempt}")
    asyncio.run(pool.start_ranks(there, commands_for(sent, folder, ranks=ranks, attempt=attempt, **more)))
    return [ending.code for ending in endings(there, ranks) if ending is not None]


def train(pool: LocalPool, folder: Path, model: Any, *, ranks: int, **arguments: Any) -> Any:
    """Train `model` on `ranks` processes and put the result into it; returns the `History`."""
    sent = send(folder, model, workers=ranks, **arguments)
    assert fork(pool, sent, folder, ranks=ranks) == [0] * ranks, output_of(folder)
    return fit_call.apply_result(result_in(folder), sent.packed)


def result_in(folder: Path, attempt: int = 1) -> fit_call.FitResult:
    return fit_call.read_result((folder / f"attempt-{attempt}" / "result.safetensors").read_bytes())


def events_in(folder: Path, rank: int = 0, attempt: int = 1) -> list[AnyEvent]:
    path = folder / f"attempt-{attempt}" / f"events-{rank}.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [wire.decode(line, WorkerLine).event for line in lines]


def output_of(folder: Path) -> str:
    return "\n".join(f"--- {path.name}\n{path.read_text()[-4000:]}" for path in sorted(folder.glob("attempt-*/output-*.txt")))


wait_until = functools.partial(waiting.until, wait_s=WAIT_S)


def gaps(ours: Sequence[Any], plain: Sequence[Any]) -> list[float]:
    """norm(a - b) / norm(b) of each floating variable; infinite where a number is missing, since `max` passes a NaN over."""
    found = []
    for mine, theirs in zip(ours, plain, strict=True):
        a, b = np.asarray(mine, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
        norm = float(np.linalg.norm(b))
        with np.errstate(invalid="ignore"):  # of two infinities
            gap = float(np.linalg.norm(a - b)) / norm if norm else float(np.linalg.norm(a))
        found.append(gap if np.isfinite(gap) else np.inf)
    return found
