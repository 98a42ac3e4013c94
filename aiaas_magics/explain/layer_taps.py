"""Layer taps: what goes through some layers of a Keras model while it is called, and calls with other values in their place.

Owns the replacement of a layer's `call` for the length of a `with`; nested, functional, sequential and subclassed models alike. What is
differentiated belongs to `model_gradients`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class LayerCall:
    """One call of a layer: its first input and its output, as tensors of the backend."""

    layer: Any
    number: int  # of the calls of this layer, from 0
    received: Any
    returned: Any


def layers_of(model: Any) -> list[Any]:
    """All layers below `model`, nested ones too, each once."""
    return list(model._flatten_layers(include_self=False))


@contextmanager
def observed(layers: Sequence[Any]) -> Iterator[list[LayerCall]]:
    """The calls of `layers` while the block runs, in their order."""
    calls: list[LayerCall] = []

    def watch(layer: Any) -> Any:
        original = layer.call
        numbers = iter(range(1_000_000))

        def call(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            received = args[0] if args else next(iter(kwargs.values()))
            calls.append(LayerCall(layer, next(numbers), received, output))
            return output

        return call

    with _calls_replaced({id(layer): (layer, watch(layer)) for layer in layers}):
        yield calls


@contextmanager
def replaced(values: Sequence[tuple[LayerCall, Any]]) -> Iterator[None]:
    """Calls of layers return these values while the block runs; other calls of the same layers are as ever."""
    by_layer: dict[int, tuple[Any, dict[int, Any]]] = {}
    for call, value in values:
        by_layer.setdefault(id(call.layer), (call.layer, {}))[1][call.number] = value

    def stand_in(layer: Any, outputs: dict[int, Any]) -> Any:
        original = layer.call
        numbers = iter(range(1_000_000))

        def call(*args: Any, **kwargs: Any) -> Any:
            number = next(numbers)
            return outputs[number] if number in outputs else original(*args, **kwargs)

        return call

    with _calls_replaced({key: (layer, stand_in(layer, outputs)) for key, (layer, outputs) in by_layer.items()}):
        yield


@contextmanager
def _calls_replaced(calls: dict[int, tuple[Any, Any]]) -> Iterator[None]:
    """Sets and removes the attribute past Keras' tracking of attributes, which would keep it with the model."""
    try:
        for layer, call in calls.values():
            object.__setattr__(layer, "call", call)
        yield
    finally:
        for layer, _ in calls.values():
            vars(layer).pop("call", None)
