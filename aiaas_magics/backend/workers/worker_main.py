"""Worker process: the first of our functions in a rank, and the last.

Owns the process: its cores, threads, working directory and seeds, and the border where the user's
code may raise anything. What is computed in it belongs to `training.run`.

    python -m aiaas_magics.backend.workers.worker_main COMMAND_FILE      (where there is no fork)
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from msgspec.structs import replace

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from aiaas_magics.backend.folders.job_folder import JobFolder
from aiaas_magics.backend.folders.small_files import is_no_room, write_private
from aiaas_magics.backend.training import shown_figures
from aiaas_magics.backend.training.error_report import report_of
from aiaas_magics.backend.training.event_channel import FileChannel
from aiaas_magics.backend.training.unpacked_fit import Unpacked
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.backend.workers import opened_files
from aiaas_magics.backend.workers.local.attempt_folder import EXIT_ALONE, EXIT_CRASHED, EXIT_FINISHED, AttemptFolder, write_value
from aiaas_magics.backend.workers.rank_output import text_output
from aiaas_magics.core import wire
from aiaas_magics.core.engines import HOME, of_keras_backend
from aiaas_magics.core.errors import NotOnEngine, StoreNotWritable
from aiaas_magics.core.events import Candidate, Crashed, Finished, Notice, Phase
from aiaas_magics.core.printout import ENDING, OWN_PREFIX

RESULT_WAIT_S: Final = 60.0  # guess: long enough to remove something, short against a device that nobody else gets
ROOM_LOOK_S: Final = 1.0
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
    except NotOnEngine as error:
        # A measurement fails instead: its numbers would stand for devices of this engine, and be those of one process of another.
        execution = command.execution
        if not execution.must_run_there and command.measure is None and command.ranks == 1:
            channel.send(Notice(text=f"This fit stays on {HOME.title}: {error.why}."))
            fall_back(command, command_path, error)
        if command.measure is not None and command.measure.compare:
            channel.send(Candidate(engine=execution.runs_on.name, strategy=execution.strategy, fused=execution.fused, why=error.why))
        channel.send(Crashed(report=report_of(error, rank=command.rank, phase=stage.phase)))
        return EXIT_CRASHED
    # SystemExit and KeyboardInterrupt too: SIGINT is ignored here, so that an interrupt is one that the user's code raised.
    except BaseException as error:  # noqa: BLE001 - border: the user's code ran in here and may raise anything
        if missing := missing_rank(error):
            print(f"{ENDING} {missing}", file=sys.stderr, flush=True)
            time.sleep(LAST_WORD_S)
            return EXIT_ALONE
        print(ENDING, file=sys.stderr)
        traceback.print_exc()
        report = report_of(error, rank=command.rank, phase=stage.phase)
        if not report.kind and is_of_state(error, folder):
            why = no_room(folder, error)
            report = replace(report, kind=type(why).__name__, args=tuple(map(str, why.args)))
        channel.send(Crashed(report=report))
        return EXIT_CRASHED
    channel.send(Finished())
    return EXIT_FINISHED


class Stage:
    """How far the rank has come, for an error's report."""

    def __init__(self) -> None:
        self.phase: str = Phase.STARTING


def work(command: WorkerCommand, channel: FileChannel, stage: Stage) -> None:
    """Unpack, train or explain, and (rank 0) leave the result."""
    from aiaas_magics.backend.training.engine import load
    from aiaas_magics.backend.training.run import run
    from aiaas_magics.packing.fitcall import fit_call

    engine = load(command.execution.runs_on)
    call = engine.unpack(command)
    if command.explain is not None:
        explain(command, call, channel, stage)
        return
    stage.phase = Phase.TRAINING
    shown_figures.begin(shown_figures.ShownFigures(Path(command.job_dir, "figures"), channel, attempt=command.attempt, rank=command.rank))
    history = run(engine, command, call, channel)
    shown_figures.show_open()
    if command.rank == 0:
        stage.phase = Phase.FETCHING
        keep_result(AttemptFolder(Path(command.attempt_dir)), lambda path: fit_call.write_result(path, call, history), channel)


