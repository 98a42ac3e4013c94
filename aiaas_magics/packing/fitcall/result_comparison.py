"""Result comparison: how far the trained state of two runs of the same fit call is apart, layer by layer.

Owns the comparison of two `FitResult`s. Running the fit again belongs to the client's `reproduction`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from aiaas_magics.core.agreement import largest_of, spread
from aiaas_magics.core.errors import AiaasBug
from aiaas_magics.packing.fitcall.fit_result import FitResult

OTHER: Final = "optimizer, metrics and seeds"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDifference:
    """The variables of one layer in two runs.

    Args:
        values: how many numbers they hold.
        differing: how many of them have other bits.
        largest: the largest absolute difference.
        relative: the same as a part of the largest value of that variable.
    """

    layer: str
    values: int
    differing: int
    largest: float
    relative: float

    @property
    def is_equal(self) -> bool:
        return self.differing == 0


def compare_results(first: FitResult, second: FitResult) -> tuple[LayerDifference, ...]:
    """One for each layer with weights, in their order, and one for all other state, if there is some.

    Raises:
        AiaasBug: they are results of different fit calls.
    """
    if first.paths != second.paths or [array.shape for array in first.variables] != [array.shape for array in second.variables]:
        raise AiaasBug("two runs of the same fit call have other variables")
    weights = set(first.roles.get("weights", ()))
    groups: dict[str, list[int]] = {}
    for place, path in enumerate(first.paths):
        groups.setdefault(path.rpartition("/")[0] or path if place in weights else OTHER, []).append(place)
    ordered = sorted(groups, key=lambda layer: layer == OTHER)
    return tuple(_of_layer(layer, groups[layer], first, second) for layer in ordered)


def _of_layer(layer: str, places: list[int], first: FitResult, second: FitResult) -> LayerDifference:
    values = differing = 0
    largest = relative = 0.0
    for place in places:
        before, after = first.variables[place], second.variables[place]
        values += before.size
        differing += differing_bits(before, after)
        if (before.size and before.dtype.kind in "biufc") or before.dtype.kind == "V":
            apart = spread(after, before, largest=0.0)
            size = largest_of(before)
            largest = max(largest, apart)
            relative = max(relative, apart / size if size else apart)
    return LayerDifference(layer=layer, values=values, differing=differing, largest=largest, relative=relative)


def differing_bits(first: np.ndarray, second: np.ndarray) -> int:
    """How many elements have other bits: NaN equals the same NaN, and 0.0 is not -0.0."""
    if first.tobytes() == second.tobytes():
        return 0
    width = first.dtype.itemsize
    left, right = (np.frombuffer(array.tobytes(), np.uint8).reshape(-1, width) for array in (first, second))
    return int((left != right).any(axis=1).sum())


def same_history(first: FitResult, second: FitResult) -> bool:
    """Whether every number of both histories is the same."""
    return repr(first.history) == repr(second.history)
