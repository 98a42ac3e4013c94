"""Fit checks: whether a fit call can work at all, before anything is sent.

Owns the checks of `compile`, of the data, and of both together, and building what is not
built yet: variables must exist in the kernel, or their trained values would find no home.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from aiaas_magics.core import keras_messages
from aiaas_magics.core.errors import DataMismatch, InvalidSpec, JobStillRunning, NotCompiled, UsageError
from aiaas_magics.core.spec import FitShape
from aiaas_magics.packing.data import batch_sources, fit_data
from aiaas_magics.packing.data.batch_shapes import BatchSpec, symbols, training_rows
from aiaas_magics.packing.live import attributes, model_state


class UnsuitableKeras(UsageError):
    """The kernel's Keras is not one that workers run. The argument is the whole sentence, next move included."""


def check_keras(model: Any) -> None:
    """Raises `UnsuitableKeras` for legacy Keras, and for Keras on another library than TensorFlow."""
    if any(cls.__module__.startswith("tf_keras") for cls in type(model).__mro__):
        raise UnsuitableKeras(
            "This model is one of legacy Keras (tf_keras), workers run Keras 3. "
            "Unset TF_USE_LEGACY_KERAS, restart the kernel and import keras."
        )
    import keras

    if keras.backend.backend() != "tensorflow":
        raise UnsuitableKeras(
            f"This kernel's Keras runs on {keras.backend.backend()}, workers run TensorFlow. "
            "Set KERAS_BACKEND=tensorflow before importing keras, and restart the kernel."
        )
    if not isinstance(model, keras.Model):
        raise UnsuitableKeras(f"{type(model).__name__} is no keras.Model. Give the model that fit was called on.")


JOB_MARK: Final = "_aiaas_job"  # of a layer whose weights a job trains: the job's id


def check_free(model: Any, action: str) -> None:
    """Raises `JobStillRunning` where a job trains the model or one of its layers, perhaps as a part of another model."""
    for layer in model._flatten_layers():
        if (job := vars(layer).get(JOB_MARK)) is not None:
            raise JobStillRunning(job, action)


def check_model(model: Any) -> None:
    """Whether `model.fit` can be called at all.

    Raises:
        UnsuitableKeras, JobStillRunning, NotCompiled: with the next move.
    """
    check_keras(model)
    check_free(model, "fit")
    if not getattr(model, "compiled", False):
        raise NotCompiled(model.name)


def check_arguments(model: Any, arguments: Mapping[str, Any]) -> None:
    """Numbers of `fit`, lengths of its arrays, and what is known of a dataset.

    Raises:
        DataMismatch: with what was given.
    """
    for name in ("batch_size", "validation_batch_size", "steps_per_epoch", "validation_steps"):
        value = arguments.get(name)
        if value is not None and (not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1):
            raise DataMismatch(f"{name}={value!r}: a whole number of at least 1 is needed. Leave it out for Keras' own choice.")
    for name in ("epochs", "initial_epoch"):
        value = arguments.get(name, 0)
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 0:
            raise DataMismatch(f"{name}={value!r}: a whole number is needed. Write {name}=10, say.")
    validation = arguments.get("validation_data")
    if batch_sources.is_source(validation):
        batch_sources.check(validation, "validation_data", steps_name="validation_steps", steps=arguments.get("validation_steps"))
    if batch_sources.is_source(arguments.get("x")):
        _check_source(model, arguments)
        return
    if not any(True for _ in fit_data.leaves(arguments.get("x"), "x")):
        raise DataMismatch("fit was given no data: x is missing. Give x, and y where the loss needs it.")
    _check_targets(arguments.get("y"))
    _check_lengths([*(leaf for part in fit_data.PARTS for leaf in fit_data.leaves(arguments.get(part), part))])
    _check_lengths(list(fit_data.leaves(arguments.get("validation_data"), "validation_data")))
    if arguments.get("class_weight") is not None and arguments.get("sample_weight") is not None:
        raise DataMismatch("class_weight and sample_weight were given both, which Keras does not take. Multiply them into sample_weight.")
    split = arguments.get("validation_split") or 0.0
    if not 0.0 <= split < 1.0:
        raise DataMismatch(f"validation_split={split!r}: a fraction below 1 is needed. Use validation_split=0.2, say.")
    if training_rows(arguments) < 1:
        raise DataMismatch(f"validation_split={split} leaves no rows for training. Give more data, or a smaller split.")


