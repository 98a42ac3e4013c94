"""Exactness notes: what differs between several workers and one, said before the run.

Owns finding it and the sentences. The mathematics itself belongs to the training side. Each
sentence names what differs and how, so that the user can judge whether it matters here.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from aiaas_magics.core.execution import Execution
from aiaas_magics.core.row_order import whole_executions
from aiaas_magics.core.spec import FitShape
from aiaas_magics.packing.checks import parts_check
from aiaas_magics.packing.data import batch_sources, fit_data
from aiaas_magics.packing.live import attributes, probing


def announcements(model: Any, arguments: Mapping[str, Any], workers: int, execution: Execution | None = None) -> tuple[str, ...]:
    """One sentence for each part of this fit that differs from training on one worker, or that is not exact when it is resumed.

    `execution` has its strategy chosen already.
    """
    execution = execution or Execution()
    sentences = [
        *_data(arguments, workers),
        *_precision(model, execution.precision),
        *_parts(model, execution.accumulate),
    ]
    if workers > 1:
        mirrored = execution.strategy == "mirrored"
        sentences += [
            *_steps(model),
            *_losses(model),
            *_layers(model),
            *_metrics(model),
            *_scaling(model, execution.precision),
            *(_mirrored(model) if mirrored else (*_callbacks(arguments.get("callbacks") or ()), *_engine(model, arguments))),
        ]
    cut = parts_check.Cut(workers=workers, parts=execution.accumulate, strategy=execution.strategy)
    return tuple(dict.fromkeys((*parts_check.notes(model, arguments, cut), *sentences)))


def adaptive(model: Any) -> str:
    """The optimizer's name, where it divides each gradient by its own size: then what rounding does to a small one is not small."""
    import keras

    optimizer = _optimizer(model)
    return "" if isinstance(optimizer, keras.optimizers.SGD) else type(optimizer).__name__


