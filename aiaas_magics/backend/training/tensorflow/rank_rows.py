"""Rank rows: the iterator that hands a rank its rows of arrays, step by step, in the stock `fit`.

Owns the iterator that takes the place of Keras' own inside `fit`: the same arrays, the same
checks (they are Keras' `ArrayDataAdapter`), but an order that is a function of (seed, epoch)
and, of each global batch, only this rank's rows. Which rows those are is `batch_partition`.

Reading is TensorFlow's own gather from the arrays, ahead of the step that needs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aiaas_magics.backend.training.batch_partition import BatchPartition, Indices, Pass, RankPart
from aiaas_magics.backend.training.epochs import Passes, Reading, Steps, steps_of_epoch
from aiaas_magics.backend.training.monkeypatch import iterators_of, monkeypatched
from aiaas_magics.backend.training.tensorflow.device_data import DeviceData, device_data_of
from aiaas_magics.backend.training.tensorflow.multi_step import can_read_rows, read_rows
from aiaas_magics.backend.training.tensorflow.parallel.hooks import ALONE, DATA, PART
from aiaas_magics.core.internals.keras_internals import ArrayDataAdapter, EpochIterator, array_slicing, tf_trainer, tree
from aiaas_magics.core.row_order import whole_executions


@dataclasses.dataclass(slots=True, kw_only=True)
class RowSource(Reading):
    """What the iterators of one rank's `fit` go by."""

    rank: int = 0
    ranks: int = 1
    epochs: int = 1  # of the whole fit
    replicas: int = 1  # in this process, which share its rows
    read_training: Callable[[Any, Any], Any] | None = None  # gives the rows of training at some positions; None: as they are
    _passes: float = 1.0  # still to be begun
    _of_all: float = 1.0  # passes of the whole fit

    def ahead(self, steps: int) -> float:
        """Steps still to be made, with `steps` of them in a pass."""
        return steps * (1 + max(0.0, self._passes))

    def in_all(self, steps: int) -> float:
        """As `ahead`, when the fit began: the same for an attempt that goes on from another."""
        return steps * max(1.0, self._of_all)

    def begin(self, plan: BatchPartition, *, steps_per_epoch: int | None) -> None:
        self.plan = plan
        of_an_epoch = min(1.0, whole_executions(steps_per_epoch or plan.batches, self.execution) / plan.batches)
        self._of_all = self.epochs * of_an_epoch
        self._passes = (self.first_epoch + self.epochs - self.start.epoch) * of_an_epoch

    def begin_pass(self) -> None:
        self._passes -= 1


def reading_from(source: RowSource, model: Any) -> contextlib.AbstractContextManager[None]:
    """Inside, the stock `fit` of `model` gets its batches from `source`, and its `evaluate` may make many steps a call."""

    class RankBatches(_RankIterator):
        _source = source

    iterator_of = iterators_of(model, ("fit", "evaluate"), own=RankBatches, stock=tf_trainer.TFEpochIterator)
    return monkeypatched((tf_trainer, "TFEpochIterator", iterator_of))


