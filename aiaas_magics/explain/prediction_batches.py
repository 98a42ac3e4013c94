"""Prediction batches: masked rows of many games, packed so that a model is called seldom.

Owns the packing, the counting of evaluations and the checks of a model's outputs. What rows are evaluated belongs to `row_plans`. Nothing
here calls a model: each batch is yielded, and its outputs are sent in.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.explain.attributions import Arrays
from aiaas_magics.explain.row_plans import RowPlan


@dataclass(frozen=True, slots=True, eq=False)
class PredictBatch:
    """Rows that wait for their outputs, and how far the explanation is."""

    inputs: list[np.ndarray]
    explained: int
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class _MaskedRows:
    """A part of one row's plan: masked rows, and where their outputs go."""

    inputs: list[np.ndarray]
    outputs: np.ndarray  # a view of the row's values
    target: int


@dataclass(slots=True)
class PredictionBatches:
    """Asks for outputs in batches of at most `batch_rows`, and counts them.

    Args:
        rows: how many rows are explained, for progress.
    """

    rows: int
    batch_rows: int
    evaluations: int = 0
    explained: int = 0
    _waiting: list[_MaskedRows] = field(default_factory=list)

    def predicted(self, inputs: Arrays) -> Generator[PredictBatch, np.ndarray, np.ndarray]:
        """Outputs of plain rows, float64 (rows, columns)."""
        parts = []
        for first in range(0, len(inputs[0]), self.batch_rows):
            parts.append((yield from self._outputs([array[first : first + self.batch_rows] for array in inputs])))  # noqa: PERF401
        return np.concatenate(parts)

    def solved(self, plans: Iterable[RowPlan]) -> Generator[PredictBatch, np.ndarray, list[np.ndarray]]:
        """Contributions of the active players of each plan's row."""
        solutions: list[np.ndarray] = []
        unsolved: list[tuple[RowPlan, np.ndarray]] = []
        for plan in plans:
            values = np.zeros((len(plan.coalitions.shown), plan.game.fills))
            for masked in _parts(plan, values, self.batch_rows):
                if self._waiting and sum(part.outputs.size for part in self._waiting) + masked.outputs.size > self.batch_rows:
                    yield from self._flush()
                    solutions += (earlier.solve(outputs) for earlier, outputs in unsolved)
                    unsolved.clear()
                    self.explained = len(solutions)
                self._waiting.append(masked)
            unsolved.append((plan, values))
        if self._waiting:
            yield from self._flush()
        solutions += (plan.solve(outputs) for plan, outputs in unsolved)
        self.explained = len(solutions)
        return solutions

    def _flush(self) -> Generator[PredictBatch, np.ndarray, None]:
        waiting, self._waiting = self._waiting, []
        arrays = [np.concatenate(parts) for parts in zip(*(part.inputs for part in waiting), strict=True)]
        outputs = yield from self._outputs(arrays)
        first = 0
        for part in waiting:
            part.outputs[...] = outputs[first : first + part.outputs.size, part.target].reshape(part.outputs.shape)
            first += part.outputs.size

    def _outputs(self, inputs: list[np.ndarray]) -> Generator[PredictBatch, np.ndarray, np.ndarray]:
        rows = len(inputs[0])
        outputs = np.asarray((yield PredictBatch(inputs, self.explained, self.rows)))
        if not outputs.ndim or len(outputs) != rows:
            raise DataMismatch(
                f"The model gave an output of shape {outputs.shape} for {rows} rows. Give a model with one output row per row."
            )
        if outputs.dtype.kind not in "fiub":
            raise DataMismatch(f"The output is of type {outputs.dtype} and cannot be explained. Choose an output of numbers.")
        self.evaluations += rows
        return outputs.reshape(rows, -1).astype(np.float64)


def _parts(plan: RowPlan, values: np.ndarray, batch_rows: int) -> Iterator[_MaskedRows]:
    """A plan in parts that each fit into a batch."""
    fills = min(plan.game.fills, batch_rows)
    height = max(1, batch_rows // fills)
    for top in range(0, len(values), height):
        for first in range(0, plan.game.fills, fills):
            columns = slice(first, first + fills)
            masked = plan.game.masked(plan.coalitions.shown[top : top + height], columns)
            yield _MaskedRows(masked, values[top : top + height, columns], plan.target)
