"""Fit call: its way from live objects in the kernel to bytes, and from bytes to live objects in a worker.

Owns the order of the steps there (`draft` and its `finish`, or both as `pack`), each of which is entered once: normalise, check and
build, pickle, and then what depends on the engine, its portable form and the notes. And the way back into objects (`unpack`).
Packing changes nothing of the user's but this: what is not built yet is built. What comes back belongs to `fit_result`.
"""

from __future__ import annotations

import dataclasses
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
from aiaas_magics.packing.checks import exactness, fit_checks, private_checks, randomness
from aiaas_magics.packing.data import batch_shapes, batch_sources, data_fingerprints
from aiaas_magics.packing.data.fit_data import all_leaves, with_texts_as_tensors
from aiaas_magics.packing.export import samples
from aiaas_magics.packing.fitcall.fit_arguments import FitData, normalise
from aiaas_magics.packing.fitcall.fit_result import FitResult, apply_result, apply_to, read_result, write_result
from aiaas_magics.packing.fitcall.keras_settings import apply_settings, current_settings, global_seed, set_global_seed
from aiaas_magics.packing.fitcall.manifest import manifest_of
from aiaas_magics.packing.fitcall.packed_fit_call import FitCall, PackedFitCall, UnpackedFitCall
from aiaas_magics.packing.live import attributes, cell_sources, closures
from aiaas_magics.packing.live.model_variables import tensorflow_variable
from aiaas_magics.packing.pickling import state_pickle, unpicklable
from aiaas_magics.packing.pickling.preamble import Preamble
from aiaas_magics.packing.portable import portable_call

