"""One rank that trains many fit calls, one after the other: starting a process for each would take minutes."""

from __future__ import annotations

import traceback
from pathlib import Path

from aiaas_magics.backend.training.event_channel import FileChannel
from aiaas_magics.backend.training.run import run
from aiaas_magics.backend.training.tensorflow.tensorflow_engine import ENGINE
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.backend.workers import worker_main
from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder
from aiaas_magics.core import wire
from aiaas_magics.core.events import Finished
from aiaas_magics.packing.fitcall import fit_call


def main(listed: str) -> int:
    """What a launcher's process calls; the file names a command file a line."""
    failed = 0
    for place, path in enumerate(Path(listed).read_text().splitlines()):
        command = wire.decode(Path(path).read_bytes(), WorkerCommand)
        folder = AttemptFolder(Path(command.attempt_dir))
        if not place:
            worker_main.prepare_process(command)
        channel = FileChannel(folder.events(command.rank))
        try:
            call = ENGINE.unpack(command)
            history = run(ENGINE, command, call, channel)
            if command.rank == 0:
                fit_call.write_result(folder.result, call, history)
            channel.send(Finished())
        except Exception:  # noqa: BLE001 - border: the other cases are still to be trained
            print(path)
            traceback.print_exc()
            failed = 1
        channel.close()
    return failed
