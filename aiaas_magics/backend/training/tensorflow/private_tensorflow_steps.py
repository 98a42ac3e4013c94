"""Private steps on TensorFlow: the gradient of each row clipped, their sum with noise, in the place of the gradient of the batch.

Owns the hook around the stock `train_step` that makes a step of DP-SGD of it (Abadi et al. 2016). A rank clips and adds up its own
rows; ranks add up as they always do, by `share * gradient`, and rank 0 alone brings noise, which is how it is added once.

Each row goes through the model by itself, in `tf.vectorized_map`: TensorFlow makes one operation of a row's and runs it for all rows of
a chunk. Convolutions and recurrent layers are computed row by row, which costs (docs/privacy.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from aiaas_magics.backend.training.monkeypatch import monkeypatched
from aiaas_magics.backend.training.private_fit import SEED_STRIDE, PrivateFit
from aiaas_magics.backend.training.tensorflow.multi_step import read_rows
from aiaas_magics.backend.training.tensorflow.parallel.reductions import Scope
from aiaas_magics.backend.training.variable_roles import metric_variables, seed_generators
from aiaas_magics.core.internals.keras_internals import data_adapter_utils, tree

DRAWN, ROWS = "aiaas_drawn", "aiaas_rows"  # an element of drawn batches: the mask, and what is read for each place


def read_drawn(arrays: Any, rows: Any) -> Any:
    """The rows at these positions with the mask of those that were drawn; where nobody was, the first row stands."""
    return {DRAWN: rows >= 0, ROWS: read_rows(arrays, tf.maximum(rows, 0))}


class PrivateTensorFlowSteps:
    """The hook around `model.train_step`. `scope` is the one that corrections go by, which single rows need none of."""

    def __init__(self, model: Any, private: PrivateFit, scope: Scope, *, rank: int) -> None:
        self._model, self._private, self._scope, self._rank = model, private, scope, rank

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        model = self._model
        model.train_function = None
        with monkeypatched((model, "train_step", tf.autograph.experimental.do_not_convert(self.step))):
            yield

    def step(self, data: Any) -> Any:
        model, private = self._model, self._private
        iteration = tf.convert_to_tensor(model.optimizer._iterations.value)
        with self._outside_scope():
            sums, counts, used = self._of_chunks(data[ROWS], data[DRAWN])
        share = self._scope.share
        part = tf.constant(1.0, tf.float64) if share is None else share.part
        weight = 1.0 / (private.batch * tf.cast(part, tf.float32))
        noise = self._noise(sums, iteration) if self._rank == 0 else [0.0] * len(sums)
        grads = [
            tf.cast((total + extra) * weight, variable.dtype)
            for total, extra, variable in zip(sums, noise, model.trainable_variables, strict=True)
        ]
        for variable, count in zip(metric_variables(model), counts, strict=True):
            variable.assign(variable.value + count)
        for generator, advance in zip(seed_generators(model), used, strict=True):
            generator.state.assign(generator.state.value + advance)
        logs = {name: tf.identity(value) for name, value in model.get_metrics_result().items()}
        model.optimizer.apply(grads, model.trainable_variables)
        return logs

    @contextlib.contextmanager
    def _outside_scope(self) -> Iterator[None]:
        """Inside, losses of single rows are not taken for one rank's part of the batch's."""
        share, self._scope.share = self._scope.share, None
        try:
            yield
        finally:
            self._scope.share = share

    def _of_chunks(self, rows: Any, drawn: Any) -> tuple[list[Any], list[Any], list[Any]]:
        """As `clipped_sums`, over all rows; only as many chunks as have any."""
        chunk = self._private.chunk
        chunks = (tf.reduce_sum(tf.cast(drawn, tf.int32)) + chunk - 1) // chunk
        nothing = (
            [tf.zeros(v.shape, tf.float32) for v in self._model.trainable_variables],
            [tf.zeros(v.shape, v.dtype) for v in metric_variables(self._model)],
            [tf.zeros(generator.state.shape, generator.state.dtype) for generator in seed_generators(self._model)],
        )

        def add(at: Any, sums: Any) -> Any:
            start = at * chunk
            some = tree.map_structure(lambda x: None if x is None else x[start : start + chunk], rows)
            grads, counts, used = self.clipped_sums(some, drawn[start : start + chunk], first=start)
            summed = [*map(tf.add, sums[0], grads)], [*map(tf.add, sums[1], counts)], used
            return at + 1, tf.nest.map_structure(lambda value, like: tf.ensure_shape(value, like.shape), summed, nothing)

        _, (grads, counts, used) = tf.while_loop(lambda at, _: at < chunks, add, (0, nothing), parallel_iterations=1)
        return grads, counts, used

    def clipped_sums(self, rows: Any, drawn: Any, *, first: Any = 0) -> tuple[list[Any], list[Any], list[Any]]:
        """Over the drawn rows: the sum of their clipped gradients, what they add to the metrics, and how far a row's seeds went.

        Args:
            first: number of the first row within the step, by which rows draw different random numbers.
        """
        count = tf.shape(drawn)[0]
        grads, counts, used = self._for_each_row(self._row_function(), (first + tf.range(count), rows))
        grads = [tf.cast(grad, tf.float32) for grad in grads]
        norms = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(tf.reshape(grad, [count, -1])), axis=1) for grad in grads]))
        # A gradient that is no number has no norm to clip to: the row counts as one that was not drawn.
        finite = tf.math.is_finite(norms)
        factors = tf.where(drawn & finite, tf.minimum(1.0, self._private.privacy.clip / tf.maximum(norms, 1e-12)), 0.0)
        sums = [tf.tensordot(factors, tf.where(_as_column(finite, grad), grad, 0.0), axes=1) for grad in grads]
        counted = [tf.reduce_sum(tf.where(_as_column(drawn, value), value, tf.zeros_like(value)), axis=0) for value in counts]
        return sums, counted, [value[0] for value in used]

    def _for_each_row(self, of_row: Callable[[Any], Any], elements: Any) -> Any:
        # TensorFlow has no vectorized form of the loops of recurrent layers: their rows come one after the other.
        if not any(isinstance(layer, keras.layers.RNN) for layer in self._model._flatten_layers()):
            return tf.vectorized_map(of_row, elements)
        specs = (
            [tf.TensorSpec(v.shape, v.dtype) for v in self._model.trainable_variables],
            [tf.TensorSpec(v.shape, v.dtype) for v in metric_variables(self._model)],
            [tf.TensorSpec(generator.state.shape, generator.state.dtype) for generator in seed_generators(self._model)],
        )
        leaves = [leaf for leaf in tree.flatten(elements) if leaf is not None]

        def from_leaves(row: Any) -> Any:
            rest = iter(row)
            return of_row(tree.map_structure(lambda leaf: None if leaf is None else next(rest), elements))

        return tf.map_fn(from_leaves, tuple(leaves), fn_output_signature=specs, parallel_iterations=1)

    def _row_function(self) -> Callable[[Any], Any]:
        """From (number, row) to the gradients of the row's loss, what it adds to the metrics, and how far its seeds went."""
        model = self._model
        trainable, metrics, generators = model.trainable_variables, metric_variables(model), seed_generators(model)
        values = [tf.convert_to_tensor(variable.value) for variable in trainable]
        states = [tf.convert_to_tensor(generator.state.value) for generator in generators]
        fixed = [variable for variable in model.non_trainable_variables if all(variable is not generator.state for generator in generators)]

        def of_row(element: Any) -> Any:
            number, row = element
            x, y, sample_weight = data_adapter_utils.unpack_x_y_sample_weight(
                tree.map_structure(lambda leaf: None if leaf is None else leaf[None], row)
            )
            own = [_moved(state, number) for state in states]
            mapping = [
                *zip(trainable, values, strict=True),
                *((variable, variable.value) for variable in fixed),
                *((generator.state, state) for generator, state in zip(generators, own, strict=True)),
                *((variable, tf.zeros(variable.shape, variable.dtype)) for variable in metrics),
            ]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                # Nothing is assigned inside: of what a row changes, only what is read out below goes on.
                with keras.StatelessScope(mapping, collect_losses=True) as state:
                    outputs = model(x, training=True) if model._call_has_training_arg else model(x)
                    loss = model._compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=True)
                    model._loss_tracker.update_state(loss, sample_weight=1)
            with state:
                model.compute_metrics(x, y, outputs, sample_weight=sample_weight)
            grads = tape.gradient(loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            counts = [state.get_current_value(variable) for variable in metrics]
            used = [state.get_current_value(generator.state) - before for generator, before in zip(generators, own, strict=True)]
            return [tf.convert_to_tensor(grad) for grad in grads], counts, used

        return of_row

    def _noise(self, like: Any, iteration: Any) -> list[Any]:
        word, other_word = self._private.noise_key
        return [
            self._private.deviation
            * tf.random.stateless_normal(value.shape, tf.stack([tf.cast(word, tf.int64) + place * 2**32, iteration * 2**31 + other_word]))
            for place, value in enumerate(like)
        ]


def _as_column(mask: Any, values: Any) -> Any:
    return tf.reshape(mask, [-1, *[1] * (values.shape.rank - 1)])


def _moved(state: Any, number: Any) -> Any:
    """A generator's state for row `number`; the first row's is the state itself."""
    stride = tf.cast(tf.cast(number, tf.int64) * SEED_STRIDE % 2**32, state.dtype)
    return state + tf.stack([stride, tf.zeros_like(stride)])