__all__ = [
    "DraftedFitCall",
    "FitCall",
    "FitResult",
    "PackedFitCall",
    "UnpackedFitCall",
    "apply_result",
    "apply_settings",
    "apply_to",
    "draft",
    "pack",
    "read_result",
    "unpack",
    "write_result",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftedFitCall:
    """A fit call that was checked and pickled; which engine carries it out may still be chosen. `finish` it once."""

    model: Any
    data: FitData
    shape: FitShape
    root: Mapping[str, Any]  # what was pickled
    payload: bytes
    out_of_band: state_pickle.OutOfBand
    environment: EnvironmentChoice
    workers: int
    gpus: bool

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return tuple(self.out_of_band.arrays)

    @property
    def callbacks(self) -> tuple[Any, ...]:
        return self.data.callbacks

    @property
    def in_batches(self) -> bool:
        """Whether some data yields batches instead of holding rows."""
        return bool(self.data.sources)

    def finish(self, execution: Execution) -> PackedFitCall:
        """The call ready to be sent, with its portable form where the engine of `execution` takes that, and what is to be announced of it.

        Raises:
            NotOnEngine: an engine was asked for by name, and cannot run it.
        """
        payload, execution, notes = self._portable(execution) if execution.runs_on.ported else (self.payload, execution, ())
        data, environment = self.data, self.environment.values
        return PackedFitCall(
            payload=payload,
            arrays=self.arrays,
            manifest=manifest_of(self.model, data.arguments, self.out_of_band, payload=payload, environment=environment),
            notes=(*notes, *self._announcements(execution)),
            shape=self.shape,
            memory_bytes=_memory_bytes(self.model, data.arguments, self.shape),
            model=self.model,
            callbacks=data.callbacks,
            variables=tuple(self.out_of_band.variables),
            paths=_paths(self.model, self.out_of_band.variables),
            execution=execution,
            streams=data.streams,
            in_batches=self.in_batches,
            sets_environment=bool(environment),
            environment_notes=self.environment.notes(),
            datasets=data.pickled_datasets,
            verbose=data.arguments.get("verbose", "auto"),
            inline_data=tuple(data_fingerprints.of_inline(all_leaves(data.arguments), apart=self.arrays)),
        )

    def _portable(self, execution: Execution) -> tuple[bytes, Execution, tuple[str, ...]]:
        """The payload with its portable form and how it is carried out: on TensorFlow where it has none, with a sentence that says why."""
        try:
            return portable_call.add(self.payload, self.out_of_band, self.root, parts=execution.model_parallel), execution, ()
        except portable_call.NotPortable as why:
            if execution.must_run_there:
                raise NotOnEngine(execution.runs_on.title, str(why)) from why
            return self.payload, execution.fallen_back(), (exactness.stays_on_tensorflow(str(why)),)

    def _announcements(self, execution: Execution) -> tuple[str, ...]:
        """What differs from plain `fit` in this one."""
        model, data = self.model, self.data
        if execution.runs_on.ported:
            copies = max(1, self.workers // execution.model_parallel)
            title = execution.runs_on.title
            on_engine = exactness.on_engine(model, self.shape, title=title, copies=copies, arguments=data.arguments)
        else:
            resolved = execution.resolved(devices=self.workers, gpus=self.gpus)
            on_engine = exactness.announcements(model, {**data.arguments, "callbacks": data.callbacks}, self.workers, resolved)
        private: tuple[str, ...] = ()
        if execution.private is not None:
            private = private_checks.notes(model, data.arguments, data.callbacks, privacy=execution.private, shape=self.shape)
            private += () if execution.runs_on.ported else private_checks.slow_on_tensorflow(model)
        return (*private, *on_engine, *closures.notes(data.callbacks), *randomness.notes(model, data.callbacks))


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
    return draft(call, workers=workers, execution=execution, gpus=gpus, environment=environment).finish(execution)


def draft(
    call: FitCall,
    *,
    workers: int = 1,
    execution: Execution | None = None,
    gpus: bool = False,
    environment: Sequence[str] | None = (),
) -> DraftedFitCall:
    """The part of `pack` that is the same for every engine; `finish` does the rest.

    Args:
        execution: as asked. Another engine may be chosen for `finish`, nothing else.

    Raises:
        As `pack`, but for `NotOnEngine`.
    """
    model, execution = call.model, execution or Execution()
    fit_checks.check_model(model)
    data = normalise(model, call.arguments)
    shape = _check(model, data, workers=workers, execution=execution, gpus=gpus)
    root = {
        "model": model,
        "arguments": dict(data.arguments),
        "callbacks": list(data.callbacks),
        "batch": data.batch,
        "settings": current_settings(),
        "seed": global_seed(),
    }
    payload, out_of_band, chosen_environment = pickled(root, environment)
    samples.remember_data(model, data.arguments["x"], dataset=data.x, streams=data.streams)
    return DraftedFitCall(
        model=model,
        data=data,
        shape=shape,
        root=root,
        payload=payload,
        out_of_band=out_of_band,
        environment=chosen_environment,
        workers=workers,
        gpus=gpus,
    )


def _check(model: Any, data: FitData, *, workers: int, execution: Execution, gpus: bool) -> FitShape:
    """Whether this data can go through this model on so many workers; what is not built is built on the way."""
    resolved = execution.resolved(devices=workers, gpus=gpus)
    for name, source in data.sources.items():
        batch_sources.check_ways(source, name, workers=workers, execution=resolved)
    fit_checks.build(model, data.batch, data.arguments)
    if execution.private is not None:
        private_checks.check(model, data.arguments, data.callbacks)
    shape = data.shape(model)
    fit_checks.check_parts(model, shape, workers=workers, parts=execution.accumulate, together=execution.runs_on.has_one_program)
    return shape


def pickled(root: Mapping[str, Any], named: Sequence[str] | None) -> tuple[bytes, state_pickle.OutOfBand, EnvironmentChoice]:
    """`root` as bytes with what a worker needs first before them, what travels apart, and which environment variables go along."""
    try:
        payload, out_of_band = state_pickle.dumps(root)
    except state_pickle.Failed as failed:
        callbacks = {f"callbacks[{index}]": callback for index, callback in enumerate(root["callbacks"])}
        roots = {**callbacks, "model": root["model"], **root["arguments"]}
        raise unpicklable.refuse(failed.culprit, roots, failed.why, fails=state_pickle.fails) from failed.why
    environment = EnvironmentChoice(values={})
    if named is not None:
        mentioned = out_of_band.texts_in_code()
        environment = environment_rules.choose(os.environ, environment_rules.initial(), mentioned=mentioned, named=named)
    preamble = Preamble(environment=environment.values, sources=cell_sources.sources_of(out_of_band.codes.values()))
    return state_pickle.with_preamble(payload, preamble), out_of_band, environment


def unpack(payload: bytes, arrays: Sequence[np.ndarray]) -> UnpackedFitCall:
    """The fit call in a worker. This runs the user's code, and sets Keras' settings to those of the kernel."""
    root, variables = state_pickle.loads(payload, arrays)
    apply_settings(root["settings"])
    callbacks = tuple(root["callbacks"])
    arguments = {**with_texts_as_tensors(root["arguments"]), "callbacks": list(callbacks)}
    set_global_seed(root["seed"])
    call = UnpackedFitCall(
        model=root["model"],
        arguments=arguments,
        callbacks=callbacks,
        variables=tuple(variables),
        paths=_paths(root["model"], variables),
        batch=root["batch"],
    )
    return dataclasses.replace(call, marks=tuple(attributes.marks_of(call.owners)))


def _paths(model: Any, variables: Sequence[Any]) -> tuple[str, ...]:
    """A name for each variable: Keras' path where there is one."""
    paths: dict[int, str] = {}
    optimizer = getattr(model, "optimizer", None)
    for variable in (*model.variables, *(optimizer.variables if optimizer is not None else ())):
        paths[id(tensorflow_variable(variable))] = str(getattr(variable, "path", variable.name))
    return tuple(paths.get(id(variable), variable.name.partition(":")[0]) for variable in variables)


def _memory_bytes(model: Any, arguments: Mapping[str, Any], shape: FitShape) -> int:
    """A guess for one worker: variables, as many bytes for gradients, a batch through the layers there and back, a dataset's arrays."""
    variables = sum(int(np.prod(v.shape)) * 4 for v in (*model.variables, *getattr(model.optimizer, "variables", ())))
    gradients = sum(int(np.prod(v.shape)) * 4 for v in model.trainable_variables)
    row = sum(array.nbytes // max(1, len(array)) for _, array in all_leaves(arguments))
    sources = batch_sources.in_arguments(arguments).values()
    row += sum(source.row_bytes() for source in sources)
    captured = sum(array.nbytes for source in sources if isinstance(source, batch_sources.GraphSource) for array in source.captured)
    activations = 0
    for layer in model._flatten_layers(include_self=False):
        try:
            output = layer.output
        except (AttributeError, ValueError):  # a layer that was called in no graph
            continue
        tensors = output if isinstance(output, (list, tuple)) else [output]
        activations += sum(4 * int(np.prod([n or 1 for n in tensor.shape[1:]])) for tensor in tensors if hasattr(tensor, "shape"))
    return variables + gradients + captured + (shape.global_batch or batch_shapes.BATCH) * (row + 2 * activations)
