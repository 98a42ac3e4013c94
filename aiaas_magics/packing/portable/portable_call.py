"""Portable fit call: a form that Keras on another backend can take, by config, where `state_pickle` goes by state.

Owns the form, there (`add`) and back (`unpack`). The model and what it is compiled with travel as
Keras' own serialization, the user's classes and functions by value, callbacks and arguments as ever;
the values of variables are those of the fit call by state, found by their role and order. Why a call
cannot take this form is `portability`; that it computes the same is checked where it arrives, against `reference_answers`.

The bytes are two parts behind those of `state_pickle`: `recipe`, of which the model is made, and
`rest`, whose references to the model are references to what was made.
"""

from __future__ import annotations

import contextlib
import io
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aiaas_magics.core.engines import of_keras_backend
from aiaas_magics.core.errors import NotOnEngine
from aiaas_magics.packing.checks import portability, reference_answers
from aiaas_magics.packing.data.batch_shapes import BatchSpec, symbols
from aiaas_magics.packing.live.model_variables import VariableSpec, keras_roles_of, roles_of
from aiaas_magics.packing.pickling import state_pickle
from aiaas_magics.packing.pickling.state_pickle import Failed, OutOfBand
from aiaas_magics.packing.portable.layouts import Axes, layouts_of


class NotPortable(Exception):
    """The call cannot take this form. The argument is a clause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a model is made of again."""

    model: dict[str, Any]  # Keras' serialization, without `compile`
    compiled: dict[str, Any]
    custom: dict[str, Any]  # the user's classes and functions by name
    batch: BatchSpec
    settings: dict[str, Any]
    layouts: dict[str, Axes]  # by path: the variables that are cut over devices


@dataclass(frozen=True, slots=True, kw_only=True)
class PortedFitCall:
    """A fit call in a worker of another backend; see `UnpackedFitCall`, which it stands for."""

    model: Any
    arguments: dict[str, Any]
    callbacks: tuple[Any, ...]
    variables: tuple[Ported, ...]
    paths: tuple[str, ...]
    batch: BatchSpec
    roles: Mapping[str, tuple[int, ...]]
    reference: reference_answers.ReferenceAnswers


class Ported:
    """The home of one of the kernel's variables: a variable of the model, or the value that came and goes back."""

    def __init__(self, spec: VariableSpec, value: np.ndarray, variable: Any = None, sync: Callable[[], None] = lambda: None) -> None:
        self._spec, self._value, self.variable, self._sync = spec, value, variable, sync
        if variable is not None:
            self.assign(value)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._value.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._value.dtype

    def numpy(self) -> np.ndarray:
        """The value in the kernel's dtype: integers are narrower on JAX."""
        if self.variable is None:
            return self._value
        self._sync()
        # By name: numpy does not count a dtype that came out of a pickle among its own.
        return np.asarray(self.variable.value).astype(self._value.dtype.name)

    def assign(self, value: Any) -> None:
        if self.variable is None:
            self._value = np.asarray(value)
            return
        array = np.asarray(value)
        if array.dtype.kind in "iu":
            array = array & np.iinfo(self.variable.dtype).max if self.variable.dtype.startswith("u") else array
        self.variable.assign(array.astype(self.variable.dtype))


# --------------------------------------------------------------------------- there


