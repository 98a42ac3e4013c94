"""Players: the parts of a row that are hidden or shown together, and rows with some of them hidden.

Owns which entries belong to which player: columns of a table, patches of an image, windows of a series, words of a text. Which players to
hide belongs to `coalitions`; predicting the masked rows belongs to `black_box`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.explain.attributions import PAD, Arrays

IMAGE_PATCHES: Final = 8  # per edge; guess: fine enough to see an object, few enough to be masked one by one
SERIES_WINDOWS: Final = 16  # guess
TEXT_KINDS: Final = frozenset("OSU")


def is_text(array: np.ndarray) -> bool:
    """Whether the entries are words and sentences."""
    return array.dtype.kind in TEXT_KINDS


def words_of(cell: object) -> list[str]:
    """The words of one text, as they stand between blanks."""
    return (cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)).split()


@dataclass(frozen=True, slots=True, eq=False)
class Players:
    """Who plays in each numeric input: player numbers in the input's row shape, counted on from input to input. None for text."""

    groups: tuple[np.ndarray | None, ...]
    count: int

    def spread(self, contributions: np.ndarray) -> list[np.ndarray | None]:
        """The contribution of each player, divided evenly over its entries, so that the entries of a row sum to the same."""
        sizes = np.zeros(max(self.count, 1))
        for group in self.groups:
            if group is not None:
                sizes[: self.count] += np.bincount(group.ravel(), minlength=self.count)
        shares = contributions[: self.count] / np.maximum(sizes[: self.count], 1)
        return [None if group is None else shares[group].astype(np.float32) for group in self.groups]


def players_of(inputs: Arrays, *, patch: int = 0) -> Players:
    """Players of all numeric inputs, by the shape of a row: () and (columns,) one each, (time, channels) windows, (height, width,
    channels) squares.

    Args:
        inputs: arrays of shape (rows, *input shape).
        patch: edge of a square or length of a window; 0 chooses.

    >>> players_of([np.zeros((1, 3)), np.zeros((1, 4, 4, 1))], patch=2).groups[1][..., 0].tolist()
    [[3, 3, 4, 4], [3, 3, 4, 4], [5, 5, 6, 6], [5, 5, 6, 6]]
    """
    groups: list[np.ndarray | None] = []
    count = 0
    for array in inputs:
        if is_text(array):
            groups.append(None)
            continue
        group = _grid(array.shape[1:], patch)
        groups.append(group + count)
        count += int(group.max(initial=-1)) + 1
    return Players(tuple(groups), count)


def _grid(shape: Sequence[int], patch: int) -> np.ndarray:
    """Player numbers of one input, from 0."""
    if len(shape) <= 1:
        return np.arange(math.prod(shape)).reshape(shape)
    *edges, channels = shape
    across = SERIES_WINDOWS if len(edges) == 1 else IMAGE_PATCHES
    numbers = np.zeros(edges, dtype=np.int64)
    for axis, edge in enumerate(edges):
        length = patch or math.ceil(edge / across)
        cells = np.arange(edge) // max(length, 1)
        numbers = numbers * (int(cells.max(initial=0)) + 1) + cells.reshape([-1 if other == axis else 1 for other in range(len(edges))])
    return np.repeat(numbers[..., None], channels, axis=-1)


@dataclass(frozen=True, slots=True, eq=False)
class Game:
    """One row and what stands in for its hidden players.

    Args:
        row: the inputs of the row, without the axis of rows.
        stand_ins: per numeric input an array of shape (fills, *input shape); None for text, whose hidden words are left out.
        words: per text input the words of the row.
        active: the players whose hiding changes the row at all, as places among all players.
        total: how many players the row has.
    """

    players: Players
    row: tuple[np.ndarray, ...]
    stand_ins: tuple[np.ndarray | None, ...]
    words: tuple[list[str] | None, ...]
    active: np.ndarray
    total: int
    fills: int

    def masked(self, shown: np.ndarray, fills: slice) -> list[np.ndarray]:
        """Rows for each coalition and each stand-in, coalition by coalition.

        Args:
            shown: bool (coalitions, active players).
        """
        everyone = np.ones((len(shown), self.total), dtype=bool)
        everyone[:, self.active] = shown
        arrays = []
        first_word = self.players.count
        copies = len(range(self.fills)[fills])
        for cell, group, stand_in, words in zip(self.row, self.players.groups, self.stand_ins, self.words, strict=True):
            if words is not None:
                keep = everyone[:, first_word : first_word + len(words)]
                first_word += len(words)
                texts = [" ".join(word for word, is_shown in zip(words, row, strict=True) if is_shown) for row in keep]
                column = np.array(np.repeat(np.array(texts, dtype=object), copies), dtype=object)
                arrays.append(column.reshape(len(column), *cell.shape))
            elif group is not None and stand_in is not None:
                mask = everyone[:, group][:, None]
                mixed = np.where(mask, cell[None, None], stand_in[None, fills])
                arrays.append(mixed.reshape(-1, *cell.shape))
        return arrays

    def contributions(self, active: np.ndarray) -> tuple[list[np.ndarray], tuple[str, ...]]:
        """Attributions of the row's inputs (without the axis of rows), and the words of its text inputs."""
        everyone = np.zeros(self.total)
        everyone[self.active] = active
        values: list[np.ndarray] = []
        first_word, all_words = self.players.count, []
        for spread, words in zip(self.players.spread(everyone), self.words, strict=True):
            if words is not None:
                values.append(everyone[first_word : first_word + len(words)].astype(np.float32))
                first_word += len(words)
                all_words += words
            elif spread is not None:
                values.append(spread)
        return values, tuple(all_words)


