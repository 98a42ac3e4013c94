"""Explain call: a model and rows of data on their way to workers that explain the model's outputs for them.

Owns packing it. In a worker it is unpacked as a fit call is (`fit_call.unpack`): its root has the same parts, and other arguments: `rows`
and `background`, one array per input of the model, and `block_rows`. What an explanation is belongs to `explain`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from aiaas_magics.core.errors import CannotTravel, DataMismatch, InvalidSpec
from aiaas_magics.core.spec import FitShape
from aiaas_magics.packing.checks import fit_checks
from aiaas_magics.packing.data import fit_data
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
    if not fit_checks.is_built(model):
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


def arrays_for(model: Any, value: Any, label: str) -> list[np.ndarray]:
    """`value`, rows as `predict` takes them, as one array per input of `model`, in its order.

    Args:
        label: what the user calls them, for messages.

    Raises:
        DataMismatch: no rows, or rows that are not those of the model.
    """
    structure = getattr(model, "_inputs_struct", None)
    mapped = fit_data.mapped(value, label)
    if isinstance(mapped, Mapping) and isinstance(structure, Mapping):
        missing = [name for name in structure if name not in mapped]
        if missing:
            raise DataMismatch(f"{label} has no {missing[0]!r}; the model takes {', '.join(map(str, structure))}. Give a dict with these.")
        mapped = [mapped[name] for name in structure]
    arrays = [array for _, array in fit_data.leaves(mapped, label)]
    specs = getattr(model, "inputs", None) or ()
    if specs and len(specs) != len(arrays):
        raise DataMismatch(f"{label} has {len(arrays)} arrays, and {model.name!r} takes {len(specs)} inputs. Give one array for each.")
    if not arrays or not len(arrays[0]):
        raise DataMismatch(f"{label} has no rows. Give at least one, as in x_test[:20].")
    if len({len(array) for array in arrays}) > 1:
        raise DataMismatch(f"The arrays of {label} have {', '.join(str(len(array)) for array in arrays)} rows. Give each the same number.")
    return [_fitted(array, spec, label) for array, spec in itertools.zip_longest(arrays, specs)]


def _fitted(array: np.ndarray, spec: Any, label: str) -> np.ndarray:
    """`array` in the rank and dtype of a declared input; None for one that declares nothing."""
    if spec is None:
        return array
    if array.ndim == len(spec.shape) - 1 and spec.shape[-1] == 1:  # as Keras does
        array = array[..., np.newaxis]
    if array.ndim != len(spec.shape) or any(n not in (None, size) for n, size in zip(spec.shape[1:], array.shape[1:], strict=True)):
        wanted = ", ".join("any" if n is None else str(n) for n in spec.shape[1:])
        raise DataMismatch(
            f"Rows of {label} have the shape {array.shape[1:]}; input {spec.name!r} takes ({wanted}). Give whole rows, the batch first."
        )
    if array.dtype.kind in "OSU" or str(spec.dtype) in ("string", "bfloat16"):
        return array.astype(object)
    return array.astype(str(spec.dtype), copy=False)


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
