"""Machine events: what can happen to a job.

Owns the closed set. Events of an attempt carry its number, so that a late one is known as such.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placed:
    """Devices were found for `ranks` workers."""

    ranks: int


@dataclass(frozen=True, slots=True)
class CannotBePlaced:
    """The devices that the job needs are not there any more."""

    why: str


@dataclass(frozen=True, slots=True)
class CancelAsked:
    pass


@dataclass(frozen=True, slots=True)
class ServerEnds:
    """The server was told to end; workers end with it."""


@dataclass(frozen=True, slots=True)
class StartFailed:
    """No worker of the attempt runs, or some do not: the pool could not start it."""

    attempt: int
    why: str


@dataclass(frozen=True, slots=True)
class RankFinished:
    """The rank said that it is done; its process may live a moment longer."""

    attempt: int
    rank: int


@dataclass(frozen=True, slots=True)
class RankCrashed:
    """The user's code raised in this rank, and the rank said so."""

    attempt: int
    rank: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnded:
    """The rank's process is gone. `how` is a clause: "was killed by signal 9".

    `alone` says that it gave up because another rank was gone, `told` that we had told it to end.
    """

    attempt: int
    rank: int
    how: str
    out_of_memory: bool = False
    alone: bool = False
    by_stop: bool = False


@dataclass(frozen=True, slots=True)
class RankStuck:
    """The rank's process is there and does nothing. `how` is a clause: "was stopped (SIGSTOP)"."""

    attempt: int
    rank: int
    how: str


@dataclass(frozen=True, slots=True)
class ResultKept:
    """What rank 0 left was taken over by the store."""

    attempt: int


@dataclass(frozen=True, slots=True)
class ResultMissing:
    attempt: int
    why: str


Event = (
    Placed
    | CannotBePlaced
    | CancelAsked
    | ServerEnds
    | StartFailed
    | RankFinished
    | RankCrashed
    | RankEnded
    | RankStuck
    | ResultKept
    | ResultMissing
)