def _check_source(model: Any, arguments: Mapping[str, Any]) -> None:
    for name, label in (("y", "the targets"), ("sample_weight", "the weights")):
        if arguments.get(name) is not None:
            raise DataMismatch(
                f"{name} was given beside x of type {type(arguments['x']).__name__}. Let x yield {label} too, as (x, y, ...)."
            )
    if arguments.get("class_weight") is not None and batch_sources.is_iterator(arguments["x"]):
        raise DataMismatch("class_weight was given beside a generator, which Keras does not take. Let it yield (x, y, weights).")
    if arguments.get("validation_split"):
        raise DataMismatch("validation_split needs arrays, and x yields batches. Give validation_data instead.")
    declared = getattr(model, "inputs", None)
    shapes = [tuple(tensor.shape) for tensor in declared] if declared else None
    batch_sources.check(arguments["x"], "x", steps_name="steps_per_epoch", steps=arguments.get("steps_per_epoch"), declared=shapes)


def _check_targets(y: Any) -> None:
    for path, array in fit_data.leaves(y, "y"):
        if array.dtype.kind in "US":  # as plain `fit`, which takes no array of these
            how = "Encode them: np.unique(y, return_inverse=True)[1], say."
            raise DataMismatch(f"{path} holds texts ({array.dtype}), and a loss takes numbers. {how}")


def _check_lengths(arrays: list[tuple[str, np.ndarray]]) -> None:
    if not arrays:
        return
    for path, array in arrays:
        if array.ndim == 0:
            raise DataMismatch(f"{path} is a single number. Give an array with one row for each sample.")
        if not len(array):
            raise DataMismatch(f"{path} has no rows (shape {array.shape}). Give at least one.")
    lengths = {len(array) for _, array in arrays}
    if len(lengths) > 1:
        lengths_text = ", ".join(f"{path} has {len(array)}" for path, array in arrays)
        raise DataMismatch(f"The arrays have different numbers of rows: {lengths_text}. Give as many rows in each.")


def check_parts(model: Any, shape: FitShape, *, workers: int, parts: int, together: bool = False) -> None:
    """Raises `InvalidSpec` where a batch cannot be computed in so many parts; `together`: workers run one program on the whole batch."""
    import keras

    fixed = next((tensor.shape[0] for tensor in keras.tree.flatten(getattr(model, "inputs", None) or ()) if tensor.shape[0]), None)
    whole = together or (fixed or 0) < workers  # a batch with fewer rows than workers is computed whole by each
    if fixed and parts * (1 if whole else workers) > 1:
        option = f"{workers} workers" if not whole and workers > 1 else f"--accumulate {parts}"
        raise InvalidSpec(
            f"Model {model.name!r} takes batches of {fixed} rows only (batch_shape), and with {option} a batch is computed in parts. "
            "Use --workers 1 without --accumulate, or make the model without a batch size."
        )

    rows = min(shape.global_batch, shape.rows) // workers
    if parts > max(1, rows):
        part = f"a batch of {shape.global_batch} rows" if workers == 1 else f"a worker's part of a batch of {shape.global_batch} rows"
        raise InvalidSpec(f"accumulate={parts}: {part} is {rows} rows, fewer than parts. Use --accumulate {max(1, rows)} at most.")
    further = [name for name, value in vars(model).items() if isinstance(value, keras.Optimizer) and value is not model.optimizer]
    if parts > 1 and further:
        raise InvalidSpec(
            f"{type(model).__name__} has further optimizers ({', '.join(further)}): its steps need whole batches. Leave --accumulate out."
        )


def build(model: Any, batch: BatchSpec, arguments: Mapping[str, Any] | None = None) -> None:
    """Build model, metrics, loss and optimizer where they are not, and check that the data fits them.

    Args:
        arguments: of `fit`, whose first rows build a model that runs eagerly and reads numbers; ones where left out.

    Raises:
        DataMismatch: with the shapes of the data and what Keras says.
    """
    with model_state.scopes_kept(), attributes.counts_kept(model):
        _build(model, symbols(batch), arguments)


