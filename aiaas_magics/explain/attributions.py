"""Attributions: how much each entry of each input contributed to a row's output.

Owns the value, the joining of shards and the measure of completeness. Computing them belongs to `black_box` and `gradient`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.explain_settings import METHODS

Arrays = Sequence[np.ndarray]  # one per input of the model, each of shape (rows, *input shape)
Predict = Callable[[list[np.ndarray]], np.ndarray]  # inputs to one output of shape (rows, ...); the caller picks the output
OnProgress = Callable[[int, int], None]  # rows explained, rows in all; what it raises stops the explanation between two batches
PAD: Final = np.nan  # attribution where a row has fewer words than the longest


def bytes_per_row(inputs: Arrays) -> int:
    """Of all inputs; a text counts as 2 kB."""
    return sum(2048 if array.dtype.kind in "OSU" else array[:1].nbytes for array in inputs)


def no_progress(explained: int, rows: int) -> None:
    """The callback of those who do not look."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attributions:
    """The contributions of a model's inputs to its outputs, row by row.

    Args:
        method: name of the method in `METHODS`.
        values: one float32 array per input, of shape (rows, *input shape). Those of texts have shape (rows, words), with NaN behind a row's
            last word.
        base: float32 (rows,): the output that the attributions start from. NaN for methods without one.
        outputs: float32 (rows,): the explained output of each row.
        targets: int64 (rows,): its column in the flattened output.
        evaluations: rows that the model predicted or differentiated.
        columns: how many columns the flattened output has.
        tokens: the words of each row, for text inputs; one tuple per row.
        notes: sentences on what the reader should know.
    """

    method: str
    values: tuple[np.ndarray, ...]
    base: np.ndarray
    outputs: np.ndarray
    targets: np.ndarray
    evaluations: int
    columns: int = 1
    tokens: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.outputs)

    @property
    def sums(self) -> np.ndarray:
        """float64 (rows,): the sum of each row's attributions over all inputs."""
        per_input = [np.nansum(values.reshape(len(values), -1), axis=1, dtype=np.float64) for values in self.values]
        return np.asarray(np.sum(per_input, axis=0))

    @property
    def completeness_errors(self) -> np.ndarray | None:
        """float64 (rows,): how far the sum of a row's attributions is from its output minus the base value; None without that promise."""
        if not METHODS[self.method].completes:
            return None
        return np.asarray(np.abs(self.sums - (self.outputs.astype(np.float64) - self.base.astype(np.float64))))

    def take(self, rows: Sequence[int] | np.ndarray | slice) -> Attributions:
        """These rows only."""
        index = np.arange(self.rows)[rows]
        return replace(
            self,
            values=tuple(values[index] for values in self.values),
            base=self.base[index],
            outputs=self.outputs[index],
            targets=self.targets[index],
            tokens=tuple(self.tokens[row] for row in index) if self.tokens else (),
        )


def join_attributions(parts: Sequence[Attributions]) -> Attributions:
    """Shards of one explanation, in the order of their rows, as one.

    Raises:
        InvalidSpec: nothing to join, or shards of different methods.
    """
    if not parts:
        raise InvalidSpec("There are no attributions to join. Give at least one row.")
    methods = dict.fromkeys(part.method for part in parts)
    if len(methods) > 1:
        raise InvalidSpec(f"Attributions of {' and '.join(methods)} cannot be joined. Use one method for all rows.")
    return Attributions(
        method=parts[0].method,
        values=tuple(np.concatenate(_same_width(arrays)) for arrays in zip(*(part.values for part in parts), strict=True)),
        base=np.concatenate([part.base for part in parts]),
        outputs=np.concatenate([part.outputs for part in parts]),
        targets=np.concatenate([part.targets for part in parts]),
        evaluations=sum(part.evaluations for part in parts),
        columns=parts[0].columns,
        tokens=tuple(words for part in parts for words in part.tokens),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _same_width(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Arrays of words padded to the longest row of all shards; others have one width anyway."""
    if any(values.ndim != 2 for values in arrays) or len({values.shape[1] for values in arrays}) == 1:
        return list(arrays)
    width = max(values.shape[1] for values in arrays)
    return [np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=PAD) for values in arrays]
