"""Comparison of a batch's numbers with those of its parts.

Owns how rows are dealt to workers, how what they compute is put together, and what of it differs. Pure numbers:
running the model belongs to `parts_check`, the sentences too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aiaas_magics.core.row_order import rows_of

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Effects:
    """What one step computes of some rows, and leaves in variables. No gradient of a variable is None."""

    outputs: tuple[tuple[str, Array], ...]  # by layer, rows first, in the order in which the layers end
    loss: float | None
    gradients: tuple[Array | None, ...]
    state: tuple[Array, ...]


@dataclass(frozen=True, slots=True)
class BatchPart:
    """Rows that are computed together, by one worker."""

    rank: int
    positions: Positions


@dataclass(frozen=True, slots=True)
class Differences:
    """How far the parts are from the whole, relative to the norm of the whole's; 0 where it is rounding or nothing."""

    outputs: float = 0.0
    layer: str = ""  # the first whose outputs differ
    loss: float = 0.0
    gradient: float = 0.0
    state: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.outputs or self.loss or self.gradient or any(self.state))

    def without(self, noise: Differences, times: float) -> Differences:
        """Only what is more than `times` as large as in `noise`."""

        def beyond(value: float, other: float) -> float:
            return value if value > times * other else 0.0

        outputs = beyond(self.outputs, noise.outputs)
        return Differences(
            outputs,
            self.layer if outputs else "",
            beyond(self.loss, noise.loss),
            beyond(self.gradient, noise.gradient),
            tuple(map(beyond, self.state, noise.state)) if noise.state else self.state,
        )


def deal(rows: int, workers: int, parts: int) -> list[BatchPart]:
    """The parts of a batch of `rows`: each worker gets rows that follow one another, and goes through them in `parts` pieces."""
    dealt = []
    for rank in range(workers):
        places = np.array(rows_of(rank, rows=rows, ranks=workers))
        edges = [-(-len(places) * edge // parts) for edge in range(parts + 1)]
        dealt += [BatchPart(rank, places[start:stop]) for start, stop in itertools.pairwise(edges) if stop > start]
    return dealt


def combined(parts: Sequence[tuple[BatchPart, Effects]], averaged: Sequence[bool]) -> Effects:
    """The parts' effects as training puts them together: means weighted by rows. `averaged`: of each variable, whether workers'
    values are averaged; of the others, worker 0's comes back. A worker's state is what its last part left."""
    rows = sum(len(part.positions) for part, _ in parts)
    shares = [len(part.positions) / rows for part, _ in parts]
    all_effects = [effects for _, effects in parts]
    last = {part.rank: effects.state for part, effects in parts}
    states = [last[rank] for rank in sorted(last)]
    by_rank = [sum(share for share, (part, _) in zip(shares, parts, strict=True) if part.rank == rank) for rank in sorted(last)]
    losses = [effects.loss for effects in all_effects]
    return Effects(
        outputs=_joined(parts, rows),
        loss=None if None in losses else float(sum(share * float(loss or 0.0) for share, loss in zip(shares, losses, strict=True))),
        gradients=tuple(_weighted(shares, grads) for grads in zip(*(effects.gradients for effects in all_effects), strict=False)),
        state=tuple(
            np.asarray(sum(share * state[place] for share, state in zip(by_rank, states, strict=True))) if mean else states[0][place]
            for place, mean in enumerate(averaged)
        ),
    )


def _joined(parts: Sequence[tuple[BatchPart, Effects]], rows: int) -> tuple[tuple[str, Array], ...]:
    joined = []
    for place, (name, first) in enumerate(parts[0][1].outputs):
        pieces = [effects.outputs[place][1] if place < len(effects.outputs) else np.zeros(0) for _, effects in parts]
        if any(piece.shape[1:] != first.shape[1:] for piece in pieces):
            continue
        whole = np.zeros((rows, *first.shape[1:]))
        for (part, _), piece in zip(parts, pieces, strict=True):
            if len(piece) != len(part.positions):
                break
            whole[part.positions] = piece
        else:
            joined.append((name, whole))
    return tuple(joined)


def _weighted(shares: Sequence[float], gradients: Sequence[Array | None]) -> Array | None:
    terms = [share * gradient for share, gradient in zip(shares, gradients, strict=True) if gradient is not None]
    return np.asarray(sum(terms)) if terms else None


def compare(whole: Effects, parts: Effects, *, sizes: float, tolerance: float) -> Differences:
    """`sizes`: the weighted sum of the norms of the parts' gradients: where they cancel out, the rounding of each is left."""
    outputs, layer = _first_output(whole, parts, tolerance)
    loss = 0.0
    if whole.loss is not None and parts.loss is not None:
        loss = _relative(np.array([whole.loss]), np.array([parts.loss]), tolerance)
    whole_gradient, parts_gradient = _flat(whole.gradients, parts.gradients)
    gap, norm = _norm(whole_gradient - parts_gradient), _norm(whole_gradient)
    gradient = gap / max(norm, tolerance * sizes, 1e-30) if gap > tolerance * max(norm, sizes) else 0.0
    return Differences(
        outputs, layer, loss, gradient, tuple(_relative(a, b, tolerance) for a, b in zip(whole.state, parts.state, strict=True))
    )


def gradient_norm(effects: Effects) -> float:
    return float(np.sqrt(sum(_norm(gradient) ** 2 for gradient in effects.gradients if gradient is not None)))


def _first_output(whole: Effects, parts: Effects, tolerance: float) -> tuple[float, str]:
    of_parts = list(parts.outputs)
    for name, output in whole.outputs:
        if of_parts and of_parts[0][0] == name and of_parts[0][1].shape == output.shape:
            parts_output = of_parts.pop(0)[1]
            if size := _relative(output, parts_output, tolerance):
                return size, name
    return 0.0, ""


def _flat(first: Sequence[Array | None], second: Sequence[Array | None]) -> tuple[Array, Array]:
    if len(first) != len(second):
        return np.zeros(1), np.zeros(1)
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None or b is not None]
    a = [np.zeros_like(b) if a is None else a for a, b in pairs]
    b = [np.zeros_like(a) if b is None else b for a, b in pairs]
    return (np.concatenate([np.ravel(x) for x in a] or [np.zeros(1)]), np.concatenate([np.ravel(x) for x in b] or [np.zeros(1)]))


def _relative(reference: Array, other: Array, tolerance: float) -> float:
    gap, norm = _norm(reference - other), max(_norm(reference), 1e-30)
    return min(gap / norm, 1e30) if gap > tolerance * max(norm, _norm(other)) else 0.0


def _norm(array: Array) -> float:
    """Of what is finite."""
    return float(np.linalg.norm(array[np.isfinite(array)]))
