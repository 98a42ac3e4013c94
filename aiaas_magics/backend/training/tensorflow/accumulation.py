"""Gradient accumulation: a batch that does not fit into memory, computed in parts for one update.

Owns the loop over the parts of a step. The parts are like ranks that take turns: each has means over its
rows, and the sum of `share * gradient` over parts is the gradient of the batch (`reductions` has the arithmetic).
What the optimizer then does with it is not touched, nor is how ranks add theirs up.

Where a loss has another denominator than its rows (masks, `mean_with_sample_weight`), that of the whole batch
must be known before the first part: then all parts go through the model once more, forwards, before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import tensorflow as tf

from aiaas_magics.backend.training.monkeypatch import monkeypatched
from aiaas_magics.backend.training.tensorflow.parallel.reductions import Scope, Share, exact_reductions
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.internals.keras_internals import TensorFlowTrainer, data_adapter_utils, tree


class Accumulation:
    """The hook around `model.train_step` that makes one step of `parts` parts. `scope` is the one that corrections go by."""

    def __init__(self, model: Any, parts: int, scope: Scope) -> None:
        self._model, self._parts, self._scope = model, parts, scope
        self._is_stock = type(model).train_step is TensorFlowTrainer.train_step

    @contextlib.contextmanager
    def installed(self, *, corrected: bool) -> Iterator[None]:
        """`corrected`: somebody else keeps reductions exact inside the scope already."""
        model = self._model
        model.jit_compile = False  # XLA orders ops by their data alone: it would hold all parts in memory at once
        model.train_function = None
        step = tf.autograph.experimental.do_not_convert(self._step(model.train_step))
        with monkeypatched((model, "train_step", step)), contextlib.nullcontext() if corrected else exact_reductions(self._scope):
            yield

    def _step(self, stock: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def step(data: Any) -> Any:
            whole = self._scope.share or Share(tf.constant(1.0, tf.float64), tf.constant(False), lambda value: value)
            turns = _Turns(data, self._parts, whole)
            denominators = self._denominators(turns)
            *grads, logs = turns.total(lambda part, share: self._gradients(stock, part, _with_denominators(share, denominators)))
            with self._scope.of(whole):
                self._model.optimizer.apply(grads, self._variables)
                logs_before = self._model.get_metrics_result()
                return {name: tf.identity(value) for name, value in logs_before.items()} if set(logs_before) == set(logs) else logs

        return step

    def _gradients(self, stock: Callable[[Any], Any], part: Any, share: Share) -> list[Any]:
        """What `stock` would have applied for this part, weighted, and its logs, weighted too."""
        caught: list[tuple[list[Any], Any]] = []
        optimizer = self._model.optimizer

        def catch(grads: Any, trainable_variables: Any = None) -> None:
            caught.append((list(grads), trainable_variables))

        with monkeypatched((optimizer, "apply", catch)), self._scope.of(share):
            logs = stock(part)
        if len(caught) != 1:
            raise InvalidSpec(f"A step applies gradients {len(caught)} times, --accumulate needs one that does once. Leave it out.")
        [(grads, variables)] = caught
        self._variables = list(optimizer._trainable_variables if variables is None else variables)
        for grad, variable in zip(grads, self._variables, strict=True):
            if isinstance(grad, tf.Tensor):
                grad.set_shape(variable.shape)  # zeros for an empty part need all of it
        return [*(_weighted(grad, share.within) for grad in grads), {name: _weighted(value, share.within) for name, value in logs.items()}]

    # ------------------------------------------------------------------ denominators of the whole batch

    def _denominators(self, turns: _Turns) -> list[Any] | None:
        """For each loss of the step that has one: the denominator of the whole batch. None where it cannot be known."""
        if not self._is_stock:
            return None
        with tf.__internal__.FuncGraph("denominators").as_default():
            first_part = self._denominators_of(*turns.part(0))
        if not first_part:
            return []
        return [turns.whole.total(denominator) for denominator in turns.total(self._denominators_of)]

    def _denominators_of(self, part: Any, share: Share) -> list[Any]:
        """What the losses of this part ask the total of. Nothing is learned, and no metric counts it."""
        denominators: list[Any] = []

        def total(value: Any) -> Any:
            denominators.append(value)
            return value

        model = self._model
        x, y, sample_weight = data_adapter_utils.unpack_x_y_sample_weight(part)
        with self._scope.of(replace(share, total=total, counted=False)):
            y_pred = model(x, training=False) if model._call_has_training_arg else model(x)
            model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=False)
        return denominators


class _Turns:
    """The parts of one step's rows. Each begins when the sums of those before it are there."""

    def __init__(self, data: Any, parts: int, whole: Share) -> None:
        self._data, self._parts, self.whole = data, parts, whole
        leaf = next(leaf for leaf in tree.flatten(data) if leaf is not None)
        self._rows = leaf.shape[0] if leaf.shape[0] is not None else tf.shape(leaf)[0]
        self._shape: list[Any] = []  # of what a part gives

    def part(self, place: int) -> tuple[Any, Share]:
        # Rounded up, so that the first part has rows whenever there are any.
        start, stop = (-(-self._rows * edge // self._parts) for edge in (place, place + 1))
        rows = tree.map_structure(lambda x: None if x is None else _cut(x, start, stop), self._data)
        within = tf.cast(stop - start, tf.float64) / tf.cast(self._rows, tf.float64)
        return rows, replace(self.whole, part=self.whole.part * within, within=within, together=False)

    def total(self, run: Callable[[Any, Share], list[Any]]) -> list[Any]:
        """The sums over parts of what `run` gives: tensors, slices (put side by side), None, and dicts of tensors."""
        sums: list[Any] | None = None
        for place in range(self._parts):
            with tf.control_dependencies([] if sums is None else [leaf for leaf in tf.nest.flatten(sums, True) if leaf is not None]):
                part, share = self.part(place)
            values = self._unless_empty(run, part, share)
            sums = values if sums is None else [_added(before, after) for before, after in zip(sums, values, strict=True)]
        assert sums is not None
        return sums

    def _unless_empty(self, run: Callable[[Any, Share], list[Any]], part: Any, share: Share) -> list[Any]:
        """`run`, or zeros for a part without rows: the last batch may have fewer rows than there are parts."""
        if isinstance(self._rows, int) and self._rows >= self._parts:
            return run(part, share)

        def filled() -> list[Any]:
            self._shape = run(part, share)
            return [leaf for leaf in tf.nest.flatten(self._shape, True) if leaf is not None]

        def empty() -> list[Any]:
            return [_nothing_like(leaf) for leaf in tf.nest.flatten(self._shape, True) if leaf is not None]

        rest = iter(tf.cond(share.within > 0, filled, empty))
        leaves = [None if leaf is None else next(rest) for leaf in tf.nest.flatten(self._shape, True)]
        return list(tf.nest.pack_sequence_as(self._shape, leaves, True))


def _with_denominators(share: Share, denominators: list[Any] | None) -> Share:
    if denominators is None:  # as if each part had as much of it as of the rows
        return replace(share, total=lambda denominator: denominator / share.part)
    remaining = iter(denominators)
    return replace(share, total=lambda _: next(remaining))


def _cut(x: Any, start: Any, stop: Any) -> Any:
    if isinstance(x, tf.SparseTensor):
        shape = x.dense_shape
        return tf.sparse.slice(x, tf.concat([[start], tf.zeros_like(shape[1:])], 0), tf.concat([[stop - start], shape[1:]], 0))
    return x[start:stop]


def _weighted(value: Any, weight: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, tf.IndexedSlices):
        return tf.IndexedSlices(value.values * tf.cast(weight, value.dtype), value.indices, value.dense_shape)
    value = tf.convert_to_tensor(value)
    return value * tf.cast(weight, value.dtype)


def _added(before: Any, after: Any) -> Any:
    if isinstance(before, dict):
        return {name: _added(value, after[name]) for name, value in before.items()}
    if isinstance(before, tf.IndexedSlices):
        # Side by side, as they are within one batch: Keras' Adam squares each of them.
        values, indices = tf.concat([before.values, after.values], 0), tf.concat([before.indices, after.indices], 0)
        return tf.IndexedSlices(values, indices, before.dense_shape)
    return None if before is None else before + after


def _nothing_like(leaf: Any) -> Any:
    if leaf.shape.is_fully_defined():
        return tf.zeros(leaf.shape, leaf.dtype)
    return tf.zeros([0, *leaf.shape[1:]], leaf.dtype)  # slices: none
