"""Layouts: which variables are cut over devices, and along which axis, where the model itself is.

Owns the user's rules (`model.layout_map`), the rule for when there are none, and the check
that what is cut can be cut. Carrying it out belongs to Keras' `ModelParallel`.

    model.layout_map = {"dense.*kernel": (None, "model"), "dense.*bias": ("model",)}

A `keras.distribution.LayoutMap` is one too. Of its layouts only the axes count: the devices are the worker's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from aiaas_magics.core.errors import InvalidSpec

AXES: Final = ("batch", "model")
Axes = tuple[str | None, ...]


def layouts_of(model: Any, *, parts: int) -> dict[str, Axes]:
    """Paths of the variables that are cut into `parts`, each with its axes.

    Without rules of the user's, kernels of Dense and EinsumDense and tables of Embedding are cut along their
    last axis, where it has a multiple of `parts`.

    Raises:
        InvalidSpec: a rule that fits no variable, or a variable that it cannot cut.
    """
    rules = getattr(model, "layout_map", None)
    if parts == 1:
        return {}
    layouts = dict(_default(model, parts)) if rules is None else dict(_by_rules(model, rules, parts))
    if not layouts:
        raise InvalidSpec(
            f"No variable of {model.name!r} can be cut into {parts} parts. Set model.layout_map, or leave --model-parallel out."
        )
    return layouts


def _default(model: Any, parts: int) -> Iterator[tuple[str, Axes]]:
    import keras

    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense)):
            variable = getattr(layer, "_kernel", None)
        else:
            variable = getattr(layer, "_embeddings", None) if isinstance(layer, keras.layers.Embedding) else None
        if variable is not None and variable.shape[-1] % parts == 0:
            yield variable.path, (*(None,) * (len(variable.shape) - 1), "model")


def _by_rules(model: Any, rules: Mapping[str, Any], parts: int) -> Iterator[tuple[str, Axes]]:
    unused = set(rules)
    for variable in model.variables:
        for pattern, axes in rules.items():
            if not re.search(pattern, variable.path):
                continue
            unused.discard(pattern)
            yield variable.path, _checked(variable, tuple(getattr(axes, "axes", axes)), pattern, parts)
            break
    if unused:
        raise InvalidSpec(f"layout_map[{min(unused)!r}] fits no variable of {model.name!r}. Use a pattern such as 'dense.*kernel'.")


def _checked(variable: Any, axes: Axes, pattern: str, parts: int) -> Axes:
    shape = tuple(variable.shape)
    if len(axes) != len(shape) or set(axes) - {None, *AXES}:
        raise InvalidSpec(
            f"layout_map[{pattern!r}] is {axes}, and {variable.path} has the shape {shape}. Give None or 'model' for each axis."
        )
    for size, axis in zip(shape, axes, strict=True):
        if axis == "model" and size % parts:
            raise InvalidSpec(f"{variable.path} of shape {shape} cannot be cut into {parts} equal parts. Leave it out of model.layout_map.")
    return axes
