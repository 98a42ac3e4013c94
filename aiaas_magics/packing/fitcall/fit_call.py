"""A fit call: live objects in the kernel, bytes on the way, live objects in a worker.

Owns the values and the two journeys, there (`pack`, `unpack`) and back (`fit_result`). Packing
checks first and changes nothing but this: what is not built yet is built.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aiaas_magics.core import environment as environment_rules
from aiaas_magics.core.environment import EnvironmentChoice
from aiaas_magics.core.errors import NotOnEngine
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.spec import FitShape
from aiaas_magics.packing.checks import exactness, fit_checks, randomness, unpicklable
from aiaas_magics.packing.export import samples
from aiaas_magics.packing.fitcall import attributes, batch_sources, cell_sources, closures, state_pickle
from aiaas_magics.packing.fitcall.fit_data import all_leaves, plain_arguments, with_texts_as_tensors
from aiaas_magics.packing.fitcall.fit_result import FitResult, apply_result, apply_to, read_result, write_result
from aiaas_magics.packing.fitcall.manifest import Manifest, ManifestItem, array_item, class_item, function_item
from aiaas_magics.packing.fitcall.model_variables import tensorflow_variable
from aiaas_magics.packing.fitcall.preamble import Preamble
from aiaas_magics.packing.portable import portable_call

__all__ = [
    "FitCall",
    "FitResult",
    "PackedFitCall",
    "UnpackedFitCall",
    "apply_result",
    "apply_to",
    "pack",
    "read_result",
    "unpack",
    "write_result",
]


@dataclass(frozen=True, slots=True)
class FitCall:
    """A model and the arguments its `fit` was called with, by name."""

    model: Any
    arguments: Mapping[str, Any]

    @property
    def steps_before(self) -> int:
        """Steps that the model's optimizer has made already; 0 where it does not say."""
        iterations = getattr(getattr(self.model, "optimizer", None), "iterations", None)
        return 0 if iterations is None else int(iterations.numpy())


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFitCall:
    """A fit call ready to be sent, and the live objects that its result will be put into.

    The n-th of `arrays` stands for the n-th placeholder in `payload`; `variables` are
    TensorFlow variables in the order of the result's.
    """

    payload: bytes
    arrays: tuple[np.ndarray, ...]
    manifest: Manifest
    notes: tuple[str, ...]
    shape: FitShape
    memory_bytes: int
    model: Any
    callbacks: tuple[Any, ...]
    variables: tuple[Any, ...]
    paths: tuple[str, ...]
    execution: Execution  # as asked, or on TensorFlow where another engine cannot run it
    streams: tuple[batch_sources.Stream, ...] = ()  # data that this kernel must send batch by batch
    in_batches: bool = False  # some data yields batches instead of holding rows
    sets_environment: bool = False  # variables go along in the payload
    environment_notes: tuple[str, ...] = ()  # which variables go along; `notes` are about results
    datasets: tuple[Any, ...] = ()  # live objects that travel as pickles in the place of arguments
    verbose: Any = "auto"  # as `fit` was given it; workers draw no bar


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedFitCall:
    """A fit call in a worker. Arrays that came apart are those given to `unpack`, often read-only.

    Data that yields batches is a `sources.Source` among the arguments.
    """

    model: Any
    arguments: dict[str, Any]
    callbacks: tuple[Any, ...]  # flat, in the order of the kernel's
    variables: tuple[Any, ...]
    paths: tuple[str, ...]
    batch: fit_checks.BatchSpec
    marks: tuple[attributes.Marks, ...] = ()  # of attributes as they came

    @property
    def owners(self) -> list[Any]:
        """The objects whose attributes may come back."""
        return attributes.owners(self.model, [source.dataset for source in _pickled(self.arguments)])


