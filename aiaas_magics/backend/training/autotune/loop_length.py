"""Loop length: how many steps the next call makes.

Owns the choice by time; who makes the steps is an engine's.
"""

from __future__ import annotations

from typing import Final

from aiaas_magics.backend.training.comm.process_group import ProcessGroup
from aiaas_magics.backend.training.epochs import LoopLengthPolicy

CALL_S: Final = 0.25  # one call at most about this long: progress is told, and an interrupt is heard, between calls
GROWTH: Final = 8  # a call makes at most so many times the steps of the last one: the first one's time says little


class LoopLength:
    """How many steps the next call makes: as many as fit in `CALL_S`, or `steps_per_call` where a callback looks at every one."""

    def __init__(self, steps_per_call: int | None = None) -> None:
        self._steps_per_call = steps_per_call
        self._steps, self._step_s = 0, 0.0

    def __call__(self) -> int:
        if self._steps_per_call is not None:
            return self._steps_per_call
        if not self._steps:
            return 1
        fitting = int(CALL_S / self._step_s) if self._step_s > 0 else GROWTH * self._steps
        return max(1, min(fitting, GROWTH * self._steps))

    def took(self, steps: int, seconds: float) -> None:
        self._steps, self._step_s = max(self._steps, steps), seconds / steps


class _Agreed:
    def __init__(self, pace: LoopLengthPolicy, group: ProcessGroup) -> None:
        self._pace, self._group = pace, group

    def __call__(self) -> int:
        return int(self._group.broadcast(self._pace(), site="pace"))

    def took(self, steps: int, seconds: float) -> None:
        self._pace.took(steps, seconds)


def agreed(pace: LoopLengthPolicy, group: ProcessGroup | None) -> LoopLengthPolicy:
    """`pace`, as the first process measures it: for processes that run one program, whose calls must be the same."""
    return pace if group is None else _Agreed(pace, group)
