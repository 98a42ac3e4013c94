"""Many steps in one call: the stock `train_step`, optimizer and metrics inside a loop of TensorFlow's own.

Owns the call that takes the place of Keras' train and test functions, and how many steps it makes at
once. Of a small model's time most goes into Python between steps; a loop inside one compiled call has
none there. What a step computes is not touched: it is whatever `model.train_step` is.

XLA compiles the loop where that is safe and pays: see `reasons_against_xla`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
import tensorflow as tf
from keras.src import tree
from keras.src.trainers.data_adapters import array_slicing
from tensorflow.python.ops import gen_stateless_random_ops_v2 as stateless
from tensorflow.python.ops import random_ops_util
from tensorflow.python.ops.random_ops_util import Algorithm

from aiaas_magics.backend.training.plan import Part

CALL_S: Final = 0.25  # one call at most about this long: progress is told, and an interrupt is heard, between calls
GROWTH: Final = 8  # a call makes at most so many times the steps of the last one: the first one's time says little

# XLA drops assertions, and reads out of range without a word; strings and Python it cannot compile at all.
UNCOMPILABLE: Final = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc", "LookupTableFindV2", "StringSplitV2", "StaticRegexReplace"})
UNCHECKED: Final = frozenset({"Assert", "CheckNumerics", "CheckNumericsV2"})
SAME_RANDOM: Final = frozenset({"StatelessRandomUniformFullIntV2"})
TABLES: Final = frozenset({"ResourceGather", "GatherV2"})
CLASSES: Final = frozenset({"SparseSoftmaxCrossEntropyWithLogits"})
# Measured on CPUs: XLA's convolutions have no oneDNN behind them and take 2 to 4 times as long.
SLOW_ON_CPU: Final = frozenset({"Conv2D", "Conv3D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "Conv3DBackpropInputV2"})


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Steps `start` up to `stop`, of which each has one line of `positions`: the rows of `arrays` that it reads.

    Stands where Keras expects an iterator. `uneven` says that some batch of the pass has another length: the step then
    sees a batch of unknown length, as in the stock `fit`, where Keras weighs the losses of several outputs by it.
    """

    arrays: Any  # a structure of tensors with rows first, as `train_step` is given them
    positions: Any  # int32 or int64 [steps, rows of a step]
    start: int
    stop: int
    part: Part
    uneven: bool = False


class Pacing(Protocol):
    """Says how many steps the next call makes, and hears how long it took."""

    def __call__(self) -> int: ...
    def took(self, steps: int, seconds: float) -> None: ...


class Pace:
    """How many steps the next call makes: as many as fit in `CALL_S`, or `each` where somebody looks at every one."""

    def __init__(self, each: int | None = None) -> None:
        self._each = each
        self._steps, self._step_s = 0, 0.0

    def __call__(self) -> int:
        if self._each is not None:
            return self._each
        if not self._steps:
            return 1
        fitting = int(CALL_S / self._step_s) if self._step_s > 0 else GROWTH * self._steps
        return max(1, min(fitting, GROWTH * self._steps))

    def took(self, steps: int, seconds: float) -> None:
        self._steps, self._step_s = max(self._steps, steps), seconds / steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """How the steps are carried out, and why not otherwise."""

    fused: str  # "xla" | "graph"
    why: tuple[str, ...] = ()


