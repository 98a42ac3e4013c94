"""Which form of a loop over steps: compiled by XLA or not. The plan's rules, and what was measured before.

Owns the reasons. They are read from the operations of one traced step, so they hold for any model. Those that
say "must not" are final; those that say "does not pay" may be overruled by a measurement of both forms, which is
remembered by what the step computes and where, with the time that compiling took: a short fit need not pay for
what a long one gained by.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import tensorflow as tf

from aiaas_magics.backend.folders.small_files import NotPlainFile, read_plain, write_private
from aiaas_magics.backend.training.tensorflow.graph_operations import TABLES, GraphOperation, Operations, Shape, flat

CHOICE_BYTES: Final = 64 * 1024  # guess: two timings have some hundred bytes
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
MOST_COMPILE_S: Final = 5.0  # for a candidate of a dry run (guess: somebody looks on)

FORMS: Final = frozenset({"graph", "xla"})  # what a measurement decides between
IN_WORDS: Final = {"xla": "compiled by XLA", "graph": "uncompiled"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """`fused` is "xla", "graph" or "off"; `why` says why not more than that; `open` whether a measurement may change it."""

    fused: str
    why: tuple[str, ...] = ()
    open: bool = False


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """What one form of a loop was measured to take."""

    step_s: float
    compile_s: float

    def cost_s(self, ahead: float) -> float:
        """Of a step, with its part of the compilation where `ahead` steps follow."""
        return self.step_s + self.compile_s / max(1.0, ahead)


class Choices:
    """What was measured before, one small file a step and machine. A damaged or missing one is measured again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, key: str) -> dict[str, Timing]:
        """Both forms, or nothing."""
        try:
            told = msgspec.json.decode(read_plain(self._folder / f"{key}.json", most_bytes=CHOICE_BYTES), type=dict[str, Timing])
        except (OSError, NotPlainFile, msgspec.MsgspecError):
            return {}
        return told if told.keys() == FORMS else {}

    def remember(self, key: str, measured: Mapping[str, Timing]) -> None:
        with contextlib.suppress(OSError):  # a full disk: it is measured again
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._folder / f"{key}.json", msgspec.json.encode({form: measured[form] for form in FORMS}))


class Rule:
    """Decides the form of one loop, by what `choices` have of its step where that was measured."""

    def __init__(self, choices: Choices | None = None) -> None:
        self._choices, self._key = choices, ""

    def decide(self, pieces: Sequence[Operations], arrays: Any, *, rows: int, ahead: float, whole: bool = True) -> Choice:
        measured: dict[str, Timing] = {}
        if self._choices is not None:
            self._key = key_of(pieces, arrays, rows)
            measured = self._choices.of(self._key)
        return choose(pieces, arrays, rows=rows, ahead=ahead, measured=measured, whole=whole)

    def remember(self, measured: Mapping[str, Timing]) -> None:
        """What both forms of the step that was decided on take."""
        if self._choices is not None:
            self._choices.remember(self._key, measured)


class Comparing(Rule):
    """Says "xla" wherever that can be measured in a moment, whatever was found before."""

    planned: Callable[[], Choice] | None = None  # what a `Rule` decides by now

    def decide(self, pieces: Sequence[Operations], arrays: Any, *, rows: int, ahead: float, whole: bool = True) -> Choice:
        self.planned = functools.partial(super().decide, pieces, arrays, rows=rows, ahead=ahead, whole=whole)
        self.planned()
        by_estimate = choose(pieces, arrays, rows=rows, ahead=ahead, measured={}, whole=whole)
        if not by_estimate.open:
            return by_estimate
        if (takes_s := compile_s(pieces)) > MOST_COMPILE_S:
            return Choice(fused="graph", why=(f"XLA would take about {takes_s:.0f} s to compile this step",))
        return Choice(fused="xla")


def compile_s(pieces: Sequence[Operations]) -> float:
    """About how many seconds XLA takes to compile these."""
    return OPERATION_COMPILES_S * sum(map(len, pieces))


def choose(
    pieces: Sequence[Operations], arrays: Any, *, rows: int, ahead: float, measured: Mapping[str, Timing], whole: bool = True
) -> Choice:
    """The form for steps of which XLA would compile the traced `pieces`, of `rows` rows each, with `ahead` steps still to make.

    `whole` says that `arrays` are all that the steps will read.

    A function of the step, its data and what was `measured` alone, so that the same run is carried out in the same way again.
    """
    found = list(flat(pieces))
    if final := tuple(forbidding(found, arrays, whole=whole)):
        return Choice(fused="graph", why=final)
    if measured:
        return quickest(measured, ahead)
    if unpaying := tuple(discouraging(found, rows, ahead, pieces=len(pieces))):
        return Choice(fused="graph", why=unpaying, open=True)
    return Choice(fused="xla", open=True)


def quickest(measured: Mapping[str, Timing], ahead: float = math.inf) -> Choice:
    """The form in which `ahead` steps are done first, compiling included; by default one whose compilation is over."""
    best, other = sorted(FORMS, key=lambda form: measured[form].cost_s(ahead))
    ratio = measured[other].cost_s(ahead) / measured[best].cost_s(ahead)
    included = "" if math.isinf(ahead) else ", compiling included"
    return Choice(fused=best, why=(f"measured: {IN_WORDS[other]} it takes {ratio:.2f} times as long{included}",))


def forbidding(found: Sequence[GraphOperation], arrays: Any, *, whole: bool) -> Iterator[str]:
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
    if types & (TABLES | CLASSES) and not indices_hold(found, arrays, whole=whole):
        yield "the data may index out of range, which XLA would not notice"


def discouraging(found: Sequence[GraphOperation], rows: int, ahead: float, *, pieces: int) -> Iterator[str]:
    """Why compiling would not pay, by estimate."""
    recurs = any(op.type in LOOPS for op in found)
    products = [op for op in found if op.type in PRODUCTS]
    arithmetic = sum(multiplications(op, rows) for op in products)
    large = arithmetic > LARGE_OPERATION * len(found) and not tf.config.list_physical_devices("GPU")
    of_few = sum(multiplications(op, rows) for op in products if has_few_rows(op, rows))
    if large and of_few < arithmetic / 2:
        yield "its time goes into matrix products of many rows, which XLA does not make faster on a CPU"
    if pieces > 1 and not (recurs or large):
        # Measured for two workers: a small MLP 1.1 and a Transformer block 1.0 times the uncompiled time, a small LSTM 0.37.
        yield "calling compiled parts of a step one by one costs what compiling gains, but in recurrent layers and large products"
    gains_s = of_few * PRODUCT_GAINS_S if large else OPERATION_GAINS_S * len(found)
    least = PAYS_AFTER_LOOPS
    if not recurs:
        least = round(OPERATION_COMPILES_S * len(found) / gains_s) if gains_s else 0
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


def indices_hold(found: Iterable[GraphOperation], arrays: Any, *, whole: bool) -> bool:
    """Whether every number of x is an index into the smallest table, and every one of y is a class besides.

    Of arrays that are not the `whole` nobody knows.
    """
    tables = [size for op in found if op.type in TABLES and (size := op.entries) is not None]
    classes = [(op.inputs[0] or (0,))[-1] or 0 for op in found if op.type in CLASSES]
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
