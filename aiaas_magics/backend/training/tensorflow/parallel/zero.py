"""Sharded update (ZeRO stage 1): each rank updates its own share, where the optimizer works on every number by itself.

Owns the pieces: gradients are summed shard by shard, each rank updates the pieces of its shard with the stock
optimizer's own arithmetic, and the weights are put together again (ZeRO stage 1: Rajbhandari et al., "ZeRO: memory
optimizations toward training trillion parameter models", SC 2020). Of n ranks each then does 1/n of the update and
of the summing. The optimizer's state is whole again whenever somebody may read it: `settle`.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from aiaas_magics.backend.training.comm.process_group import Piece, ProcessGroup, pieces
from aiaas_magics.backend.training.tensorflow.parallel.buckets import BUCKET_BYTES, in_buckets

# Of these every weight's update depends on that weight, its gradient and its state alone.
ELEMENTWISE: Final = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "Lion")
LEAST: Final = 1_000_000  # parameters; measured: for smaller models a second meeting costs more than the update

Exchange = Callable[[Callable[..., Any], list[Any], Any], Any]


def shardable(optimizer: Any, variables: Sequence[Any], *, least: int = LEAST) -> bool:
    """Whether the update of `variables` is one of single numbers, and large enough to be shared out."""
    is_known = type(optimizer) is getattr(keras.optimizers, type(optimizer).__name__, None) and type(optimizer).__name__ in ELEMENTWISE
    # A layer that was frozen after the optimizer was built leaves slots of variables that are not trained.
    same = is_known and optimizer.built and len(optimizer._trainable_variables) == len(variables)
    if not (same and sum(int(np.prod(variable.shape)) for variable in variables) >= least):
        return False
    whole = ("clipnorm", "global_clipnorm", "use_ema", "gradient_accumulation_steps", "loss_scale_factor")
    excluded = getattr(optimizer, "_exclude_from_weight_decay", None) or getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    plain = all(variable.dtype == "float32" and variable.constraint is None for variable in variables)
    overwritten = any(getattr(variable, "overwrite_with_gradient", False) for variable in variables)
    return plain and not overwritten and not excluded and not any(getattr(optimizer, name, None) for name in whole)


class ShardedUpdate:
    """Rank's share of `optimizer`'s update of `variables`: of every bucket of gradients one shard."""

    def __init__(self, optimizer: Any, variables: Sequence[Any], group: ProcessGroup, *, bucket_bytes: float = BUCKET_BYTES) -> None:
        self.optimizer, self._variables, self._group = optimizer, list(variables), group
        self._shapes = [tuple(variable.shape) for variable in variables]
        sizes = [int(np.prod(shape)) for shape in self._shapes]
        self._buckets = in_buckets([4 * size for size in sizes], least=bucket_bytes)
        self._shards = [_shard(sizes, bucket, group) for bucket in self._buckets]
        self._pieces = [piece for shard in self._shards for piece in shard]
        self._weights = self._new("weights")
        self._slots = {name: self._new(name) for name in self._slot_names()}
        self._share = self._shared_optimizer()
        self._loaded = False

    def covers(self, optimizer: Any, grads: Sequence[Any], variables: Sequence[Any] | None) -> bool:
        covered = self._variables if variables is None else list(variables)
        same = len(covered) == len(self._variables) and all(
            own_variable is variable for own_variable, variable in zip(self._variables, covered, strict=True)
        )
        return optimizer is self.optimizer and same and all(isinstance(grad, tf.Tensor) and grad.dtype == tf.float32 for grad in grads)

    def apply(self, stock: Callable[..., Any], grads: list[Any], part: Any, exchange: Exchange, site: str) -> None:
        """In the graph of a step: sum, update this rank's pieces by `stock` (the class' own `apply`), put all weights together."""
        group, shapes = self._group, self._shapes
        other_pieces: list[Any] = []  # what each of the other ranks adds to this rank's pieces, piece by piece
        for number, (bucket, shard) in enumerate(zip(self._buckets, self._shards, strict=True), start=1):

            def reduce_scatter(
                weight: npt.NDArray[np.float64], *arrays: npt.NDArray[Any], site: str = f"{site}-{number}", number: int = number
            ) -> list[npt.NDArray[Any]]:
                return group.reduce_scatter(arrays, float(weight), site=site, beside=number < len(self._buckets))

            count = (group.ranks - 1) * len(shard)
            outputs = exchange(reduce_scatter, [part, *(grads[place] for place in bucket)], [tf.float32] * count)
            values = tf.nest.flatten(outputs) if count else []
            other_pieces += [values[at :: len(shard)] for at in range(len(shard))]

        def join(*own: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
            return self._joined(own, site=f"{site}-weights")

        for values, piece in zip(other_pieces, self._pieces, strict=True):
            for value in values:
                value.set_shape([piece.stop - piece.start])
        with tf.control_dependencies([tf.convert_to_tensor(self._compiled_update(stock)(part, grads, other_pieces))]):
            own = [tf.identity(weights.value) for weights in self._weights]
        for variable, value in zip(self._variables, exchange(join, own, [tf.float32] * len(shapes)), strict=True):
            value.set_shape(variable.shape)
            variable.assign(value)

    def _compiled_update(self, stock: Callable[..., Any]) -> Callable[[Any, Sequence[Any], Sequence[Sequence[Any]]], Any]:
        """The sums over ranks and the update as one pass over memory: operation by operation it would be a dozen."""

        def update(part: Any, grads: Sequence[Any], other_pieces: Sequence[Sequence[Any]]) -> Any:
            summed = []
            for piece, ranks in zip(self._pieces, other_pieces, strict=True):
                own = tf.reshape(grads[piece.array], [-1])[piece.start : piece.stop] * tf.cast(part, tf.float32)
                summed.append(functools.reduce(operator.add, [*ranks[: self._group.rank], own, *ranks[self._group.rank :]]))
            stock(self._share, summed, self._weights)
            return tf.constant(0)

        return tf.function(update, jit_compile=True, autograph=False)  # type: ignore[no-any-return]

    def load(self) -> None:
        """Take the pieces out of the model and its optimizer, if those may have changed since."""
        if self._loaded:
            return
        for name, slot in (("", self._weights), *self._slots.items()):
            for own, piece in zip(slot, self._pieces, strict=True):
                whole = self._whole(name)[piece.array]
                own.assign(tf.reshape(whole.value, [-1])[piece.start : piece.stop])
        self._loaded = True

    def settle(self) -> None:
        """Make the optimizer's state whole on every rank. Every rank must come here after the same step."""
        if not self._loaded:
            return
        self._loaded = False
        for name, slot in self._slots.items():
            joined = self._joined([own.numpy() for own in slot], site=f"slot-{name}")
            for variable, value in zip(self._whole(name), joined, strict=True):
                variable.assign(value)

    def _joined(self, own: Sequence[npt.NDArray[Any]], *, site: str) -> list[npt.NDArray[Any]]:
        """The whole arrays of which every rank brings its pieces, bucket by bucket."""
        whole: dict[int, npt.NDArray[Any]] = {}
        rest = iter(own)
        for number, (bucket, shard) in enumerate(zip(self._buckets, self._shards, strict=True)):
            brought, shapes = list(itertools.islice(rest, len(shard))), [self._shapes[place] for place in bucket]
            whole |= zip(bucket, self._group.all_gather_shards(brought, shapes, site=f"{site}-{number}"), strict=True)
        return [whole[place] for place in range(len(self._shapes))]

    def _whole(self, name: str) -> Sequence[Any]:
        whole: Sequence[Any] = self.optimizer.__dict__[name] if name else self._variables
        return whole

    def _slot_names(self) -> list[str]:
        """The optimizer's lists that have one variable for each of the model's."""
        names = []
        for name, value in self.optimizer.__dict__.items():
            if name in ("_trainable_variables", "_variables") or not isinstance(value, list) or len(value) != len(self._shapes):
                continue
            if all(
                isinstance(slot, keras.Variable) and tuple(slot.shape) == shape for slot, shape in zip(value, self._shapes, strict=True)
            ):
                names.append(name)
        return names

    def _new(self, name: str) -> list[Any]:
        return [
            keras.Variable(np.zeros(piece.stop - piece.start, np.float32), name=f"{name.strip('_')}_{place}")
            for place, piece in enumerate(self._pieces)
        ]

    def _shared_optimizer(self) -> Any:
        """The same optimizer (rate, counters, settings), with this rank's pieces for its variables."""
        share = object.__new__(type(self.optimizer))
        share.__dict__.update(self.optimizer.__dict__)
        share.__dict__.update(
            self._slots,
            _trainable_variables=self._weights,
            _trainable_variables_indices={share._var_key(weights): place for place, weights in enumerate(self._weights)},
        )
        return share


def _shard(sizes: Sequence[int], bucket: Sequence[int], group: ProcessGroup) -> list[Piece]:
    """What this rank has of a bucket, by the places of all arrays."""
    own = pieces(tuple(sizes[place] for place in bucket), np.dtype(np.float32), rank=group.rank, ranks=group.ranks)
    return [Piece(bucket[piece.array], piece.start, piece.stop) for piece in own]