def pack(
    call: FitCall,
    *,
    workers: int = 1,
    execution: Execution | None = None,
    gpus: bool = False,
    environment: Sequence[str] | None = (),
) -> PackedFitCall:
    """Check `call`, build what is not built, and make bytes of it. Nothing is sent.

    Where the engine of `execution` takes the portable form, that goes with it; a call that has none stays on TensorFlow and
    a note says why, unless the engine was asked for by name.

    Args:
        workers: the number of parts that a batch falls into.
        gpus: whether these are GPUs, which "auto" may choose another strategy for.
        environment: names of variables that travel beside those set in this kernel; None: none at all.

    Raises:
        NotCompiled, DataMismatch, UnsuitableKeras: the call would not work.
        CannotTravel: naming the object by its path, and the next move.
        NotOnEngine: an engine was asked for by name, and cannot run it.
    """
    execution = execution or Execution()
    model = call.model
    fit_checks.check_keras(model)
    fit_checks.check_free(model, "fit")
    fit_checks.check_compiled(model)
    arguments = plain_arguments(_known_arguments(call.arguments))
    fit_checks.check_arguments(model, arguments)
    datasets = tuple(value for name in batch_sources.PLACES if batch_sources.is_source(value := arguments.get(name)))
    streams = _pack_sources(arguments, workers, execution.resolved(devices=workers, gpus=gpus))
    callbacks = flat_callbacks(arguments.pop("callbacks", None))
    batch = fit_checks.batch_spec(arguments)
    fit_checks.build(model, batch, arguments)
    fit_checks.check_parts(
        model,
        fit_checks.shape_of(model, arguments),
        workers=workers,
        parts=execution.accumulate,
        together=execution.runs_on.has_one_program,
    )
    root = {
        "model": model,
        "arguments": arguments,
        "callbacks": callbacks,
        "batch": batch,
        "settings": _settings(),
        "seed": _global_seed(),
    }
    try:
        payload, luggage = state_pickle.dumps(root)
    except state_pickle.Failed as failed:
        roots = _roots(model, arguments, callbacks)
        raise unpicklable.refuse(failed.culprit, roots, failed.why, fails=state_pickle.fails) from failed.why
    chosen = _chosen_environment(environment, luggage)
    preamble = Preamble(environment=chosen.values, sources=cell_sources.sources_of(luggage.codes.values()))
    payload = state_pickle.with_preamble(payload, preamble)
    notes: tuple[str, ...] = ()
    if execution.runs_on.ported:
        payload, execution, notes = _ported(payload, luggage, root, execution, workers)
    if not execution.runs_on.ported:
        resolved = execution.resolved(devices=workers, gpus=gpus)
        notes += exactness.announcements(model, {**arguments, "callbacks": callbacks}, workers, resolved)
    if isinstance(arguments["x"], batch_sources.BatchSource):
        samples.remember_source(model, call.arguments["x"], arguments["x"], streams)
    else:
        samples.remember(model, arguments["x"])
    paths = _paths(model, luggage.variables)
    shape = fit_checks.shape_of(model, arguments)
    return PackedFitCall(
        payload=payload,
        arrays=tuple(luggage.arrays),
        manifest=_manifest(model, arguments, luggage, payload, chosen),
        sets_environment=bool(chosen.values),
        environment_notes=chosen.notes(),
        notes=(*notes, *closures.notes(callbacks), *randomness.notes(model, callbacks)),
        shape=shape,
        memory_bytes=_memory_bytes(model, arguments, shape),
        model=model,
        callbacks=tuple(callbacks),
        variables=tuple(luggage.variables),
        paths=paths,
        execution=execution,
        streams=streams,
        in_batches=bool(batch_sources.in_arguments(arguments)),
        datasets=tuple(given for given in datasets if any(given is source.dataset for source in _pickled(arguments))),
        verbose=arguments.get("verbose", "auto"),
    )


def _pickled(arguments: Mapping[str, Any]) -> list[batch_sources.PickledSource]:
    return [source for source in batch_sources.in_arguments(arguments).values() if isinstance(source, batch_sources.PickledSource)]


def _pack_sources(arguments: dict[str, Any], workers: int, execution: Execution) -> tuple[batch_sources.Stream, ...]:
    """Put what travels in the place of what yields batches; returns what this kernel must send itself."""
    streams = []
    for name in batch_sources.PLACES:
        if batch_sources.is_source(arguments.get(name)):
            arguments[name], stream = batch_sources.packed(
                arguments[name], name, shuffle=name == "x" and bool(arguments.get("shuffle", True))
            )
            batch_sources.check_ways(arguments[name], name, workers=workers, execution=execution)
            streams += [stream] if stream is not None else []
    return tuple(streams)


