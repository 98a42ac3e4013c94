"""Which rank explains which rows: every row once, whatever was kept, lost or claimed before."""

from __future__ import annotations

from itertools import chain, zip_longest
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from aiaas_magics.backend.folders.explained_folder import ExplainedFolder, RowBlocks


@given(rows=st.integers(1, 500), size=st.integers(1, 70))
def test_every_row_is_in_one_block(rows: int, size: int) -> None:
    blocks = RowBlocks(rows=rows, size=size)

    assert list(chain.from_iterable(range(rows)[blocks.slice_of(number)] for number in blocks.numbers)) == list(range(rows))


def test_ranks_of_an_attempt_share_the_blocks_and_an_attempt_after_it_takes_what_is_left(tmp_path: Path) -> None:
    folder, blocks = ExplainedFolder(tmp_path / "explained").made(), RowBlocks(rows=50, size=7)
    ranks = [folder.claims(blocks, attempt=1) for _ in range(3)]

    taken = [number for turn in zip_longest(*ranks) for number in turn if number is not None]
    for number in taken[:5]:
        folder.keep(number, b"explained")  # the worker with the other three is lost

    assert sorted(taken) == list(blocks.numbers)
    assert sorted(folder.claims(blocks, attempt=2)) == sorted(taken[5:])
    assert list(folder.claims(blocks, attempt=2)) == []
    assert folder.block(taken[0]).read_bytes() == b"explained"
