"""Explained folder: the rows of a job that its workers have explained, block by block, over all attempts.

Owns which blocks there are, who takes the next one, and keeping what came of it: a file is there whole or not at all. What a block holds
belongs to `training.explain_run`.

    block-<b>.safetensors       rows of block b, explained
    claim-<attempt>-<b>         a rank of this attempt works at block b
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aiaas_magics.backend.folders.small_files import write_private


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """All rows of a job in blocks of equal size; the last one may be smaller.

    >>> [RowBlocks(rows=5, size=2).slice_of(block) for block in RowBlocks(rows=5, size=2).numbers]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """

    rows: int
    size: int

    @property
    def numbers(self) -> range:
        return range(-(-self.rows // self.size))

    def slice_of(self, block: int) -> slice:
        return slice(block * self.size, min(self.rows, (block + 1) * self.size))


@dataclass(frozen=True, slots=True)
class ExplainedFolder:
    path: Path

    def made(self) -> ExplainedFolder:
        """The folder itself, which exists from now on."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    def block(self, number: int) -> Path:
        return self.path / f"block-{number}.safetensors"

    def has(self, number: int) -> bool:
        return self.block(number).exists()

    def claims(self, blocks: RowBlocks, *, attempt: int) -> Iterator[int]:
        """The blocks for one rank to explain, each when it asks for the next.

        No two ranks of an attempt get the same, and nobody gets one that is kept. A rank that is quicker gets more.
        What a lost worker had claimed is free again in the next attempt.
        """
        for number in blocks.numbers:
            if not self.has(number) and self._claim(number, attempt):
                yield number

    def _claim(self, number: int, attempt: int) -> bool:
        try:
            os.close(os.open(self.path / f"claim-{attempt}-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return False
        return True

    def keep(self, number: int, data: bytes) -> None:
        """Keep what came of a block."""
        write_private(self.block(number), data)
