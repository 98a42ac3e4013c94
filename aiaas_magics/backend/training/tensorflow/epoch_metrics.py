"""Epoch metrics: reset and read between epochs with as few calls into TensorFlow as possible.

Owns what takes the place of Keras' own inside `fit`. The stock way makes some thirty calls, which together take as long as a
tenth of a small model's epoch. The numbers are the same.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Final

import keras
import tensorflow as tf

from aiaas_magics.backend.training.monkeypatch import monkeypatched
from aiaas_magics.backend.training.tensorflow.multi_step import MultiStepFunction
from aiaas_magics.core.internals.keras_internals import TensorFlowTrainer

# What makes of a step's logs the metrics of all steps so far; an override may make anything else of them.
STOCK: Final = ("train_step", "test_step", "compute_metrics", "get_metrics_result", "_get_metrics_result_or_logs")

# What these classes set to zero, and whatever inherits that from them.
RESET: Final[dict[Any, Callable[[Any], list[Any]]]] = {
    keras.metrics.Metric: lambda metric: metric.variables,
    keras.metrics.Sum: lambda metric: [metric.total],
    keras.metrics.Mean: lambda metric: [metric.total, metric.count],
}


def quick_metrics(model: Any, steps: tuple[MultiStepFunction, ...], *, from_step_logs: bool) -> contextlib.AbstractContextManager[None]:
    """Inside, metrics of `model` are reset by one call a variable and, where the last step `told` them, not computed again.

    Args:
        steps: what may have made the last step.
        from_step_logs: whether the logs of a step can be the epoch's: not where they are one rank's, or where somebody who looks on
            between steps may set the metrics to something else.
    """
    swaps: list[tuple[Any, str, Any]] = [(kind, "reset_state", _reset(kind.reset_state, of_kind)) for kind, of_kind in RESET.items()]
    if from_step_logs and is_stock(model):
        swaps.append((model, "_get_metrics_result_or_logs", _reading(model, model._get_metrics_result_or_logs, steps)))
    return monkeypatched(*swaps)


def is_stock(model: Any) -> bool:
    """Whether the logs of a step of `model` are its metrics."""
    return all(getattr(type(model), name) is getattr(TensorFlowTrainer, name) and name not in vars(model) for name in STOCK)


def _reset(stock: Callable[[Any], None], variables_of: Callable[[Any], list[Any]]) -> Callable[[Any], None]:
    """`stock`, a metric's `reset_state`, which assigns zero to `those` of its variables."""

    def reset(metric: Any) -> None:
        variables = [variable._value for variable in variables_of(metric)]
        if not tf.executing_eagerly() or not all(isinstance(value, tf.Variable) for value in variables):
            stock(metric)
            return
        for value in variables:
            tf.raw_ops.AssignVariableOp(resource=value.handle, value=_zeros(value.shape, value.dtype))

    return reset


@functools.lru_cache(maxsize=256)
def _zeros(shape: tf.TensorShape, dtype: tf.DType) -> Any:
    return tf.zeros(shape, dtype)


def _reading(model: Any, stock: Callable[[Any], Any], steps: tuple[MultiStepFunction, ...]) -> Callable[[Any], Any]:
    # Asked when the first steps are over: metrics are built by then.
    of_keras = functools.cache(lambda: all(_is_of_keras(metric) for metric in model.metrics))

    def read(logs: Any) -> Any:
        return logs if any(step.is_last_result(logs) for step in steps) and of_keras() else stock(logs)

    return read


def _is_of_keras(metric: Any) -> bool:
    """A metric of the user's may keep in Python what its result depends on."""
    return type(metric).__module__.startswith("keras.") and all(_is_of_keras(inner) for inner in getattr(metric, "metrics", ()))