class FusedSteps:
    """Takes the place of `model.train_function` (or `test_function`): a `Chunk` is carried out in one call.

    Args:
        step: the model's step, on data as `train_step` gets it.
        stock: makes Keras' own function, for whatever is no `Chunk`.
        wrap: puts what a rank needs around the rows of a part (several workers), or nothing.
        fused: "xla", "graph", or "auto" to let the operations of the step decide.
        settled: told once how the steps are carried out.
    """

    def __init__(
        self,
        step: Callable[[Any], Any],
        *,
        stock: Callable[[], Callable[[Any], Any]],
        wrap: Callable[[Any, Part], Any],
        fused: str = "auto",
        settled: Callable[[Settled], None] = lambda _: None,
    ) -> None:
        self._step, self._wrap, self._fused, self._told = step, wrap, fused, settled
        self._make_stock = functools.cache(stock)
        self._steps: dict[tuple[Part, bool], Any] = {}
        self._runs: dict[tuple[Part, bool, bool], Any] = {}
        self._settled: Settled | None = None

    def __call__(self, given: Any) -> Any:
        if not isinstance(given, Chunk):
            return self._make_stock()(given)
        if given.positions.shape[0] == 1 and given.stop == 1:  # the rest of a pass, once an epoch: not worth a compilation
            return self._run(given, compiled=False)
        if self._settled is None:
            self._settled = self._settle(given)
            self._told(self._settled)
        return self._run(given, compiled=self._settled.fused == "xla")

    def _run(self, chunk: Chunk, *, compiled: bool) -> Any:
        key = (chunk.part, chunk.uneven, compiled)
        if key not in self._runs:
            self._runs[key] = self._loop(self._one(chunk), compiled=compiled)
        return self._runs[key](chunk.arrays, chunk.positions, tf.constant(chunk.start), tf.constant(chunk.stop))

    def _settle(self, chunk: Chunk) -> Settled:
        if self._fused == "graph":
            return Settled(fused="graph")
        why: tuple[str, ...] = ()
        if self._fused == "auto":
            one = self._one(chunk).get_concrete_function(chunk.arrays, chunk.positions[0])
            why = tuple(reasons_against_xla(one.graph, chunk.arrays))
        if not why:
            try:
                self._run(replace(chunk, start=0, stop=0), compiled=True)  # compiles, and makes no step
                return Settled(fused="xla")
            except (tf.errors.OpError, NotImplementedError, ValueError, TypeError) as error:
                why = (f"XLA cannot compile this step: {first_line(error)}",)
        return Settled(fused="graph", why=why)

    def _one(self, chunk: Chunk) -> Any:
        """One step on the rows at some positions, traced once for all forms of the loop."""
        part, uneven = chunk.part, chunk.uneven
        if (part, uneven) not in self._steps:

            def one(arrays: Any, rows: Any) -> Any:
                if uneven:
                    rows = tf.compat.v1.placeholder_with_default(rows, [None])
                return self._step(self._wrap(tree.traverse(lambda x: take(x, rows), arrays), part))

            self._steps[part, uneven] = tf.function(tf.autograph.experimental.do_not_convert(one))
        return self._steps[part, uneven]

    def _loop(self, one: Any, *, compiled: bool) -> Any:
        def run(arrays: Any, positions: Any, start: Any, stop: Any) -> Any:
            told = one.get_concrete_function(arrays, positions[0]).structured_outputs
            nothing = tf.nest.map_structure(lambda found: tf.zeros([size or 0 for size in found.shape], found.dtype), told)
            _, logs = tf.while_loop(
                lambda at, _: at < stop,
                lambda at, _: (at + 1, one(arrays, positions[at])),
                (start, nothing),
                shape_invariants=(start.shape, tf.nest.map_structure(lambda found: found.shape, told)),
                parallel_iterations=1,
            )
            return logs

        return tf.function(tf.autograph.experimental.do_not_convert(run), jit_compile=compiled)


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """Inside, stateless uniform numbers (dropout's, say) are the same bits whether XLA compiles them or not.

    TensorFlow draws by Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and makes a float of
    the low 23 bits of a word. XLA on a CPU draws by another algorithm where nobody names one, and takes the high bits.
    """
    stock_algorithm, stock_uniform = random_ops_util.convert_alg_to_int, stateless.stateless_random_uniform_v2

    def convert(alg: Any) -> Any:
        found = stock_algorithm(alg)
        return Algorithm.PHILOX.value if found == Algorithm.AUTO_SELECT.value else found

    def uniform(shape: Any, key: Any, counter: Any, alg: Any, dtype: Any = tf.float32, name: str | None = None) -> Any:
        if tf.as_dtype(dtype) != tf.float32:
            return stock_uniform(shape, key, counter, alg, dtype, name)
        words = stateless.stateless_random_uniform_full_int_v2(shape, key, counter, alg, tf.uint32)
        from_one_to_two = tf.bitwise.bitwise_or(tf.bitwise.bitwise_and(words, 0x7FFFFF), 0x3F800000)
        return tf.subtract(tf.bitcast(from_one_to_two, tf.float32), 1.0, name=name)

    random_ops_util.convert_alg_to_int, stateless.stateless_random_uniform_v2 = convert, uniform
    try:
        yield
    finally:
        random_ops_util.convert_alg_to_int, stateless.stateless_random_uniform_v2 = stock_algorithm, stock_uniform


