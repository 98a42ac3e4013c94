"""In how many bits a model is served, and how near its answers must come to the ones that it was sent with.

Owns the names, the tolerance of each, and that a tolerance is never looser than its precision allows. Making the
smaller form and measuring what it changes belongs to `packing`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from aiaas_magics.errors import InvalidSpec

SERVED: Final = ("float16", "int8", "int4")
# Of the largest answer. In 8 and 4 bits activations are rounded to 8 bits as well: another processor's sums may round one of
# them the other way, which moves an answer by a part of a step (1/127). Guess: two steps. float16 computes in float32.
OF_LARGEST: Final = {"": 0.0, "float16": 0.0, "int8": 0.02, "int4": 0.02}
RTOL: Final = 1e-4
ATOL: Final = 1e-5


class Precision(msgspec.Struct, frozen=True, kw_only=True):
    """How a version's weights are kept. The proof lets an answer differ by `atol + rtol * |it| + of_largest * |the largest|`.

    `name` is empty for a model as it was trained. `change` is a sentence: what was measured in the kernel before it went live.
    """

    name: str = ""
    rtol: float = RTOL
    atol: float = ATOL
    of_largest: float = 0.0
    change: str = ""

    def __post_init__(self) -> None:
        if self.name not in OF_LARGEST:
            raise InvalidSpec(f"precision={self.name[:40]!r} is not known. Use one of {', '.join(SERVED)}, or leave it out.")
        if not (self.rtol <= RTOL and self.atol <= ATOL and self.of_largest <= OF_LARGEST[self.name]):
            raise InvalidSpec(f"The tolerance is looser than {self.name or 'full precision'} allows. Leave it out for the usual one.")

    def __str__(self) -> str:
        return self.name or "as trained"


def of(name: str, change: str = "") -> Precision:
    """A precision by its name, with its tolerance."""
    return Precision(name=name, of_largest=OF_LARGEST.get(name, 0.0), change=change)
