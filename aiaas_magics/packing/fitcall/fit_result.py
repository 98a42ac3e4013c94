"""Fit result: what comes back from a fit call, numbers in a safetensors file and never objects.

Owns the file, and putting it into a live model. When to fetch and apply it belongs to
the client's `job`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from aiaas_magics.core.errors import AiaasBug, DataMismatch, ResultMismatch
from aiaas_magics.packing.checks import fit_checks
from aiaas_magics.packing.data.batch_shapes import BatchSpec, symbols
from aiaas_magics.packing.fitcall.packed_fit_call import PackedFitCall, UnpackedFitCall
from aiaas_magics.packing.live import attributes, plain_json
from aiaas_magics.packing.live.model_variables import ROLES, fitting_value, roles_of, tensorflow_variable, value_of
from aiaas_magics.packing.portable.portable_call import PortedFitCall

HEADER: Final = "aiaas"
# Links to living objects, not data; they are set anew where the result is taken.
LINKS: Final = frozenset({"_model", "model", "validation_data"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """The trained state. `variables` are in the order of the fit call's own."""

    variables: tuple[np.ndarray, ...]
    paths: tuple[str, ...]
    roles: Mapping[str, tuple[int, ...]]  # places in `variables`
    history: dict[str, list[Any]]
    epoch: list[int]
    params: dict[str, Any]
    callbacks: tuple[dict[str, Any], ...]
    stop_training: bool
    batch: BatchSpec  # what the model was built for
    attributes: tuple[dict[str, Any], ...] = ()  # of layers and data, in the order of `attributes.owners`
    new_weights: tuple[str, ...] = ()  # paths of weights that the model had not when it was sent