def reasons_against_xla(graph: Any, arrays: Any) -> Iterator[str]:
    """Why the steps of a traced graph should not, or must not, be compiled by XLA; nothing if they can be.

    XLA takes an index out of range for the nearest one in range, where TensorFlow raises an error. So indexing is
    compiled only where every number of the data is a valid index into whatever is indexed.
    """
    found = list(operations(graph))
    types = {op.type for op in found}
    if hit := sorted(types & UNCOMPILABLE) or sorted(kind for kind in types if "String" in kind or kind.startswith("Lookup")):
        yield f"XLA has no {hit[0]}"
    if hit := sorted(types & UNCHECKED):
        yield f"XLA would drop the check {hit[0]}"
    if hit := sorted(kind for kind in types if "Random" in kind and kind not in SAME_RANDOM):
        yield f"XLA draws other random numbers ({hit[0]})"
    if types & SLOW_ON_CPU and not tf.config.list_physical_devices("GPU"):
        yield "XLA's convolutions are slow on a CPU"
    if types & (TABLES | CLASSES) and not indices_hold(found, arrays):
        yield "the data may index out of range, which XLA would not notice"


def operations(graph: Any) -> Iterator[Any]:
    """Every operation of `graph` and of the functions that it calls."""
    yield from graph.get_operations()
    for function in graph._functions.values():
        inner = getattr(function, "graph", None)
        if inner is not None:
            yield from inner.get_operations()


def indices_hold(found: Iterable[Any], arrays: Any) -> bool:
    """Whether every number of x is an index into the smallest table, and every one of y is a class besides."""
    tables = [size for op in found if op.type in TABLES and (size := entries(op)) is not None]
    classes = [op.inputs[0].shape[-1] or 0 for op in found if op.type in CLASSES]
    x, *rest = arrays if isinstance(arrays, tuple) else (arrays,)
    return within(x, tables) and (not rest or within(rest[0], [*tables, *classes]))


def entries(op: Any) -> int | None:
    """How many entries the table has that `op` reads from, 0 where that is not known; None for the data itself."""
    table = op.inputs[0]
    if op.type == "ResourceGather":
        told = getattr(table, "_handle_data", None)
        return int(told.shape_and_type[0].shape.dim[0].size) if told is not None and told.is_set else 0
    if table.op.type == "Placeholder":
        return None
    axis = tf.get_static_value(op.inputs[2])
    return 0 if axis is None or table.shape.rank is None else table.shape[int(axis)] or 0


def within(arrays: Any, limits: Sequence[int]) -> bool:
    """Whether all numbers are at least 0 and below every limit; without a limit there is nothing to be outside of."""
    for x in tf.nest.flatten(arrays) if limits else ():
        if x is None or x.dtype == tf.bool or not len(x):
            continue
        if not (x.dtype.is_integer or x.dtype.is_floating) or not bool(tf.reduce_min(x) >= 0 and float(tf.reduce_max(x)) < min(limits)):
            return False
    return True


def fusable(arrays: Iterable[Any]) -> bool:
    """Whether rows of these can be taken inside a call."""
    return all(tf.is_tensor(x) or isinstance(x, np.ndarray) for x in tree.flatten(arrays) if x is not None)


def take(x: Any, rows: Any) -> Any:
    """The rows of one array; None to look inside a structure (the protocol of `tree.traverse`)."""
    if isinstance(x, array_slicing.TensorflowSparseWrapper):
        return array_slicing.slice_tensorflow_sparse_wrapper(x, rows)
    if isinstance(x, list | tuple | dict):
        return None
    return tf.gather(x, rows, axis=0) if tf.is_tensor(x) else x


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
