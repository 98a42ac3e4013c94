"""Actions: what the job machine can ask for.

Owns the closed set. Carrying an action out belongs to `server.conductor`.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiaas_magics.core.events import AnyEvent


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """Start the workers, from the last complete checkpoint. `why` says what the one before ended with."""

    attempt: int
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAttempt:
    """See to it that no process of the attempt lives.

    `patience_s` is what the ranks get to end by themselves, `grace_s` what they get after they were told.
    """

    attempt: int
    patience_s: float = 0.0
    grace_s: float = 1.0


@dataclass(frozen=True, slots=True)
class KeepResult:
    """Take rank 0's result into the store; answer with `ResultKept` or `ResultMissing`."""

    attempt: int


@dataclass(frozen=True, slots=True)
class ClearAttempt:
    """Every process of the attempt is gone: remove its folder and shared memory, and give its devices back."""

    attempt: int


@dataclass(frozen=True, slots=True)
class ClearJob:
    """The job is over. Its last checkpoint is of use where another job may go on from it."""

    resumable: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """Append to the job's log. `rank` is None for the server's own words."""

    event: AnyEvent
    rank: int | None = None


Action = StartAttempt | StopAttempt | KeepResult | ClearAttempt | ClearJob | Record
