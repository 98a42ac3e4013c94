"""Deployed background: the rows of training data that travel with a model, for the explanations of its endpoint.

Owns choosing them and putting them beside the samples. What they are for belongs to `explain`; their form to `sample_bytes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aiaas_magics.client.serving import caller_rows
from aiaas_magics.core.errors import DataMismatch

if TYPE_CHECKING:
    from aiaas_magics.packing.export.model_export import Servable

BACKGROUND_ROWS: Final = 100  # guess, as `shap`'s documentation advises: more make explanations slower, not better


def samples_of(name: str, exported: Servable, background: Any) -> bytes:
    """The samples as they are sent, with the background for explanations where there is one: at most `BACKGROUND_ROWS` rows, evenly chosen.

    Raises:
        DataMismatch: the background does not fit the model's inputs.
    """
    if background is None:
        return exported.samples
    from aiaas_magics.packing.export.sample_bytes import with_background

    rows = exported.preprocess(background) if exported.preprocess is not None else background
    columns = caller_rows.columns(f"The background of {name}", rows, exported.inputs)
    count = len(next(iter(columns.values())))
    if not count:
        raise DataMismatch("The background has no rows. Give a sample of the training data, as in x_train.")
    chosen = np.unique(np.linspace(0, count - 1, min(count, BACKGROUND_ROWS)).astype(int))
    return with_background(exported.samples, {column: array[chosen] for column, array in columns.items()})
