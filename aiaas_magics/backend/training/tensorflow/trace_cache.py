"""Trace cache: traced loops that outlive their worker, so that the next fit of an equal step runs no Python to trace it.

Owns what is kept, for which steps that is right, and the folder's bounds. What makes two models equal is `packing.fingerprint`;
when a loop is traced, and in which form it runs, is `multi_step`.

A graph is what tracing gave: the same operations on the same inputs, so its numbers are bit for bit those of a new trace. Everything
else of a fit is made anew in a process of its own. What a graph cannot be without its process (Python inside it, tables, random numbers
with a seed of the trace) is traced in every fit, and so is a model whose tracing changes something in Python, or draws a number there.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import tensorflow as tf
import xxhash
from tensorflow.core.framework.function_pb2 import FunctionDefLibrary

from aiaas_magics.backend.folders.small_files import NotPlainFile, read_plain, write_private
from aiaas_magics.backend.training.tensorflow.graph_operations import Operations, operations_of
from aiaas_magics.core import settings
from aiaas_magics.core.internals.tensorflow_internals import (
    InterpolateRuntimeError,
    context,
    error_interpolation,
    op_def_registry,
    tf_stack,
)
from aiaas_magics.packing.pickling.fingerprint import any_of, automatic_names, fingerprint

TRACE_BYTES: Final = 16 * 1024 * 1024  # guess: a Transformer of 12 blocks has 4 MB
FOLDER_BYTES: Final = 128 * 1024 * 1024  # guess
FOLDER_TRACES: Final = 64  # guess: a search over some ten models, with their validation
CONSTANT_BYTES: Final = 64 * 1024  # guess: statistics of a Normalization layer have some hundred
# Operations with a state that is a variable's, or none beside the call itself. Whatever else has state may be the process's own.
OF_VARIABLES: Final = frozenset(
    {
        "AssignAddVariableOp", "AssignSubVariableOp", "AssignVariableOp", "ReadVariableOp", "ResourceGather", "VarIsInitializedOp",
        "Assert", "If", "PartitionedCall", "StatefulPartitionedCall", "While",
    }
)  # fmt: skip
ON_VARIABLES: Final = ("ResourceApply", "ResourceScatter", "ResourceSparseApply")


_SCOPE_NUMBERS: Final = re.compile(r"(?:_\d+)+(?=/|$)")


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """A loop as TensorFlow's functions, the one to call by `name`, and what it is called with behind its arguments."""

    name: str
    functions: bytes
    captured: tuple[int | bytes, ...]  # the place of a variable, or a constant as a `.npy` file
    logs: tuple[str, ...]
    layers: tuple[str, ...]  # names that Keras has given, which stand in the operations'
    operations: Operations  # of a step