def write_result(path: str | os.PathLike[str], unpacked: UnpackedFitCall | PortedFitCall, history: Any) -> None:
    """Write the state of `unpacked` after training; the file is there whole or not at all.

    Args:
        history: Keras' `History`, as `fit` returned it.
    """
    from safetensors.numpy import save_file

    arrays = [value_of(variable) for variable in unpacked.variables]
    header: dict[str, Any] = {
        "variables": len(arrays),
        "paths": list(unpacked.paths),
        "roles": {role: list(places) for role, places in _places_of(unpacked).items()},
        "callbacks": [
            {name: value for name, value in plain_json.plain_attributes(callback, arrays).items() if name not in LINKS}
            for callback in unpacked.callbacks
        ],
        "history": plain_json.encode_history(history.history, arrays),
        "epoch": plain_json.encode(list(history.epoch), arrays),
        "params": plain_json.encode(dict(history.params or {}), arrays),
        "stop_training": bool(getattr(unpacked.model, "stop_training", False)),
        "batch": plain_json.encode(unpacked.batch, arrays),
        "made": _made_in_training(unpacked),
        "attributes": [] if isinstance(unpacked, PortedFitCall) else attributes.changed(unpacked.owners, unpacked.marks, arrays),
    }
    tensors = {}
    dtypes = []
    for place, array in enumerate(arrays):
        dtypes.append(array.dtype.name if array.dtype.isbuiltin == 2 else array.dtype.str)
        tensors[f"{place}"] = _bits(array)
    header["dtypes"] = dtypes
    header["shapes"] = [list(array.shape) for array in arrays]
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    save_file(tensors, partial, metadata={HEADER: json.dumps(header)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)


def _made_in_training(unpacked: UnpackedFitCall | PortedFitCall) -> list[str]:
    if isinstance(unpacked, PortedFitCall):
        return []
    sent_ids = {id(variable) for variable in unpacked.variables}
    return [str(weight.path) for weight in unpacked.model.weights if id(tensorflow_variable(weight)) not in sent_ids]


def _places_of(unpacked: UnpackedFitCall | PortedFitCall) -> Mapping[str, Sequence[int]]:
    if isinstance(unpacked, PortedFitCall):
        return unpacked.roles
    places = {id(variable): place for place, variable in enumerate(unpacked.variables)}
    roles = roles_of(unpacked.model)
    return {role: [places[id(variable)] for variable in roles[role] if id(variable) in places] for role in ROLES}


def read_result(data: bytes) -> FitResult:
    """The result that `write_result` wrote.

    Raises:
        AiaasBug: when the bytes are not such a result.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        header = json.loads(_metadata(data)[HEADER])
        tensors = load(data)
        arrays = [
            _from_bits(tensors[f"{place}"], dtype, shape)
            for place, (dtype, shape) in enumerate(zip(header["dtypes"], header["shapes"], strict=True))
        ]
        return FitResult(
            variables=tuple(arrays[: header["variables"]]),
            paths=tuple(header["paths"]),
            roles={role: tuple(places) for role, places in header["roles"].items()},
            history=plain_json.decode_history(header["history"], arrays),
            epoch=plain_json.decode(header["epoch"], arrays),
            params=plain_json.decode(header["params"], arrays),
            callbacks=tuple({name: plain_json.decode(value, arrays) for name, value in values.items()} for values in header["callbacks"]),
            stop_training=header["stop_training"],
            batch=plain_json.decode(header["batch"], arrays),
            new_weights=tuple(header.get("made", ())),
            attributes=tuple(
                {name: plain_json.decode(value, arrays) for name, value in values.items()} for values in header.get("attributes", ())
            ),
        )
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, RecursionError, SafetensorError) as error:
        raise AiaasBug(f"a result cannot be read ({type(error).__name__}: {error})") from error


def apply_result(result: FitResult, packed: PackedFitCall) -> Any:
    """Put `result` into the live objects of `packed`; returns the model's new `History`.

    Raises:
        ResultMismatch: a variable has another shape or dtype by now; nothing was changed then.
    """
    if result.new_weights:
        paths = ", ".join(result.new_weights)[:300]
        how = f"training made {len(result.new_weights)} weights that it has not got here ({paths}), so nothing was changed"
        raise ResultMismatch(packed.model.name, how, "Call the model on a batch before fit, so that it has all its weights.")
    _assign(packed.model, packed.variables, result.variables, packed.paths)
    history = _history(result, packed.model)
    history.params["verbose"] = packed.verbose
    attributes.put_back(attributes.owners(packed.model, packed.datasets), result.attributes)
    packed.model.stop_training = result.stop_training
    for callback, values in zip(packed.callbacks, result.callbacks, strict=False):
        plain_json.put_back(callback, {name: value for name, value in plain_json.trusted(callback, values).items() if name not in LINKS})
        # Not by `set_model`: the worker has called it, and what it does besides (TensorBoard opens files) must not be done twice.
        callback._model = packed.model
        if result.epoch:
            _choose_comparison(callback)
        if isinstance(params := vars(callback).get("params"), dict) and "verbose" in params:
            params["verbose"] = packed.verbose
    return history


def _choose_comparison(callback: Any) -> None:
    """What EarlyStopping and its kin compare by is a function, which does not come back: Keras chooses it again, as after a first epoch."""
    from aiaas_magics.core.internals.keras_internals import MonitorCallback

    if isinstance(callback, MonitorCallback) and callback.monitor_op is None:
        with contextlib.suppress(ValueError):  # no metric of that name: the fit has warned of it
            callback._set_monitor_op()


def apply_to(result: FitResult, model: Any) -> Any:
    """Put `result` into a model of the same architecture, in a kernel that did not submit the fit; returns its `History`.

    The weights and seed generators are assigned; optimizer and metrics where `model` is compiled alike.

    Raises:
        ResultMismatch: the architecture differs; nothing was changed then.
    """
    _build(result, model)
    roles = roles_of(model)
    variables: list[Any] = []
    values: list[np.ndarray] = []
    for role in ROLES:
        places = result.roles[role]
        fits = len(places) == len(roles[role]) and all(
            fitting_value(variable, result.variables[place]) for variable, place in zip(roles[role], places, strict=True)
        )
        if not fits and role == "weights":
            shapes = [f"{result.paths[place]} {result.variables[place].shape}" for place in places]
            raise ResultMismatch(model.name, f"it has {len(roles[role])} weights, the trained one {len(places)}: {', '.join(shapes)[:400]}")
        if fits:
            variables += roles[role]
            values += [result.variables[place] for place in places]
    _assign(model, variables, values, [variable.name for variable in variables])
    return _history(result, model)


def _assign(model: Any, variables: Sequence[Any], values: Sequence[np.ndarray], paths: Sequence[str]) -> None:
    """Check all, then assign all."""
    if len(variables) != len(values):
        raise ResultMismatch(model.name, f"{len(values)} variables came back for {len(variables)}")
    for variable, value, path in zip(variables, values, paths, strict=True):
        if not fitting_value(variable, value):
            expected = f"{variable.dtype.name} {tuple(variable.shape)}"
            raise ResultMismatch(model.name, f"{path} is {expected} here, {value.dtype.name} {value.shape} came back")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _history(result: FitResult, model: Any) -> Any:
    import keras

    history = keras.callbacks.History()
    history.set_params(dict(result.params))
    history.set_model(model)
    history.history = {name: list(values) for name, values in result.history.items()}
    history.epoch = list(result.epoch)
    model.history = history
    return history


def _build(result: FitResult, model: Any) -> None:
    """Make the variables that `model` has not got yet, as the trained one was built."""
    from aiaas_magics.core.internals.keras_internals import backend

    try:
        if model.compiled:
            fit_checks.build(model, result.batch)
        elif not model.built:
            backend.compute_output_spec(model, symbols(result.batch)[0], training=False)
    except (DataMismatch, ValueError, RuntimeError) as error:
        raise ResultMismatch(model.name, f"it does not take the data of that fit ({' '.join(str(error).split())[:300]})") from error


def _metadata(data: bytes) -> dict[str, str]:
    """The header of a safetensors file: eight bytes of length, then JSON."""
    size = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    return metadata


def _bits(array: np.ndarray) -> np.ndarray:
    """`array` as bytes: safetensors' numpy side knows neither all of numpy's dtypes nor TensorFlow's own."""
    return np.frombuffer(array.tobytes(), np.uint8)


def _from_bits(data: np.ndarray, dtype: str, shape: list[int]) -> np.ndarray:
    if dtype[:1] in "<>|=":
        dtype_of_array = np.dtype(dtype)
    else:
        import tensorflow as tf

        dtype_of_array = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
    # A copy: `data` is a read-only view of the whole file.
    return np.frombuffer(data.tobytes(), dtype_of_array).reshape(shape).copy()
