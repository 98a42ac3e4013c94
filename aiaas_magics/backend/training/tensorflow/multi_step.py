"""Multi-step loop: many steps in one call, the stock `train_step`, optimizer and metrics inside a loop of TensorFlow's own.

Owns the call that takes the place of Keras' train and test functions, and how many steps it makes at
once. Of a small model's time most goes into Python between steps; a loop inside one compiled call has
none there. What a step computes is not touched: it is whatever `model.train_step` is.

XLA compiles the loop where that is safe and pays: `compile_policy` says when.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from aiaas_magics.backend.training.autotune import trial as trial_module
from aiaas_magics.backend.training.autotune.compile_policy import Choice, Rule, both_forms, quickest
from aiaas_magics.backend.training.autotune.trial import Trial
from aiaas_magics.backend.training.batch_partition import RankPart
from aiaas_magics.backend.training.monkeypatch import monkeypatched
from aiaas_magics.backend.training.tensorflow.graph_operations import Operations, operations_of
from aiaas_magics.backend.training.tensorflow.parallel.split_step import NotSplittable, SplitStep
from aiaas_magics.backend.training.tensorflow.trace_cache import Recalled, Trace, Traces, are_tensors, drawn, flat
from aiaas_magics.backend.training.tensorflow.xla_rules import XlaStep, compile_s
from aiaas_magics.core import keras_messages
from aiaas_magics.core.internals.keras_internals import array_slicing, tree
from aiaas_magics.core.internals.tensorflow_internals import Algorithm, random_ops_util, stateless
from aiaas_magics.core.timing_cache import StepTiming


@dataclass(frozen=True, slots=True, eq=False)
class StepChunk:
    """Steps `start` up to `stop`, of which each has one line of `positions`: the rows of `arrays` that it reads.

    Stands where Keras expects an iterator. `uneven` says that some batch of the pass has another length: the step then
    sees a batch of unknown length, as in the stock `fit`, where Keras weighs the losses of several outputs by it.
    """

    arrays: Any  # a structure of tensors with rows first, as `train_step` is given them
    positions: Any  # int32 or int64 [steps, rows of a step]
    start: int
    stop: int
    part: RankPart
    uneven: bool = False
    rest: bool = False  # what full batches have left of a pass: one step a pass, not worth a compilation
    of: int = 0  # steps of a pass, where `positions` are not all of them

    @property
    def steps(self) -> int:
        """Steps of a pass."""
        return self.of or int(self.positions.shape[0])

    @property
    def whole(self) -> bool:
        """Whether `arrays` hold the rows of all full batches of the pass."""
        return self.steps <= int(self.positions.shape[0])


class MultiStepFunction:
    """Takes the place of `model.train_function` (or `test_function`): a `StepChunk` is one call, several come one after the other.

    Args:
        step: the model's step, on data as `train_step` gets it.
        stock: makes Keras' own function, for whatever is no `StepChunk`.
        wrap: puts what a rank needs around the rows of a part (several workers), or nothing.
        wanted: the form: "xla", "graph", or "auto" to let `rule` decide; and why it is not another.
        ahead: how many steps are still to be made, with so many in a pass.
        in_all: how many there were when the fit began: what `rule` decides by, so that an attempt that goes on decides alike.
        tries: whether a long run tries both forms, and has the rule remember what they take.
        on_choice: told how the steps are carried out, before the first; once more where a trial has found out.
        traces: where loops are kept that need not be traced again; `name` tells this one from others of the fit.
        read: gives the rows of arrays at some positions, as the step takes them.
        split_step: cuts each step in two for XLA, where it cannot compile the whole loop; the loop itself is not compiled then.
    """

    def __init__(
        self,
        step: Callable[[Any], Any],
        *,
        stock: Callable[[], Callable[[Any], Any]],
        wrap: Callable[[Any, RankPart], Any],
        choice: Choice,
        ahead: Callable[[int], float] = lambda _: math.inf,
        in_all: Callable[[int], float] = lambda _: math.inf,
        rule: Rule | None = None,
        tries: bool = False,
        on_choice: Callable[[Choice], None] = lambda _: None,
        split_step: SplitStep | None = None,
        traces: Traces | None = None,
        name: str = "",
        read: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self._read = read or read_rows
        self._step, self._wrap, self._wanted_choice, self._ahead, self._on_choice = step, wrap, choice, ahead, on_choice
        self._in_all = in_all
        self._make_stock, self._split_step = functools.cache(stock), split_step
        self._traces, self._name = traces if split_step is None else None, name
        self._last_like: tuple[Any, Any, str] = (None, None, "")
        self._models: dict[str, str | None] = {}  # fingerprints, by what the loop was asked for with
        self._rule, self._tries = rule or Rule(), tries
        self._compile_s: dict[str, float] = {}
        self._steps: dict[tuple[RankPart, bool, bool], Any] = {}
        self._runs: dict[tuple[RankPart, bool, bool, str], Any] = {}
        self._choice: Choice | None = None
        self._trial: Trial | None = None
        self._last: Any = None

    def __call__(self, data: Any) -> Any:
        chunks = data if isinstance(data, tuple) else (data,)
        if not isinstance(chunks[0], StepChunk):
            if self._choice is None:
                self._tell(Choice(fused="off", why=("its data comes batch by batch",)))
            return self._make_stock()(data)
        for chunk in chunks:
            self._last = self._carried_out(chunk)
        return self._last

    def is_last_result(self, logs: Any) -> bool:
        """Whether `logs` are those of the last step that was made; asked a second time, they are not."""
        last, self._last = self._last, None
        return last is not None and logs is last

    def _carried_out(self, chunk: StepChunk) -> Any:
        if chunk.rest:
            return self._run(chunk, compiled=False)
        choice = self._choice or self._tell(self._settle(chunk))
        if self._trial is None:
            return self._run(chunk, compiled=choice.fused == "xla")
        return self._tried(self._trial, chunk)

    def _run(self, chunk: StepChunk, *, compiled: bool) -> Any:
        key = (chunk.part, chunk.uneven, compiled, self._like(chunk) if self._traces is not None else "")
        if key not in self._runs:
            self._runs[key] = self._recalled(chunk, compiled=compiled) or self._traced(chunk, compiled=compiled)
        return self._runs[key](chunk.arrays, chunk.positions, tf.constant(chunk.start), tf.constant(chunk.stop))

    def _traced(self, chunk: StepChunk, *, compiled: bool) -> Any:
        halved = compiled and self._split_step is not None
        step_function = self._single_step(chunk, halved=halved)
        loop = self._loop(step_function, compiled=compiled and not halved)
        if self._traces is not None and (key := self._key(chunk, compiled=compiled)) is not None:
            arguments = (chunk.arrays, chunk.positions, tf.constant(chunk.start), tf.constant(chunk.stop))
            before = drawn()
            concrete, step = (
                loop.get_concrete_function(*arguments),
                step_function.get_concrete_function(chunk.arrays, chunk.positions[0]).graph,
            )
            # Otherwise tracing has changed the model or drawn a number, and is needed each time.
            if before == drawn() and self._traces.fingerprint() == self._models[self._like(chunk)]:
                self._traces.note(key, concrete, step, [*flat(chunk.arrays), *arguments[1:]])
        return loop

    # ------------------------------------------------------------------ loops of other fits

    def _key(self, chunk: StepChunk, *, compiled: bool) -> str | None:
        """The name of the loop's trace, of the model as it was when it was asked for first."""
        if self._traces is None or not are_tensors(chunk.arrays):
            return None
        like = self._like(chunk)
        if like not in self._models:
            self._models[like] = self._traces.fingerprint()
        return self._traces.key(self._models[like], self._name, chunk.part, like, compiled)

    def _like(self, chunk: StepChunk) -> str:
        """What a trace for these arrays goes by: their structure, types and sizes."""
        arrays, positions, text = self._last_like
        if chunk.arrays is not arrays or chunk.positions is not positions:
            described = tf.nest.map_structure(
                lambda x: None if x is None else (x.dtype.name, tuple(x.shape)), (chunk.arrays, chunk.positions)
            )
            text = f"{described} {chunk.uneven}"
            self._last_like = chunk.arrays, chunk.positions, text
        return text

    def _trace(self, chunk: StepChunk, *, compiled: bool) -> Trace | None:
        key = self._key(chunk, compiled=compiled)
        return self._traces.find(key) if self._traces is not None and key is not None else None

    def _recalled(self, chunk: StepChunk, *, compiled: bool) -> Recalled | None:
        """The loop as an earlier fit has traced it, when it has made no step."""
        if self._traces is None or (trace := self._trace(chunk, compiled=compiled)) is None:
            return None
        # The form that a long run tries later would be traced of the model as it is by then.
        if self._trial is not None and self._traces.fingerprint() != self._models[self._like(chunk)]:
            return None
        arguments = (chunk.arrays, chunk.positions, tf.constant(0), tf.constant(0))
        try:
            loop = self._traces.bound(
                trace, lambda: self._loop(self._single_step(chunk, halved=False), compiled=False).get_concrete_function(*arguments)
            )
            loop(*arguments)
        except Exception:  # noqa: BLE001 - border: a file that another process wrote; whatever is wrong with it, the step is traced instead
            self._traces.drop(self._key(chunk, compiled=compiled))
            return None
        return loop

    def _tell(self, choice: Choice) -> Choice:
        self._choice = choice
        self._on_choice(choice)
        return choice

    def _settle(self, chunk: StepChunk) -> Choice:
        choice = self._wanted_choice
        if choice.fused == "auto":
            rows, ahead = int(chunk.positions.shape[1]), self._in_all(chunk.steps)
            try:
                choice = self._rule.decide(XlaStep(self._pieces(chunk), chunk.arrays, rows, whole=chunk.whole), ahead=ahead)
            except NotSplittable as error:
                choice = Choice(fused="graph", why=(f"XLA cannot compile an exchange, and the step cannot be cut there: {error}",))
        if (why := self._prepared(chunk, choice.fused)) is not None:
            choice = Choice(fused="graph", why=(why,))
        if choice.open and self._tries:
            self._trial = Trial(choice.fused)
        return choice

    def _pieces(self, chunk: StepChunk) -> list[Operations]:
        """What XLA would compile of a step."""
        for compiled in (False, True):
            if (trace := self._trace(chunk, compiled=compiled)) is not None:
                return [trace.operations]
        whole = self._single_step(chunk, halved=self._split_step is not None).get_concrete_function(chunk.arrays, chunk.positions[0]).graph
        return [operations_of(graph) for graph in ([whole] if self._split_step is None else self._split_step.graphs)]

    def _prepared(self, chunk: StepChunk, form: str) -> str | None:
        """Trace the loop, and compile it, making no step; why it cannot be compiled, or None."""
        began = time.perf_counter()
        try:
            self._run(replace(chunk, start=0, stop=0), compiled=form == "xla")
            if form == "xla" and self._split_step is not None:
                self._split_step.check(int(chunk.positions.shape[1]))
        except (tf.errors.OpError, NotImplementedError, ValueError, TypeError) as error:
            if form != "xla":
                raise
            if self._traces is not None:
                self._traces.drop(self._key(chunk, compiled=True))
            return f"XLA cannot compile this step: {first_line(error)}"
        self._compile_s[form] = time.perf_counter() - began
        return None

    def _tried(self, trial: Trial, chunk: StepChunk) -> Any:
        began = time.perf_counter()
        logs = self._run(chunk, compiled=trial.fused == "xla")
        trial.took(chunk.stop - chunk.start, time.perf_counter() - began)
        if trial.wants_other(ahead := self._ahead(chunk.steps)):
            affords = trial.other != "xla" or compile_s(self._pieces(chunk)) <= trial_module.TRIED_SHARE * trial.step_s[trial.fused] * ahead
            trial.begin_other(possible=affords and self._prepared(chunk, trial.other) is None)
        if trial.is_over:
            self._trial = None
            if trial.is_measured:
                timings = [self._timing(form, step_s) for form, step_s in trial.step_s.items()]
                self._tell(quickest(both_forms(timings)))
                self._rule.remember(timings)
        return logs

    def _timing(self, form: str, step_s: float) -> StepTiming:
        # A trial is made by one rank on one device: several do not come to the same by their own clocks.
        return StepTiming(engine="tensorflow", strategy="single", fused=form, step_s=step_s, compile_s=self._compile_s[form])

    def _single_step(self, chunk: StepChunk, *, halved: bool) -> Any:
        """One step on the rows at some positions, traced once for all forms of the loop."""
        part, uneven = chunk.part, chunk.uneven
        if (part, uneven, halved) not in self._steps:

            def step_function(arrays: Any, rows: Any) -> Any:
                if uneven:
                    rows = tf.compat.v1.placeholder_with_default(rows, [None])
                with self._split_step.cutting() if halved and self._split_step is not None else contextlib.nullcontext():
                    return self._step(self._wrap(self._read(arrays, rows), part))

            self._steps[part, uneven, halved] = tf.function(tf.autograph.experimental.do_not_convert(step_function))
        return self._steps[part, uneven, halved]

    def _loop(self, step_function: Any, *, compiled: bool) -> Any:
        def run(arrays: Any, positions: Any, start: Any, stop: Any) -> Any:
            outputs = step_function.get_concrete_function(arrays, positions[0]).structured_outputs
            zeros = tf.nest.map_structure(lambda output: tf.zeros([size or 0 for size in output.shape], output.dtype), outputs)
            _, logs = tf.while_loop(
                lambda at, _: at < stop,
                lambda at, _: (at + 1, step_function(arrays, positions[at])),
                (start, zeros),
                shape_invariants=(start.shape, tf.nest.map_structure(lambda found: found.shape, outputs)),
                parallel_iterations=1,
            )
            return logs

        return tf.function(tf.autograph.experimental.do_not_convert(run), jit_compile=compiled)