class Traces:
    """The traces of one fit's loops, in `folder`.

    Args:
        facts: what beside the model decides what is traced.
        variables: of the fit call, in its order.
    """

    def __init__(self, folder: Path, model: Any, variables: Sequence[Any], *, facts: Sequence[object] = ()) -> None:
        self._folder, self._model, self._variables = folder, model, variables
        # Code that is traced may ask for any variable of the environment.
        self._facts = (*facts, *facts_of_process(), sorted(os.environ.items()))
        self._unwritten: dict[str, Callable[[], bytes | None]] = {}

    def fingerprint(self) -> str | None:
        """That of the model as it is now; None where it has none, or somebody looks on while it is traced (`tf.debugging`)."""
        return None if context.context().op_callbacks else fingerprint(self._model)

    def key(self, model: str | None, *facts: object) -> str | None:
        """Names the trace of a loop of the model with this fingerprint."""
        return model and hashlib.sha256(repr((model, self._facts, facts)).encode()).hexdigest()[:32]

    def find(self, key: str) -> Trace | None:
        """The trace; None where there is none that is whole."""
        path = self._path(key)
        try:
            data = read_plain(path, most_bytes=TRACE_BYTES)
            if xxhash.xxh3_128_digest(data[16:]) != data[:16]:
                return None
            trace = msgspec.msgpack.decode(data[16:], type=Trace)
            os.utime(path)  # the oldest are removed
        except (OSError, NotPlainFile, msgspec.MsgspecError):
            return None
        return trace if all(isinstance(item, bytes) or item < len(self._variables) for item in trace.captured) else None

    def bound(self, trace: Trace, again: Callable[[], Any]) -> Recalled:
        """The trace as a function of this process; `again` traces it anew, for the words of an error."""
        inputs = [
            tf.constant(np.load(io.BytesIO(item), allow_pickle=False)) if isinstance(item, bytes) else self._variables[item].handle
            for item in trace.captured
        ]
        return Recalled(trace, inputs, again, layers=dict(zip(trace.layers, automatic_names(self._model), strict=True)))

    def note(self, key: str, concrete: Any, step: Any, tensors: Sequence[Any]) -> None:
        """Keep what was traced, once `write` is called, if it is whole without this process.

        Args:
            step: the graph of one step.
            given: the tensors that it is called with.
        """
        self._unwritten[key] = lambda: self._encoded(key, concrete, step, tensors)

    def drop(self, key: str | None) -> None:
        """This one is no good after all."""
        if key is not None:
            self._unwritten.pop(key, None)
            self._path(key).unlink(missing_ok=True)

    def write(self) -> None:
        """Write what was noted. Where there is no room for it the next fit traces again."""
        for key, encoded in self._unwritten.items():
            with contextlib.suppress(OSError):
                if (data := encoded()) is not None and len(data) <= TRACE_BYTES:
                    self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                    write_private(self._path(key), data)
        if self._unwritten:
            clear(self._folder)
        self._unwritten.clear()

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.trace"

    def _encoded(self, key: str, concrete: Any, step: Any, tensors: Sequence[Any]) -> bytes | None:
        graph, logs = concrete.graph, concrete.structured_outputs
        if not isinstance(logs, dict) or not all(isinstance(name, str) and tf.is_tensor(value) for name, value in logs.items()):
            return None
        # Other names of the layers are no other model; where they stand in the logs they would be.
        if any(automatic in name for name in logs for automatic in automatic_names(self._model)):
            return None
        if graph.deferred_external_captures or not all(is_portable(op) for op in operations_in(graph)):
            return None
        arguments = concrete.inputs[: len(tensors)]
        if [(x.dtype, x.shape.as_list()) for x in arguments] != [(x.dtype, x.shape.as_list()) for x in tensors]:
            return None
        places = {id(variable.handle): place for place, variable in enumerate(self._variables)}
        captured = [places.get(id(x), _constant(x)) for x in graph.external_captures]
        if None in captured:
            return None
        library = graph.as_graph_def().library
        library.function.add().CopyFrom(concrete.function_def)
        trace = Trace(
            name=_renamed(library, f"__aiaas_{key}", of=concrete.function_def.signature.name),
            functions=library.SerializeToString(deterministic=True),
            captured=tuple(captured),  # type: ignore[arg-type]
            logs=tuple(logs),
            layers=automatic_names(self._model),
            operations=operations_of(step),
        )
        data = msgspec.msgpack.encode(trace)
        return xxhash.xxh3_128_digest(data) + data


class Recalled:
    """A loop from its trace. Like the `tf.function` that it was, for arguments like those that it was traced with.

    Args:
        again: traces the loop, for the words of an error.
        layers: names in the trace, with those that they have in this model.
    """

    def __init__(self, trace: Trace, captured: Sequence[Any], again: Callable[[], Any], *, layers: Mapping[str, str]) -> None:
        self._name, self._captured, self._again, self._layers = trace.name.encode(), list(captured), again, layers
        # Outputs are flat: a dict's by its sorted names.
        self._order = [(name, sorted(trace.logs).index(name)) for name in trace.logs]
        library = FunctionDefLibrary.FromString(trace.functions)
        runtime = context.context()
        for function in library.function:
            if not runtime.has_function(function.signature.name):
                runtime.add_function_def(function)

    def __call__(self, arrays: Any, positions: Any, start: Any, stop: Any) -> Mapping[str, Any]:
        inputs = [*flat(arrays), positions, start, stop, *self._captured]
        try:
            outputs = context.context().call_function(self._name, inputs, len(self._order))
        except tf.errors.OpError as error:
            if self._layers:
                error._message = any_of(self._layers).sub(lambda match: self._layers[match[0]], tf.compat.as_text(error.message))
            in_words(error, self._again())
            raise
        return {name: outputs[place] for name, place in self._order}


def drawn() -> tuple[object, ...]:
    """Where the random numbers of Python and numpy stand: a number drawn while a step is traced is a constant of its graph."""
    state = np.random.get_state(legacy=False)["state"]
    return random.getstate(), state["key"].tobytes(), state["pos"]