def _ported(
    payload: bytes, luggage: state_pickle.Luggage, root: Mapping[str, Any], execution: Execution, workers: int
) -> tuple[bytes, Execution, tuple[str, ...]]:
    """The payload with its portable form, how it is to be carried out, and what is to be said of it."""
    try:
        payload = portable_call.add(payload, luggage, root, parts=execution.model_parallel)
    except portable_call.NotPortable as why:
        if execution.must_run_there:
            raise NotOnEngine(execution.runs_on.title, str(why)) from why
        return payload, execution.fallen_back(), (exactness.stays_on_tensorflow(str(why)),)
    shape = fit_checks.shape_of(root["model"], root["arguments"])
    return (
        payload,
        execution,
        exactness.on_engine(
            root["model"],
            shape,
            title=execution.runs_on.title,
            copies=max(1, workers // execution.model_parallel),
            arguments=root["arguments"],
        ),
    )


def unpack(payload: bytes, arrays: Sequence[np.ndarray]) -> UnpackedFitCall:
    """The fit call in a worker. This runs the user's code, and sets Keras' settings to those of the kernel."""
    root, variables = state_pickle.loads(payload, arrays)
    apply_settings(root["settings"])
    callbacks = tuple(root["callbacks"])
    arguments = {**with_texts_as_tensors(root["arguments"]), "callbacks": list(callbacks)}
    if root["seed"] is not None:
        from aiaas_magics.core.internals.keras_internals import GLOBAL_SEED_GENERATOR, global_state

        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, root["seed"])
    call = UnpackedFitCall(
        model=root["model"],
        arguments=arguments,
        callbacks=callbacks,
        variables=tuple(variables),
        paths=_paths(root["model"], variables),
        batch=root["batch"],
    )
    return dataclasses.replace(call, marks=tuple(attributes.marks_of(call.owners)))


def flat_callbacks(callbacks: Any) -> list[Any]:
    """The user's callbacks as a flat list, however `fit` was given them."""
    import keras

    from aiaas_magics.core.internals.keras_internals import CallbackList

    if callbacks is None:
        return []
    if isinstance(callbacks, CallbackList):
        ours = (keras.callbacks.History, keras.callbacks.ProgbarLogger)
        return [callback for callback in callbacks.callbacks if not isinstance(callback, ours)]
    return [callback for callback in keras.tree.flatten(callbacks) if callback is not None]


