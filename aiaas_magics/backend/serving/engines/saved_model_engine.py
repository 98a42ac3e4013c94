"""SavedModel engine: a process of its own imports TensorFlow, so that this one need not.

Owns that process: starting it, asking it, starting it anew when it died, and unpacking the
artefact where it cannot do harm. What happens inside belongs to `saved_model_child`.
"""

from __future__ import annotations

import lzma
import math
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from aiaas_magics.backend.serving.engines import EngineLost, EngineRefused, EngineTooSlow, Tensors, UnsafeArtefact, tensor_frames
from aiaas_magics.core import wire
from aiaas_magics.core.spec import DeploySpec

READY_S: Final = 120.0  # guess: importing TensorFlow takes 4 to 8 s on a free machine
END_S: Final = 5.0  # guess
MOST_FILES: Final = 10_000  # guess: a SavedModel has a dozen, and one for each vocabulary
MOST_BYTES: Final = 20 * 2**30  # guess: the largest model a machine of this kind serves
MOST_RATIO: Final = 200  # guess: weights hardly shrink; a bomb does by a thousand
# What reading a damaged or odd archive raises: of the container, of each compression, of a password or method that is not known.
DAMAGED: Final = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error)


class SavedModelEngine:
    """One process with the model in it. It ends when this side closes or dies."""

    kind = "saved_model"

    def __init__(self, spec: DeploySpec, artefact: Path, *, threads: int, scratch: Path, compute_s: float = math.inf) -> None:
        self._spec, self._threads, self._compute_s = spec, threads, compute_s
        self._folder = Path(tempfile.mkdtemp(prefix="saved-model-", dir=scratch))
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        try:
            unpack(artefact, self._folder / "model")
            self._start()
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Tensors, /) -> dict[str, np.ndarray]:
        if self._socket is None:
            self._start()
        assert self._socket is not None
        try:
            tensor_frames.send(self._socket, "run", tensors=inputs)
            say, text, outputs = tensor_frames.receive(self._socket)
        except tensor_frames.BrokenFrame as error:
            is_late = isinstance(error.__cause__, TimeoutError)
            self._end_child(grace_s=0.0 if is_late else END_S)
            if is_late:
                raise EngineTooSlow(self._spec.name, self._compute_s) from error
            raise EngineLost(f"the model's process ended: {error}") from error
        if say == "refused":
            raise EngineRefused(text)
        return outputs

    def close(self) -> None:
        self._end_child()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        parent_end, child_end = socket.socketpair()
        with child_end:
            self._socket = parent_end
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "aiaas_magics.backend.serving.engines.saved_model_child", str(child_end.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(child_end.fileno(),),
                env={**os.environ, **child_environment(self._threads)},
                cwd=self._folder,
            )
        parent_end.settimeout(READY_S)
        try:
            tensor_frames.send(parent_end, "load", text=wire.encode([str(self._folder / "model"), self._names()]).decode())
            say, text, _ = tensor_frames.receive(parent_end)
        except tensor_frames.BrokenFrame as error:
            self._end_child()
            raise EngineLost(f"the model's process did not come up: {error}") from error
        if say != "ready":
            self._end_child()
            raise UnsafeArtefact(text)
        parent_end.settimeout(None if self._compute_s == math.inf else self._compute_s)

    def _names(self) -> list[list[str]]:
        return [[tensor.name for tensor in side] for side in (self._spec.inputs, self._spec.outputs)]

    def _end_child(self, *, grace_s: float = END_S) -> None:
        """Closing the socket ends the process; one that computes for too long is killed."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._child is not None:
            try:
                self._child.wait(grace_s)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
            self._child = None


def child_environment(threads: int) -> dict[str, str]:
    """Threads and quiet; TensorFlow reads these when it is imported."""
    return {
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": "1",
        "OMP_NUM_THREADS": str(threads),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }


def unpack(artefact: Path, into: Path) -> None:
    """Unpack a zip of a SavedModel below `into`; nothing is written anywhere else, whatever the zip says.

    Raises:
        UnsafeArtefact: a name leads out of the folder, a link is in it, or it grows too large.
    """
    try:
        with zipfile.ZipFile(artefact) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check_members(members, packed_bytes=max(1, artefact.stat().st_size))
            for member in members:
                target = into / PurePosixPath(member.filename)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("xb") as sink:
                    shutil.copyfileobj(source, sink, 1024 * 1024)
    except OSError as error:  # the text of it has a path of this host
        raise UnsafeArtefact(f"it is no zip of a SavedModel ({error.strerror or type(error).__name__})") from error
    except DAMAGED as error:
        raise UnsafeArtefact(f"it is no zip of a SavedModel ({error})") from error
    if not (into / "saved_model.pb").is_file():
        raise UnsafeArtefact("it holds no saved_model.pb")


def _check_members(members: list[zipfile.ZipInfo], *, packed_bytes: int) -> None:
    if len(members) > MOST_FILES:
        raise UnsafeArtefact(f"it holds {len(members)} files")
    names = {member.filename for member in members}
    if len(names) < len(members):
        raise UnsafeArtefact("a name in it comes twice")
    total = sum(member.file_size for member in members)
    if total > MOST_BYTES or total / packed_bytes > MOST_RATIO:
        raise UnsafeArtefact(f"it would unpack to {total} bytes")
    for member in members:
        name = member.filename
        mode = member.external_attr >> 16
        if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
            raise UnsafeArtefact(f"{name[:80]!r} in it is no regular file")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
            raise UnsafeArtefact(f"the path {name[:80]!r} in it leads elsewhere")
