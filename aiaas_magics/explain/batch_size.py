"""Batch size: how many masked rows are predicted at once, where nobody says.

Owns the choice: large batches of small rows, since each call of a model costs something, and small ones of large rows, which fill memory.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from aiaas_magics.core.explain_settings import ExplainSettings
from aiaas_magics.explain.attributions import Arrays
from aiaas_magics.explain.players import is_text

# Measured: 8,192 rows of 20 numbers at once give 2.5 times as many evaluations per second of a small model as 1,024 do,
# and twice as many rows a fifth more.
MOST_ROWS: Final = 8192
LEAST_ROWS: Final = 8
BATCH_BYTES: Final = 4 * 1024 * 1024  # of inputs; guess: what a convolution makes of an image is some ten times as large
TEXT_BYTES: Final = 4096  # guess, of one text with what a model makes of it


def sized(settings: ExplainSettings, inputs: Arrays, *, most_rows: int = MOST_ROWS) -> ExplainSettings:
    """`settings`, with as many rows per prediction as suit these inputs, unless they name a number of their own.

    >>> import numpy as np
    >>> [sized(ExplainSettings(), [np.zeros((1, n), "float32")]).batch_rows for n in (20, 784, 150528)]
    [8192, 1337, 8]
    """
    if settings.batch_rows != ExplainSettings().batch_rows:
        return settings
    row_bytes = sum(TEXT_BYTES if is_text(array) else array.nbytes // max(1, len(array)) for array in inputs)
    return replace(settings, batch_rows=max(LEAST_ROWS, min(most_rows, BATCH_BYTES // max(1, row_bytes))))
