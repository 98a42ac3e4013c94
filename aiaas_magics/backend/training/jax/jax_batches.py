"""Batches for Keras' JAX `fit`: the iterator that takes the place of Keras' own.

Owns handing out rows in our order, one batch at a time or many steps in one call. Which rows those are is `batch_partition`,
where they lie is `jax_steps`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from aiaas_magics.backend.training.batch_partition import BatchPartition, Indices
from aiaas_magics.backend.training.epochs import Passes, Reading, Steps, steps_of_epoch
from aiaas_magics.backend.training.jax import jax_steps as steps
from aiaas_magics.backend.training.monkeypatch import iterators_of, monkeypatched
from aiaas_magics.backend.training.private_sampling import NOBODY, PoissonPartition
from aiaas_magics.core.errors import NotOnEngine
from aiaas_magics.core.internals.keras_internals import ArrayDataAdapter, array_slicing, jax_trainer, tree


def reading_from(reading: Reading, model: Any) -> contextlib.AbstractContextManager[None]:
    """Inside, Keras' JAX `fit` of `model` gets its batches from `reading`."""

    class JaxBatches(_JaxIterator):
        _reading = reading

    iterator_of = iterators_of(model, ("fit", "evaluate", "predict"), own=JaxBatches, stock=jax_trainer.JAXEpochIterator)
    return monkeypatched((jax_trainer, "JAXEpochIterator", iterator_of))


class _JaxIterator(jax_trainer.JAXEpochIterator):  # type: ignore[misc]
    """Stands in for Keras' iterator: in training with our order, elsewhere with the arrays' own; remainders are not cut."""

    _reading: Reading
    _passes: Passes | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(self.data_adapter, ArrayDataAdapter):
            raise NotOnEngine("JAX", f"x of type {type(kwargs.get('x')).__name__} is no array")
        adapter, self._shuffle = self.data_adapter, kwargs.get("shuffle", False)
        self._arrays: Any = None
        self._resident: Any = None
        self._fits = True  # as far as anybody knows
        self._plan = BatchPartition(rows=adapter._num_samples, batch=adapter._batch_size)
        # Only `fit` speaks of class weights, and only predict of no y.
        self._training = "class_weight" in kwargs
        if self._training:
            self._plan = self._reading.partition(self._plan)
        self._pace = self._reading.pace if self._training else self._reading.test_pace if "y" in kwargs else None
        self.reset()

    def reset(self) -> None:
        super().reset()
        if self._training:
            self._reading.plan = self._plan
            self._passes = Passes(self._reading, self._plan, shuffle=self._shuffle, steps_per_epoch=self.steps_per_epoch)

    def _enumerate_iterator(self) -> Steps:
        first = self._passes.first_step() if self._passes else 0
        reading, is_watched = self._reading, self._reading.is_watched and self._pace is not None
        call = self._one_execution if is_watched else self._call
        return steps_of_epoch(
            self,
            first=first,
            execution=reading.execution,
            is_watched=is_watched,
            begin_pass=self._begin_pass,
            call=call,
            took=self._took,
        )

    def _begin_pass(self) -> None:
        self._steps_seen, self._order = self._passes.begin() if self._passes else (0, np.arange(self._plan.rows, dtype=np.int64))
        self._current_iterator, self._at = self._batches(), self._steps_seen
        if self._pace is not None and self._resident is None and self._fits:
            self._resident = steps.resident(self._sliceable())
            self._fits = self._resident is not None
            if self._training and not self._fits:
                self._reading.too_large()
        if self._resident is not None:
            self._positions = steps.positions(self._order, self._plan)

    def _call(self, at: int, most: int) -> tuple[int, Any]:
        many = min(most, self._plan.full_batches - at)
        if self._pace is None:
            return self.steps_per_execution, self._current_iterator
        if self._resident is None or many < 1:
            self._at = at  # Keras' own steps: a whole execution, as far as there are batches
            return min(self._reading.execution, self._plan.batches - at), self._current_iterator
        count = min(self._pace(), many)
        return count, steps.JaxChunk(self._resident, self._positions, at, at + count)

    def _one_execution(self, at: int, most: int) -> tuple[int, Any]:
        """What is resident by one chunk and what is not by Keras' own steps, as one call: callbacks see one execution."""
        end = min(at + min(self._reading.execution, most), self._plan.batches)
        resident_end = min(end, self._plan.full_batches) if self._resident is not None else at
        self._at = max(at, resident_end)
        chunk = [steps.JaxChunk(self._resident, self._positions, at, resident_end)] if resident_end > at else []
        return end - at, (*chunk, *([self._current_iterator] if end > resident_end else []))

    def _took(self, count: int, seconds: float) -> None:
        if self._pace is not None:
            self._pace.took(count, seconds)

    def _batches(self) -> Iterator[Any]:
        """The batches from where the pass stands, one after the other."""
        while self._at < self._plan.batches:
            self._at += 1
            yield self._batch(self._plan.rows_at(self._order, self._at - 1))

    def _sliceable(self) -> Any:
        if self._arrays is None:
            self._arrays = array_slicing.convert_to_sliceable(self.data_adapter._inputs, target_backend="jax")
        return self._arrays

    def _batch(self, rows: Indices) -> Any:
        cut = tree.map_structure(lambda array: array.convert_to_jax_compatible(array[rows]), self._sliceable(), none_is_leaf=False)
        return steps.placed((cut, rows != NOBODY) if isinstance(self._plan, PoissonPartition) else cut)
