"""Portability: why a fit call cannot move to Keras on another backend, seen in the kernel.

Owns the reasons, each a clause for the user. Whether what has moved computes the same is
found where it arrives, by `reference_answers`.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from aiaas_magics.core.internals.keras_internals import TENSORFLOW_BACKEND
from aiaas_magics.packing.data.fit_data import PARTS, all_leaves
from aiaas_magics.packing.live import probing, user_modules
from aiaas_magics.packing.live.closures import codes, value_of_name

STEPS: Final = ("train_step", "test_step", "make_train_function", "make_test_function")
# Layers that look up texts, or hash, in TensorFlow whatever Keras runs on.
LOOKUPS: Final = frozenset(
    {
        "StringLookup",
        "IntegerLookup",
        "TextVectorization",
        "Hashing",
        "HashedCrossing",
        "IndexLookup",
        "TFSMLayer",
        "JaxLayer",
        "TorchModuleWrapper",
    }
)
WIDE: Final = frozenset({"float64", "complex128"})


def why_not(model: Any, arguments: Mapping[str, Any], code: Iterable[Any]) -> str | None:
    """The first reason that is found, or None. `code` is the user's own: classes, functions and modules."""
    return next(_reasons(model, arguments, code), None)


def _reasons(model: Any, arguments: Mapping[str, Any], code: Iterable[Any]) -> Iterator[str]:
    from aiaas_magics.core.internals.keras_internals import TensorFlowTrainer

    own = [name for name in STEPS if getattr(type(model), name) is not getattr(TensorFlowTrainer, name)]
    if own:
        yield f"{type(model).__name__} has its own {own[0]}, which is written for TensorFlow"
    if type(model).compile is not TensorFlowTrainer.compile and not _compiles_itself(model):
        yield f"{type(model).__name__} has its own compile without compile_from_config"
    for part in (*PARTS, "validation_data"):
        if not _is_arrays(arguments.get(part)):
            yield f"{part} is no array, and what yields batches is read by TensorFlow"
    for path, leaf in all_leaves(arguments):
        if leaf.dtype.kind in "OSU":
            yield f"{path} holds texts, which only TensorFlow computes with"
    layers = list(model._flatten_layers(include_self=True))
    for layer in layers:
        names = {cls.__name__ for cls in type(layer).__mro__ if cls.__module__.startswith("keras.")}
        if names & LOOKUPS:
            yield f"the layer {layer.name} ({type(layer).__name__}) runs on TensorFlow only"
    for variable in model.variables:
        if variable.dtype in WIDE:
            yield f"{variable.path} is {variable.dtype}, and other engines compute in single precision here"
    yield from _tensorflow_in(code)


def _is_arrays(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_arrays, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_arrays, value))
    return value is None or isinstance(value, np.ndarray)


def _compiles_itself(model: Any) -> bool:
    import keras

    return type(model).compile_from_config is not keras.Model.compile_from_config


def _tensorflow_in(code: Iterable[Any]) -> Iterator[str]:
    """Code that names TensorFlow: no other backend runs it."""
    for obj in code:
        for name, function in _functions(obj):
            uses = sorted(_uses(function))
            if uses:
                yield f"{name} uses TensorFlow ({uses[0]})"


def _functions(obj: Any) -> Iterator[tuple[str, types.FunctionType]]:
    if isinstance(obj, types.FunctionType):
        yield obj.__qualname__, obj
    elif isinstance(obj, (type, types.ModuleType)):
        for name, value in vars(obj).items():
            function = probing.attribute(value, "__func__", probing.attribute(value, "fget", value))
            if isinstance(function, types.FunctionType) and function.__module__ == (
                obj.__module__ if isinstance(obj, type) else obj.__name__
            ):
                yield f"{obj.__name__}.{name}", function


def _uses(function: types.FunctionType) -> Iterator[str]:
    names = {name for code in codes(function.__code__) for name in (*code.co_names, *code.co_freevars)}
    yield from (name for name in names if is_tensorflow(value_of_name(function, name)))
    yield from (name for name in user_modules.imported_names(function.__code__) if name.partition(".")[0] == "tensorflow")


def is_tensorflow(obj: Any) -> bool:
    """Whether `obj` is TensorFlow's, or Keras' own code for it."""
    name = obj.__name__ if type(obj) is types.ModuleType else probing.attribute(obj if _is_code(obj) else type(obj), "__module__", "")
    return str(name).partition(".")[0] == "tensorflow" or str(name).startswith(TENSORFLOW_BACKEND)


def _is_code(obj: Any) -> bool:
    return issubclass(type(obj), (type, types.FunctionType, types.BuiltinFunctionType))