class _RankIterator(tf_trainer.TFEpochIterator):  # type: ignore[misc]
    """Stands in for Keras' iterator: for training, for validation inside `fit`, and (unchanged) for an evaluation of the user's own."""

    _source: RowSource
    _current_iterator: Any
    _steps_seen: int

    def __init__(self, distribute_strategy: Any = None, **kwargs: Any) -> None:
        # Only `fit` speaks of class weights; evaluate, which callbacks may call, does not.
        self._is_training_data = self._training = "class_weight" in kwargs
        self._shuffle = kwargs.get("shuffle", False)
        EpochIterator.__init__(self, **kwargs)  # past TFEpochIterator's own, which copies all arrays at once
        self._distribute_strategy = distribute_strategy
        self._distributed_dataset: Any = None
        self._passes: Passes | None = None
        arrays = isinstance(self.data_adapter, ArrayDataAdapter)
        self._pace = (self._source.pace if self._training else self._source.test_pace) if arrays else None
        self._rows: DeviceData | None = None
        if arrays:
            if self._training:
                self._begin_at_start()
        else:
            self._is_training_data = False  # what yields batches yields this rank's part of them by itself: see `datasets`

    def shard(self) -> None:
        """From now on give this rank its part only (validation inside `fit`)."""
        if not self._is_training_data and isinstance(self.data_adapter, ArrayDataAdapter):
            self._is_training_data, self._distributed_dataset = True, None
            self._plan()

    def _plan(self) -> BatchPartition:
        adapter, source = self.data_adapter, self._source
        plan = BatchPartition(rows=adapter._num_samples, batch=adapter._batch_size, rank=source.rank, ranks=source.ranks)
        if self._training:
            plan = source.partition(plan)
        source.batch_alone |= plan.has_batch_alone or of_replicas(plan, source.replicas)[0].has_batch_alone
        return plan

    def _begin_at_start(self) -> None:
        plan = self._plan()
        self._source.begin(plan, steps_per_epoch=self.steps_per_epoch)
        self._passes = Passes(self._source, plan, shuffle=self._shuffle, steps_per_epoch=self.steps_per_epoch)

    def _get_iterator(self) -> Any:
        if self._distributed_dataset is None:
            if self._is_training_data and self._source.replicas > 1:
                plans = of_replicas(self._plan(), self._source.replicas)
                dealt = dataset_of_replicas(self.data_adapter, plans, self._next_order)
                self._distributed_dataset = self._distribute_strategy.distribute_datasets_from_function(lambda _: dealt)
            elif self._is_training_data:
                self._distributed_dataset = our_dataset(self.data_adapter, self._plan(), self._next_pass, read=self._read())
            else:
                stock = self.data_adapter.get_tf_dataset()
                self._distributed_dataset = self._distribute_strategy.experimental_distribute_dataset(stock)
        return self._distributed_dataset

    def _read(self) -> Callable[[Any, Any], Any]:
        return self._source.read_training if self._training and self._source.read_training is not None else read_rows

    def _next_pass(self) -> Pass:
        """Called once for each pass, from TensorFlow's thread, before its first batch."""
        order, skip = self._next_order()
        return self._plan().cut(order, skip=skip)

    def _next_order(self) -> tuple[Indices, int]:
        """All rows in the order of the pass, and how many batches of it are over already."""
        return (self._order, self._skipped) if self._training else (np.arange(self._plan().rows, dtype=np.int64), 0)

    def _enumerate_iterator(self) -> Steps:
        """As the stock one, but of passes that know their number, and with many steps a call where rows can be read inside it."""
        first, execution = self._passes.first_step() if self._passes else 0, self._source.execution
        if self._pace is not None and self._readable():
            yield from steps_of_epoch(
                self,
                first=first,
                execution=execution,
                is_watched=self._source.is_watched,
                begin_pass=self._begin_chunks,
                call=self._one_execution if self._source.is_watched else self._chunk,
                took=self._pace.took,
            )
        elif self._passes is not None:
            yield from steps_of_epoch(self, first=first, execution=execution, begin_pass=self._begin_pass, call=self._stock_call)
        else:
            yield from super()._enumerate_iterator()

    def _begin_pass(self) -> None:
        assert self._passes is not None
        self._skipped, self._order = self._passes.begin()
        self._current_iterator = iter(self._get_iterator())
        self._steps_seen = self._skipped

    def _stock_call(self, _at: int, _most: int) -> tuple[int, Any]:
        return self.steps_per_execution, self._current_iterator

    # ------------------------------------------------------------------ many steps a call

    def _readable(self) -> bool:
        """Whether rows can be read inside a call; opens them when it is asked first."""
        if self._rows is None:
            inputs = tree.lists_to_tuples(array_slicing.convert_to_sliceable(self.data_adapter._inputs, target_backend="tensorflow"))
            if not can_read_rows(inputs):
                self._pace = None
                return False
            # Drawn batches have places without rows, which what is read ahead could not tell.
            drawn = self._training and self._source.sampling is not None
            self._rows = device_data_of(inputs, ranks=self._source.ranks, budget=sys.maxsize if drawn else None)
        return True

    def _cut_plan(self) -> BatchPartition:
        """The plan of a validation inside `fit` is this rank's; of an evaluation of the user's own, the whole."""
        plan = self._plan()
        return plan if self._is_training_data else dataclasses.replace(plan, rank=0, ranks=1)

    def _begin_chunks(self) -> None:
        assert self._rows is not None
        self._cut = plan = self._cut_plan()
        skip, order = self._passes.begin() if self._passes else (0, np.arange(plan.rows, dtype=np.int64))
        if self._passes:
            self._source.begin_pass()
        self._rows.begin(plan, plan.cut(order), uneven=plan.tail_rows > 0 or (self._training and self._source.uneven))
        self._steps_seen = skip
        self._current_iterator = self._rows

    def _chunk(self, at: int, most: int) -> tuple[int, Any]:
        assert self._rows is not None
        assert self._pace is not None
        chunk = self._rows.chunk(at, min(self._pace(), most)) if at < self._cut.full_batches else self._rows.tail()
        return chunk.stop - chunk.start, chunk

    def _one_execution(self, at: int, most: int) -> tuple[int, Any]:
        """As many chunks as Keras' `steps_per_execution` takes, the rest of the pass among them: callbacks see them as one."""
        chunks, begin, end = [], at, min(at + min(self._source.execution, most), self._cut.batches)
        while at < end:
            assert self._rows is not None
            chunks.append(self._rows.chunk(at, end - at) if at < self._cut.full_batches else self._rows.tail())
            at += chunks[-1].stop - chunks[-1].start
        return end - begin, chunks[0] if len(chunks) == 1 else tuple(chunks)