def _optimizer(model: Any) -> Any:
    """The one that makes the steps."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def _lookups(model: Any, title: str) -> Iterator[str]:
    """On TensorFlow the gradient of an Embedding is a list of lookups, of which a row may have several; an optimizer that adds
    gradients up over steps makes a table of it first."""
    import keras

    optimizer = _optimizer(model)
    names = _names([layer for layer in _layers_of(model, keras.layers.Embedding) if layer.trainable])
    if not names or optimizer.gradient_accumulation_steps:
        return
    if not isinstance(optimizer, keras.optimizers.SGD):
        yield (
            f"{type(optimizer).__name__} squares the gradient of a row of {names} once on {title}; "
            "on TensorFlow it squares each of the lookups that make it up, which gives other steps."
        )
    for clipping in ("clipnorm", "global_clipnorm", "clipvalue"):
        if getattr(optimizer, clipping):
            yield (
                f"{clipping} clips the gradient of a row of {names} as a whole on {title}; "
                "on TensorFlow it looks at each of the lookups that make it up, which gives other steps."
            )


def on_engine(
    model: Any, shape: FitShape, *, title: str, copies: int, arguments: Mapping[str, Any] = MappingProxyType({})
) -> tuple[str, ...]:
    """One sentence for each part of this fit that differs on the engine `title` from TensorFlow.

    Args:
        copies: of the model.
    """
    sentences: list[str] = []
    drawing = [layer for layer in model._flatten_layers(include_self=True) if _draws(layer)]
    if drawing:
        sentences.append(
            f"Random numbers ({_names(drawing)}) are drawn by {title}: other masks and noise than TensorFlow's, "
            "the same ones for any number of devices."
        )
    sentences += _lookups(model, title)
    if len(_compiled(model, "loss")) > 1 and (shape.rows % shape.global_batch or _validated_unevenly(shape, arguments)):
        sentences.append(
            f"The losses shown of single outputs count the last, smaller batch by its rows on {title}, and like any other on TensorFlow."
        )
    if shape.global_batch % copies:
        sentences.append(
            f"Batches of {shape.global_batch} rows cannot be shared evenly by {copies} devices, so each computes all of them: "
            f"the same result, and no faster. Use a batch_size that is a multiple of {copies}."
        )
    if model.run_eagerly:
        sentences.append(f"run_eagerly=True is left aside: {title} compiles each step.")
    return tuple(sentences)


def _validated_unevenly(shape: FitShape, arguments: Mapping[str, Any]) -> bool:
    batch = arguments.get("validation_batch_size") or shape.global_batch
    arrays = list(fit_data.leaves(arguments.get("validation_data"), "validation_data"))
    if arrays:
        return bool(len(arrays[0][1]) % batch)
    rows = [len(array) for _, array in fit_data.leaves(arguments.get("x"), "x")] if arguments.get("validation_split") else []
    return bool(rows and (rows[0] - shape.rows) % batch)


def stays_on_tensorflow(why: str) -> str:
    return f"This fit stays on TensorFlow: {why}."


def _precision(model: Any, policy: str) -> Iterator[str]:
    if not policy or policy == model.dtype_policy.name:
        return
    if policy == "float32":
        yield "Layers compute in float32, whatever policy the model was built with."
        return
    name, digits = {"mixed_bfloat16": ("bfloat16", 2), "mixed_float16": ("float16", 3)}[policy]
    scaling = " The loss is scaled, and a step whose gradients overflow is left out." if policy == "mixed_float16" else ""
    yield (
        f"Layers compute in {name}, about {digits} decimal digits, the outputs in float32; weights and optimizer stay as they are. "
        f"Results differ from the model's own precision.{scaling}"
    )


def _scaling(model: Any, policy: str) -> Iterator[str]:
    import keras

    if policy == "mixed_float16" or isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        yield (
            "A scaled loss overflows a little earlier on several workers, since means over fewer rows have larger gradients: "
            "some of the first steps may be left out that one worker makes."
        )


def _parts(model: Any, parts: int) -> Iterator[str]:
    if parts == 1:
        return
    import keras

    layers = list(model._flatten_layers(include_self=True))
    normal = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
    if normal:
        yield f"BatchNormalization ({_names(normal)}) uses the mean and variance of each of a batch's {parts} parts, synchronized or not."
    drawing = [layer for layer in layers if _draws(layer)]
    if drawing:
        yield f"Random numbers ({_names(drawing)}) are drawn for each of the {parts} parts of a batch: others than for the whole."
    if _has_own_step(model):
        yield (
            f"{type(model).__name__} has its own train_step, which runs for each of the {parts} parts of a batch; where it masks rows, "
            "each part counts by its rows."
        )
    if model.jit_compile:
        yield "jit_compile is off while a batch is computed in parts: XLA would hold all of them in memory."


def _has_own_step(model: Any) -> bool:
    from aiaas_magics.core.internals.keras_internals import TensorFlowTrainer

    return type(model).train_step is not TensorFlowTrainer.train_step


def _data(arguments: Mapping[str, Any], workers: int) -> Iterator[str]:
    sources = batch_sources.in_arguments(arguments)
    streamed = [name for name, source in sources.items() if isinstance(source, batch_sources.StreamedSource)]
    if streamed:
        yield (
            f"Streamed from this kernel ({_list(streamed)}): keep it running until the job has ended. "
            "A lost worker ends the job, since batches that were read are gone."
        )
    for name, source in sources.items():
        if isinstance(source, batch_sources.PickledSource) and (generators := attributes.generators_of(source.dataset)):
            yield (
                f"{type(source.dataset).__name__} ({name}) has a random generator ({_list(generators)}), whose state does not come back: "
                "a second fit with the same object begins with the numbers of the first."
            )
    endless = [name for name in streamed if sources[name].batches is None]
    if endless:
        yield (
            f"Some batches of {_list(endless)} are read ahead of training: "
            "a generator that is used again goes on further than after plain fit."
        )
    if sources and workers > 1:
        yield f"Worker 0 alone reads what yields batches ({_list(list(sources))}), and gives the others their rows of each."


def _steps(model: Any) -> Iterator[str]:
    from aiaas_magics.core.internals.keras_internals import TensorFlowTrainer

    own = [
        name for name in ("train_step", "test_step", "compute_loss") if getattr(type(model), name) is not getattr(TensorFlowTrainer, name)
    ]
    if own:
        yield (
            f"{type(model).__name__} has its own {_list(own)}: exact where losses are means over rows, gradients go through a Keras "
            "optimizer, and no variable keeps what rows leave in it; a sum over the batch counts each worker's rows only, and a value "
            "that is returned but is no metric is averaged."
        )


def _losses(model: Any) -> Iterator[str]:
    adding = [layer for layer in (model, *_own_layers(model)) if _mentions(type(layer), "add_loss")]
    if adding:
        yield f"add_loss in {_names(adding)}: each worker's value is taken as a mean over its rows; a sum over rows would come out smaller."
    if any(probing.attribute(loss, "reduction", "") in (None, "none") for loss in _compiled(model, "loss")):
        yield "A loss without reduction: gradients are exact, the loss that is shown is not. Use reduction='sum' to have both."


def _layers(model: Any) -> Iterator[str]:
    import keras

    layers = list(model._flatten_layers(include_self=True))
    normal = [
        layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable and not layer.synchronized
    ]
    if normal:
        yield (
            f"BatchNormalization ({_names(normal)}) uses the mean and variance of each worker's own rows; "
            "the moving statistics are averaged over workers at the end of each epoch. With synchronized=True they are the batch's."
        )
    own_parts = [*([] if _is_keras(type(model)) else [model]), *_own_layers(model)]
    own = [layer for layer in own_parts if any(keras.backend.is_float_dtype(v.dtype) for v in layer._non_trainable_variables)]
    if own:
        yield f"Non-trainable variables of {_names(own)} follow each worker's rows and are averaged over workers at the end of each epoch."
    if drawing := [layer for layer in layers if _draws(layer)]:
        yield f"Random numbers ({_names(drawing)}) are drawn by each worker for its own rows: n workers draw others than one."


def _draws(layer: Any) -> bool:
    """Whether a layer draws random numbers. Recurrent cells have a generator also where nothing is dropped."""
    rates = [getattr(layer, name) for name in ("dropout", "recurrent_dropout") if isinstance(getattr(layer, name, None), int | float)]
    return bool(getattr(layer, "_seed_generators", ())) and (not rates or not _is_keras(type(layer)) or any(rates))


def _metrics(model: Any) -> Iterator[str]:
    own = [metric for metric in _all_metrics(model) if not _is_keras(type(metric))]
    if own:
        yield f"Variables of the metric {_names(own)} are added up over workers: exact where they are sums or counts over rows."
    functions = [metric for metric in _all_metrics(model) if _is_keras(type(metric)) and _is_own_function(probing.attribute(metric, "_fn"))]
    if functions:
        yield f"The metric {_names(functions)} is computed on each worker's rows: exact where it is a mean over rows."


def _callbacks(callbacks: Iterable[Any]) -> Iterator[str]:
    own = dict.fromkeys(type(callback).__name__ for callback in callbacks if not _is_keras(type(callback)))
    if own:
        yield (f"Callbacks ({', '.join(own)}) run on every worker, so that all decide alike; files and attributes are kept of worker 0.")


def _engine(model: Any, arguments: Mapping[str, Any]) -> Iterator[str]:
    if (size := int(model.steps_per_execution or 1)) > 1:
        batched = isinstance(arguments.get("x"), batch_sources.BatchSource)
        yield (
            f"steps_per_execution={size} is 1 on several workers: they meet at each step. Results do not change, and callbacks are called "
            f"{'after each step' if batched else 'as often as before'}."
        )
        # Plain fit rounds an epoch up to whole executions. What yields batches goes through Keras' own iterator, which counts in ones here.
        if batched and (steps := arguments.get("steps_per_epoch")) and steps % size:
            whole = whole_executions(steps, size)
            yield (
                f"steps_per_execution={size} does not divide steps_per_epoch={steps}: an epoch has {steps} steps here, "
                f"{whole} in plain fit. Use steps_per_epoch={whole} for the same."
            )
    if model.jit_compile:
        yield "jit_compile is off on several workers: what they exchange cannot be compiled by XLA."


def _layers_of(model: Any, cls: Any) -> list[Any]:
    return [layer for layer in model._flatten_layers(include_self=False) if isinstance(layer, cls)]


def _mirrored(model: Any) -> Iterator[str]:
    if model.jit_compile:
        yield "jit_compile is off on several devices: what they exchange cannot be compiled by XLA."
    if _mentions(type(model), "num_replicas_in_sync"):
        yield (
            f"{type(model).__name__} divides by num_replicas_in_sync itself: leave that out, gradients are weighted by each device's rows "
            "already."
        )


def _own_layers(model: Any) -> list[Any]:
    return [layer for layer in model._flatten_layers(include_self=False) if not _is_keras(type(layer))]


def _all_metrics(model: Any) -> list[Any]:
    """Every metric, those that `compile` was given too: Keras keeps them inside one of its own."""
    return [inner for metric in model.metrics for inner in (probing.attribute(metric, "metrics") or [metric])]


def _compiled(model: Any, name: str) -> list[Any]:
    from keras import tree

    return [leaf for leaf in tree.flatten(getattr(model, name, None)) if leaf is not None]


def _mentions(cls: type, name: str) -> bool:
    """Whether a method that is not Keras' own uses `name`."""
    return any(
        isinstance(value, types.FunctionType) and name in value.__code__.co_names
        for base in cls.__mro__
        if not _is_keras(base)
        for value in vars(base).values()
    )


def _is_keras(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in {"keras", "builtins", "tensorflow"}


def _is_own_function(function: Any) -> bool:
    return isinstance(function, types.FunctionType) and function.__module__.partition(".")[0] != "keras"


def _names(things: Iterable[Any]) -> str:
    names = [str(thing.name) for thing in things]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _list(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
