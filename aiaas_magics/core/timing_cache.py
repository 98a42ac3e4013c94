"""Measured times of steps, and a cache of them on disk: one result type and one cache, for the kernel and for workers.

Owns the value and the files. What is measured, under which key, and what follows from it belongs to `client.training.engine_timings`
(which engine) and to `training.autotune` (which form of the steps).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import msgspec

from aiaas_magics.core import settings
from aiaas_magics.core.events import Candidate

MOST_BYTES: Final = 64 * 1024  # guess: a timing has some hundred bytes


class StepTiming(msgspec.Struct, frozen=True, kw_only=True):
    """One way to carry out the steps, as it was measured. `start_s` is what lies before its first step, where that was measured too."""

    engine: str
    strategy: str
    fused: str
    step_s: float
    compile_s: float
    start_s: float = 0.0

    @classmethod
    def of(cls, candidate: Candidate, *, start_s: float = 0.0) -> Self:
        return cls(
            engine=candidate.engine,
            strategy=candidate.strategy,
            fused=candidate.fused,
            step_s=candidate.step_s,
            compile_s=candidate.compile_s,
            start_s=start_s,
        )

    def fit_s(self, steps: int) -> float:
        """What a fit of so many steps takes, from handing it in."""
        return self.start_s + self.compile_s + max(0, steps - 1) * self.step_s

    def cost_s(self, ahead: float) -> float:
        """Of a step, with its part of the compilation where `ahead` steps follow."""
        return self.step_s + self.compile_s / max(1.0, ahead)


class TimingCache:
    """What was measured, a small file per key. A damaged or missing one is as if nothing was."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> tuple[StepTiming, ...]:
        try:
            return msgspec.json.decode(_read(self._folder / f"{key}.json"), type=tuple[StepTiming, ...])
        except (OSError, ValueError):  # msgspec's errors are ValueErrors
            return ()

    def put(self, key: str, timings: Sequence[StepTiming]) -> None:
        """Keep `timings` in the place of what was there. A folder that cannot be written to costs the next fit its choice, no more."""
        with contextlib.suppress(OSError):
            settings.make_private(self._folder)
            partial = self._folder / f".{key}.{os.getpid()}.part"
            try:
                with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                    file.write(msgspec.json.encode(tuple(timings)))
                partial.replace(self._folder / f"{key}.json")
            finally:
                partial.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    """The bytes of a plain file. Code of a user ran where workers write: a link, a pipe or a huge file is none of ours."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(number, "rb") as file:
        facts = os.fstat(number)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MOST_BYTES:
            raise ValueError(f"{path} is no small file")
        return file.read(MOST_BYTES)
