"""Engines: the seam between serving and the libraries that do the arithmetic.

Owns the promises and the choice of an engine by the artefact's format. What an
artefact is checked for before it is opened belongs to the engine's own module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np

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
