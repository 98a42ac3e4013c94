"""Strategy `collective`: Keras on TensorFlow, n processes that act as one.

Owns what a rank exchanges, and when: gradients inside a step, metric variables and moving statistics between steps. Where
`fit` is hooked is `hooks`, the arithmetic of losses is `reductions`, the sums are `process_group`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from aiaas_magics.backend.training.comm.process_group import ProcessGroup
from aiaas_magics.backend.training.tensorflow.parallel.buckets import BUCKET_BYTES, in_buckets
from aiaas_magics.backend.training.tensorflow.parallel.hooks import FitHooks
from aiaas_magics.backend.training.tensorflow.parallel.reductions import Scope, Share
from aiaas_magics.backend.training.tensorflow.parallel.split_step import SplitStep
from aiaas_magics.backend.training.tensorflow.parallel.zero import ShardedUpdate, shardable
from aiaas_magics.backend.training.variable_roles import metric_variables, offset_seeds
from aiaas_magics.packing.checks.fit_checks import runs_eagerly

HALVES = (tf.float16, tf.bfloat16)  # exchanged in single precision: numpy has no fast halves, and no bfloat16 at all


class Collective(FitHooks):
    """The hooks of one rank of `group`.

    Args:
        share_out: whether a large update may be shared out; not where somebody else has a hand in it.
    """

    def __init__(
        self,
        model: Any,
        group: ProcessGroup,
        *,
        batch_alone: Callable[[], bool],
        batch_logs: bool,
        scope: Scope,
        share_out: bool = True,
    ) -> None:
        super().__init__(model, batch_alone=batch_alone, batch_logs=batch_logs, scope=scope)
        self._group = group
        self._sites = itertools.count()
        self._last: Any = None  # the exchange that was traced last
        self._summed = False  # metrics are those of all ranks, on each of them
        # Whoever looks at batches may look at the optimizer too.
        shared_out = share_out and not batch_logs and not runs_eagerly(model) and shardable(model.optimizer, model.trainable_variables)
        self._sharded = ShardedUpdate(model.optimizer, model.trainable_variables, group) if shared_out else None
        self.split_step = SplitStep()

    def _on_model(self) -> dict[str, Any]:
        self._model.steps_per_execution = 1
        offset_seeds(self._model, self._group.rank)
        return super()._on_model()

    def load(self) -> None:
        """Before steps of training: take over what was changed between calls."""
        self.count_on()
        if self._sharded is not None:
            self._sharded.load()

    def settle(self) -> None:
        """Before anything is read that belongs to all ranks together. Every rank must come here after the same step."""
        if self._sharded is not None:
            self._sharded.settle()

    # ------------------------------------------------------------------ a step

    def _total(self, value: Any) -> Any:
        site = self._next_site("sum")
        summed = self._exchange(lambda array: self._group.sum(array, site=site), [value], value.dtype)
        summed.set_shape(value.shape)
        return summed

    def _carried_out(self, stock: Callable[[Any], Any], data: Any, share: Share) -> Any:
        if not self.split_step.is_active:
            return stock(data)

        def gradients(data: Any, part: Any, alone: Any) -> Any:
            with self._scope.of(Share(part, alone, not_within)):
                return stock(data)

        def not_within(_: Any) -> Any:
            self.split_step.refuse("its losses are weighed by what all workers count")

        logs, halfway, grads = self.split_step.gradients(gradients, self._model.trainable_variables, data, share.part, share.alone)
        if self._sharded is not None and self._sharded.covers(halfway.optimizer, grads, halfway.variables):
            self._sharded.apply(halfway.apply, grads, share.part, self._exchange, self._next_site("shards"))
            return logs
        summed = self._sum_gradients(grads, share, bucket_bytes=math.inf)  # what is compiled gives all of them at once
        self._local.within = True
        try:
            self.split_step.update(halfway, summed)
        finally:
            self._local.within = False
        return logs

    def _counted_elsewhere(self, share: Share) -> Any:
        return share.alone if self._group.rank else None

    def _logs_of_its_own(self, logs: Any, share: Share) -> Any:
        if not self._batch_logs:
            return logs
        names = sorted(logs)
        summed = self._total(tf.stack([tf.cast(logs[name], tf.float64) * share.part for name in names]))
        return {name: tf.cast(summed[place], tf.convert_to_tensor(logs[name]).dtype) for place, name in enumerate(names)}

    def _exchange(self, function: Callable[..., Any], inputs: list[Any], dtypes: Any) -> Any:
        """`function` as an op of the step, after the exchanges that were traced before it.

        TensorFlow orders ops by their data and their resources only. Exchanges that have neither in common
        (a batch's logs and its gradients) would run in any order, and in another one on another rank.
        """
        graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        before = [self._last] if graph is not None and self._last is not None and self._last.graph is graph else []
        with tf.control_dependencies(before):
            outputs = tf.numpy_function(function, inputs, dtypes)
        if graph is not None:
            first = tf.nest.flatten(outputs)[0]
            self._last = first if isinstance(first, tf.Operation) else first.op  # of what gives nothing, the op itself
        return outputs

    def _next_site(self, kind: str) -> str:
        """A name for this place of the program. Every rank traces the same places in the same order."""
        return f"{kind}-{next(self._sites)}" if not tf.executing_eagerly() else f"{kind}-eager"

    # ------------------------------------------------------------------ gradients

    def _apply(self, stock: Callable[..., Any], optimizer: Any, grads: list[Any], variables: Any, share: Share) -> Any:
        if self.split_step.takes(stock, optimizer, grads, variables):
            return None
        if self._sharded is not None and self._sharded.covers(optimizer, grads, variables):
            return self._sharded.apply(stock, grads, share.part, self._exchange, self._next_site("shards"))
        return stock(optimizer, self._sum_gradients(grads, share), variables)

    def _sum_gradients(self, grads: list[Any], share: Share, *, bucket_bytes: float = BUCKET_BYTES) -> list[Any]:
        """Every gradient summed over ranks, in exchanges of `bucket_bytes` at least, which begin while others are still computed."""
        summed = list(grads)
        places: dict[Any, list[int]] = {}
        for place, grad in enumerate(grads):
            if grad is not None and not isinstance(grad, tf.IndexedSlices):
                places.setdefault(grad.dtype, []).append(place)
        buckets = []
        for _, of_dtype in sorted(places.items(), key=lambda item: item[0].name):
            cut = in_buckets([_bytes_of(grads[place]) for place in of_dtype], least=math.inf if tf.executing_eagerly() else bucket_bytes)
            buckets += [[of_dtype[at] for at in bucket] for bucket in cut]
        for number, bucket in enumerate(buckets, start=1):
            wide = tf.float32 if grads[bucket[0]].dtype in HALVES else grads[bucket[0]].dtype
            values = self._sum_weighted([tf.cast(grads[place], wide) for place in bucket], share.part, beside=number < len(buckets))
            for place, value in zip(bucket, values, strict=True):
                summed[place] = tf.cast(value, grads[place].dtype)
        # Tables are the first layers: their gradients come last.
        return [self._join_slices(grad, share) if isinstance(grad, tf.IndexedSlices) else grad for grad in summed]

    def _join_slices(self, grad: Any, share: Share) -> Any:
        """The slices of all ranks side by side: Keras' Adam squares each of them, so adding them up would change the result.

        Of a batch that every rank has whole, rank 0's count.
        """
        site, group = self._next_site("slices"), self._group

        def exchange(
            part: npt.NDArray[np.float64], alone: npt.NDArray[np.bool_], values: npt.NDArray[Any], indices: npt.NDArray[Any]
        ) -> list[npt.NDArray[Any]]:
            weight, rows = (1.0, slice(0, None if group.rank == 0 else 0)) if alone else (float(part), slice(None))
            weighted, indices = values[rows] * values.dtype.type(weight), indices[rows]
            return [group.concatenate(weighted, site=f"{site}-values"), group.concatenate(indices, site=f"{site}-indices")]

        wide = tf.float32 if grad.dtype in HALVES else grad.dtype
        inputs = [share.part, share.alone, tf.cast(grad.values, wide), grad.indices]
        values, indices = self._exchange(exchange, inputs, [wide, grad.indices.dtype])
        values.set_shape([None, *grad.values.shape[1:]])
        indices.set_shape([None])
        return tf.IndexedSlices(tf.cast(values, grad.dtype), indices, grad.dense_shape)

    def _sum_weighted(self, tensors: list[Any], part: Any, *, beside: bool) -> list[Any]:
        site = self._next_site("gradients")
        group = self._group

        def exchange(weight: npt.NDArray[np.float64], *arrays: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
            return group.all_reduce(arrays, float(weight), site=site, beside=beside)

        summed = self._exchange(exchange, [part, *tensors], [tensor.dtype for tensor in tensors])
        # Run eagerly, an op that gives a list of one gives the tensor itself.
        summed = list(summed) if isinstance(summed, list | tuple) else [summed]
        for result, tensor in zip(summed, tensors, strict=True):
            result.set_shape(tensor.shape)
        return summed

    # ------------------------------------------------------------------ what Keras reads between steps

    def _read_metrics(self, stock: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def read(logs: Any) -> Any:
            if self._evaluating == "theirs":
                return stock(logs)
            if self._evaluating is None:
                self.settle()
                self._average_statistics()
            self._sum_metrics()
            values = stock(logs)
            return self._mean_logs(values) if values is logs and logs else values

        return read

    def _sum_metrics(self) -> None:
        """Replace each rank's metric variables by the sum over ranks: they are additive (Keras' aggregation "sum")."""
        variables = metric_variables(self._model)
        if not variables:
            return
        flat = np.concatenate([np.asarray(keras.ops.convert_to_numpy(v.value), dtype=np.float64).reshape(-1) for v in variables])
        everyone = self._group.all_gather(flat, site="metrics")
        for variable, ranks in _split_rows(everyone, variables):
            how = getattr(variable, "aggregation", "sum")
            value = ranks[0] if how == "only_first_replica" else ranks.mean(axis=0) if how == "mean" else ranks.sum(axis=0)
            variable.assign(value.reshape(variable.shape))
        self._summed = True

    def count_on(self) -> None:
        """Before steps: what metrics had, and a model's own `reset_metrics` has kept, is rank 0's; the next sum would count it n times."""
        if not self._summed:
            return
        self._summed = False
        for variable in metric_variables(self._model) if self._group.rank else ():
            if getattr(variable, "aggregation", "sum") not in ("mean", "only_first_replica"):
                variable.assign(np.zeros(variable.shape))

    def _mean_logs(self, logs: Any) -> Any:
        """Logs that are no metric's: what the last step returned, averaged, so that callbacks decide alike on all ranks."""
        names = sorted(logs)
        try:
            values = np.array([float(logs[name]) for name in names])
        except (TypeError, ValueError):  # not scalars: nobody can compare them either
            return logs
        means = self._group.all_gather(values, site="logs").mean(axis=0)
        return dict(zip(names, means.tolist(), strict=True))

    def _average_statistics(self) -> None:
        """Moving statistics (BatchNormalization) saw different rows on each rank."""
        metrics = {id(variable) for variable in metric_variables(self._model)}
        for place, variable in enumerate(self._model.non_trainable_variables):
            if id(variable) not in metrics and keras.backend.is_float_dtype(variable.dtype):
                own_value = np.asarray(keras.ops.convert_to_numpy(variable.value))
                wide = own_value.astype(np.float64)
                mean = self._group.mean_of_different(wide, site=f"statistics-{place}")
                if mean is not wide and not np.array_equal(mean, wide):
                    variable.assign(mean.astype(own_value.dtype))


def _bytes_of(tensor: Any) -> int:
    """0 where nobody knows."""
    return int(tensor.shape.num_elements() or 0) * int(tensor.dtype.size)


def _split_rows(everyone: npt.NDArray[np.float64], variables: Sequence[Any]) -> Iterator[tuple[Any, npt.NDArray[np.float64]]]:
    start = 0
    for variable in variables:
        size = int(np.prod(variable.shape, dtype=np.int64))
        yield variable, everyone[:, start : start + size]
        start += size