def with_part(rows: Any, part: RankPart) -> Any:
    """What a step is given of these rows: themselves, or on one of several ranks also which part of the batch they are."""
    if part.whole:
        return rows
    return {PART: tf.constant(part.share, tf.float64), ALONE: tf.constant(part.alone), DATA: rows}


def our_dataset(adapter: ArrayDataAdapter, plan: BatchPartition, next_pass: Any, *, read: Callable[[Any, Any], Any]) -> tf.data.Dataset:
    """One pass a time over the adapter's arrays: of each batch this rank's rows, with the share they are."""

    def positions(_: Any) -> Any:
        full, tail = tf.numpy_function(_indices, [], (tf.int64, tf.int64))
        return tf.reshape(full, [-1, plan.full.rows]), tf.reshape(tail, [plan.tail.rows])

    def _indices() -> tuple[Indices, Indices]:
        cut = next_pass()
        return cut.full, cut.tail

    return _reading(
        adapter, tf.data.Dataset.range(1).map(positions).flat_map(functools.partial(_parts, plan)), whole=plan.ranks == 1, take_rows=read
    )


def of_replicas(plan: BatchPartition, replicas: int) -> list[BatchPartition]:
    """The plan of each replica of a process that has all rows."""
    return [dataclasses.replace(plan, rank=replica, ranks=replicas) for replica in range(replicas)] if replicas > 1 else [plan]


def dataset_of_replicas(
    adapter: ArrayDataAdapter, plans: Sequence[BatchPartition], next_order: Callable[[], tuple[Indices, int]]
) -> tf.data.Dataset:
    """As `our_dataset`, with the parts of all replicas of a batch one after the other: a strategy deals them out in turn."""

    def positions(_: Any) -> Any:
        indices = tf.numpy_function(_indices, [], [tf.int64] * (2 * len(plans)))
        return tuple(
            (tf.reshape(full, [-1, plan.full.rows]), tf.reshape(tail, [plan.tail.rows]))
            for plan, full, tail in zip(plans, indices[::2], indices[1::2], strict=True)
        )

    def _indices() -> list[Indices]:
        order, skip = next_order()
        cuts = [plan.cut(order, skip=skip) for plan in plans]
        return [indices for cut in cuts for indices in (cut.full, cut.tail)]

    def in_turn(*elements: Any) -> tf.data.Dataset:
        of_each = tuple(_parts(plan, full, tail) for plan, (full, tail) in zip(plans, elements, strict=True))
        return tf.data.Dataset.zip(of_each).flat_map(_one_after_the_other)

    return _reading(adapter, tf.data.Dataset.range(1).map(positions).flat_map(in_turn), whole=False)


def _one_after_the_other(*elements: Any) -> tf.data.Dataset:
    first, *following = (tf.data.Dataset.from_tensors(element) for element in elements)
    return functools.reduce(lambda before, after: before.concatenate(after), following, first)


def _parts(plan: BatchPartition, full: Any, tail: Any) -> tf.data.Dataset:
    """The parts that `plan` has of each batch of a pass."""
    parts = tf.data.Dataset.from_tensor_slices(full).map(lambda rows: _with_part(rows, plan.full, plan))
    if plan.tail_rows:
        parts = parts.concatenate(tf.data.Dataset.from_tensors(tail).map(lambda rows: _with_part(rows, plan.tail, plan)))
    return parts


def _reading(
    adapter: ArrayDataAdapter, positioned: tf.data.Dataset, *, whole: bool, take_rows: Callable[[Any, Any], Any] = read_rows
) -> tf.data.Dataset:
    """The rows at these positions; unless they are `whole` batches, with the share they are."""
    inputs = tree.lists_to_tuples(array_slicing.convert_to_sliceable(adapter._inputs, target_backend="tensorflow"))
    arrays = tf.data.Dataset.from_tensors(inputs).repeat()

    def read(part: Any, data: Any) -> Any:
        rows = take_rows(data, part["rows"])
        return rows if whole else {PART: part["part"], ALONE: part["alone"], DATA: rows}

    dataset = tf.data.Dataset.zip((positioned, arrays)).map(read, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.with_options(as_it_stands()).prefetch(tf.data.AUTOTUNE)


def as_it_stands() -> tf.data.Options:
    """As Keras does: TensorFlow's optimizations serialize the graph, arrays included, at every start of a pass, and one reads ahead."""
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
    return options


def _with_part(rows: Any, part: RankPart, plan: BatchPartition) -> dict[str, Any]:
    if plan.tail_rows:
        # One length on some ranks and another on others would be traced differently: unknown on all, as in stock `fit`.
        rows = tf.compat.v1.placeholder_with_default(rows, [None])
    return {"rows": rows, "part": tf.constant(part.share, tf.float64), "alone": tf.constant(part.alone)}