def same_random_numbers() -> contextlib.AbstractContextManager[None]:
    """Inside, stateless uniform numbers (dropout's, say) are the same bits whether XLA compiles them or not.

    TensorFlow draws by Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and makes a float of
    the low 23 bits of a word. XLA on a CPU draws by another algorithm where nobody names one, and takes the high bits.
    """
    stock_algorithm, stock_uniform = random_ops_util.convert_alg_to_int, stateless.stateless_random_uniform_v2

    def convert(alg: Any) -> Any:
        algorithm = stock_algorithm(alg)
        return Algorithm.PHILOX.value if algorithm == Algorithm.AUTO_SELECT.value else algorithm

    def uniform(shape: Any, key: Any, counter: Any, alg: Any, dtype: Any = tf.float32, name: str | None = None) -> Any:
        if tf.as_dtype(dtype) != tf.float32:
            return stock_uniform(shape, key, counter, alg, dtype, name)
        words = stateless.stateless_random_uniform_full_int_v2(shape, key, counter, alg, tf.uint32)
        from_one_to_two = tf.bitwise.bitwise_or(tf.bitwise.bitwise_and(words, 0x7FFFFF), 0x3F800000)
        return tf.subtract(tf.bitcast(from_one_to_two, tf.float32), 1.0, name=name)

    return monkeypatched((random_ops_util, "convert_alg_to_int", convert), (stateless, "stateless_random_uniform_v2", uniform))


def can_read_rows(arrays: Iterable[Any]) -> bool:
    """Whether rows of these can be taken inside a call."""
    return all(tf.is_tensor(x) or isinstance(x, np.ndarray) for x in tree.flatten(arrays) if x is not None)


def read_rows(arrays: Any, rows: Any) -> Any:
    """The rows at these positions."""
    return tree.traverse(lambda x: take(x, rows), arrays)


def take(x: Any, rows: Any) -> Any:
    """The rows of one array; None to look inside a structure (the protocol of `tree.traverse`)."""
    if isinstance(x, array_slicing.TensorflowSparseWrapper):
        return array_slicing.slice_tensorflow_sparse_wrapper(x, rows)
    if isinstance(x, list | tuple | dict):
        return None
    return tf.gather(x, rows, axis=0) if tf.is_tensor(x) else x


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in keras_messages.message_of(error).splitlines() if line.strip()), type(error).__name__)[:200]
