"""A small set of combinations in which every possible pair of choices occurs.

Owns the greedy search. What is combined, and what is possible together, belongs to `table`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TypeVar

Pair = tuple[tuple[int, object], tuple[int, object]]
T = TypeVar("T", bound=tuple[object, ...])


def pairs(combination: Sequence[object]) -> frozenset[Pair]:
    """Every two choices of one combination, each with the place that it stands at."""
    return frozenset(itertools.combinations(enumerate(combination), 2))


def covering(possible: Iterable[T]) -> list[T]:
    """Combinations out of `possible` with every pair that occurs in any of them; the same ones at every call."""
    left = {combination: pairs(combination) for combination in possible}
    missing = frozenset[Pair]().union(*left.values())
    found = []
    while missing:
        best = max(left, key=lambda combination: len(left[combination] & missing))
        missing -= left.pop(best)
        found.append(best)
    return found
