"""Engines: the seam between serving and the libraries that do the arithmetic.

Owns the promises and the choice of an engine by the artefact's format. What an
artefact is checked for before it is opened belongs to the engine's own module.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.spec import DeploySpec

Tensors = Mapping[str, np.ndarray]


def slices_of(counts: Iterable[int]) -> Iterator[slice]:
    """Where so many rows each lie, one after the other.

    >>> list(slices_of([1, 2]))
    [slice(0, 1, None), slice(1, 3, None)]
    """
    end = 0
    for count in counts:
        start, end = end, end + count
        yield slice(start, end)


class EngineRefused(Exception):
    """The engine was given an input that it cannot compute; the engine itself is well. The text is for the caller."""


class EngineLost(Exception):
    """The engine is gone in the middle of the work; the next `run` starts it anew."""


class EngineTooSlow(Exception):
    """A computation took longer than it may, and was ended; the engine itself is well, or is started anew by the next `run`."""

    def __init__(self, name: str, limit_s: float) -> None:
        super().__init__(name, limit_s)
        self.name, self.limit_s = name, limit_s

    def __str__(self) -> str:
        return f"{self.name} did not compute this within {self.limit_s:g} s, and it was ended. Send fewer rows or smaller inputs."


class UnsafeArtefact(Exception):
    """An artefact that is not opened, and why."""


class Engine(Protocol):
    """One loaded model that computes one batch at a time.

    Promises:

    * `run` is called by one thread at a time, and blocks until the answer is there.
    * Names of inputs and outputs are those of the `DeploySpec`; a string tensor is an
      object array of `bytes`.
    * `run` raises `EngineRefused`, `EngineLost` or `EngineTooSlow` and nothing else for what a caller can cause.
    * `run` is over soon after the engine's own limit on a computation; infinite where whoever opened it keeps the time.
    * `close` may be called twice; after it no process and no file of the engine is left.
    """

    kind: str

    def run(self, inputs: Tensors, /) -> dict[str, np.ndarray]: ...

    def close(self) -> None: ...


def open_engine(spec: DeploySpec, artefact: Path, *, threads: int, scratch: Path, compute_s: float = math.inf) -> Engine:
    """An engine with `threads` threads of its own, ready to run; each computation has an end after `compute_s`.

    Raises:
        InvalidSpec: the format is unknown, or the artefact is refused or damaged.
    """
    # Imported here: the libraries take a moment, and a process that serves ONNX needs no other.
    try:
        if spec.format == "onnx":
            from aiaas_magics.backend.serving.engines.onnx_engine import OnnxEngine

            return OnnxEngine(spec, artefact, threads=threads, compute_s=compute_s)
        if spec.format == "saved_model":
            from aiaas_magics.backend.serving.engines.saved_model_engine import SavedModelEngine

            return SavedModelEngine(spec, artefact, threads=threads, scratch=scratch, compute_s=compute_s)
    except (UnsafeArtefact, EngineLost, EngineRefused) as error:
        raise InvalidSpec(f"{spec.name} was not loaded: {error}. Run the cell again to export it anew.") from error
    raise InvalidSpec(f"format={spec.format[:40]!r} is not served here. Use 'onnx' or 'saved_model'.")
