"""Routing of an endpoint: which version answers whom, as values and pure functions from one state to the next.

Owns the rules. Loading and draining belong to the backend, which carries a `Routing` out in one assignment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final, Literal

import msgspec

from aiaas_magics.core.errors import InvalidSpec

LABEL_LENGTH: Final = 63
LABEL: Final = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{LABEL_LENGTH - 1}}}", re.ASCII)
MOST_REPLICAS: Final = 64


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """How the next version of an endpoint takes over.

    Args:
        canary: the share of the callers that it gets first, from 0 to less than 1; 0 makes it live at once.
        keep: how many versions stay loaded: 2 keeps the version before for a rollback, 1 does not.

    Raises:
        InvalidSpec: a share that is not in this range.

    >>> Rollout(canary=0.1).keep
    2
    """

    canary: float = 0.0
    keep: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if not 0.0 <= self.canary < 1.0:
            raise InvalidSpec(f"A canary's share is more than 0 and less than 1 (or 100%), not {self.canary:g}. Use --canary 10%.")


class Routing(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint's versions by what they do; 0 is none. Labels are names for versions that callers may ask for."""

    live: int
    previous: int = 0
    canary: int = 0
    share: float = 0.0  # of the requests that ask for no version, those that the canary gets
    labels: dict[str, int] = {}

    @property
    def loaded(self) -> frozenset[int]:
        """The versions that must be ready for this."""
        return frozenset({self.live, self.previous, self.canary, *self.labels.values()} - {0})


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What may be asked of a routing.

    `version` and `label` go with "label", where a version of 0 takes the label away; `share` goes with "canary".
    """

    action: Literal["promote", "rollback", "canary", "label"]
    version: int = 0
    label: str = ""
    share: float = 0.0


class Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """How many executors each version of an endpoint is to have: `replicas`, or as many as the load wants from there up to `most`."""

    replicas: int
    most: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= MOST_REPLICAS:
            raise InvalidSpec(f"replicas={self.replicas}: between 1 and {MOST_REPLICAS} are possible. Use 1 to start with.")
        if self.most and not self.replicas <= self.most <= MOST_REPLICAS:
            raise InvalidSpec(f"replicas={self}: the larger number comes last, and is at most {MOST_REPLICAS}. Use auto:1-4, say.")

    def __str__(self) -> str:
        return f"auto:{self.replicas}-{self.most}" if self.most else str(self.replicas)


def scaling_of(replicas: int | str) -> Scaling:
    """2, "2", "auto" (from one up to the cores of the backend) or "auto:1-4".

    Raises:
        InvalidSpec: it is none of these.
    """
    text = str(replicas)
    if text == "auto":
        return Scaling(replicas=1, most=MOST_REPLICAS)
    if match := re.fullmatch(r"(?:auto:([0-9]{1,4})-([0-9]{1,4}))|(-?[0-9]{1,4})", text, re.ASCII):
        least, most, number = match.groups()
        return Scaling(replicas=int(number)) if number else Scaling(replicas=int(least), most=int(most))
    raise InvalidSpec(f"{text[:80]!r} is no number of replicas. Use 2, auto, or auto:1-4.")


def deployed(before: Routing | None, number: int, rollout: Rollout) -> Routing:
    """With a new version, which is ready. A canary that was there before makes way for it."""
    if before is None:
        return Routing(live=number)
    if rollout.canary:
        return msgspec.structs.replace(before, canary=number, share=rollout.canary)
    previous = before.live if rollout.keep > 1 else 0
    return msgspec.structs.replace(before, live=number, previous=previous, canary=0, share=0.0)


def changed(name: str, before: Routing, change: Change) -> Routing:
    """`before`, as somebody wants it from now on.

    Raises:
        InvalidSpec: there is nothing to promote, to go back to, or to put the label on.
    """
    match change.action:
        case "promote":
            if not before.canary:
                raise InvalidSpec(f"{name} has no canary to promote. Deploy one with --canary 10%.")
            return msgspec.structs.replace(before, live=before.canary, previous=before.live, canary=0, share=0.0)
        case "rollback":
            if before.canary:
                return msgspec.structs.replace(before, canary=0, share=0.0)
            if not before.previous:
                raise InvalidSpec(f"{name} has no version before {before.live} loaded to go back to. Deploy the model you want.")
            return msgspec.structs.replace(before, live=before.previous, previous=before.live)
        case "canary":
            if not before.canary:
                raise InvalidSpec(f"{name} has no canary whose share could change. Deploy one with --canary 10%.")
            return msgspec.structs.replace(before, share=Rollout(canary=change.share).canary)
    labels = {label: version for label, version in before.labels.items() if label != change.label}
    if not LABEL.fullmatch(change.label):
        raise InvalidSpec(f"{change.label[:80]!r} is no label: up to {LABEL_LENGTH} letters, digits and _.- are. Use 'stable', say.")
    return msgspec.structs.replace(before, labels=labels | ({change.label: change.version} if change.version else {}))


def without(before: Routing, lost: frozenset[int]) -> Routing | None:
    """`before` where these versions cannot be had any more; None when the live one is among them."""
    if before.live in lost:
        return None
    return Routing(
        live=before.live,
        previous=0 if before.previous in lost else before.previous,
        canary=0 if before.canary in lost else before.canary,
        share=0.0 if before.canary in lost else before.share,
        labels={label: version for label, version in before.labels.items() if version not in lost},
    )


def place_of(key: bytes) -> float:
    """Where a caller stands in [0, 1), the same for the same key, whatever the share: those below it get the canary.

    So a larger share moves callers to the canary and none away from it.
    """
    return int.from_bytes(blake2b(key, digest_size=8).digest()) / 2**64


def description(routing: Routing, number: int) -> str:
    """What a version is to its endpoint, in words: "live", "canary 10%", "previous", with its labels."""
    roles: Mapping[str, bool] = {
        "live": number == routing.live,
        f"canary {100 * routing.share:.3g}%": number == routing.canary,
        "previous": number == routing.previous,
    }
    words = [role for role, is_it in roles.items() if is_it]
    return ", ".join([*words, *(label for label, version in sorted(routing.labels.items()) if version == number)])