def add(payload: bytes, out_of_band: OutOfBand, root: Mapping[str, Any], *, parts: int = 1) -> bytes:
    """`payload` with a portable form of `root` behind it. Arrays join those of `out_of_band`.

    Args:
        parts: over how many devices one copy of the model is to be cut.

    Raises:
        NotPortable: with the reason.
        InvalidSpec: the model cannot be cut like that.
    """
    model, arguments = root["model"], root["arguments"]
    code = list(out_of_band.code.values())
    why = portability.why_not(model, arguments, code)
    if why is not None:
        raise NotPortable(why)
    try:
        with _named(code):
            described, compiled = _serialized(model), model.get_compile_config()
            recipe = Recipe(
                model=described,
                compiled=compiled,
                custom=_by_name(code, frozenset(_texts([described, compiled]))),
                batch=root["batch"],
                settings=root["settings"],
                layouts=layouts_of(model, parts=parts),
            )
    except (NotImplementedError, TypeError, ValueError) as error:
        raise NotPortable(f"Keras cannot describe {type(model).__name__}: {_first_sentence(error)}") from error
    try:
        numbers = reference_answers.take(model, arguments)
    except Exception as error:  # border: the user's layers run here, by themselves and not in a step, which they may not be written for
        raise NotPortable(f"what it computes cannot be compared: {type(error).__name__}: {_first_sentence(error)}") from error
    rest = {
        "arguments": arguments,
        "callbacks": root["callbacks"],
        "roles": _places(model, out_of_band.variables),
        "reference": numbers,
    }
    return state_pickle.with_parts(payload, _dumped(recipe, out_of_band, []), _dumped(rest, out_of_band, _things_of(model)))


def _serialized(model: Any) -> dict[str, Any]:
    import keras

    config: dict[str, Any] = keras.saving.serialize_keras_object(model)
    return {name: value for name, value in config.items() if name != "compile_config"}


@contextlib.contextmanager
def _named(code: Sequence[Any]) -> Iterator[None]:
    """Inside, lambdas have names, by which Keras serializes functions: it would take a lambda's bytecode and lose its globals."""
    unnamed = [obj for obj in code if isinstance(obj, types.FunctionType) and obj.__name__ == "<lambda>"]
    for place, function in enumerate(unnamed):
        function.__name__ = f"aiaas_lambda_{place}"
    try:
        yield
    finally:
        for function in unnamed:
            function.__name__ = "<lambda>"


def _by_name(code: Sequence[Any], mentioned: frozenset[str]) -> dict[str, Any]:
    """The user's classes and functions under the names by which a config mentions them."""
    from aiaas_magics.core.internals.keras_internals import GLOBAL_CUSTOM_NAMES

    named: dict[str, Any] = {}
    for obj in code:
        if not isinstance(obj, (type, types.FunctionType)) or _is_method(obj):
            continue
        for name in {obj.__name__, GLOBAL_CUSTOM_NAMES.get(obj, obj.__name__)} & mentioned:
            if named.setdefault(name, obj) is not obj:
                raise NotPortable(f"two different things of this fit are called {name}")
    return named


def _is_method(obj: Any) -> bool:
    outer = obj.__qualname__.rpartition(".")[0]
    return isinstance(obj, types.FunctionType) and bool(outer) and not outer.endswith("<locals>")


def _texts(config: Any) -> Iterator[str]:
    if isinstance(config, str):
        yield config
    elif isinstance(config, (Mapping, list, tuple)):
        for item in config.values() if isinstance(config, Mapping) else config:
            yield from _texts(item)


def _places(model: Any, variables: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    places = {id(variable): place for place, variable in enumerate(variables)}
    return {
        role: tuple(places[id(variable)] for variable in of_role if id(variable) in places) for role, of_role in roles_of(model).items()
    }


def _things_of(model: Any) -> list[Any]:
    """The Keras objects that a callback may refer to, in an order that both sides share."""
    return [*model._flatten_layers(include_self=True), model.optimizer, *model.metrics]


def _dumped(root: Any, out_of_band: OutOfBand, things: Sequence[Any]) -> bytes:
    body = io.BytesIO()
    registered: list[types.ModuleType] = []
    out_of_band.settled.clear()
    try:
        state_pickle.write(_PortablePickler(body, out_of_band, registered, things), root)
    except Failed as failed:
        raise NotPortable(str(failed.why)) from failed.why
    finally:
        state_pickle.unregister(registered)
    return body.getvalue()


class _PortablePickler(state_pickle.Pickler):
    """Things of the model leave their number behind; TensorFlow's own are refused."""

    def __init__(self, file: io.BytesIO, out_of_band: OutOfBand, registered: list[types.ModuleType], things: Sequence[Any]) -> None:
        super().__init__(file, out_of_band, registered)
        self._places = {id(thing): place for place, thing in enumerate(things)}

    def persistent_id(self, obj: Any) -> Any:
        if (place := self._places.get(id(obj))) is not None:
            return "thing", place
        reference = super().persistent_id(obj)
        if reference is not None and reference[0] == "variable":
            raise Failed(obj, TypeError(f"a callback or function holds the variable {obj.name}"))
        return reference

    def reducer_override(self, obj: Any) -> Any:
        from keras import Layer, Metric

        from aiaas_magics.core.internals.keras_internals import KerasSaveable

        if portability.is_tensorflow(obj):
            name = getattr(obj, "__name__", type(obj).__name__)
            raise Failed(obj, TypeError(f"it refers to {name}, which is TensorFlow's"))
        if isinstance(obj, KerasSaveable):
            if isinstance(obj, (Layer, Metric)):
                raise Failed(obj, TypeError(f"{obj.name} is used and is no part of the model"))
            return _from_config, (type(obj), obj.get_config())
        return super().reducer_override(obj)


def _from_config(cls: Any, config: dict[str, Any]) -> Any:
    return cls.from_config(config)


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0][:200].rstrip(".")


