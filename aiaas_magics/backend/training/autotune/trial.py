"""Trial of a long run: it makes steps in one form and then in the other, and goes on in the quicker one.

Owns the counting, and when the other form is worth trying. All steps are steps of the training.
"""

from __future__ import annotations

from typing import Final

LONG_S: Final = 60.0  # a run with so much ahead of it affords to try both forms
TRIED_S: Final = 0.5  # how long each is tried
TRIED_SHARE: Final = 0.05  # of what is ahead, compiling the other form may take at most


class Trial:
    """A long run tries the other form too, and goes on in the quicker one. All its steps are steps of the training."""

    def __init__(self, fused: str) -> None:
        self.fused, self.other = fused, "graph" if fused == "xla" else "xla"
        self._steps: dict[str, tuple[int, float]] = {}
        self._began_other = self.is_over = self.is_measured = False

    @property
    def step_s(self) -> dict[str, float]:
        """Seconds of a step, in each form that was tried."""
        return {fused: seconds / steps for fused, (steps, seconds) in self._steps.items()}

    def took(self, steps: int, seconds: float) -> None:
        steps_before, spent = self._steps.get(self.fused, (0, 0.0))
        self._steps[self.fused] = (steps_before + steps, spent + seconds)
        if self._began_other and spent + seconds >= TRIED_S:
            self.is_over = self.is_measured = True

    def wants_other(self, ahead: float) -> bool:
        """Whether it is time to try the other form; a run with too little ahead of it ends the trial."""
        if self.is_over or self._began_other or self._steps[self.fused][1] < TRIED_S:
            return False
        self.is_over = self.step_s[self.fused] * ahead < LONG_S
        return not self.is_over

    def begin_other(self, *, possible: bool) -> None:
        self.fused, self.other = self.other, self.fused
        self._began_other, self.is_over = True, not possible