def flat(arrays: Any) -> list[Any]:
    return [x for x in tf.nest.flatten(arrays) if x is not None]


def are_tensors(arrays: Any) -> bool:
    return all(isinstance(x, tf.Tensor) for x in flat(arrays))


def in_words(error: tf.errors.OpError, concrete: Any) -> None:
    """Give `error` the lines that made the operation, as TensorFlow does where it has traced the function itself."""
    text, _, nodes = error_interpolation.parse_message(tf.compat.as_text(error.message))
    waiting = [concrete._inference_function]
    while waiting and nodes:
        function = waiting.pop(0)
        waiting += [child for child in function.children if hasattr(child, "graph_debug_info")]
        debug = function.graph_debug_info
        layers: dict[str, list[str]] = {}
        for name in tf_stack.LoadTracesFromDebugInfo(debug):
            layers.setdefault(_SCOPE_NUMBERS.sub("", name), []).append(name)
        # TensorFlow numbers scopes that are entered again, in each trace in another way.
        named = [layers.get(_SCOPE_NUMBERS.sub("", node.name), []) for node in nodes]
        names = [node.name if node.name in names else names[0] for node, names in zip(nodes, named, strict=True) if names]
        if len(names) == len(nodes):
            for node, name in zip(nodes, names, strict=True):
                text = text.replace(f"{{{{node {node.name}}}}}", f"{{{{node {name}}}}}")
            error._message = InterpolateRuntimeError(function).interpolate(text, names, debug)
            return


def operations_in(graph: Any) -> list[Any]:
    """Definitions of all nodes of `graph` and of the functions that it calls."""
    definition = graph.as_graph_def()
    return [*definition.node, *(node for function in definition.library.function for node in function.node_def)]


def is_portable(node: Any) -> bool:
    """Whether an operation means the same in every process."""
    if node.op in OF_VARIABLES or node.op.startswith(ON_VARIABLES):
        return True
    definition = op_def_registry.get(node.op)  # a call of a function by its name is in no registry; its body is looked at by itself
    return definition is None or (not definition.is_stateful and not node.op.startswith(("PyFunc", "EagerPyFunc")))


def _constant(captured: Any) -> bytes | None:
    if not hasattr(captured, "numpy") or captured.dtype in (tf.resource, tf.variant, tf.string):
        return None
    value = captured.numpy()
    if value.nbytes > CONSTANT_BYTES or value.dtype.isbuiltin != 1:
        return None
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return file.getvalue()


def _renamed(library: Any, prefix: str, *, of: str) -> str:
    """Give every function of `library` a name that no trace of another process has; returns that of `of`."""
    names = {function.signature.name: f"{prefix}_{place}" for place, function in enumerate(library.function)}
    for function in library.function:
        function.signature.name = names[function.signature.name]
        for node in function.node_def:
            node.op = names.get(node.op, node.op)
            for value in node.attr.values():
                # Asked for what it is first: to write into another field of it would take its value away.
                for called in [value.func] if value.HasField("func") else value.list.func if value.HasField("list") else ():
                    called.name = names.get(called.name, called.name)
    del library.gradient[:]
    return names[of]


def facts_of_process() -> tuple[object, ...]:
    """What decides what is traced, beside the model and its data: versions, settings, devices, and this code itself."""
    import keras

    own_code = sorted((path.name, path.stat().st_mtime_ns) for path in Path(__file__).parents[1].rglob("*.py"))
    config = keras.config
    return (
        settings.package_version(),
        own_code,
        [device.name for device in tf.config.list_logical_devices()],
        (config.floatx(), config.epsilon(), config.image_data_format(), repr(config.dtype_policy().get_config())),
        (config.is_nnx_enabled() if hasattr(config, "is_nnx_enabled") else False, config.is_flash_attention_enabled()),
        (tf.config.optimizer.get_jit(), tf.config.optimizer.get_experimental_options()),
    )


def clear(folder: Path, *, most: int = FOLDER_TRACES, most_bytes: int = FOLDER_BYTES) -> None:
    """Remove what was used longest ago, down to the bounds."""
    with contextlib.suppress(OSError):
        traces = sorted(((path.stat(), path) for path in folder.glob("*.trace")), key=lambda entry: -entry[0].st_mtime_ns)
        size = 0
        for place, (stat, path) in enumerate(traces):
            size += stat.st_size
            if place >= most or size > most_bytes:
                path.unlink(missing_ok=True)
