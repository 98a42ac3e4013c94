"""Gradients in buckets: what is cut where, and that an exchange does not wait for the end of the backward pass."""

from __future__ import annotations

import itertools
import math
import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis.strategies import integers, lists
from keras import layers

from aiaas_magics.backend.training.comm.shared_memory_group import SharedMemoryGroup
from aiaas_magics.backend.training.tensorflow.parallel.buckets import BUCKET_BYTES, in_buckets
from aiaas_magics.backend.training.tensorflow.parallel.collective import Collective
from aiaas_magics.backend.training.tensorflow.parallel.hooks import ALONE, DATA, PART
from aiaas_magics.backend.training.tensorflow.parallel.reductions import Scope

WAIT_S = 60.0


@given(nbytes=lists(integers(0, 100)), least=integers(1, 200))
def test_every_gradient_is_in_one_bucket_and_the_last_layers_come_first(nbytes: list[int], least: int) -> None:
    buckets = in_buckets(nbytes, least=least)

    assert list(itertools.chain.from_iterable(buckets)) == list(reversed(range(len(nbytes))))
    for bucket in buckets[:-1]:
        sizes = [nbytes[place] for place in bucket]
        assert sum(sizes) >= least > sum(sizes[:-1]), "full, and not before its last one"


def test_a_small_model_has_one_exchange() -> None:
    assert in_buckets([64, 4, 8], least=BUCKET_BYTES) == [[2, 1, 0]]
    assert in_buckets([BUCKET_BYTES] * 2, least=math.inf) == [[1, 0]]


class Held(layers.Layer):  # type: ignore[misc]
    """In the backward pass it waits for `free`, and notes whether that came."""

    def __init__(self, free: threading.Event) -> None:
        super().__init__()
        self._free, self.came = free, []

    def call(self, x: Any) -> Any:
        free, came = self._free, self.came

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def held(x: Any) -> Any:
            def wait(upstream: npt.NDArray[Any]) -> npt.NDArray[Any]:
                came.append(free.wait(WAIT_S))
                return upstream

            def gradient(upstream: Any) -> Any:
                passed = tf.numpy_function(wait, [upstream], upstream.dtype, stateful=False)  # stateful ones go in the order of the trace
                passed.set_shape(upstream.shape)
                return passed

            return tf.identity(x), gradient

        return held(x)


class Watched(SharedMemoryGroup):
    """One rank, that frees what is held once the first gradients are summed."""

    def __init__(self, free: threading.Event, folder: Path) -> None:
        super().__init__(rank=0, ranks=1, name="aiaas-test-buckets", folder=folder)
        self._free, self.sites = free, []

    def _exchanged(self, found: Any, site: str) -> Any:
        self.sites.append(site)
        self._free.set()
        return found

    def all_reduce(self, arrays: Any, weight: float, *, site: str, **more: Any) -> Any:
        return self._exchanged(super().all_reduce(arrays, weight, site=site, **more), site)

    def reduce_scatter(self, arrays: Any, weight: float, *, site: str, **more: Any) -> Any:
        return self._exchanged(super().reduce_scatter(arrays, weight, site=site, **more), site)


@pytest.mark.parametrize("share_out", [True, False])
def test_the_last_layers_gradients_are_exchanged_while_the_first_layers_are_computed(tmp_path: Path, share_out: bool) -> None:
    free = threading.Event()
    held = Held(free)
    model = keras.Sequential([layers.Input((1024,)), layers.Dense(1024), held, layers.Dense(1024), layers.Dense(1)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    data = {
        PART: tf.constant(1.0, tf.float64),
        ALONE: tf.constant(False),
        DATA: (np.ones((2, 1024), "float32"), np.ones((2, 1), "float32")),
    }

    with Watched(free, tmp_path) as group:
        collective = Collective(model, group, batch_alone=lambda: False, batch_logs=False, scope=Scope(), share_out=share_out)
        with collective.installed():
            collective.load()
            tf.function(model.train_step)(data)

    assert held.came == [True], "the backward pass was waited for"
    assert len(group.sites) == 2
    assert group.spent.exchanges == (4 if share_out else 2)


class Waiting(SharedMemoryGroup):
    """One rank, whose waits take seconds of its own clock."""

    def barrier(self, *, tag: int = 0) -> None:
        super().barrier(tag=tag)
        self._waited_s += 100.0


def test_a_wait_beside_computing_is_no_time_spent(tmp_path: Path) -> None:
    with Waiting(rank=0, ranks=1, name="aiaas-test-waiting", folder=tmp_path) as group:
        group.all_reduce([np.ones(4, np.float32)], 1.0, site="sum")
        alone = group.spent
        group.all_reduce([np.ones(4, np.float32)], 1.0, site="sum", beside=True)

    assert alone.seconds >= 0.0
    assert (group.spent - alone).seconds < -50.0, "the wait was taken off"
