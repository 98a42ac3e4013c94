"""Which form of a loop over steps: compiled by XLA or not. The plan's rules, and what was measured before.

Owns the reasons. They are read from the operations of one traced step, so they hold for any model. Those that
say "must not" are final; those that say "does not pay" may be overruled by a measurement, which is remembered
by what the step computes and where.
"""

from __future__ import annotations

import collections
import hashlib
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import tensorflow as tf

from aiaas_magics.backend.disk import write_private

# XLA drops assertions, and reads out of range without a word; strings and Python it cannot compile at all.
UNCOMPILABLE: Final = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
UNCHECKED: Final = frozenset({"Assert", "CheckNumerics", "CheckNumericsV2"})
SAME_RANDOM: Final = frozenset({"StatelessRandomUniformFullIntV2"})
TABLES: Final = frozenset({"ResourceGather", "GatherV2"})
CLASSES: Final = frozenset({"SparseSoftmaxCrossEntropyWithLogits"})
# Measured on CPUs (docs/training.md): XLA's convolutions have no oneDNN behind them, a small network takes 40 times as long.
SLOW_ON_CPU: Final = frozenset({"Conv2D", "Conv3D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "Conv3DBackpropInputV2"})
PRODUCTS: Final = frozenset({"MatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum"})
LOOPS: Final = frozenset({"While", "StatelessWhile"})

# Measured with the models of benchmarks/training.py: without XLA an operation costs about 1 us beside its arithmetic, and
# compiling it takes 2.5 ms, whatever the model: so many steps have to follow. In a recurrent layer it runs many times a step.
PAYS_AFTER: Final = 2_500
PAYS_AFTER_LOOPS: Final = 250
# Where an operation has more arithmetic than this on average, calling it costs nothing beside it (0.1 M: twice as fast with
# XLA; 20 M: a fifth slower).
LARGE_OPERATION: Final = 2e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """`fused` is "xla" or "graph"; `why` says why not "xla"; `open` whether a measurement may change it."""

    fused: str
    why: tuple[str, ...] = ()
    open: bool = False


class Choices:
    """What was measured before, one small file a step and machine. A damaged or missing one is measured again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, key: str) -> Choice | None:
        try:
            told = msgspec.json.decode((self._folder / f"{key}.json").read_bytes(), type=dict[str, float])
        except (OSError, msgspec.MsgspecError):
            return None
        return quickest(told) if told else None

    def remember(self, key: str, step_s: Mapping[str, float]) -> None:
        """Seconds of a step in each form that was measured."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self._folder / f"{key}.json", msgspec.json.encode(dict(step_s)))


def choose(graph: Any, arrays: Any, *, rows: int, ahead: float, measured: Choice | None) -> Choice:
    """The form for the steps of a traced `graph`, of `rows` rows each, with `ahead` steps still to make.

    A function of the step and its data alone, so that the same run is carried out in the same way again.
    """
    found = list(operations(graph))
    if final := tuple(forbidding(found, arrays)):
        return Choice(fused="graph", why=final)
    if measured is not None:
        return measured
    if unpaying := tuple(discouraging(found, rows, ahead)):
        return Choice(fused="graph", why=unpaying, open=True)
    return Choice(fused="xla", open=True)


def quickest(step_s: Mapping[str, float]) -> Choice:
    """The form with the shortest step of those that were measured."""
    best, *others = sorted(step_s, key=lambda fused: step_s[fused])
    form = {"xla": "compiled by XLA", "graph": "uncompiled", "off": "one step a call"}
    why = (f"measured: {form[other]} it takes {step_s[other] / step_s[best]:.2f} times as long" for other in others)
    return Choice(fused=best, why=tuple(why))


def forbidding(found: Sequence[Any], arrays: Any) -> Iterator[str]:
    """Why XLA would compute something else than TensorFlow does, or nothing at all.

    XLA takes an index out of range for the nearest one in range, where TensorFlow raises an error. So indexing is
    compiled only where every number of the data is a valid index into whatever is indexed.
    """
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


def discouraging(found: Sequence[Any], rows: int, ahead: float) -> Iterator[str]:
    """Why compiling would not pay, by estimate."""
    arithmetic = sum(multiplications(op, rows) for op in found if op.type in PRODUCTS)
    if arithmetic > LARGE_OPERATION * len(found) and not tf.config.list_physical_devices("GPU"):
        yield "its time goes into large matrix products, which XLA does not make faster on a CPU"
    least = PAYS_AFTER_LOOPS if any(op.type in LOOPS for op in found) else PAYS_AFTER
    if ahead < least:
        yield f"compiling pays from about {least:,} steps, this fit has {ahead:,.0f}"


def multiplications(op: Any, rows: int) -> float:
    """About how many a product of matrices [.., m, k] and [.., k, n] takes: the root of (mk)(kn)(mn). Unknown lengths are rows."""
    sizes = [math.prod(size or rows for size in x.shape) for x in (*op.inputs[:2], *op.outputs[:1]) if x.shape.rank is not None]
    return math.sqrt(math.prod(sizes)) if len(sizes) == 3 else 0.0


def key_of(graph: Any, arrays: Any, rows: int) -> str:
    """Names what a step computes, on what data, with what, on this machine."""
    counted = collections.Counter(f"{op.type}{[str(x.shape) for x in op.outputs]}" for op in operations(graph))
    data = [f"{x.dtype.name}{x.shape[1:]}" for x in tf.nest.flatten(arrays) if x is not None]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    where = [platform.node(), platform.machine(), cores, tf.__version__, [gpu.name for gpu in tf.config.list_physical_devices("GPU")]]
    return hashlib.sha256(repr((sorted(counted.items()), data, rows, where)).encode()).hexdigest()[:32]


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
    """How many entries the table has that `op` reads from, 0 where that is not known; None for the data itself and for shapes."""
    table = op.inputs[0]
    if op.type == "ResourceGather":
        told = getattr(table, "_handle_data", None)
        return int(told.shape_and_type[0].shape.dim[0].size) if told is not None and told.is_set else 0
    if table.op.type in ("Placeholder", "Shape"):
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
