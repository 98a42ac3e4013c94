"""Precision of a served model: the bits of its weights, and how near its answers must come to the ones it was sent with.

Owns the names, the tolerance of each, and that a tolerance is never looser than its precision allows. Making the
smaller form and measuring what it changes belongs to `packing`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from aiaas_magics.core.errors import InvalidSpec

SERVED: Final = ("float16", "int8", "int4")
# Of the largest answer. In 8 and 4 bits activations are rounded to 8 bits as well: another processor's sums may round one of
# them the other way, which moves an answer by a part of a step (1/127). Guess: two steps. float16 computes in float32.
# In float32 the engines' sums, and Keras' own for 1, 3 and 32 rows, were seen up to 1.3e-6 of the largest answer apart
# (autoencoders and 2,048 wide layers on pixels and raw columns); the factor of eight is a guess.
FLOAT32_OF_LARGEST: Final = 1e-5
OF_LARGEST: Final = {"": FLOAT32_OF_LARGEST, "float16": FLOAT32_OF_LARGEST, "int8": 0.02, "int4": 0.02}
# Where Keras' own answers to the same rows spread further, a model is held to twice its spread; guess: beyond this it is no rounding.
MOST_SPREAD: Final = 1e-3
RTOL: Final = 1e-4
ATOL: Final = 1e-5


class Precision(msgspec.Struct, frozen=True, kw_only=True):
    """How a version's weights are kept. The proof lets an answer differ by `atol + rtol * |it| + of_largest * |the largest|`.

    `name` is empty for a model as it was trained. `change` is a sentence: what was measured in the kernel before it went live.
    """

    name: str = ""
    rtol: float = RTOL
    atol: float = ATOL
    of_largest: float = FLOAT32_OF_LARGEST
    change: str = ""

    def __post_init__(self) -> None:
        if self.name not in OF_LARGEST:
            raise InvalidSpec(f"precision={self.name[:40]!r} is not known. Use one of {', '.join(SERVED)}, or leave it out.")
        if not (self.rtol <= RTOL and self.atol <= ATOL and 0 <= self.of_largest <= max(MOST_SPREAD, OF_LARGEST[self.name])):
            raise InvalidSpec(f"The tolerance is looser than {self.name or 'full precision'} allows. Leave it out for the usual one.")

    def __str__(self) -> str:
        return self.name or "as trained"


def of(name: str, change: str = "") -> Precision:
    """A precision by its name, with its tolerance."""
    return Precision(name=name, of_largest=OF_LARGEST.get(name, 0.0), change=change)


def for_spread(spread: float) -> Precision:
    """Full precision of a model whose own answers to the same rows differ by `spread` of the largest, with the rows beside them."""
    return Precision(of_largest=min(MOST_SPREAD, max(FLOAT32_OF_LARGEST, 2 * spread)))