def explain(command: WorkerCommand, call: Unpacked, channel: FileChannel, stage: Stage) -> None:
    """Explain this rank's share of the rows, and (rank 0) leave the attributions of all."""
    from aiaas_magics.backend.training.explain_run import explain_rows, joined_bytes

    stage.phase = Phase.EXPLAINING
    explain_rows(command, call, channel)
    if command.rank == 0:
        result = joined_bytes(command, call)
        keep_result(AttemptFolder(Path(command.attempt_dir)), lambda path: write_private(path, result, durable=True), channel)


def keep_result(folder: AttemptFolder, write: Callable[[Path], None], channel: FileChannel) -> None:
    """Write rank 0's result. On a full disk it waits for room for a while, since the work is done.

    Raises:
        StoreNotWritable: there was none in time.
    """
    deadline = time.monotonic() + RESULT_WAIT_S
    while True:
        try:
            return write(folder.result)
        except Exception as error:
            if not is_no_room(error):
                raise
            for partial in folder.path.glob(f".{folder.result.name}.*"):
                partial.unlink(missing_ok=True)
            if time.monotonic() > deadline:
                raise no_room(folder, error) from error
            channel.send(Notice(text=f"The training is done; its result waits for room on the disk of {state_of(folder)}."))
            time.sleep(ROOM_LOOK_S)


def is_of_state(error: BaseException, folder: AttemptFolder) -> bool:
    """Whether the disk of the state folder is full, and not another one that the user's code wrote to."""
    name = getattr(error, "filename", None)
    elsewhere = isinstance(name, str) and os.path.isabs(name) and not Path(name).is_relative_to(state_of(folder))
    return is_no_room(error) and not elsewhere


def no_room(folder: AttemptFolder, error: BaseException) -> StoreNotWritable:
    """`error`, which says that a disk is full, as ours: whoever runs the backend makes room, the cell is right as it is."""
    place = f" ({filename})" if (filename := getattr(error, "filename", None)) else ""
    return StoreNotWritable(str(state_of(folder)), f"No space left on device, when the job wrote into its folder{place}")


def state_of(folder: AttemptFolder) -> Path:
    """The state folder that an attempt's lies in: STATE/jobs/JOB/attempt-K."""
    return folder.path.parents[2]


def fall_back(command: WorkerCommand, command_path: str, error: NotOnEngine) -> NoReturn:
    """Become, as the same process, a worker that trains on the kernel's own engine what does not work on this one."""
    write_value(Path(command_path), replace(command, execution=command.execution.fallen_back(strategy="single"), devices=1))
    print(f"{OWN_PREFIX}not on {error.engine}: {error.why}", flush=True)
    environment = {**os.environ, "KERAS_BACKEND": HOME.keras_backend}
    os.execve(sys.executable, [sys.executable, "-P", "-m", "aiaas_magics.backend.workers.worker_main", command_path], environment)


def prepare_process(command: WorkerCommand) -> None:
    """Cores, device, threads, folder and seeds, before anything touches a device."""
    # The launcher's, in its format; a kernel has none, and what callbacks log should look as it does there.
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    if hasattr(signal, "SIGINT"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt in a terminal is the server's to handle
    pin(command.cores)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, command.gpus))
    where = Path(command.job_dir, "files") if command.rank == 0 else Path(command.attempt_dir, f"files-{command.rank}")
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chdir(where)
    if command.rank == 0:
        opened_files.record(JobFolder(Path(command.job_dir)))
    for folder in command.folders:
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)

    from aiaas_magics.backend.training.engine import load

    load(command.execution.runs_on).prepare(command)


def pin(cores: Sequence[int]) -> None:
    if cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # a core of the list may be gone (a smaller container): unpinned is slower, not wrong
            os.sched_setaffinity(0, cores)


def make_ready(cores: Sequence[int]) -> None:
    """What any training on these cores begins with, for a process that has no command yet (`spare_worker`)."""
    from aiaas_magics.backend.training.engine import load

    pin(cores)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    load(of_keras_backend(os.environ["KERAS_BACKEND"])).make_ready(cores)


def missing_rank(error: BaseException) -> str | None:
    """The sentence of a `RankMissing`, also of one that came through TensorFlow, which keeps only the text of an error in a step."""
    from aiaas_magics.backend.training.comm.process_group import RankMissing

    if isinstance(error, RankMissing):
        return str(error)
    return next((line for line in str(error).splitlines() if f"{RankMissing.__name__}:" in line), None)


if __name__ == "__main__":
    sys.stdout, sys.stderr = text_output(1), text_output(2)
    sys.exit(main(sys.argv[1]))