def _build(model: Any, specs: Any, arguments: Mapping[str, Any] | None) -> None:
    own_step = _has_own_step(model)
    try:
        with _strategy_of(model):
            _build_by_tracing(model, specs) if own_step else _build_by_symbols(model, specs)
    except Exception as error:
        eager = runs_eagerly(model)
        if is_built(model) and getattr(model.optimizer, "built", True) and ((eager and not own_step) or not _names_shapes(error)):
            return  # code that only runs on values: the workers' own attempt decides
        if eager:
            _build_by_values(model, specs, arguments)
            return
        if own_step and model.built and not _names_shapes(error):
            return  # as above; layers that its step makes are missed when the result comes back
        raise DataMismatch(_mismatch(model, specs, error)) from error


def _strategy_of(model: Any) -> contextlib.AbstractContextManager[Any]:
    """The user's strategy, in whose scope the model was made: variables of its optimizer are made there too, as plain `fit` makes them."""
    import tensorflow as tf

    strategy = model._distribute_strategy
    return contextlib.nullcontext() if strategy in (None, tf.distribute.get_strategy()) else strategy.scope()


def runs_eagerly(model: Any) -> bool:
    """Whether the steps of `model` run as plain Python, by `compile` or by TensorFlow's switch for all functions."""
    import tensorflow as tf

    return bool(model.run_eagerly or tf.config.functions_run_eagerly())


def is_built(model: Any) -> bool:
    """Whether all its layers are: a model may say so of itself before they are."""
    return all(layer.built for layer in model._flatten_layers())


def _build_by_symbols(model: Any, batch: Any) -> None:
    from aiaas_magics.core.internals.keras_internals import backend

    if not is_built(model):  # as plain `fit` builds it; Keras' own symbolic build leaves out what is called in training only
        backend.compute_output_spec(model, batch[0], training=True)
    model._symbolic_build(data_batch=batch)
    _check_fit(model, batch)


def _build_by_values(model: Any, batch: Any, arguments: Mapping[str, Any] | None) -> None:
    """Call the model on the first rows, since its code reads numbers; what the call changes is put back.

    Raises:
        DataMismatch: the call fails.
    """
    x, y, _ = _first_rows(batch, arguments)
    try:
        with model_state.restored_after(model):
            y_pred = model(x, training=False)
        for part in (model._compile_metrics, model._compile_loss):
            if part is not None and not part.built:
                part.build(y, y_pred)
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
    except Exception as error:
        raise DataMismatch(_mismatch(model, batch, error)) from error
    model._post_build()


def _first_rows(batch: Any, arguments: Mapping[str, Any] | None) -> tuple[Any, Any, Any]:
    """Tensors of the shapes in `batch`: rows of the arguments where they are arrays, else ones."""
    import keras
    import tensorflow as tf

    def filled(symbol: Any) -> Any:
        if symbol is None:
            return None
        shape = [n or 1 for n in symbol.shape]
        return tf.fill(shape, "") if symbol.dtype == "string" else tf.ones(shape, symbol.dtype)

    def rows(array: Any, symbol: Any) -> Any:
        first = np.asarray(array[: symbol.shape[0]])
        return tf.constant(first.astype(object), tf.string) if symbol.dtype == "string" else tf.cast(tf.constant(first), symbol.dtype)

    def part(name: str, specs: Any) -> Any:
        value = (arguments or {}).get(name)
        if value is None or isinstance((arguments or {}).get("x"), batch_sources.BatchSource):
            return keras.tree.map_structure(filled, specs)
        return keras.tree.map_structure(lambda symbol, array: None if symbol is None else rows(array, symbol), specs, value)

    x, y, sample_weight = (part(name, specs) for name, specs in zip(fit_data.PARTS, batch, strict=True))
    return x, y, sample_weight


