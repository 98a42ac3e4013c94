"""One process of a training engine, as a launcher makes it: preloaded, then a child for each command file.

python -m tests.support.engine_process ENGINE PATH...

A path with a `+` joins the command files of one attempt, whose ranks run at once. Three words stand for a path: `touch` has a
child touch a device and then ask whether it may fork, `plain:PATH` has Keras' stock `fit` train what the engine unpacked, and
`restored:PATH` trains by the engine and looks whether every function of Keras is what it was before.
The libraries of all other engines cannot be imported here.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

from aiaas_magics.core.engines import ENGINES, EngineInfo

REFUSED = 3


class Blocked(MetaPathFinder):
    """Makes libraries look as if they were not installed."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {fullname!r}: another engine's library is blocked here", name=fullname)


def touch(info: EngineInfo) -> int:
    import keras

    from aiaas_magics.backend.training.engine import load

    keras.ops.convert_to_numpy(keras.ops.ones((2,)))
    try:
        load(info).assert_fork_safe()
    except RuntimeError as error:
        print(error, flush=True)
        return REFUSED
    return 0


def plain(info: EngineInfo, path: str) -> int:
    import keras

    from aiaas_magics.backend.training.engine import load
    from aiaas_magics.backend.training.worker_command import WorkerCommand
    from aiaas_magics.backend.workers import worker_main
    from aiaas_magics.core import wire
    from aiaas_magics.packing.fitcall import fit_call

    command = wire.decode(Path(path).read_bytes(), WorkerCommand)
    worker_main.prepare_process(command)
    call = load(info).unpack(command)
    history = keras.Model.fit(call.model, **{**call.arguments, "verbose": 0})
    fit_call.write_result(Path(command.attempt_dir) / "result.safetensors", call, history)
    return 0


def restored(info: EngineInfo, path: str) -> int:
    from aiaas_magics.backend.training.engine import load
    from aiaas_magics.backend.training.event_channel import FileChannel
    from aiaas_magics.backend.training.run import run
    from aiaas_magics.backend.training.worker_command import WorkerCommand
    from aiaas_magics.backend.workers import worker_main
    from aiaas_magics.core import wire

    command = wire.decode(Path(path).read_bytes(), WorkerCommand)
    worker_main.prepare_process(command)
    engine = load(info)
    call = engine.unpack(command)
    before, own = functions_of_keras(), set(vars(call.model))
    run(engine, command, call, FileChannel(Path(command.attempt_dir, "events-0.jsonl")))
    after = functions_of_keras()
    changed = sorted(name for name, value in before.items() if after.get(name) is not value)
    print("changed:", *changed, "; new in the model:", *sorted(set(vars(call.model)) - own), flush=True)
    return 1 if changed else 0


def functions_of_keras() -> dict[str, Any]:
    """Functions and classes of Keras' modules, and the methods of its classes, by name."""
    modules = {name: module for name, module in sys.modules.items() if name.startswith("keras.src")}
    found = {f"{name}:{key}": value for name, module in modules.items() for key, value in vars(module).items() if callable(value)}
    classes = {name: value for name, value in found.items() if isinstance(value, type) and value.__module__.startswith("keras.src")}
    methods = {f"{name}.{key}": value for name, cls in classes.items() for key, value in vars(cls).items() if callable(value)}
    return found | methods


def forked(work: Callable[[], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = work()
    except BaseException:  # noqa: BLE001 - border: a child never returns into the parent's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(name: str, *jobs: str) -> int:
    from aiaas_magics.backend.workers.local import launcher

    info = ENGINES[name]
    sys.meta_path.insert(0, Blocked([package for other in ENGINES.values() if other is not info for package in other.packages]))
    launcher.preload(info.preload)
    for package in (package for other in ENGINES.values() if other is not info for package in other.packages):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            print(f"{package} is blocked")
    from aiaas_magics.backend.workers import worker_main

    failed = 0
    for job in jobs:
        if job == "touch":
            pids = [forked(partial(touch, info))]
        elif job.startswith("plain:"):
            pids = [forked(partial(plain, info, job.removeprefix("plain:")))]
        elif job.startswith("restored:"):
            pids = [forked(partial(restored, info, job.removeprefix("restored:")))]
        else:
            pids = [forked(partial(worker_main.main, path)) for path in job.split("+")]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(job, codes, flush=True)
        failed |= any(code != (REFUSED if job == "touch" else 0) for code in codes)
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
