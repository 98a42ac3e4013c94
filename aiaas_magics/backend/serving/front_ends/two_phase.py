"""What follows from the answers of front ends to a change that they make together.

Owns the decision alone: answers in, what to do out; nobody is asked here, and nothing is waited for. Asking belongs to
`coordinator`, what a change does in one process to `transactions`.

A front end that does not answer in time, or answers otherwise than the others once a change holds, is ended and started again
as the first is: so that a change which was acknowledged holds wherever a request may arrive.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from aiaas_magics.core.errors import AiaasError

Key = TypeVar("Key", bound=Hashable)


class Kind(StrEnum):
    AGREED = "agreed"
    REFUSED = "refused"  # `fault` says why
    LOST = "lost"  # the process has ended
    SILENT = "silent"  # no answer in time


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one front end answered to one step."""

    kind: Kind
    fault: AiaasError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(Generic[Key]):
    """Whether the change goes on, or is aborted where it was prepared; and who is ended."""

    refused: AiaasError | None = None  # why it does not go on
    prepared: frozenset[Key] = frozenset()
    ended: frozenset[Key] = frozenset()


def after_preparing(outcomes: Mapping[Key, Outcome], *, lost: AiaasError | None = None) -> Decision[Key]:
    """After all have answered, or had the time to.

    One that refuses keeps the others from going on. One that is silent or lost does not: it comes back as the first is then.

    Args:
        lost: For a change that may have been what ended a process, as loading a model: why nobody goes on when one is lost.
    """
    refused = next((outcome.fault for outcome in outcomes.values() if outcome.kind is Kind.REFUSED), None)
    if refused is None and any(outcome.kind is Kind.LOST for outcome in outcomes.values()):
        refused = lost
    return Decision(refused=refused, prepared=_of(outcomes, Kind.AGREED), ended=_of(outcomes, Kind.SILENT))


def after_committing(outcomes: Mapping[Key, Outcome]) -> Decision[Key]:
    """From here there is no way back: who did not acknowledge may answer as before the change, and is ended."""
    return Decision(prepared=_of(outcomes, Kind.AGREED), ended=_of(outcomes, Kind.SILENT, Kind.REFUSED))


def _of(outcomes: Mapping[Key, Outcome], *kinds: Kind) -> frozenset[Key]:
    return frozenset(key for key, outcome in outcomes.items() if outcome.kind in kinds)