def _check_fit(model: Any, batch: Any) -> None:
    """What `_symbolic_build` leaves out for a model that is built: does this data go through it?"""
    from aiaas_magics.core.internals.keras_internals import backend

    x, y, sample_weight = batch
    if model._compile_loss is None:
        backend.compute_output_spec(lambda *tensors: _added_losses(model, *tensors), x, y, sample_weight)
        return
    y_pred = _declared_outputs(model, x)
    if y_pred is None:
        y_pred = backend.compute_output_spec(model, x, training=False)
    backend.compute_output_spec(model._compute_loss, x, y, y_pred, sample_weight=sample_weight, training=False)


def _added_losses(model: Any, x: Any, y: Any, sample_weight: Any) -> Any:
    """The loss of a call that collects what layers add by `add_loss`, which Keras' symbolic calls do not."""
    from aiaas_magics.core.internals.keras_internals import backend

    with backend.StatelessScope(collect_losses=True):
        y_pred = model(x, training=True)
        return model._compute_loss(x, y, y_pred, sample_weight=sample_weight, training=True)


def _declared_outputs(model: Any, x: Any) -> Any:
    """The outputs of a functional graph whose inputs are exactly like `x`: then going through its layers again tells nothing new."""
    import keras

    from aiaas_magics.core.internals.keras_internals import Functional

    graph = getattr(model, "_functional", None) or model
    if not isinstance(graph, Functional):
        return None
    leaves, declared = keras.tree.flatten(x), keras.tree.flatten(graph._inputs_struct)
    same_structure = type(x) is type(graph._inputs_struct) and (not isinstance(x, dict) or set(x) == set(graph._inputs_struct))
    if not same_structure or [tensor.shape[1:] for tensor in leaves] != [tensor.shape[1:] for tensor in declared]:
        return None
    rows = leaves[0].shape[0]
    return keras.tree.map_structure(lambda tensor: keras.KerasTensor((rows, *tensor.shape[1:]), dtype=tensor.dtype), graph._outputs_struct)


def _has_own_step(model: Any) -> bool:
    from aiaas_magics.core.internals.keras_internals import TensorFlowTrainer

    return type(model).train_step is not TensorFlowTrainer.train_step


def _build_by_tracing(model: Any, batch: Any) -> None:
    """Trace the user's own `train_step` once, as `fit` does: what it builds on the way is built then. No op runs."""
    import tensorflow as tf
    from keras import tree

    specs = tree.map_structure(lambda leaf: None if leaf is None else tf.TensorSpec(leaf.shape, leaf.dtype), batch)
    packed = specs if specs[2] is not None else specs[:2] if specs[1] is not None else specs[0]
    if tf.config.functions_run_eagerly():
        raise NotImplementedError("no function is traced while all of them run eagerly")
    tf.function(model.train_step, reduce_retracing=True).get_concrete_function(packed)
    model._post_build()


def _names_shapes(error: Exception) -> bool:
    """Keras and TensorFlow raise these two for data that does not go through a model."""
    import tensorflow as tf

    return isinstance(error, (ValueError, tf.errors.InvalidArgumentError))


def _mismatch(model: Any, batch: Any, error: Exception) -> str:
    batch_text = ", ".join(f"{name} {_shapes(part)}" for name, part in zip(fit_data.PARTS, batch, strict=True) if part is not None)
    model_text = _declared_shapes(model)
    reason = " ".join(keras_messages.message_of(error).split())[:600].rstrip(".")
    return (
        f"Model {model.name!r} rejects this data: a batch is {batch_text}{model_text}. Change the data or the model; "
        f"if plain fit takes both, the limit is ours, and --local-fallback runs this fit in the kernel. Keras says: {reason}."
    )


def _shapes(part: Any) -> str:
    if isinstance(part, Mapping):
        return "{" + ", ".join(f"{key!r}: {_shapes(item)}" for key, item in part.items()) + "}"
    if isinstance(part, (list, tuple)):
        return "[" + ", ".join(_shapes(item) for item in part) + "]"
    return "None" if part is None else str(tuple(part.shape))


def _declared_shapes(model: Any) -> str:
    """What the model says of its inputs and outputs, where it knows."""
    try:
        inputs, outputs = model.input_shape, model.output_shape
    except (AttributeError, ValueError):
        return ""
    return f"; the model takes {inputs} and gives {outputs}"
