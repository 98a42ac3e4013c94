"""Step modes: the forms of the steps that a plan may choose from, measured one after the other in one worker.

Owns which forms there are and what is told of each. How steps are timed is `step_timing`, what speaks against a form `compile_policy`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import psutil
from msgspec.structs import replace

from aiaas_magics.backend.training.step_timing import StepTimer
from aiaas_magics.core.events import Candidate, Planned


class RuledOut(Exception):
    """A form cannot be had; the text says why."""


def only(form: str) -> Callable[[Planned], None]:
    """Hears how steps are going to be carried out, and ends the `fit` where that is not in `form`."""

    def on_plan(plan: Planned) -> None:
        if plan.fused != form:
            raise RuledOut("; ".join(plan.why))

    return on_plan


def compare(mode: str, timed: Callable[[str], StepTimer], *, forms: Sequence[str], engine: str, strategy: str) -> Iterator[Candidate]:
    """Every one of `forms` that `mode` leaves open, measured or ruled out.

    Args:
        timed: makes steps in a form; raises `RuledOut`.
    """
    for form in forms if mode == "auto" else (mode,):
        candidate = Candidate(engine=engine, strategy=strategy, fused=form)
        try:
            timer = timed(form)
        except RuledOut as why:
            yield replace(candidate, why=str(why))
        else:
            yield replace(candidate, step_s=timer.step_s, compile_s=timer.compile_s, memory_bytes=timer.memory_bytes)


def process_bytes() -> int:
    """What this process holds for itself: the libraries that it shares with its launcher aside."""
    return int(psutil.Process().memory_full_info().uss)