def _known_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` as `fit` would bind them; raises `TypeError` for an unknown one, as `fit` would."""
    from aiaas_magics.core.internals.keras_internals import TensorFlowTrainer

    signature = inspect.signature(inspect.unwrap(TensorFlowTrainer.fit))
    bound = signature.bind(None, **arguments)
    return {name: value for name, value in bound.arguments.items() if name != "self"}


def _roots(model: Any, arguments: Mapping[str, Any], callbacks: Sequence[Any]) -> dict[str, Any]:
    named = {f"callbacks[{index}]": callback for index, callback in enumerate(callbacks)}
    return {**named, "model": model, **arguments}


# --------------------------------------------------------------------------- settings


def _settings() -> dict[str, Any]:
    """Keras' global settings that a fit depends on."""
    import keras
    import tensorflow as tf

    from aiaas_magics.core.internals.keras_internals import backend_config as config
    from aiaas_magics.core.internals.tensorflow_internals import is_op_determinism_enabled

    return {
        "floatx": keras.config.floatx(),
        "epsilon": keras.config.epsilon(),
        "image_data_format": keras.config.image_data_format(),
        "dtype_policy": keras.config.dtype_policy(),
        "max_epochs": config.max_epochs(),
        "max_steps_per_epoch": config.max_steps_per_epoch(),
        "deterministic": is_op_determinism_enabled(),
        "functions_run_eagerly": tf.config.functions_run_eagerly(),
    }


def apply_settings(settings: Mapping[str, Any]) -> None:
    """The kernel's settings, in a worker."""
    import keras

    from aiaas_magics.core.internals.keras_internals import backend_config as config

    keras.config.set_floatx(settings["floatx"])
    keras.config.set_epsilon(settings["epsilon"])
    keras.config.set_image_data_format(settings["image_data_format"])
    keras.config.set_dtype_policy(settings["dtype_policy"])
    config.set_max_epochs(settings["max_epochs"])
    config.set_max_steps_per_epoch(settings["max_steps_per_epoch"])
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    if settings["deterministic"]:
        tf.config.experimental.enable_op_determinism()
    if settings["functions_run_eagerly"]:
        tf.config.run_functions_eagerly(True)


def _global_seed() -> Any:
    """The generator that draws for random ops without a seed, when it was used already."""
    from aiaas_magics.core.internals.keras_internals import GLOBAL_SEED_GENERATOR, global_state

    return global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)


# --------------------------------------------------------------------------- what is told


def _paths(model: Any, variables: Sequence[Any]) -> tuple[str, ...]:
    """A name for each variable: Keras' path where there is one."""
    known: dict[int, str] = {}
    optimizer = getattr(model, "optimizer", None)
    for variable in (*model.variables, *(optimizer.variables if optimizer is not None else ())):
        known[id(tensorflow_variable(variable))] = str(getattr(variable, "path", variable.name))
    return tuple(known.get(id(variable), variable.name.partition(":")[0]) for variable in variables)


def _chosen_environment(named: Sequence[str] | None, luggage: state_pickle.Luggage) -> EnvironmentChoice:
    if named is None:
        return EnvironmentChoice(values={})
    return environment_rules.choose(os.environ, environment_rules.initial(), mentioned=luggage.texts_in_code(), named=named)


def _manifest(
    model: Any, arguments: Mapping[str, Any], luggage: state_pickle.Luggage, payload: bytes, chosen: EnvironmentChoice
) -> Manifest:
    import types

    names = {id(array): path for path, array in all_leaves(arguments)}
    items = [ManifestItem(kind="model", name=str(model.name), bytes=len(payload), detail=_described(model))]
    items += [array_item(names.pop(id(array), "in the model"), array) for array in luggage.arrays]
    items[1:1] = [batch_sources.item(name, source) for name, source in batch_sources.in_arguments(arguments).items()]
    items += [array_item(path, array, note="sent within the model") for path, array in all_leaves(arguments) if id(array) in names]
    for obj in luggage.code.values():
        if isinstance(obj, types.ModuleType):
            items.append(ManifestItem(kind="module", name=obj.__name__, bytes=0, detail=str(getattr(obj, "__file__", ""))))
        else:
            items.append(class_item(obj) if isinstance(obj, type) else function_item(obj))
    items += [ManifestItem(kind="variable", name=name, bytes=len(value), detail="environment") for name, value in chosen.values.items()]
    return Manifest(tuple(items))


def _described(model: Any) -> str:
    # Not by `count_params`, which refuses a model that only its own train_step calls the layers of.
    parameters = sum(math.prod(variable.shape) for variable in model.weights)
    return f"{type(model).__name__}, {len(model.layers)} layers, {parameters:,} parameters"


def _memory_bytes(model: Any, arguments: Mapping[str, Any], shape: FitShape) -> int:
    """A guess for one worker: variables, as many bytes for gradients, a batch through the layers there and back, a dataset's arrays."""
    variables = sum(int(np.prod(v.shape)) * 4 for v in (*model.variables, *getattr(model.optimizer, "variables", ())))
    gradients = sum(int(np.prod(v.shape)) * 4 for v in model.trainable_variables)
    row = sum(array.nbytes // max(1, len(array)) for _, array in all_leaves(arguments))
    given = batch_sources.in_arguments(arguments).values()
    row += sum(source.row_bytes() for source in given)
    held = sum(array.nbytes for source in given if isinstance(source, batch_sources.GraphSource) for array in source.captured)
    activations = 0
    for layer in model._flatten_layers(include_self=False):
        try:
            output = layer.output
        except (AttributeError, ValueError):  # a layer that was called in no graph
            continue
        tensors = output if isinstance(output, (list, tuple)) else [output]
        activations += sum(4 * int(np.prod([n or 1 for n in tensor.shape[1:]])) for tensor in tensors if hasattr(tensor, "shape"))
    return variables + gradients + held + (shape.global_batch or fit_checks.BATCH) * (row + 2 * activations)
