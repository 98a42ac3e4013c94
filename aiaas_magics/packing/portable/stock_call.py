"""Portable fit call of a stock Keras model, made where Keras runs on any backend: no TensorFlow is needed.

Owns making the bytes that `portable_call.Arrived` reads. Stock means that model, `compile` and arguments are made of Keras' own
classes and of arrays: nothing of a user's travels by value, and there are no callbacks. `fitcall.fit_call` packs everything else.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from aiaas_magics.packing.checks import reference_answers
from aiaas_magics.packing.data.batch_shapes import batch_spec, symbols
from aiaas_magics.packing.live.model_variables import VariableSpec, keras_roles_of
from aiaas_magics.packing.pickling import state_pickle
from aiaas_magics.packing.portable.portable_call import Recipe

Batch = tuple[Any, Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StockCall:
    """The bytes of a fit call. The n-th of `arrays` stands for the n-th placeholder in `payload`."""

    payload: bytes
    arrays: tuple[np.ndarray, ...]


def pack_stock(model: Any, arguments: Mapping[str, Any], *, compute: Callable[[Any, Batch], reference_answers.Numbers]) -> StockCall:
    """`model`, which is compiled and is built here where it is not, and the arguments of its `fit` as bytes.

    Args:
        arguments: of `fit` by name; x, y and weights are numpy arrays, or nested in dictionaries and lists.
        compute: what the model computes here for a few rows, to be compared with what it computes where it arrives.
    """
    import keras

    rows = batch_spec(arguments)
    model._symbolic_build(data_batch=symbols(rows))  # metrics have variables of their own from here on
    by_role = keras_roles_of(model)
    variables = [variable for variables_of_role in by_role.values() for variable in variables_of_role]
    places = {id(variable): place for place, variable in enumerate(variables)}
    batch = reference_answers.sample(model, arguments)
    described = keras.saving.serialize_keras_object(model)
    recipe = Recipe(
        model={name: value for name, value in described.items() if name != "compile_config"},
        compiled=model.get_compile_config(),
        custom={},
        batch=rows,
        settings=_settings(),
        layouts={},
    )
    rest = {
        "arguments": dict(arguments),
        "callbacks": (),
        "roles": {role: tuple(places[id(variable)] for variable in found) for role, found in by_role.items()},
        "reference": reference_answers.answers_of(model, batch, compute(model, batch)),
    }
    arrays: list[np.ndarray] = []
    facts = [(_spec_of(variable), np.asarray(keras.ops.convert_to_numpy(variable.value))) for variable in variables]
    parts = [_written(facts, arrays), b"", _written(recipe, arrays), _written(rest, arrays)]
    return StockCall(payload=state_pickle.joined(parts), arrays=tuple(arrays))


def _spec_of(variable: Any) -> VariableSpec:
    return VariableSpec(
        name=variable.name,
        dtype=str(variable.dtype),
        shape=tuple(variable.shape),
        trainable=bool(variable.trainable),
        aggregation="NONE",
        synchronization="AUTO",
    )


def _settings() -> dict[str, Any]:
    """As `fit_call` writes them down."""
    import keras

    from aiaas_magics.core.internals.keras_internals import backend_config as config

    return {
        "floatx": keras.config.floatx(),
        "epsilon": keras.config.epsilon(),
        "image_data_format": keras.config.image_data_format(),
        "dtype_policy": keras.config.dtype_policy().name,
        "max_epochs": config.max_epochs(),
        "max_steps_per_epoch": config.max_steps_per_epoch(),
        "deterministic": False,
        "functions_run_eagerly": False,
    }


class _StockPickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, arrays: list[np.ndarray]) -> None:
        super().__init__(file, protocol=5)
        self._arrays = arrays

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is not np.ndarray or obj.nbytes < state_pickle.APART_BYTES:
            return None
        self._arrays.append(obj)
        return "array", len(self._arrays) - 1, None


def _written(root: Any, arrays: list[np.ndarray]) -> bytes:
    file = io.BytesIO()
    _StockPickler(file, arrays).dump(root)
    return file.getvalue()
