"""Keras order: the order of rows that plain `fit` has under a seed of TensorFlow's, from Keras' own pipeline.

Owns asking Keras for it, on positions in the place of rows. An order without such a seed is `batch_partition`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from aiaas_magics.backend.training.batch_partition import Indices, Shuffle
from aiaas_magics.core.internals.keras_internals import ArrayDataAdapter
from aiaas_magics.core.internals.tensorflow_internals import context

READ_ROWS = 65_536  # at a time; guess: one by one, a million batches would take a minute


@functools.lru_cache(maxsize=1)
def order_of_keras(seed: int, *, rows: int, batch: int, shuffle: Shuffle) -> Indices:
    """The positions of one pass. Every pass has the same: an iterator of a seeded tf.data pipeline begins with its seed."""
    with _seeded(seed):  # ops take their seed when the pipeline is traced
        dataset = ArrayDataAdapter(np.arange(rows, dtype=np.int64), batch_size=batch, shuffle=shuffle).get_tf_dataset()
    positions = dataset.map(lambda element: element[0] if isinstance(element, tuple) else element).rebatch(READ_ROWS)
    return np.concatenate([part.numpy() for part in positions])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Past `tf.random.set_seed`, which would begin the worker's own random numbers anew."""
    eager_context = context.context()
    before, eager_context._seed = eager_context._seed, seed
    try:
        yield
    finally:
        eager_context._seed = before
