"""What keeps a mean over a batch the same when the batch is cut into parts.

Owns the corrections of Keras' own reductions. Each rank computes means over its rows, and the
sum of `share * mean` over ranks is the mean over the batch, so most needs no correction: plain
means, regularizers, a user's own `reduce_mean`. Where a denominator is not the number of rows
(masks, `mean_with_sample_weight`), or there is none (`sum`), the rank's value is scaled so that
the same weighted sum comes out right. Adding up over ranks belongs to `group`; when, to
`engines.tensorflow`.

Everything here patches Keras inside a worker process, for the time of one `fit`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras.src.losses import loss as loss_module
from keras.src.metrics import reduction_metrics

MEANS = ("sum_over_batch_size", "mean")


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """The part of the batch that the step being traced has: tensors, not numbers.

    `part` is rows here / rows of the batch; `alone` is true of a batch that every rank has whole.
    """

    part: Any
    alone: Any

    def count(self) -> Any:
        """What this rank adds to a count of batches: its part, or 1 where only rank 0's state is kept."""
        return tf.where(self.alone, tf.ones_like(self.part), self.part)


class Scope:
    """The share of the step that is being traced now; None outside our steps."""

    def __init__(self) -> None:
        self.share: Share | None = None

    @contextlib.contextmanager
    def of(self, share: Share) -> Iterator[None]:
        outer, self.share = self.share, share
        try:
            yield
        finally:
            self.share = outer


@contextlib.contextmanager
def exact_reductions(scope: Scope, total: Callable[[Any], Any]) -> Iterator[None]:
    """Keras' losses and means, corrected inside `scope`. `total` adds a float64 scalar tensor up over ranks."""
    stock_loss, stock_update = loss_module.reduce_weighted_values, reduction_metrics.Mean.update_state

    def reduce_weighted_values(
        values: Any, sample_weight: Any = None, mask: Any = None, reduction: str | None = "sum_over_batch_size", dtype: Any = None
    ) -> Any:
        loss = stock_loss(values, sample_weight=sample_weight, mask=mask, reduction=reduction, dtype=dtype)
        if scope.share is None or len(values.shape) == 0:
            return loss  # outside our steps, or reduced by the user already
        factor = _factor(scope.share, sample_weight, mask, reduction, total)
        return loss if factor is None else loss * tf.cast(factor, loss.dtype)

    def update_state(self: Any, values: Any, sample_weight: Any = None) -> Any:
        if scope.share is not None and sample_weight is None and len(keras.ops.shape(values)) == 0:
            # One number a batch: the ranks together count the batch once.
            sample_weight = tf.cast(scope.share.count(), self.dtype)
        return stock_update(self, values, sample_weight=sample_weight)

    loss_module.reduce_weighted_values = reduce_weighted_values
    reduction_metrics.Mean.update_state = update_state
    try:
        yield
    finally:
        loss_module.reduce_weighted_values = stock_loss
        reduction_metrics.Mean.update_state = stock_update


def _factor(share: Share, sample_weight: Any, mask: Any, reduction: str | None, total: Callable[[Any], Any]) -> Any:
    """What to multiply this rank's loss with, so that the sum of `share * loss` is the batch's loss; None for 1."""
    if reduction in (None, "none", "sum"):
        return 1.0 / share.part
    if reduction in MEANS:
        if mask is None:
            return None
        mine = tf.reduce_sum(tf.cast(mask, tf.float64))
    else:  # mean_with_sample_weight
        if mask is None and sample_weight is None:
            return None
        weight = None if sample_weight is None else tf.cast(sample_weight, tf.float64)
        mine = tf.reduce_sum(loss_module.apply_mask(weight, mask, dtype="float64", reduction=reduction))
    mine = tf.stop_gradient(mine)
    return tf.math.divide_no_nan(mine, total(mine) * share.part)
