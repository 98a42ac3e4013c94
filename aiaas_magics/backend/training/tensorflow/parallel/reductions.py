"""Reductions: losses and metrics that stay the same when a batch is cut into parts.

Owns the corrections of Keras' own reductions. Each rank computes means over its rows, and the
sum of `share * mean` over ranks is the mean over the batch, so most needs no correction: plain
means, regularizers, a user's own `reduce_mean`. Where a denominator is not the number of rows
(masks, `mean_with_sample_weight`), or there is none (`sum`), the rank's value is scaled so that
the same weighted sum comes out right. Adding up over ranks belongs to `process_group`; when, to
`collective`. A part may also be one replica's (`mirrored`), or computed after
the others (`accumulation`).

Everything here patches Keras inside a worker process, for the time of one `fit`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from aiaas_magics.backend.training.monkeypatch import monkeypatched
from aiaas_magics.core.internals.keras_internals import loss_module, reduction_metrics

MEANS = ("sum_over_batch_size", "mean")


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """The part of the batch that the step being traced has: tensors, not numbers.

    `part` is rows here / rows of the batch; `alone` is true of a batch that every rank has whole.
    `within` is rows here / rows of this rank, less than 1 where a rank goes through its rows in several parts.
    `total` adds a float64 tensor up over all parts of the batch. That of a mean over rows needs all parts at
    the same time, and is there only when they are `together`. A part that is only looked at is not `counted`.
    """

    part: Any
    alone: Any
    total: Callable[[Any], Any]
    within: Any = 1.0
    together: bool = True
    counted: bool = True

    def count(self) -> Any:
        """What this part adds to a count of batches; of a batch that every rank has, only rank 0's state is kept."""
        return tf.where(self.alone, tf.ones_like(self.part) * self.within, self.part)


class Scope(threading.local):
    """The share of the step that this thread is tracing now (replicas are traced in threads); None outside our steps."""

    def __init__(self) -> None:
        self.share: Share | None = None

    @contextlib.contextmanager
    def of(self, share: Share) -> Iterator[None]:
        outer, self.share = self.share, share
        try:
            yield
        finally:
            self.share = outer


def exact_reductions(scope: Scope) -> contextlib.AbstractContextManager[None]:
    """Keras' losses, means and synchronized statistics, corrected inside `scope`."""
    stock_loss, stock_update = loss_module.reduce_weighted_values, reduction_metrics.Mean.update_state
    stock_moments = keras.layers.BatchNormalization._moments

    def reduce_weighted_values(
        values: Any, sample_weight: Any = None, mask: Any = None, reduction: str | None = "sum_over_batch_size", dtype: Any = None
    ) -> Any:
        loss = stock_loss(values, sample_weight=sample_weight, mask=mask, reduction=reduction, dtype=dtype)
        if scope.share is None or len(values.shape) == 0:
            return loss  # outside our steps, or reduced by the user already
        factor = _factor(scope.share, sample_weight, mask, reduction)
        return loss if factor is None else loss * tf.cast(factor, loss.dtype)

    def update_state(self: Any, values: Any, sample_weight: Any = None) -> Any:
        if scope.share is not None and not scope.share.counted:
            return None
        if scope.share is not None and sample_weight is None and len(keras.ops.shape(values)) == 0:
            # One number a batch: the ranks together count the batch once.
            sample_weight = tf.cast(scope.share.count(), self.dtype)
        return stock_update(self, values, sample_weight=sample_weight)

    def moments(self: Any, inputs: Any, mask: Any) -> Any:
        """`BatchNormalization(synchronized=True)` has the mean and variance of the whole batch's rows."""
        if not self.synchronized or scope.share is None or not scope.share.together:
            return stock_moments(self, inputs, mask)
        return moments_of_batch(inputs, mask, self._reduction_axes, scope.share)

    return monkeypatched(
        (loss_module, "reduce_weighted_values", reduce_weighted_values),
        (reduction_metrics.Mean, "update_state", update_state),
        (keras.layers.BatchNormalization, "_moments", moments),
    )


def moments_of_batch(x: Any, mask: Any, axes: list[int], share: Share) -> tuple[Any, Any]:
    """Mean and variance over the rows of all parts.

    Each part gives its weight, sum and sum of squares. The latter comes from the part's own variance, so that a large mean
    costs no digits; the sums themselves are in double precision.
    """
    weight = tf.ones_like(x) if mask is None else tf.cast(tf.broadcast_to(tf.expand_dims(mask, -1), tf.shape(x)), x.dtype)
    count = tf.reduce_sum(weight, axes)
    mean = tf.math.divide_no_nan(tf.reduce_sum(x * weight, axes), count)
    shape = [1 if axis in axes else -1 for axis in range(x.shape.rank)]
    spread = tf.reduce_sum(weight * tf.square(x - tf.reshape(mean, shape)), axes)
    count, mean, spread = (tf.cast(value, tf.float64) for value in (count, mean, spread))
    sums = tf.stack([count * mean, spread + count * tf.square(mean)])
    # Keras divides a masked sum by the weights and an epsilon.
    counts = share.total(tf.stop_gradient(count)) + (0.0 if mask is None else keras.config.epsilon())
    sum_x, sum_squares = tf.unstack(_total_with_gradient(sums, share))
    overall = sum_x / counts
    variance = tf.maximum(sum_squares / counts - tf.square(overall), 0.0)
    return tf.cast(overall, x.dtype), tf.cast(variance, x.dtype)


def _total_with_gradient(value: Any, share: Share) -> Any:
    """`share.total`, for values that the loss of every part depends on.

    What reaches the optimizer is the sum over parts of `share * gradient`. So each part's gradient is weighted before it is
    added up with the others', and divided by this part's own weight, which it is going to get.
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def total(value: Any) -> Any:
        return share.total(value), lambda upstream: share.total(upstream * share.part) / share.part

    return total(value)


def _factor(share: Share, sample_weight: Any, mask: Any, reduction: str | None) -> Any:
    """What to multiply this part's loss with, so that the sum of `share * loss` is the batch's loss; None for 1."""
    if reduction in (None, "none", "sum"):
        return 1.0 / share.count()
    if reduction in MEANS:
        if mask is None:
            return None
        own_count = tf.reduce_sum(tf.cast(mask, tf.float64))
    else:  # mean_with_sample_weight
        if mask is None and sample_weight is None:
            return None
        weight = None if sample_weight is None else tf.cast(sample_weight, tf.float64)
        own_count = tf.reduce_sum(loss_module.apply_mask(weight, mask, dtype="float64", reduction=reduction))
    own_count = tf.stop_gradient(own_count)
    return tf.math.divide_no_nan(own_count, share.total(own_count) * share.part)