def games_of(players: Players, inputs: Arrays, background: Arrays | None) -> list[Game]:
    """A game per row of `inputs`, whose hidden players take their values from the rows of `background`.

    Raises:
        DataMismatch: the background's rows have another shape, or a text input holds several texts per row.
    """
    check_background(inputs, background)
    stand_ins = tuple(None if is_text(array) else np.asarray(background[place]) for place, array in enumerate(inputs))  # type: ignore[index]
    fills = next((len(array) for array in stand_ins if array is not None), 1)
    return [_game(players, tuple(array[row] for array in inputs), stand_ins, fills) for row in range(len(inputs[0]))]


def _game(players: Players, row: tuple[np.ndarray, ...], stand_ins: tuple[np.ndarray | None, ...], fills: int) -> Game:
    words = tuple(words_of(np.asarray(cell).item()) if stand_in is None else None for cell, stand_in in zip(row, stand_ins, strict=True))
    changes = np.zeros(players.count, dtype=bool)
    for cell, group, stand_in in zip(row, players.groups, stand_ins, strict=True):
        if group is not None and stand_in is not None:
            differs = (stand_in != cell[None]).any(axis=0)
            changes[np.unique(group[differs])] = True
    spoken = sum(len(text) for text in words if text is not None)
    active = np.flatnonzero(np.concatenate([changes, np.ones(spoken, dtype=bool)]))
    return Game(players, tuple(np.asarray(cell) for cell in row), stand_ins, words, active, players.count + spoken, fills)


def check_background(inputs: Arrays, background: Arrays | None) -> None:
    """Refuse a background that cannot stand in for parts of the rows."""
    for place, array in enumerate(inputs):
        if is_text(array):
            if math.prod(array.shape[1:]) != 1:
                raise DataMismatch(f"Input {place} holds {math.prod(array.shape[1:])} texts per row. Give one text per row and input.")
            continue
        if background is None or len(background) != len(inputs) or not len(background[place]):
            raise DataMismatch(
                "This method replaces parts of a row by values of other rows, and there are none. "
                "Give background=x_train, or a sample of it."
            )
        if len(background[place]) != len(background[0]):
            raise DataMismatch(
                f"The background's inputs have {len(background[0])} and {len(background[place])} rows. Give each the same number."
            )
        if background[place].shape[1:] != array.shape[1:]:
            raise DataMismatch(
                f"Rows of input {place} have shape {array.shape[1:]} and its background has {background[place].shape[1:]}. "
                "Give rows and background of the same shape."
            )


def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows as one float32 array; rows of words are filled up with NaN."""
    if len({row.shape for row in rows}) == 1:
        return np.stack(rows).astype(np.float32)
    width = max(len(row) for row in rows)
    return np.stack([np.pad(row, (0, width - len(row)), constant_values=PAD) for row in rows]).astype(np.float32)


def thinned(background: Arrays | None, most: int) -> list[np.ndarray] | None:
    """At most `most` rows of the background, evenly from first to last."""
    if background is None or not len(background):
        return None
    rows = len(background[0])
    index = np.arange(rows) if rows <= most else np.linspace(0, rows - 1, most).round().astype(np.int64)
    return [np.asarray(array)[index] for array in background]


def typical_row(background: Arrays | None, inputs: Arrays) -> list[np.ndarray] | None:
    """One row that stands for the background: the mean of floats, the most frequent value of integers. Shape (1, *input shape)."""
    if background is None:
        return None
    return [
        array[:1] if is_text(array) else _typical(array).astype(like.dtype, copy=False)
        for array, like in zip(background, inputs, strict=True)
    ]


def _typical(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        return np.asarray(array.mean(axis=0, keepdims=True, dtype=np.float64))
    flat = array.reshape(len(array), -1)
    modes = [_most_frequent(column) for column in flat.T]
    return np.array(modes, dtype=array.dtype).reshape(1, *array.shape[1:])


def _most_frequent(column: np.ndarray) -> object:
    values, counts = np.unique(column, return_counts=True)
    return values[int(np.argmax(counts))]
