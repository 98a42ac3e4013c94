"""Model losses: each row's loss and outputs, computed by the model as it is.

Owns how a compiled loss is asked for one number per row, and what of an output is a class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from aiaas_magics.core.errors import DataMismatch, InvalidSpec, NotCompiled

BATCH: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class LabelledRows:
    """Rows of shape `(rows, ...)` with their targets."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def first(self, places: np.ndarray) -> LabelledRows:
        return LabelledRows(self.x[places], self.y[places])


def labelled(data: Any, name: str) -> LabelledRows:
    """A pair of arrays.

    Raises:
        DataMismatch: it is none, or they differ in their number of rows.
    """
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise DataMismatch(f"{name} are rows and their targets. Give two arrays: {name}=(x, y).")
    x, y = np.asarray(data[0]), np.asarray(data[1])
    if x.dtype.kind in "OSU" or not x.ndim:
        raise DataMismatch(f"The rows of {name} are of dtype {x.dtype}. Attacks need one array of numbers.")
    if len(x) != len(y) or not len(x):
        raise DataMismatch(f"{name} have {len(x)} rows and {len(y)} targets. Give as many of each, and at least one.")
    return LabelledRows(x, y)


def loss_of(model: Any) -> Any:
    """The model's loss as a function of targets and outputs that gives a number per row.

    Raises:
        NotCompiled: it has none.
        InvalidSpec: it has several outputs with a loss each.
    """
    import keras

    loss = getattr(model, "loss", None)
    if loss is None:
        raise NotCompiled(str(getattr(model, "name", "model")))
    if isinstance(loss, (dict, list, tuple)):
        raise InvalidSpec(f"Model {model.name!r} has {len(loss)} losses. Attacks are made on models of one output; wrap the one you mean.")
    function = keras.losses.get(loss)
    call = function.call if isinstance(function, keras.losses.Loss) else function

    def per_row(targets: Any, outputs: Any) -> Any:
        targets = keras.ops.convert_to_tensor(targets)
        if len(targets.shape) == len(outputs.shape) - 1 and outputs.shape[-1] == 1:
            targets = keras.ops.expand_dims(targets, -1)
        if not _is_sparse(function):
            targets = keras.ops.cast(targets, outputs.dtype)
        values = call(targets, outputs)
        return keras.ops.mean(keras.ops.reshape(values, (keras.ops.shape(values)[0], -1)), axis=1) if len(values.shape) > 1 else values

    return per_row


def _is_sparse(function: Any) -> bool:
    return "sparse" in str(getattr(function, "name", None) or getattr(function, "__name__", "")).lower()


def outputs_and_losses(model: Any, rows: LabelledRows) -> tuple[np.ndarray, np.ndarray]:
    """The model's outputs, and the loss of each row, both for all rows."""
    import keras

    outputs = np.asarray(model.predict(rows.x, batch_size=BATCH, verbose=0))
    per_row = loss_of(model)
    losses = [
        keras.ops.convert_to_numpy(per_row(rows.y[begin : begin + BATCH], keras.ops.convert_to_tensor(outputs[begin : begin + BATCH])))
        for begin in range(0, len(rows), BATCH)
    ]
    return outputs, np.concatenate(losses).astype(np.float64)


def class_of(model: Any, y: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The true and the answered class of each row; None where the model classifies nothing."""
    import keras

    loss = keras.losses.get(model.loss)
    name = str(getattr(loss, "name", None) or getattr(loss, "__name__", "")).lower()
    if "crossentropy" not in name and "hinge" not in name:
        return None
    flat = outputs.reshape(len(outputs), -1)
    if flat.shape[1] == 1:
        border = 0.0 if getattr(loss, "from_logits", False) or "hinge" in name else 0.5
        return (y.reshape(len(y), -1)[:, 0] > border if "hinge" in name else y.reshape(len(y), -1)[:, 0] > 0.5), flat[:, 0] > border
    truth = y.reshape(len(y), -1)
    return (np.argmax(truth, axis=1) if truth.shape[1] > 1 else truth[:, 0].astype(np.int64)), np.argmax(flat, axis=1)
