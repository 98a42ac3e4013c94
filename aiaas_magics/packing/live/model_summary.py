"""Model summary: what a live Keras model is, as plain values for tables and records.

Owns asking the model. Nothing is computed, and a question that a model does not answer is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSummary:
    """One layer. `output` is a shape in words, "" if the layer does not say."""

    name: str
    kind: str
    output: str
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """A model. `parameters` counts all weights, `trainable` those that training changes."""

    name: str
    kind: str
    layers: tuple[LayerSummary, ...]
    parameters: int
    trainable: int
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    optimizer: str = ""
    loss: str = ""
    metrics: tuple[str, ...] = ()


def summary_of(model: Any) -> ModelSummary | None:
    """The summary of a Keras model; None of anything else."""
    if not any(cls.__module__.partition(".")[0] == "keras" and cls.__name__ == "Model" for cls in type(model).__mro__):
        return None
    return ModelSummary(
        name=str(model.name),
        kind=type(model).__name__,
        layers=tuple(_layer(layer) for layer in model.layers),
        parameters=_count(model.weights),
        trainable=_count(model.trainable_weights),
        inputs=tuple(_tensors(model, "inputs")),
        outputs=tuple(_tensors(model, "outputs")),
        optimizer=_optimizer(getattr(model, "optimizer", None)),
        loss=_names(getattr(model, "loss", None)),
        metrics=tuple(_metrics(model)),
    )


def _layer(layer: Any) -> LayerSummary:
    try:
        output = layer.output
        outputs = output if isinstance(output, (list, tuple)) else [output]
        shape = ", ".join(_shape(tensor.shape) for tensor in outputs)
    except (AttributeError, ValueError):  # a layer that was called in no graph
        shape = ""
    return LayerSummary(name=str(layer.name), kind=type(layer).__name__, output=shape, parameters=_count(layer.weights))


def _count(weights: Any) -> int:
    return sum(math.prod(weight.shape) for weight in weights)


def _tensors(model: Any, side: str) -> Iterator[str]:
    try:
        tensors = getattr(model, side)
    except (AttributeError, ValueError):  # a subclassed model has no graph
        return
    for tensor in tensors or ():
        if hasattr(tensor, "shape") and hasattr(tensor, "dtype"):
            yield f"{getattr(tensor, 'name', '')}: {tensor.dtype} {_shape(tensor.shape)}"


def _shape(shape: Any) -> str:
    return f"({', '.join('rows' if place == 0 and n is None else 'any' if n is None else str(n) for place, n in enumerate(shape))})"


def _optimizer(optimizer: Any) -> str:
    if optimizer is None:
        return ""
    try:
        rate = f", learning rate {float(optimizer.learning_rate):.4g}"
    except (AttributeError, TypeError, ValueError):  # a schedule without a number
        rate = ""
    return f"{type(optimizer).__name__}{rate}"


def _names(value: Any) -> str:
    """A loss as it was compiled, in words."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_names(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_names, value))
    return value if isinstance(value, str) else str(getattr(value, "name", None) or getattr(value, "__name__", type(value).__name__))


def _metrics(model: Any) -> Iterator[str]:
    try:
        names = model.metrics_names
    except (AttributeError, ValueError, RuntimeError):  # not built, or not compiled
        return
    for metric in getattr(getattr(model, "_compile_metrics", None), "metrics", None) or ():
        yield str(metric.name)
    if not getattr(model, "_compile_metrics", None):
        yield from (str(name) for name in names if name != "loss")
