"""Fit hooks: the places in Keras' TensorFlow `fit` where several devices become one.

Owns the hooks that ranks of several processes (`collective`) and replicas of one (`mirrored`) have in common, and nothing
that `fit` does itself: each step learns which share of the batch it has, gradients are summed where the outermost optimizer
applies them, and metrics are those of the whole batch where somebody reads them. The arithmetic of losses is `reductions`.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from aiaas_magics.backend.training.monkeypatch import monkeypatched
from aiaas_magics.backend.training.tensorflow.parallel.reductions import Scope, Share, exact_reductions
from aiaas_magics.backend.training.variable_roles import metric_variables
from aiaas_magics.core.internals.keras_internals import BaseOptimizer

PART, ALONE, DATA = "aiaas_part", "aiaas_alone", "aiaas_data"  # an element of our datasets, and of nobody else's


class FitHooks(ABC):
    """The hooks around one `fit` of `model`.

    Args:
        batch_alone: asked when a step is traced: whether some batch has fewer rows than there are devices.
        batch_logs: whether somebody reads the logs of single batches; they are made global then, at a price.
        scope: the one that corrections go by.
    """

    def __init__(self, model: Any, *, batch_alone: Callable[[], bool], batch_logs: bool, scope: Scope) -> None:
        self._model = model
        self._batch_alone, self._batch_logs = batch_alone, batch_logs
        self._scope = scope
        self._local = threading.local()
        self._evaluating: Literal["ours", "theirs"] | None = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Everything hooked; undone on the way out."""
        model = self._model
        model.jit_compile = False
        model.train_function = model.test_function = model.predict_function = None
        on_model = [(model, name, hook) for name, hook in self._on_model().items()]
        with exact_reductions(self._scope), monkeypatched(*self._on_keras(), *on_model):
            yield

    def _on_model(self) -> dict[str, Any]:
        """The hooks on the model itself, by the name of what they take the place of."""
        model = self._model
        return {
            "train_step": self._step(model.train_step),
            "test_step": self._step(model.test_step),
            "evaluate": self._evaluate(model.evaluate),
            "_get_metrics_result_or_logs": self._read_metrics(model._get_metrics_result_or_logs),
        }

    def _on_keras(self) -> list[tuple[Any, str, Any]]:
        """Every class of optimizers that defines `apply` gets the hook."""
        classes = [cls for cls in with_subclasses(BaseOptimizer) if "apply" in cls.__dict__]
        return [(cls, "apply", self._outermost(cls.__dict__["apply"])) for cls in classes]

    # ------------------------------------------------------------------ a step

    def _step(self, stock: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def step(data: Any) -> Any:
            if not (isinstance(data, dict) and PART in data):
                return stock(data)  # an evaluation of the user's own, whole on every device
            share = Share(data[PART], data[ALONE], self._total)
            with self._scope.of(share):
                again = self._counted_elsewhere(share) if self._batch_alone() else None
                values = [] if again is None else self._metric_values()
                logs = self._carried_out(stock, data[DATA], share)
                for variable, before in values:
                    variable.assign(tf.where(again, before, variable.value))
                return self._logs_of_batch(logs, share)

        hooked: Callable[[Any], Any] = tf.autograph.experimental.do_not_convert(step)
        return hooked

    def _carried_out(self, stock: Callable[[Any], Any], data: Any, share: Share) -> Any:
        """The logs of the stock step on this device's rows."""
        return stock(data)

    def _metric_values(self) -> list[tuple[Any, Any]]:
        return [(variable, tf.identity(variable.value)) for variable in metric_variables(self._model)]

    def _logs_of_batch(self, logs: Any, share: Share) -> Any:
        """The logs of a step as one device would have them, where somebody looks at them."""
        if set(logs) != set(self._model.get_metrics_result()):
            return self._logs_of_its_own(logs, share)
        if not self._batch_logs:
            return logs
        local = self._metric_values()
        summed = self._total(tf.concat([tf.reshape(tf.cast(value, tf.float64), [-1]) for _, value in local], 0))
        for variable, value in split(summed, [variable for variable, _ in local]):
            variable.assign(value)
        logs = {name: tf.identity(value) for name, value in self._model.get_metrics_result().items()}
        for variable, value in local:
            variable.assign(value)
        return logs

    @abstractmethod
    def _total(self, value: Any) -> Any:
        """In the graph of a step: `value`, a float64 tensor, added up over all devices."""

    @abstractmethod
    def _counted_elsewhere(self, share: Share) -> Any:
        """Whether the batch is one that every device has whole, and another than this one counts it; None where that cannot be."""

    @abstractmethod
    def _logs_of_its_own(self, logs: Any, share: Share) -> Any:
        """As `_logs_of_batch`, for a step that returns something else than the metrics."""

    # ------------------------------------------------------------------ gradients

    def _outermost(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        """`stock`, an optimizer's `apply`: of a nest of calls the outermost one sums."""

        def apply(optimizer: Any, grads: Any, trainable_variables: Any = None) -> Any:
            if getattr(self._local, "within", False) or self._scope.share is None:
                return stock(optimizer, grads, trainable_variables)
            self._local.within = True
            try:
                return self._apply(stock, optimizer, list(grads), trainable_variables, self._scope.share)
            finally:
                self._local.within = False

        return apply

    @abstractmethod
    def _apply(self, stock: Callable[..., Any], optimizer: Any, grads: list[Any], variables: Any, share: Share) -> Any:
        """`stock`, with the sum over all devices of `share * gradient`."""

    # ------------------------------------------------------------------ what Keras reads between steps

    def _evaluate(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        def evaluate(*args: Any, **kwargs: Any) -> Any:
            is_inside_fit = bool(kwargs.get("_use_cached_eval_dataset"))
            if is_inside_fit:
                self._model._eval_epoch_iterator.shard()
            outer, self._evaluating = self._evaluating, "ours" if is_inside_fit else "theirs"
            try:
                return stock(*args, **kwargs)
            finally:
                self._evaluating = outer

        return evaluate

    @abstractmethod
    def _read_metrics(self, stock: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`stock` gives the logs of an epoch or an evaluation."""


def with_subclasses(cls: Any) -> list[Any]:
    """`cls` and all that inherit from it, each once."""
    below = [below for child in cls.__subclasses__() for below in with_subclasses(child)]
    return list(dict.fromkeys([cls, *below]))


def split(flat: Any, variables: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Each variable with its values out of `flat`, in which they lie end to end."""
    start = 0
    for variable in variables:
        size = int(np.prod(variable.shape, dtype=np.int64))
        yield variable, tf.cast(tf.reshape(flat[start : start + size], variable.shape), variable.dtype)
        start += size
