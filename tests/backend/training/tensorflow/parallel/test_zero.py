"""A shared-out update is the stock optimizer's own: same weights, same state, whatever the shards cut through."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis.strategies import integers, lists

from aiaas_magics.backend.training.comm.process_group import pieces
from aiaas_magics.backend.training.comm.shared_memory_group import SharedMemoryGroup
from aiaas_magics.backend.training.tensorflow.parallel.zero import ShardedUpdate, shardable
from tests.backend.training.ranks import gaps
from tests.support import lanes

pytestmark = pytest.mark.slow

SHAPES = ((37, 11), (11,), (11, 5), (5,), (1,))
STEPS, RANKS = 3, 2

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "SGD": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, clipvalue=0.5),
    "Adam": lambda: keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5), amsgrad=True),
    "AdamW": lambda: keras.optimizers.AdamW(0.1, weight_decay=0.1),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.1, momentum=0.5, centered=True),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "Adadelta": lambda: keras.optimizers.Adadelta(1.0),
    "Adamax": lambda: keras.optimizers.Adamax(0.1),
    "Lion": lambda: keras.optimizers.Lion(0.1),
}


def gradients(rank: int, step: int) -> list[Any]:
    random = np.random.default_rng([rank, step])
    return [random.normal(size=shape).astype("float32") for shape in SHAPES]


class Rank:
    """One rank in a thread of its own: `STEPS` updates, the state made whole after each but the first."""

    def __init__(self, rank: int, make: Callable[[], Any], folder: Path, name: str, *, bucket_bytes: float = math.inf) -> None:
        random = np.random.default_rng(0)
        self.variables = [keras.Variable(random.normal(size=shape).astype("float32"), name=f"v{i}") for i, shape in enumerate(SHAPES)]
        self.optimizer = make()
        self.optimizer.build(self.variables)
        self._rank, self._folder, self._name, self._bucket_bytes = rank, folder, name, bucket_bytes
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            with SharedMemoryGroup(rank=self._rank, ranks=RANKS, name=self._name, folder=self._folder, spin=False, wait_s=60) as group:
                update = ShardedUpdate(self.optimizer, self.variables, group, bucket_bytes=self._bucket_bytes)
                stock = type(self.optimizer).apply
                before: list[Any] = []

                def exchange(function: Any, given: list[Any], dtypes: Any) -> Any:
                    with tf.control_dependencies(before):
                        found = tf.numpy_function(function, given, dtypes)
                    before[:] = tf.nest.flatten(found)
                    return found

                @tf.function
                def step(*grads: Any) -> None:
                    update.apply(stock, list(grads), tf.constant(1.0 / RANKS, tf.float64), exchange, "test")

                for at in range(STEPS):
                    update.load()
                    step(*gradients(self._rank, at))
                    if at:
                        update.settle()
        except BaseException as error:
            self.failed = error
            raise


# In bytes: all variables together; two buckets; one a variable, of which the first rank has nothing of the small ones.
@pytest.mark.parametrize(
    ("name", "bucket_bytes"),
    lanes.thinned(
        [*((name, 200) for name in OPTIMIZERS), ("Adam", math.inf), ("Adam", 4)],
        keep=lambda case: case in {("Adam", 4), ("AdamW", 200), ("momentum", 200), ("Lion", 200)},
    ),
)
def test_ranks_together_make_the_update_of_one(tmp_path: Path, name: str, bucket_bytes: float) -> None:
    called = f"aiaas-test-shards-{name.lower()}"
    ranks = [Rank(rank, OPTIMIZERS[name], tmp_path, called, bucket_bytes=bucket_bytes) for rank in range(RANKS)]
    threads = [threading.Thread(target=rank.run) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [rank.failed for rank in ranks] == [None] * RANKS

    whole = Rank(0, OPTIMIZERS[name], tmp_path, "")
    for at in range(STEPS):
        mean = [sum(parts) / RANKS for parts in zip(*(gradients(rank, at) for rank in range(RANKS)), strict=True)]
        whole.optimizer.apply([tf.constant(grad) for grad in mean], whole.variables)
    for rank in ranks:
        ours = [v.numpy() for v in (*rank.variables, *rank.optimizer.variables)]
        assert max(gaps(ours, [v.numpy() for v in (*whole.variables, *whole.optimizer.variables)])) <= 1e-6
    first, second = ([v.numpy().tobytes() for v in (*rank.variables, *rank.optimizer.variables)] for rank in ranks)
    assert first == second, "all ranks have the same bits"


@given(sizes=lists(integers(0, 300), min_size=1, max_size=6), ranks=integers(1, 7))
def test_every_number_belongs_to_one_shard(sizes: list[int], ranks: int) -> None:
    dtype = np.dtype(np.float32)
    seen = [np.zeros(size, int) for size in sizes]
    for rank in range(ranks):
        for piece in pieces(tuple(sizes), dtype, rank=rank, ranks=ranks):
            seen[piece.array][piece.start : piece.stop] += 1

    assert all((array == 1).all() for array in seen)


class Frozen(keras.constraints.Constraint):  # type: ignore[misc]
    def __call__(self, weights: Any) -> Any:
        return weights


class Own(keras.optimizers.Adam):  # type: ignore[misc]
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.Adam(clipnorm=1.0),
        lambda: keras.optimizers.Adam(global_clipnorm=1.0),
        lambda: keras.optimizers.Adam(use_ema=True),
        lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
        lambda: keras.optimizers.Nadam(),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
        Own,
    ],
)
def test_an_update_that_needs_all_numbers_is_not_shared_out(make: Callable[[], Any]) -> None:
    variables = [keras.Variable(np.zeros(8, "float32"))]
    optimizer, plain = make(), keras.optimizers.Adam()
    optimizer.build(variables)
    plain.build(variables)

    assert shardable(plain, variables, least=8)
    assert not shardable(optimizer, variables, least=8)
    assert not shardable(plain, variables, least=9)
    variables[0].constraint = Frozen()
    assert not shardable(plain, variables, least=8)


def test_an_update_of_what_is_left_after_freezing_is_not_shared_out() -> None:
    trained, frozen = (keras.Variable(np.zeros(8, "float32")) for _ in range(2))
    optimizer = keras.optimizers.Adam()
    optimizer.build([frozen, trained])

    assert shardable(optimizer, [frozen, trained], least=8)
    assert not shardable(optimizer, [trained], least=8), "its slots are those of both"
