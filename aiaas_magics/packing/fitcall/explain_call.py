"""Explain call: a model and rows of data on their way to workers that explain the model's outputs for them.

Owns packing it. In a worker it is unpacked as a fit call is (`fit_call.unpack`): its root has the same parts, and other arguments: `rows`
and `background`, one array per input of the model, and `block_rows`. What an explanation is belongs to `explain`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from aiaas_magics.core.errors import CannotTravel, InvalidSpec
from aiaas_magics.core.spec import FitShape
from aiaas_magics.packing.checks import fit_checks
from aiaas_magics.packing.fitcall.fit_call import pickled
from aiaas_magics.packing.fitcall.keras_settings import current_settings, global_seed

BLOCKS: Final = 4  # per worker: guess; a slower worker takes fewer of them
MOST_BLOCK_ROWS: Final = 64  # guess: what a lost worker has to do again
MOST_DEAR_ROWS: Final = 4096  # guess: compiling takes a second, as these rows do


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainCall:
    """A model with the rows to explain and the background, one array of shape (rows, *input shape) per input of the model.

    `facts` is plain JSON that comes back with the result: names of columns and classes, say. `compiles_each` says that the method
    compiles anew for each block of rows, so that there should be few.
    """

    model: Any
    rows: Sequence[np.ndarray]
    background: Sequence[np.ndarray] | None
    facts: Mapping[str, Any] = field(default_factory=dict)
    compiles_each: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedExplainCall:
    """An explain call ready to be sent. The n-th of `arrays` stands for the n-th placeholder in `payload`."""

    payload: bytes
    arrays: tuple[np.ndarray, ...]
    shape: FitShape
    memory_bytes: int
    sets_environment: bool
    notes: tuple[str, ...] = ()


def pack(call: ExplainCall, *, workers: int, environment: Sequence[str] | None = ()) -> PackedExplainCall:
    """Check `call` and make bytes of it. Nothing is sent, and the model stays as it is; it need not be compiled.

    Args:
        workers: how many share the rows.
        environment: as for a fit call.

    Raises:
        UnsuitableKeras, JobStillRunning, InvalidSpec: the model cannot be explained on workers, with the next move.
    """
    model = call.model
    fit_checks.check_keras(model)
    fit_checks.check_free(model, "explain")
    if not model.built:
        raise InvalidSpec(f"Model {model.name!r} is not built, so it has no weights to explain. Fit it, or call it on a row, first.")
    rows = len(call.rows[0])
    block_rows = block_rows_for(rows, workers=workers, compiles_each=call.compiles_each)
    root = {
        "model": model,
        "arguments": {"rows": list(call.rows), "background": call.background, "block_rows": block_rows, "facts": dict(call.facts)},
        "callbacks": [],
        "batch": None,
        "settings": current_settings(),
        "seed": global_seed(),
    }
    try:
        payload, out_of_band, chosen = pickled(root, environment)
    except CannotTravel as error:  # whose sentence speaks of a fit
        raise InvalidSpec(f"{error.path} cannot be sent to a worker: {error.why}. {error.next_move}") from error
    weights = sum(int(np.prod(variable.shape)) * 4 for variable in model.variables)
    shape = FitShape(
        rows=rows,
        global_batch=block_rows,
        steps_per_epoch=-(-rows // block_rows),
        initial_epoch=0,
        epochs=1,
        parameters=int(sum(math.prod(variable.shape) for variable in model.weights)),
        model=str(model.name),
    )
    return PackedExplainCall(
        payload=payload,
        arrays=tuple(out_of_band.arrays),
        shape=shape,
        memory_bytes=weights + 2 * sum(array.nbytes for array in call.rows),
        sets_environment=bool(chosen.values),
        notes=chosen.notes(),
    )


def block_rows_for(rows: int, *, workers: int, compiles_each: bool = False) -> int:
    """How many rows a worker takes at once: several blocks for each worker, none of them large; one for each where a block is dear.

    >>> block_rows_for(20, workers=2), block_rows_for(1000, workers=2), block_rows_for(1, workers=4)
    (3, 64, 1)
    >>> block_rows_for(1000, workers=2, compiles_each=True)
    500
    """
    if compiles_each:
        return max(1, min(MOST_DEAR_ROWS, -(-rows // workers)))
    return max(1, min(MOST_BLOCK_ROWS, -(-rows // (BLOCKS * workers))))
