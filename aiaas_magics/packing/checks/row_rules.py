"""Row rules: losses and layers that are known to compute each row by itself, without running them.

Owns the table of stock parts that look at several rows, and the decision whether a model has any part that
nothing is known of. Measuring such a model belongs to `parts_check`.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from typing import Any, Final

from aiaas_magics.packing.live import probing

# Stock parts that may look at several rows of a batch, whatever their arguments.
JOINING: Final = frozenset(
    {"Lambda", "Dice", "Tversky", "Circle", "dice", "tversky", "circle", "TFSMLayer", "JaxLayer", "TorchModuleWrapper"}
)


def unproved_layers(model: Any) -> list[Any]:
    """Layers, and the model itself, of which no rule says that a row's output depends on that row alone."""
    return [layer for layer in model._flatten_layers(include_self=True) if not _is_proved(layer)]


def unproved_losses(losses: Iterable[Any]) -> list[str]:
    """Names of the compiled losses that no rule proves to be means over rows."""
    names = []
    for loss in losses:
        function = _resolved(loss)
        if not _is_proved(function):
            names.append(str(probing.attribute(function, "__name__") or probing.attribute(function, "name") or type(function).__name__))
    return list(dict.fromkeys(names))


def has_unproved_operations(model: Any) -> bool:
    """Whether a functional graph has operations on tensors that are no layers, which may go along the rows."""
    import keras

    graph = getattr(model, "_functional", None) or model
    operations = probing.attribute(graph, "operations", []) if isinstance(graph, keras.Model) else []
    return any(not isinstance(operation, keras.Layer) for operation in operations)


def _resolved(loss: Any) -> Any:
    import keras

    resolved = probing.ask(lambda: keras.losses.get(loss), loss) if isinstance(loss, str) else loss
    inner = probing.attribute(resolved, "fn")
    return inner if isinstance(inner, types.FunctionType) and not is_stock(inner) else resolved


def _is_proved(part: Any) -> bool:
    kind = part if isinstance(part, types.FunctionType) else type(part)
    if not is_stock(kind) or kind.__name__ in JOINING:
        return False
    return not any(_may_join(value) for value in _settings(part))


def _settings(part: Any) -> Iterator[Any]:
    if isinstance(part, types.FunctionType):
        return
    for name, value in vars(part).items():
        if name in {"axis", "axes"}:
            yield _Axis(value)
        elif name == "_fn_kwargs" and "axis" in value:
            yield _Axis(value["axis"])
        elif not name.startswith("_") and name != "call":
            yield value


class _Axis:
    def __init__(self, value: Any) -> None:
        values = value if isinstance(value, (list, tuple)) else (value,)
        self.has_rows = any(axis == 0 for axis in values if not isinstance(axis, bool))


def _may_join(value: Any) -> bool:
    """Whether a setting of a stock layer is code of the user's, or the axis of the rows."""
    if isinstance(value, _Axis):
        return value.has_rows
    return isinstance(value, types.FunctionType) and not is_stock(value)


def is_stock(thing: Any) -> bool:
    """Whether a class or function is Keras' own."""
    return str(probing.attribute(thing, "__module__", "")).partition(".")[0] in {"keras", "builtins"}
