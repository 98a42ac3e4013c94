"""One rank as a process: the first of our functions in it, and the last.

Owns the process: its cores, threads, working directory and seeds, and the border where the user's
code may raise anything. What is computed in it belongs to `training`.

    python -m aiaas_magics.backend.workers.child COMMAND_FILE      (where there is no fork)
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Final, NoReturn

from msgspec.structs import replace

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from aiaas_magics import wire
from aiaas_magics.backend.training.channel import FileChannel
from aiaas_magics.backend.training.command import WorkerCommand
from aiaas_magics.backend.training.report import report_of
from aiaas_magics.backend.workers.attempt import EXIT_ALONE, EXIT_CRASHED, EXIT_FINISHED, AttemptFolder, write_value
from aiaas_magics.errors import NotOnJax
from aiaas_magics.events import Candidate, Crashed, Finished, Notice, Phase

LAST_WORD_S: Final = 0.5  # so that the server sees the end of the one that was lost before the end of those that miss it (guess)


def main(command_path: str) -> int:
    """Run the rank that the command file describes. Returns the exit code; what happened is in the event file."""
    command = wire.decode(Path(command_path).read_bytes(), WorkerCommand)
    folder = AttemptFolder(Path(command.attempt_dir))
    channel = FileChannel(folder.events(command.rank))
    prepare_process(command)
    stage = Stage()
    try:
        work(command, channel, stage)
    except NotOnJax as error:
        # A measurement fails instead: its numbers would stand for devices on JAX, and be those of one process on TensorFlow.
        if not command.execution.must_be_jax and command.measure is None:
            channel.send(Notice(text=f"This fit stays on TensorFlow: {error.why}."))
            go_on_with_tensorflow(command, command_path, error.why)
        if command.measure is not None and command.measure.compare:
            channel.send(Candidate(engine="jax", strategy=command.execution.strategy, fused=command.execution.fused, why=error.why))
        channel.send(Crashed(report=report_of(error, rank=command.rank, phase=stage.phase)))
        return EXIT_CRASHED
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - border: the user's code ran in here and may raise anything
        if missing := missing_rank(error):
            print(missing, file=sys.stderr, flush=True)
            time.sleep(LAST_WORD_S)
            return EXIT_ALONE
        traceback.print_exc()
        channel.send(Crashed(report=report_of(error, rank=command.rank, phase=stage.phase)))
        return EXIT_CRASHED
    channel.send(Finished())
    return EXIT_FINISHED


class Stage:
    """How far the rank has come, for an error's report."""

    def __init__(self) -> None:
        self.phase: str = Phase.STARTING


def work(command: WorkerCommand, channel: FileChannel, stage: Stage) -> None:
    """Unpack, train, and (rank 0) leave the result."""
    from aiaas_magics.packing import fitcall

    # By name: importing either binds Keras to its backend for the life of the process.
    engine = importlib.import_module(f"aiaas_magics.backend.training.{'engines.jax' if command.execution.on_jax else 'loop'}")
    call = engine.unpack(command)
    stage.phase = Phase.TRAINING
    history = engine.run(command, call, channel)
    if command.rank == 0:
        stage.phase = Phase.FETCHING
        fitcall.write_result(AttemptFolder(Path(command.attempt_dir)).result, call, history)


def go_on_with_tensorflow(command: WorkerCommand, command_path: str, why: str) -> NoReturn:
    """Become, as the same process, a worker that trains on TensorFlow what does not work on JAX."""
    stays = replace(command.execution, engine="tensorflow", may_stay=False, strategy="single", model_parallel=1)
    write_value(Path(command_path), replace(command, execution=stays, devices=1))
    print(f"not on JAX: {why}", flush=True)
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    os.execve(sys.executable, [sys.executable, "-P", "-m", "aiaas_magics.backend.workers.child", command_path], environment)


def prepare_process(command: WorkerCommand) -> None:
    """Cores, device, threads, folder and seeds, before anything touches a device."""
    if hasattr(signal, "SIGINT"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt in a terminal is the server's to handle
    if command.cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # a core of the list may be gone (a smaller container): unpinned is slower, not wrong
            os.sched_setaffinity(0, command.cores)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, command.gpus))
    where = Path(command.job_dir, "files") if command.rank == 0 else Path(command.attempt_dir, f"files-{command.rank}")
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chdir(where)
    for folder in command.folders:
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)

    seed = (command.seed + command.rank) % 2**32
    if command.execution.on_jax:
        from aiaas_magics.backend.training.engines import jax as engine

        engine.prepare(command)
        return
    import keras
    import tensorflow as tf

    from aiaas_magics.backend.training.engines import mirrored

    if command.cores:
        tf.config.threading.set_intra_op_parallelism_threads(len(command.cores))
        # One more than cores: an exchange that waits for other ranks occupies one, and data is read meanwhile.
        tf.config.threading.set_inter_op_parallelism_threads(len(command.cores) + 1)
    if mirrored.is_mirrored(command) and not command.gpus:
        mirrored.simulate_devices(command.devices)
    keras.utils.set_random_seed(seed)


def missing_rank(error: BaseException) -> str | None:
    """The sentence of a `RankMissing`, also of one that came through TensorFlow, which keeps only the text of an error in a step."""
    from aiaas_magics.backend.training.group import RankMissing

    if isinstance(error, RankMissing):
        return str(error)
    return next((line for line in str(error).splitlines() if f"{RankMissing.__name__}:" in line), None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
