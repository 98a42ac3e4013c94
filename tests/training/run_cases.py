"""One rank that trains many fit calls, one after the other: starting a process for each would take minutes."""

from __future__ import annotations

import traceback
from pathlib import Path

from aiaas_magics import wire
from aiaas_magics.backend.training import loop
from aiaas_magics.backend.training.channel import FileChannel
from aiaas_magics.backend.training.command import WorkerCommand
from aiaas_magics.backend.workers import child
from aiaas_magics.backend.workers.attempt import AttemptFolder
from aiaas_magics.events import Finished
from aiaas_magics.packing import fitcall


def main(listed: str) -> int:
    """What a launcher's process calls; the file names a command file a line."""
    failed = 0
    for place, path in enumerate(Path(listed).read_text().splitlines()):
        command = wire.decode(Path(path).read_bytes(), WorkerCommand)
        folder = AttemptFolder(Path(command.attempt_dir))
        if not place:
            child.prepare_process(command)
        channel = FileChannel(folder.events(command.rank))
        try:
            call = loop.unpack(command)
            history = loop.run(command, call, channel)
            if command.rank == 0:
                fitcall.write_result(folder.result, call, history)
            channel.send(Finished())
        except Exception:  # noqa: BLE001 - border: the other cases are still to be trained
            print(path)
            traceback.print_exc()
            failed = 1
        channel.close()
    return failed
