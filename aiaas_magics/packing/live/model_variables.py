"""Model variables as values, and the role of each in its model.

Owns what is needed to make a variable again elsewhere, and the roles by which a model in
another kernel finds its own. Which variables are in reach is found by `state_pickle`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.spec import TensorSpec

ROLES = ("weights", "optimizer", "metrics", "seeds")


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableSpec:
    """Everything of a variable but its value."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    trainable: bool
    aggregation: str
    synchronization: str


def spec_of(variable: Any) -> VariableSpec:
    return VariableSpec(
        name=variable.name.partition(":")[0],
        dtype=variable.dtype.name,
        shape=tuple(variable.shape),
        trainable=bool(variable.trainable),
        aggregation=variable.aggregation.name,
        synchronization=variable.synchronization.name,
    )


def build_variable(spec: VariableSpec, value: np.ndarray) -> Any:
    import tensorflow as tf

    return tf.Variable(
        tf.convert_to_tensor(value, dtype=spec.dtype),
        name=spec.name,
        trainable=spec.trainable,
        shape=spec.shape,
        aggregation=tf.VariableAggregation[spec.aggregation],
        synchronization=tf.VariableSynchronization[spec.synchronization],
    )


def steps_made(model: Any) -> int:
    """Updates that the model's optimizer has made; 0 where it does not say. A strategy's variables have no `int()` of their own."""
    iterations = getattr(getattr(model, "optimizer", None), "iterations", None)
    return 0 if iterations is None else int(iterations.numpy())


def value_of(variable: Any) -> np.ndarray:
    """A copy of the variable's value."""
    return np.asarray(variable.numpy())


def roles_of(model: Any) -> dict[str, list[Any]]:
    """The model's TensorFlow variables by role, in an order that depends on its architecture and `compile` alone."""
    return {role: [tensorflow_variable(variable) for variable in variables] for role, variables in keras_roles_of(model).items()}


def keras_roles_of(model: Any) -> dict[str, list[Any]]:
    """The same as Keras' variables, whatever Keras runs on."""
    optimizer = getattr(model, "optimizer", None)
    by_role: dict[str, Sequence[Any]] = {
        "weights": model.weights,
        "optimizer": optimizer.variables if optimizer is not None else [],
        "metrics": [variable for metric in model.metrics for variable in metric.variables],
        "seeds": list(_seeds(model)),
    }
    visited: set[int] = set()
    roles: dict[str, list[Any]] = {}
    for role, variables in by_role.items():
        roles[role] = [variable for variable in variables if id(variable) not in visited]
        visited |= {id(variable) for variable in variables}
    return roles


def tensorflow_variable(variable: Any) -> Any:
    """The `tf.Variable` of a Keras variable; a `tf.Variable` is its own."""
    return getattr(variable, "_value", variable) if hasattr(variable, "_deferred_initialize") else variable


def _seeds(model: Any) -> Iterator[Any]:
    for layer in model._flatten_layers():
        for generator in layer._seed_generators:
            yield generator.state


def check_kept(paths: Sequence[str], variables: Sequence[Any], specs: Sequence[TensorSpec]) -> None:
    """Raises `InvalidSpec`, naming what differs, when a checkpoint's variables are not these."""
    if len(variables) != len(specs):
        raise InvalidSpec(f"The checkpoint has {len(specs)} variables and the model {len(variables)}. {ANOTHER_MODEL}")
    for path, variable, stored in zip(paths, variables, specs, strict=True):
        shape = tuple(variable.shape)
        compatible = len(shape) == len(stored.shape) and all(a in (None, b) for a, b in zip(shape, stored.shape, strict=True))
        if variable.dtype.name != stored.dtype or not compatible:
            raise InvalidSpec(
                f"{path} is {stored.dtype} {list(stored.shape)} in the checkpoint and {variable.dtype.name} {list(shape)} "
                f"in the model. {ANOTHER_MODEL}"
            )


ANOTHER_MODEL: Final = "Build and compile the model as it was, or leave --resume out."


def fitting_value(variable: Any, value: np.ndarray) -> bool:
    """Whether `value` can be assigned to `variable` as it is."""
    return variable.dtype.name == value.dtype.name and tuple(variable.shape) == value.shape
