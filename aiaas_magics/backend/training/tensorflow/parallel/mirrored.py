"""Strategy `mirrored`: Keras on TensorFlow in one process that drives several devices, made exact.

Owns the strategy, the variables under it, and what replicas exchange; where `fit` is hooked is `hooks`. Keras' own way of
distributing divides every loss by the number of replicas and clips each replica's gradients by
themselves. Here, as between processes, each replica has means over its rows; gradients are weighted
by the replica's share of the rows and added up where the outermost optimizer applies them. After that
every replica has the same gradients, so each updates its own copy of the variables by itself: nothing
inside an optimizer has to meet, and clipping, accumulation and loss scaling are those of one device.

The arithmetic of losses is `reductions`, which rows a replica has is `rank_rows`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from aiaas_magics.backend.training.tensorflow.parallel.hooks import FitHooks
from aiaas_magics.backend.training.tensorflow.parallel.reductions import Share
from aiaas_magics.backend.training.variable_roles import copies_of, metric_variables, offset_replicas
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.core.internals.keras_internals import (
    GLOBAL_SEED_GENERATOR,
    BaseOptimizer,
    LossScaleOptimizer,
    TFOptimizer,
    global_seed_generator,
    global_state,
    loss_module,
)

# What TensorFlow's optimizer does across replicas, the base class does on one.
ON_ONE: Final = ("_apply_weight_decay", "_overwrite_model_variables_with_average_value", "_backend_increment_gradient_accumulators")


def is_mirrored(command: WorkerCommand) -> bool:
    """Whether the model of `command` has a copy on each of several devices; never where plain `fit` is measured."""
    plain = command.measure is not None and command.measure.plain
    return command.execution.strategy == "mirrored" and command.devices > 1 and not plain


def simulate_devices(count: int) -> None:
    """Cut the CPU into `count` devices, which share its cores. Before TensorFlow has touched it."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration() for _ in range(count)])


@contextlib.contextmanager
def mirroring(command: WorkerCommand) -> Iterator[None]:
    """Inside, a model is made on all devices of `command`, where that is how it is trained.

    Variables that Keras would have updated by the first replica only are updated by all, alike: meeting for it is not
    possible inside a condition, where optimizers that scale or accumulate update them.
    """
    if not is_mirrored(command):
        yield
        return
    if command.gpus:
        strategy = tf.distribute.MirroredStrategy([f"GPU:{place}" for place in range(command.devices)])
    else:
        # Sums in the order of the devices, where the default would need a thread for each that waits.
        strategy = tf.distribute.MirroredStrategy(
            [f"CPU:{place}" for place in range(command.devices)], cross_device_ops=tf.distribute.ReductionToOneDevice()
        )

    def own_copy(next_creator: Callable[..., Any], **kwargs: Any) -> Any:
        if kwargs.get("aggregation") == tf.VariableAggregation.ONLY_FIRST_REPLICA:
            kwargs["aggregation"] = tf.VariableAggregation.NONE
        return next_creator(**kwargs)

    with strategy.scope(), tf.variable_creator_scope(own_copy):
        yield
        global_seed_generator()  # made here, on all devices, in case a step asks for it


class Mirrored(FitHooks):
    """The hooks around one `fit` of a model that was made inside `mirroring`; here each replica is a device."""

    def _on_model(self) -> dict[str, Any]:
        offset_replicas(self._model)
        # Everything is built where the fit call comes from.
        return super()._on_model() | {"_maybe_symbolic_build": lambda **_: None}

    def _on_keras(self) -> list[tuple[Any, str, Any]]:
        """After the sum, what an optimizer does stays on the replica."""
        scaling = ("scale_loss_for_distribution", "unscale_loss_for_distribution")
        return [
            *super()._on_keras(),
            *((TFOptimizer, name, getattr(BaseOptimizer, name)) for name in ON_ONE),
            (TFOptimizer, "_backend_update_step", _update_own_copy),
            (LossScaleOptimizer, "_tf_apply", LossScaleOptimizer._common_apply),
            *((loss_module, name, lambda value: value) for name in scaling),
        ]

    # ------------------------------------------------------------------ a step

    def _step(self, stock: Callable[[Any], Any]) -> Callable[[Any], Any]:
        generator = global_seed_generator()
        hooked = super()._step(_python(stock))

        def step(data: Any) -> Any:
            # Keras keeps it by thread, replicas are traced in threads of their own, and a step cannot make variables.
            global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, generator)
            return hooked(data)

        return tf.autograph.experimental.do_not_convert(step)  # type: ignore[no-any-return]

    def _total(self, value: Any) -> Any:
        return _total(value)

    def _counted_elsewhere(self, share: Share) -> Any:
        return tf.logical_and(share.alone, _replica() > 0)

    def _logs_of_its_own(self, logs: Any, share: Share) -> Any:
        # Keras takes the mean over replicas of what is given here.
        weight = share.part * self._model.distribute_strategy.num_replicas_in_sync
        return {name: tf.convert_to_tensor(value) * tf.cast(weight, value.dtype) for name, value in logs.items()}

    def _apply(self, stock: Callable[..., Any], optimizer: Any, grads: list[Any], variables: Any, share: Share) -> Any:
        return stock(optimizer, _sum_gradients(grads, share), variables)

    # ------------------------------------------------------------------ what Keras reads between steps

    def _read_metrics(self, stock: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def read(logs: Any) -> Any:
            if self._evaluating is None:
                self._average_statistics()
            return stock(logs)

        return read

    def _average_statistics(self) -> None:
        """Moving statistics (BatchNormalization) saw different rows on each replica."""
        metrics = {id(variable) for variable in metric_variables(self._model)}
        for variable in self._model.non_trainable_variables:
            if id(variable) in metrics or not keras.backend.is_float_dtype(variable.dtype):
                continue
            copies = [copy.numpy() for copy in copies_of(variable)]
            if not all(np.array_equal(copy, copies[0]) for copy in copies):
                variable.assign(np.mean([copy.astype(np.float64) for copy in copies], axis=0).astype(copies[0].dtype))


def _python(step: Any) -> Any:
    """A user's step without a `tf.function` of its own: replicas cannot meet inside one."""
    return getattr(step, "python_function", step)


def _replica() -> Any:
    return tf.distribute.get_replica_context().replica_id_in_sync_group


def _total(value: Any) -> Any:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def _sum_gradients(grads: list[Any], share: Share) -> list[Any]:
    """The sum over replicas of `share * gradient`. Slices are put side by side: Keras' Adam squares each of them."""
    places = [place for place, grad in enumerate(grads) if grad is not None]
    weighted = []
    for grad in (grads[place] for place in places):
        if isinstance(grad, tf.IndexedSlices):
            # Of a batch that every replica has whole, the first's count.
            weight = tf.cast(tf.where(share.alone, tf.cast(_replica() == 0, tf.float64), share.part), grad.dtype)
            weighted.append(tf.IndexedSlices(grad.values * weight, grad.indices, grad.dense_shape))
        else:
            weighted.append(grad * tf.cast(share.part, grad.dtype))
    summed = list(grads)
    for place, value in zip(places, _total(weighted) if weighted else [], strict=True):
        summed[place] = value
    return summed


def _update_own_copy(optimizer: Any, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
    for grad, variable in zip(grads, trainable_variables, strict=True):
        optimizer.update_step(grad, getattr(variable, "value", variable), learning_rate)
