"""Bytes of which a few were changed: almost what they were. Owns how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

Edit = tuple[float, int, bytes]  # where, as a share of the whole; how many bytes go; what comes in their place

EDITS: st.SearchStrategy[list[Edit]] = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8)), max_size=4)


def edited(data: bytes, edits: Sequence[Edit]) -> bytes:
    for share, gone, new in edits:
        at = int(share * len(data))
        data = data[:at] + new + data[at + gone :]
    return data
