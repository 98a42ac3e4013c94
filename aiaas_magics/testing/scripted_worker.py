"""Scripted worker: a rank that plays a script instead of training.

Owns the script's words. It is a process like a real rank and speaks through the same files,
but imports no framework, so that what happens around workers can be tested in tenths of a second.

The payload blob holds the script: a JSON list of steps, each an object with `do` and, where
only some play it, `ranks` and `attempts`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any

from aiaas_magics.backend.folders import checkpoint_folder
from aiaas_magics.backend.folders.checkpoint_folder import TrainingPosition
from aiaas_magics.backend.folders.small_files import is_no_room
from aiaas_magics.backend.training.event_channel import FileChannel
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.backend.workers.local.attempt_folder import EXIT_CRASHED, EXIT_FINISHED
from aiaas_magics.core import wire
from aiaas_magics.core.events import AnyEvent, Checkpointed, Crashed, EpochEnded, Finished, Phase, PhaseEntered
from aiaas_magics.core.remote_error import ErrorReport


class Play:
    """One rank's run through the script."""

    def __init__(self, command: WorkerCommand) -> None:
        self.command = command
        self._events = Path(command.attempt_dir) / f"events-{command.rank}.jsonl"
        self._channel = FileChannel(self._events)

    def send(self, event: AnyEvent) -> None:
        self._channel.send(event)

    def run(self) -> int:
        files = (
            Path(self.command.job_dir, "files") if self.command.rank == 0 else Path(self.command.attempt_dir, f"files-{self.command.rank}")
        )
        files.mkdir(exist_ok=True)
        os.chdir(files)
        for folder in self.command.folders:
            Path(folder).mkdir(parents=True, exist_ok=True)
        self.send(PhaseEntered(phase=Phase.TRAINING))
        for step in json.loads(Path(self.command.payload).read_bytes()):
            if self.command.rank not in step.get("ranks", [self.command.rank]):
                continue
            if self.command.attempt not in step.get("attempts", [self.command.attempt]):
                continue
            code = STEPS[step["do"]](self, step)
            if code is not None:
                return code
        return self.finish({})

    def finish(self, step: dict[str, Any]) -> int:
        if self.command.rank == 0:
            partial = Path(self.command.attempt_dir, ".result.part")
            while not self.written(partial, step.get("result", f"result of attempt {self.command.attempt}")):
                time.sleep(0.1)
            partial.replace(partial.with_name("result.safetensors"))
        self.send(Finished())
        return EXIT_FINISHED

    @staticmethod
    def written(path: Path, text: str) -> bool:
        """Whether there was room for it on the disk."""
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            if not is_no_room(error):
                raise
            return False
        return True

    def epochs(self, step: dict[str, Any]) -> None:
        count = step["count"]
        resumed = TrainingPosition.of(Path(self.command.resume_from)) if self.command.resume_from else None
        begin = resumed.epoch if resumed else 0
        for epoch in range(begin, count):
            time.sleep(step.get("seconds", 0.02))
            self.send(EpochEnded(epoch=epoch, epochs=count, rows=10, seconds=0.01, logs={"loss": 1.0 / (epoch + 1)}))
            if self.command.rank == 0 and self.keep(epoch):
                self.send(Checkpointed(epoch=epoch + 1))

    def keep(self, epoch: int) -> bool:
        try:
            with checkpoint_folder.written(Path(self.command.job_dir) / "checkpoints", TrainingPosition(epoch + 1)) as folder:
                (folder / checkpoint_folder.STATE).write_text('{"variables": []}', encoding="utf-8")
        except OSError as error:  # a full disk
            if not is_no_room(error):
                raise
            return False
        return True

    def tear(self, step: dict[str, Any]) -> None:
        """The newest checkpoint as a power cut may leave it."""
        newest = max((Path(self.command.job_dir) / "checkpoints").glob("epoch-*"))
        (newest / checkpoint_folder.STATE).write_text("torn", encoding="utf-8")

    def crash(self, step: dict[str, Any]) -> int:
        self.send(Crashed(report=ErrorReport(type=step.get("type", "ValueError"), message=step.get("message", "no"))))
        return EXIT_CRASHED

    def say(self, step: dict[str, Any]) -> None:
        sys.stdout.write(step["text"])
        sys.stdout.flush()

    def write(self, step: dict[str, Any]) -> None:
        path = Path(step["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(step.get("text", ""), encoding="utf-8")

    def link(self, step: dict[str, Any]) -> None:
        Path(step["path"]).symlink_to(step["to"])

    def scribble(self, step: dict[str, Any]) -> None:
        """Bytes into the event file that are no event."""
        with self._events.open("ab") as file:
            file.write(step["text"].encode())

    def wait(self, step: dict[str, Any]) -> None:
        time.sleep(step["seconds"])

    def kill(self, step: dict[str, Any]) -> None:
        os.kill(os.getpid(), step.get("signal", signal.SIGKILL))

    def exit(self, step: dict[str, Any]) -> int:
        return int(step["code"])

    def daemonise(self, step: dict[str, Any]) -> None:
        """A process in a session of its own, as user code may start one."""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", self.command.attempt_dir], start_new_session=True)
        child.returncode = 0  # nobody waits for it

    def share(self, step: dict[str, Any]) -> None:
        """Shared memory under the attempt's name, left behind."""
        segment = shared_memory.SharedMemory(name=self.command.reduce_name, create=True, size=4096)
        resource_tracker.unregister(f"/{segment.name}", "shared_memory")
        segment.close()

    def python(self, step: dict[str, Any]) -> int | None:
        """Any code, as the user's would run; it knows this rank as `play`, and may set `code` to end it."""
        names: dict[str, Any] = {"play": self, "code": None}
        exec(step["text"], names)
        return names["code"]  # type: ignore[no-any-return]

    def stubborn(self, step: dict[str, Any]) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


STEPS: dict[str, Callable[[Play, dict[str, Any]], int | None]] = {
    name: getattr(Play, name)
    for name in (
        "epochs",
        "finish",
        "crash",
        "say",
        "write",
        "link",
        "scribble",
        "wait",
        "kill",
        "exit",
        "daemonise",
        "share",
        "stubborn",
        "tear",
        "python",
    )
}


def main(command_path: str) -> int:
    """The launcher's entry, in the place of `workers.worker_main.main`."""
    return Play(wire.decode(Path(command_path).read_bytes(), WorkerCommand)).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
