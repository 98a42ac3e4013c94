"""One JAX worker of four simulated devices that trains many fit calls, one after the other.

python jax_cases.py COMMAND_FILE...

Of a case named large-... the data are more than the devices may hold.

Beside each command it leaves `refused.txt`, or `shards.json`: on how many devices different parts of a variable lie.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from msgspec.structs import replace

from aiaas_magics.backend.training.event_channel import FileChannel
from aiaas_magics.backend.training.jax import jax_steps
from aiaas_magics.backend.training.jax.jax_engine import ENGINE
from aiaas_magics.backend.training.monkeypatch import monkeypatched
from aiaas_magics.backend.training.run import run
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.backend.workers import worker_main
from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder
from aiaas_magics.core import wire
from aiaas_magics.core.errors import NotOnEngine
from aiaas_magics.packing.fitcall import fit_call

DEVICES = 4


def main(paths: list[str]) -> int:
    failed = 0
    for place, path in enumerate(map(Path, paths)):
        command = wire.decode(path.read_bytes(), WorkerCommand)
        folder = AttemptFolder(Path(command.attempt_dir))
        if not place:
            worker_main.prepare_process(replace(command, devices=DEVICES, cores=()))
        if command.resume_from:
            command = replace(command, resume_from=str(min(Path(command.resume_from).glob("epoch-*"))))
        channel = FileChannel(folder.events(command.rank))
        try:
            call = ENGINE.unpack(command)
            with monkeypatched(*[(jax_steps, "MEMORY_SHARE", 0.0)] * path.match("*/large-*/*/*")):
                history = run(ENGINE, command, call, channel)
            fit_call.write_result(folder.result, call, history)
            shards = {variable.path: len({str(s.index) for s in variable.value.addressable_shards}) for variable in call.model.weights}
            path.with_name("shards.json").write_text(json.dumps(shards))
        except NotOnEngine as error:
            path.with_name("refused.txt").write_text(str(error))
        except Exception:  # noqa: BLE001 - border: the other cases are still to be trained
            print(path)
            traceback.print_exc()
            failed = 1
        channel.close()
    if "tensorflow" in sys.modules:
        print("TensorFlow was imported")
        failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
