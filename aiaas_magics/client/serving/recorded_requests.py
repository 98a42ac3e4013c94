"""Recorded requests: what an endpoint's backend has kept of its traffic, as a table, and the reference that drift is measured against.

Owns the columns of the table and the choice of rows for a reference. Frames belong to `core.recording`, distributions to `core.drift`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aiaas_magics.core.drift.drift_features import features_of
from aiaas_magics.core.drift.drift_report import reference_of
from aiaas_magics.core.drift.drift_values import DriftReference
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.recorded_arrays import array_of
from aiaas_magics.core.recording import RecordedRequest, RecordedTensor, requests_in
from aiaas_magics.core.spec import TensorSpec

if TYPE_CHECKING:
    import pandas as pd

WIDE: Final = 256  # guess: rows with more numbers are one column of arrays
REFERENCE_ROWS: Final = 4096  # guess: 99 of 100 samples of 4096 and 1000 rows of one distribution have a PSI below 0.03
REFERENCE_BYTES: Final = 64 * 1024 * 1024  # guess: of them, on their way to the endpoint
PREDICTED_ROWS: Final = 128  # in one request
PREDICTED_S: Final = (
    3.0  # guess: what a deployment may take longer for it; so many of the rows as this allows have outputs in the reference
)


def pandas() -> Any:
    """The library.

    Raises:
        InvalidSpec: it is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise InvalidSpec("A table is a pandas DataFrame, and pandas is not installed. Run %pip install pandas first.") from None
    return pd


# --------------------------------------------------------------------------- the table


def frame_of(data: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> pd.DataFrame:
    """Recorded requests as a table with a line per row of a request.

    Args:
        data: frames.
        inputs, outputs: of the endpoint; their Keras names are those of the columns.
    """
    library = pandas()
    columns: dict[str, list[Any]] = {"time": [], "version": [], "request": [], "row": []}
    originals = {spec.name: spec.original or spec.name for spec in (*inputs, *outputs)}
    blocks: list[dict[str, Any]] = []
    for request, _ in requests_in(data):
        arrays = {**_arrays("input", request.inputs, originals), **_arrays("output", request.outputs, originals)}
        rows = request.rows or 1
        columns["time"] += [request.time_s] * rows
        columns["version"] += [request.version] * rows
        columns["request"] += [request.id] * rows
        columns["row"] += range(rows)
        blocks.append(dict(_columns(arrays, request)))
    names = list(dict.fromkeys(name for block in blocks for name in block))
    for name in names:
        columns[name] = [value for block, rows in zip(blocks, _rows(data), strict=True) for value in block.get(name, [None] * rows)]
    frame: pd.DataFrame = library.DataFrame(columns)
    frame["time"] = library.to_datetime(frame["time"], unit="s", utc=True)
    return frame


def _rows(data: bytes) -> Iterator[int]:
    for request, _ in requests_in(data):
        yield request.rows or 1


def _arrays(side: str, tensors: Sequence[RecordedTensor], originals: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Columns of inputs and outputs with the same name differ by their side."""
    return {f"{side} {originals.get(tensor.name, tensor.name)}": array_of(tensor) for tensor in tensors}


def _columns(arrays: Mapping[str, np.ndarray], request: RecordedRequest) -> Iterator[tuple[str, list[Any]]]:
    for name, array in arrays.items():
        if not request.rows:  # tensors that differ in their first dimension: a line for the whole request
            yield name, [array]
        elif array.ndim == 1 or array[0].size == 1:
            yield name, array.reshape(len(array)).tolist()
        elif array.ndim == 2 and array.shape[1] <= WIDE:
            for column in range(array.shape[1]):
                yield f"{name}[{column}]", array[:, column].tolist()
        else:
            yield name, list(array)


# --------------------------------------------------------------------------- the reference


def reference_rows(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows for a reference, evenly over all: at most 4,096, and 64 MB of them."""
    rows = len(next(iter(columns.values())))
    row_bytes = max(1, sum(array.nbytes for array in columns.values()) // max(1, rows))
    count = max(1, min(rows, REFERENCE_ROWS, REFERENCE_BYTES // row_bytes))
    places = (np.arange(count) * rows) // count
    return {name: np.ascontiguousarray(array[places]) for name, array in columns.items()}


def reference(
    columns: Mapping[str, np.ndarray],
    *,
    origin: str,
    labels: Mapping[str, Sequence[str]],
    predict: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
) -> DriftReference:
    """The distribution of rows and of the answers to them, and none of the rows.

    Args:
        columns: the rows by the inputs' names.
        origin: what these are, in words.
        labels: names of columns, where they are known.
        predict: answers rows; it is asked for as many as it answers within some seconds.
    """
    rows = reference_rows(columns)
    count = len(next(iter(rows.values())))
    # In an order of chance: the rows that are answered in time are a sample of all.
    order = np.random.default_rng(0).permutation(count)
    answers: list[Mapping[str, np.ndarray]] = []
    until_s = time.monotonic() + PREDICTED_S
    for begin in range(0, count, PREDICTED_ROWS):
        part = np.sort(order[begin : begin + PREDICTED_ROWS])
        answers.append(predict({name: np.ascontiguousarray(array[part]) for name, array in rows.items()}))
        if time.monotonic() > until_s:
            break
    outputs = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
    features = [*features_of("input", rows, labels), *features_of("output", outputs)]
    return reference_of(features, rows=count, origin=origin)


def labels_of(x: Any, inputs: Sequence[TensorSpec]) -> dict[str, tuple[str, ...]]:
    """The names of a DataFrame's columns, where it is the one input of a model."""
    if len(inputs) == 1 and hasattr(x, "columns") and hasattr(x, "to_numpy"):
        return {inputs[0].name: tuple(map(str, x.columns))}
    return {}
