"""Graph operations: those of traced steps as values, for the rules of compiling and for the trace cache.

Owns reading them off TensorFlow's graphs. What follows from them is `compile_policy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
import tensorflow as tf

TABLES: Final = frozenset({"ResourceGather", "GatherV2"})

Shape = tuple[int | None, ...]


class GraphOperation(msgspec.Struct, frozen=True, array_like=True):
    """One operation of a graph. A shape of None is of unknown rank."""

    type: str
    inputs: tuple[Shape | None, ...]
    outputs: tuple[Shape | None, ...]
    of_reshaped: bool = False  # an input comes from a reshaping to a shape that is not wholly known
    entries: int | None = None  # of the table that it reads from, 0 where not known; None where there is nothing to be outside of


Operations = tuple[GraphOperation, ...]


def operations_of(graph: Any) -> Operations:
    """Every operation of `graph` and of the functions that it calls."""
    return tuple(operation_of(op) for op in _within(graph))


def operation_of(op: Any) -> GraphOperation:
    return GraphOperation(
        type=op.type,
        inputs=tuple(_shape(x) for x in op.inputs),
        outputs=tuple(_shape(x) for x in op.outputs),
        of_reshaped=any(tensor.op.type == "Reshape" and not tensor.shape.is_fully_defined() for tensor in op.inputs),
        entries=_entries(op) if op.type in TABLES else None,
    )


def flat(pieces: Iterable[Operations]) -> Iterator[GraphOperation]:
    return (operation for piece in pieces for operation in piece)


def _within(graph: Any) -> Iterator[Any]:
    yield from graph.get_operations()
    for function in graph._functions.values():
        inner = getattr(function, "graph", None)
        if inner is not None:
            yield from inner.get_operations()


def _shape(x: Any) -> Shape | None:
    return None if x.shape.rank is None else tuple(x.shape)


def _entries(op: Any) -> int | None:
    """How many entries the table has that `op` reads from, 0 where that is not known; None for the data itself and for shapes."""
    table = op.inputs[0]
    if op.type == "ResourceGather":
        handle_data = getattr(table, "_handle_data", None)
        return int(handle_data.shape_and_type[0].shape.dim[0].size) if handle_data is not None and handle_data.is_set else 0
    if table.op.type in ("Placeholder", "Shape"):
        return None
    axis = tf.get_static_value(op.inputs[2])
    return 0 if axis is None or table.shape.rank is None else table.shape[int(axis)] or 0
