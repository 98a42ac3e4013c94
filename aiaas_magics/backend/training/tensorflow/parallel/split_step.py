"""Split step: two compiled halves with the exchange between them, because XLA cannot compile what processes exchange.

Owns cutting the stock `train_step` where it gives its gradients to the optimizer: the first half ends there, the second one is
the optimizer's update. What happens between them belongs to the rank's hooks (`collective`), and whether compiling is safe
and pays to `compile_policy`, by the operations of both halves.

A step can be cut where nothing that comes after the update looks at what it changes, or changes it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import tensorflow as tf

from aiaas_magics.packing.live.model_variables import tensorflow_variable


class NotSplittable(NotImplementedError):
    """Why a step cannot be cut."""


@dataclass(frozen=True, slots=True, eq=False)
class HalfStep:
    """What the stock step gave to its optimizer; gradients by place, None where a variable has none."""

    apply: Callable[..., Any]  # the stock `apply` of the optimizer's class
    optimizer: Any
    grads: tuple[Any, ...]
    variables: Any
    operations: int  # of the step, before

    def is_looked_at(self, graph: Any, weights: Sequence[Any]) -> bool:
        """Whether what comes after this in `graph` uses what the update changes."""
        changed = {id(tensorflow_variable(variable).handle) for variable in (*weights, *self.optimizer.variables)}
        inside = {id(inner) for outer, inner in graph.captures if id(outer) in changed}
        return any(id(tensor) in inside for operation in graph.get_operations()[self.operations :] for tensor in operation.inputs)


class SplitStep:
    """Cuts the steps that are traced while it `is_active`, and keeps the graphs of what it had compiled."""

    def __init__(self) -> None:
        self.is_active = False
        self.graphs: list[Any] = []
        self._compiled: list[tuple[Any, list[Any]]] = []  # functions, with what they were traced with
        self._half_steps: list[HalfStep] | None = None
        self._graph: Any = None  # of the first half
        self._refusal: NotSplittable | None = None

    def refuse(self, why: str) -> NoReturn:
        """Inside a step that is being cut. What stands around (a layer, AutoGraph) may raise another error in its place."""
        self._refusal = NotSplittable(why)
        raise self._refusal

    @contextlib.contextmanager
    def cutting(self) -> Iterator[None]:
        """Steps that are traced inside are cut."""
        self.is_active, self.graphs, self._compiled = True, [], []
        try:
            yield
        finally:
            self.is_active = False

    def takes(self, apply: Callable[..., Any], optimizer: Any, grads: Sequence[Any], variables: Any) -> bool:
        """Whether the first half is being traced: then it ends with these gradients."""
        if self._half_steps is None:
            return False
        if tf.compat.v1.get_default_graph() is not self._graph:
            # Before the inner function is traced to its end: it would keep a trace without the update.
            self.refuse("its gradients go to the optimizer inside a tf.function or a condition of its own")
        before = len(tf.compat.v1.get_default_graph().get_operations())
        self._half_steps.append(HalfStep(apply, optimizer, tuple(grads), variables, before))
        return True

    def gradients(self, step: Callable[..., Any], weights: Sequence[Any], *arguments: Any) -> tuple[Any, HalfStep, list[Any]]:
        """In the graph of a step: its logs, what it gave to its optimizer, and the gradients as they come out of the first half.

        Raises:
            NotSplittable: the step cannot be cut.
        """
        taken: list[HalfStep] = []

        def first(*given: Any) -> Any:
            taken.clear()
            self._half_steps, self._graph = taken, tf.compat.v1.get_default_graph()
            try:
                logs = step(*given)
            finally:
                self._half_steps = self._graph = None
            if len(taken) != 1:
                raise NotSplittable(f"its step gives gradients to an optimizer {len(taken)} times")
            if any(isinstance(grad, tf.IndexedSlices) for grad in taken[0].grads):
                raise NotSplittable("gradients of its tables are exchanged row by row")
            if taken[0].is_looked_at(tf.compat.v1.get_default_graph(), weights):
                raise NotSplittable("it uses weights or the optimizer's state after the update")
            return logs, [grad for grad in taken[0].grads if grad is not None]

        self._refusal = None
        try:
            logs, dense = self._call(first, *arguments)
        except Exception as error:
            if self._refusal is not None:
                raise self._refusal from error
            raise
        [taken_update] = taken
        rest = iter(dense)
        return logs, taken_update, [None if grad is None else next(rest) for grad in taken_update.grads]

    def update(self, half_step: HalfStep, summed: Sequence[Any]) -> None:
        """In the graph of a step: the optimizer's update by the gradients of all ranks."""
        places = [place for place, grad in enumerate(summed) if grad is not None]

        def second(*dense: Any) -> Any:
            grads: list[Any] = [None] * len(summed)
            for place, grad in zip(places, dense, strict=True):
                grads[place] = grad
            half_step.apply(half_step.optimizer, grads, half_step.variables)
            return tf.constant(0)

        self._call(second, *(summed[place] for place in places))

    def _call(self, function: Callable[..., Any], *given: Any) -> Any:
        leaves = tf.nest.flatten(given)
        tensors = [leaf for leaf in leaves if tf.is_tensor(leaf)]

        def flat(*tensors: Any) -> Any:
            rest = iter(tensors)
            return function(*tf.nest.pack_sequence_as(given, [next(rest) if tf.is_tensor(leaf) else leaf for leaf in leaves]))

        compiled = tf.function(tf.autograph.experimental.do_not_convert(flat), jit_compile=True)
        outputs = compiled(*tensors)
        self._compiled.append((compiled, [tf.type_spec_from_value(tensor) for tensor in tensors]))
        self.graphs.append(compiled.get_concrete_function(*tensors).graph)
        return outputs

    def check(self, rows: int) -> None:
        """Raises what XLA raises where it cannot compile a half, for batches of so many rows; nothing is computed."""
        for compiled, signature in self._compiled:
            fixed = [tf.TensorSpec([rows if size is None else size for size in spec.shape], spec.dtype) for spec in signature]
            # A trace for batches of any length stands in the way of one for this length.
            of_length = compiled if fixed == signature else tf.function(compiled.python_function, jit_compile=True)
            of_length.experimental_get_compiler_ir(*fixed)(stage="hlo")
