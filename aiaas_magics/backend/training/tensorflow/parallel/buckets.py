"""Gradient buckets: what is exchanged together, so that an exchange need not wait for the end of the backward pass.

Owns the cut, and the size of a bucket. The exchanges themselves are those of `tensorflow` and `zero`: one bucket after the
other, in the same order on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

# Measured (docs/lab/training.md): between 1 and 8 MiB it makes no difference. Summing this much takes about 3 ms of a core, beside
# which a meeting costs nothing; a model with fewer gradients has one exchange a step.
BUCKET_BYTES: Final = 4 * 2**20


def in_buckets(nbytes: Sequence[int], *, least: float) -> list[list[int]]:
    """The places of `nbytes`, last first, in buckets of at least so many bytes together; the last bucket has what is left.

    The backward pass comes to the last layers first.

    >>> in_buckets([1, 8, 2, 3], least=5)
    [[3, 2], [1], [0]]
    """
    buckets: list[list[int]] = []
    filled = least
    for place in reversed(range(len(nbytes))):
        if filled >= least:
            buckets.append([])
            filled = 0
        buckets[-1].append(place)
        filled += nbytes[place]
    return buckets
