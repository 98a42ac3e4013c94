"""XLA rules: reasons not to compile a step on TensorFlow, read from the operations of the traced step.

Owns the reasons, which hold for any model: XLA would compute something else, or it would not pay. What was measured overrules the
second kind; that is `autotune.compile_policy`.
"""

from __future__ import annotations

import collections
import hashlib
import math
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import tensorflow as tf

from aiaas_magics.backend.training.tensorflow.graph_operations import TABLES, GraphOperation, Operations, Shape, flat

# XLA drops assertions, and reads out of range without a word; strings and Python it cannot compile at all.
UNCOMPILABLE: Final = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
UNCHECKED: Final = frozenset({"Assert", "CheckNumerics", "CheckNumericsV2"})
SAME_RANDOM: Final = frozenset({"StatelessRandomUniformFullIntV2"})
CLASSES: Final = frozenset({"SparseSoftmaxCrossEntropyWithLogits"})
# XLA's convolutions on a CPU have no oneDNN behind them: two layers of them took 19 times as long (a dry run on two cores, --fused xla).
SLOW_ON_CPU: Final = frozenset({"Conv2D", "Conv3D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "Conv3DBackpropInputV2"})
PRODUCTS: Final = frozenset({"MatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum"})
LOOPS: Final = frozenset({"While", "StatelessWhile"})

# What is not measured yet is estimated from the number of operations. Guesses, of the size that dry runs show on two cores:
# compiling one takes 2 ms, and gains it 0.2 to 1 us a step beside its arithmetic; in a recurrent layer it runs many times a step.
OPERATION_GAINS_S: Final = 1e-6
OPERATION_COMPILES_S: Final = 2.5e-3
PAYS_AFTER_LOOPS: Final = 250
# Where an operation has more arithmetic than this on average, calling it costs nothing beside it (guess: at 0.7 M XLA was still
# twice as fast).
LARGE_OPERATION: Final = 2e6
# Of a product of few rows with a large matrix XLA takes 0.55 to 0.84 of the time of TensorFlow, which is slow where the matrix is
# transposed; of as many rows as the matrix has, 0.9 to 1.6 (docs/lab/training.md). A multiplication took 25e-12 s of one core.
PRODUCT_GAINS_S: Final = 4e-12


@dataclass(frozen=True, slots=True, eq=False)
class XlaStep:
    """A traced step, of which XLA would compile `pieces`. See `compile_policy.TracedStep`.

    Args:
        arrays: the data that steps read; `whole` says that they will read no others.
        rows: of each piece.
    """

    pieces: Sequence[Operations]
    arrays: Any
    rows: int
    whole: bool = True

    def key(self) -> str:
        return key_of(self.pieces, self.arrays, self.rows)

    def forbidden(self) -> tuple[str, ...]:
        return tuple(forbidding(list(flat(self.pieces)), self.arrays, whole=self.whole))

    def unpaying(self, ahead: float) -> tuple[str, ...]:
        return tuple(discouraging(list(flat(self.pieces)), self.rows, ahead, pieces=len(self.pieces)))

    def compile_s(self) -> float:
        return compile_s(self.pieces)


def compile_s(pieces: Sequence[Operations]) -> float:
    """About how many seconds XLA takes to compile these."""
    return OPERATION_COMPILES_S * sum(map(len, pieces))


def forbidding(operations: Sequence[GraphOperation], arrays: Any, *, whole: bool) -> Iterator[str]:
    """Why XLA would compute something else than TensorFlow does, or nothing at all.

    XLA takes an index out of range for the nearest one in range, where TensorFlow raises an error. So indexing is
    compiled only where every number of the data is a valid index into whatever is indexed.
    """
    types = {op.type for op in operations}
    if hit := sorted(types & UNCOMPILABLE) or sorted(kind for kind in types if "String" in kind or kind.startswith("Lookup")):
        yield f"XLA has no {hit[0]}"
    if hit := sorted(types & UNCHECKED):
        yield f"XLA would drop the check {hit[0]}"
    if hit := sorted(kind for kind in types if "Random" in kind and kind not in SAME_RANDOM):
        yield f"XLA draws other random numbers ({hit[0]})"
    if types & SLOW_ON_CPU and not tf.config.list_physical_devices("GPU"):
        yield "XLA's convolutions are slow on a CPU"
    if types & (TABLES | CLASSES) and not indices_hold(operations, arrays, whole=whole):
        yield "the data may index out of range, which XLA would not notice"


def discouraging(operations: Sequence[GraphOperation], rows: int, ahead: float, *, pieces: int) -> Iterator[str]:
    """Why compiling would not pay, by estimate."""
    recurs = any(op.type in LOOPS for op in operations)
    products = [op for op in operations if op.type in PRODUCTS]
    arithmetic = sum(multiplications(op, rows) for op in products)
    large = arithmetic > LARGE_OPERATION * len(operations) and not tf.config.list_physical_devices("GPU")
    of_few = sum(multiplications(op, rows) for op in products if has_few_rows(op, rows))
    if large and of_few < arithmetic / 2:
        yield "its time goes into matrix products of many rows, which XLA does not make faster on a CPU"
    if pieces > 1 and not (recurs or large):
        # Measured for two workers: a small MLP 1.1 and a Transformer block 1.0 times the uncompiled time, a small LSTM 0.37.
        yield "calling compiled parts of a step one by one costs what compiling gains, but in recurrent layers and large products"
    gains_s = of_few * PRODUCT_GAINS_S if large else OPERATION_GAINS_S * len(operations)
    least = PAYS_AFTER_LOOPS
    if not recurs:
        least = round(OPERATION_COMPILES_S * len(operations) / gains_s) if gains_s else 0
    if ahead < least:
        yield f"compiling pays from about {least:,} steps, this fit has {ahead:,.0f}"


def multiplications(op: GraphOperation, rows: int) -> float:
    """About how many a product of matrices [.., m, k] and [.., k, n] takes: the root of (mk)(kn)(mn). Unknown lengths are rows."""
    sizes = [math.prod(shape) for shape in _shapes(op, rows)]
    return math.sqrt(math.prod(sizes)) if len(sizes) == 3 else 0.0


def has_few_rows(op: GraphOperation, rows: int) -> bool:
    """Whether a product of two matrices has the batch on one side only, and there at most half of what every other side has.

    What a reshaping makes rows of, sequences perhaps, may be more than the rows of the batch where its length is not known.
    """
    if op.type != "MatMul" or op.of_reshaped:
        return False
    sides = sorted({side for shape in _shapes(op, rows) for side in shape})
    return len(sides) > 1 and sides[0] == rows and 2 * rows <= sides[1]


def _shapes(op: GraphOperation, rows: int) -> list[list[int]]:
    """Of both factors and the product, where known."""
    return [[side or rows for side in shape] for shape in (*op.inputs[:2], *op.outputs[:1]) if shape is not None]


def key_of(pieces: Sequence[Operations], arrays: Any, rows: int) -> str:
    """Names what a step computes, on what kind of rows, with what, on this machine. How many rows there are says nothing of a step."""
    counted = collections.Counter(f"{op.type}{[_text(shape) for shape in op.outputs]}" for op in flat(pieces) if op.type != "Placeholder")
    data = [f"{x.dtype.name}{x.shape[1:]}" for x in tf.nest.flatten(arrays) if x is not None]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    where = [platform.node(), platform.machine(), cores, tf.__version__, [gpu.name for gpu in tf.config.list_physical_devices("GPU")]]
    return hashlib.sha256(repr((sorted(counted.items()), data, rows, where)).encode()).hexdigest()[:32]


def _text(shape: Shape | None) -> str:
    """As TensorFlow writes it: what was measured is kept under it."""
    return "<unknown>" if shape is None else f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def indices_hold(operations: Iterable[GraphOperation], arrays: Any, *, whole: bool) -> bool:
    """Whether every number of x is an index into the smallest table, and every one of y is a class besides.

    Of arrays that are not the `whole` nobody knows.
    """
    tables = [size for op in operations if op.type in TABLES and (size := op.entries) is not None]
    classes = [(op.inputs[0] or (0,))[-1] or 0 for op in operations if op.type in CLASSES]
    if not whole and (tables or classes):
        return False
    x, *rest = arrays if isinstance(arrays, tuple) else (arrays,)
    return within(x, tables) and (not rest or within(rest[0], [*tables, *classes]))


def within(arrays: Any, limits: Sequence[int]) -> bool:
    """Whether all numbers are at least 0 and below every limit; without a limit there is nothing to be outside of."""
    for x in tf.nest.flatten(arrays) if limits else ():
        if x is None or x.dtype == tf.bool or not len(x):
            continue
        if not (x.dtype.is_integer or x.dtype.is_floating) or not bool(tf.reduce_min(x) >= 0 and float(tf.reduce_max(x)) < min(limits)):
            return False
    return True