# --------------------------------------------------------------------------- back


class Arrived:
    """A portable fit call whose model is not made yet: devices are chosen between the two."""

    def __init__(self, payload: bytes, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = arrays
        state_pickle.preamble_of(payload).put_in_place()
        head, _, recipe, self._rest = state_pickle.parts_of(payload)
        self._facts = state_pickle.facts_in(head, arrays)
        self.recipe: Recipe = state_pickle.read(_Unpickler(io.BytesIO(recipe), arrays, []))

    def build(self, *, sync: Callable[[Any], None]) -> PortedFitCall:
        """The model with its values, and all that was said of it. This runs the user's code.

        Args:
            sync: called with the model before a variable is read, in the middle of an epoch too.

        Raises:
            NotOnEngine: what is made of the config is another model.
        """
        model = _model_of(self.recipe)
        things = _things_of(model)
        rest = state_pickle.read(_Unpickler(io.BytesIO(self._rest), self._arrays, things))
        homes = _homes(model, rest["roles"])
        ported = []
        for place, (spec, value) in enumerate(self._facts):
            variable = homes.get(place)
            if variable is not None and tuple(variable.shape) != value.shape:
                raise NotOnEngine(
                    _here(), f"{variable.path} is made with the shape {tuple(variable.shape)} there, and is {value.shape} here"
                )
            ported.append(Ported(spec, value, variable, lambda: sync(model)))
        return PortedFitCall(
            model=model,
            arguments={**rest["arguments"], "callbacks": list(rest["callbacks"])},
            callbacks=tuple(rest["callbacks"]),
            variables=tuple(ported),
            paths=tuple(str(getattr(home.variable, "path", spec.name)) for home, (spec, _) in zip(ported, self._facts, strict=True)),
            batch=self.recipe.batch,
            roles=rest["roles"],
            reference=rest["reference"],
        )


class _Unpickler(state_pickle.Unpickler):
    def persistent_load(self, pid: Any) -> Any:
        return self._variables[pid[1]] if pid[0] == "thing" else super().persistent_load(pid)


def _model_of(recipe: Recipe) -> Any:
    import keras

    with keras.saving.custom_object_scope(recipe.custom):
        model = keras.saving.deserialize_keras_object(recipe.model, safe_mode=False)
        model.compile_from_config({**recipe.compiled, "jit_compile": "auto", "run_eagerly": False})
        model._symbolic_build(data_batch=symbols(recipe.batch))
    return model


def _here() -> str:
    """The engine of this process, as a user reads it."""
    import keras

    return of_keras_backend(keras.backend.backend()).title


def _homes(model: Any, roles: Mapping[str, Sequence[int]]) -> dict[int, Any]:
    """The model's variables by the places of the kernel's."""
    homes: dict[int, Any] = {}
    for role, variables in keras_roles_of(model).items():
        if len(variables) != len(roles[role]):
            raise NotOnEngine(
                _here(),
                f"what is made of its config has {len(variables)} variables of the kind {role!r} there, and {len(roles[role])} here",
            )
        homes |= dict(zip(roles[role], variables, strict=True))
    return homes
