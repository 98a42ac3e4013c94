"""Private checks: what of a fit breaks the guarantee of differential privacy, refused or announced before the run.

Owns the sentences. A refusal names the next move. What is announced keeps the guarantee of the weights, and is not covered by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.privacy import EPSILON_LOG, Privacy, sampling_of
from aiaas_magics.core.spec import FitShape
from aiaas_magics.packing.data import batch_sources
from aiaas_magics.packing.live import probing

WATCHERS: Final = ("EarlyStopping", "ReduceLROnPlateau", "ModelCheckpoint")  # Keras' callbacks that decide by a number
COMPARING: Final = ("Circle",)  # losses that compare the rows of a batch


def check(model: Any, arguments: Mapping[str, Any], callbacks: Iterable[Any]) -> None:
    """Whether this fit can have the guarantee.

    Raises:
        InvalidSpec: it cannot; nothing was sent.
    """
    for why in (*_data(arguments), *_model(model), *_compiled(model), *_callbacks(callbacks)):
        raise InvalidSpec(why)


def _data(arguments: Mapping[str, Any]) -> Iterator[str]:
    if batch_sources.is_source(arguments.get("x")) or isinstance(arguments.get("x"), batch_sources.BatchSource):
        yield "Private training draws the rows of each step itself, and x yields batches. Give arrays to fit, or leave --private out."


def _model(model: Any) -> Iterator[str]:
    import keras

    from aiaas_magics.core.internals.keras_internals import TensorFlowTrainer

    for name in ("train_step", "make_train_function"):
        if getattr(type(model), name) is not getattr(TensorFlowTrainer, name):
            yield (
                f"{type(model).__name__} has a {name} of its own, whose gradients are not clipped row by row. "
                "Use compile and the stock train_step, or leave --private out."
            )
    layers = list(model._flatten_layers(include_self=True))
    normal = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
    if normal:
        yield (
            f"BatchNormalization ({_names(normal)}) mixes the rows of a batch, so no gradient belongs to one row. "
            "Use GroupNormalization or LayerNormalization, or freeze it with trainable=False."
        )
    spectral = [layer for layer in layers if isinstance(layer, keras.layers.SpectralNormalization)]
    if spectral:
        yield (
            f"SpectralNormalization ({_names(spectral)}) changes its state in each step, which private steps leave as it is. "
            "Leave the layer out."
        )
    fixed = next((tensor.shape[0] for tensor in keras.tree.flatten(getattr(model, "inputs", None) or ()) if tensor.shape[0]), None)
    if fixed:
        yield (
            f"Model {model.name!r} takes batches of {fixed} rows only (batch_shape), and private training computes each row by itself. "
            "Make the model without a batch size."
        )


def _compiled(model: Any) -> Iterator[str]:
    import keras

    optimizer = model.optimizer
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or getattr(optimizer, "loss_scale_factor", None):
        yield "Private training takes no scaled loss. Use no loss_scale_factor, and mixed_bfloat16 in place of mixed_float16."
    for loss in _losses(model):
        reduction = probing.attribute(loss, "reduction", "")
        if type(loss).__name__ in COMPARING:
            yield f"{type(loss).__name__} compares the rows of a batch, so no gradient belongs to one row. Use a loss of single rows."
        if reduction in (None, "none", "mean_with_sample_weight"):
            yield (
                f"A loss with reduction={reduction!r} has no value of one row that can be averaged. "
                "Use the default reduction, 'sum_over_batch_size'."
            )


def _callbacks(callbacks: Iterable[Any]) -> Iterator[str]:
    for callback in callbacks:
        name = next((cls.__name__ for cls in type(callback).__mro__ if cls.__name__ in WATCHERS), "")
        decides = name in ("EarlyStopping", "ReduceLROnPlateau") or bool(getattr(callback, "save_best_only", False))
        monitor = str(getattr(callback, "monitor", ""))
        if name and decides and not monitor.startswith("val_") and monitor != EPSILON_LOG:
            yield (
                f"{name} decides by {monitor!r}, a number of the training rows without noise, which the guarantee does not cover. "
                f"Let it monitor a metric of validation rows, such as 'val_loss', or {EPSILON_LOG!r}."
            )


# --------------------------------------------------------------------------- announced


def notes(model: Any, arguments: Mapping[str, Any], callbacks: Iterable[Any], *, privacy: Privacy, shape: FitShape) -> tuple[str, ...]:
    """One sentence for each thing that the guarantee does not cover, and how the steps differ from plain `fit`."""
    return (*_guarantee(privacy, shape), *_not_covered(model, arguments, callbacks), *_other_steps(model))


def slow_on_tensorflow(model: Any) -> tuple[str, ...]:
    """A sentence where TensorFlow has no vectorized form of a row's gradient."""
    import keras

    from aiaas_magics.core.internals.keras_internals import CONVOLUTIONS

    slow = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.RNN) or any(cls.__module__.startswith(CONVOLUTIONS) for cls in type(layer).__mro__)
    ]
    if not slow:
        return ()
    return (f"{_names(slow)}: TensorFlow computes the gradients of their rows one after the other, which is slow. Use --engine jax.",)


def _guarantee(privacy: Privacy, shape: FitShape) -> Iterator[str]:
    batch = min(shape.rows, shape.global_batch)
    yield (
        f"Private training (DP-SGD): each step draws each of {shape.rows:,} rows with probability {sampling_of(shape.rows, batch):.3g}, "
        f"{batch} on average, in place of shuffled batches. Gradients of rows are clipped to {privacy.clip:g}, noise multiplier "
        f"{privacy.noise:.4g}. The noise is another one in each run."
    )
    if privacy.noise_seed is not None:
        yield "noise_seed is set, so whoever knows it can take the noise off: this fit has no guarantee. Leave it out but in tests."
    if privacy.delta > 1 / shape.rows:
        yield (
            f"delta={privacy.delta:g} is more than 1 / {shape.rows:,} rows: such a guarantee allows to publish a row as it is. "
            f"Use delta={0.1 / shape.rows:.0e}, say."
        )


def _not_covered(model: Any, arguments: Mapping[str, Any], callbacks: Iterable[Any]) -> Iterator[str]:
    yield "Not covered by the guarantee: loss and metrics of the training rows, which are shown without noise."
    if arguments.get("validation_data") is not None or arguments.get("validation_split"):
        yield "Not covered by the guarantee: validation rows. Their metrics are shown as they are."
    if arguments.get("class_weight") is not None or arguments.get("sample_weight") is not None:
        yield "Weights multiply the loss of a row before its gradient is clipped. Weights computed from the data are not covered."
    adapted = [layer for layer in model._flatten_layers() if getattr(layer, "_is_adapted", False) or _is_adapted(layer)]
    if adapted:
        yield f"Not covered by the guarantee: what {_names(adapted)} took from the data in adapt()."
    own = dict.fromkeys(type(callback).__name__ for callback in callbacks if not _is_keras(type(callback)))
    if own:
        yield f"Not covered by the guarantee: what {', '.join(own)} writes or decides by metrics of the training rows."


def _other_steps(model: Any) -> Iterator[str]:
    import keras

    layers = list(model._flatten_layers(include_self=False))
    own = [layer for layer in (*([] if _is_keras(type(model)) else [model]), *layers) if not _is_keras(type(layer))]
    stateful = [layer for layer in own if any(keras.backend.is_float_dtype(v.dtype) for v in layer._non_trainable_variables)]
    if stateful:
        yield f"Non-trainable variables of {_names(stateful)} stay as they are in private steps."
    functions = [loss for loss in _losses(model) if not _is_keras(type(loss)) and not isinstance(loss, str)]
    if own or functions:
        names = [*(str(layer.name) for layer in own[:3]), *(getattr(loss, "__name__", type(loss).__name__) for loss in functions[:3])]
        yield f"Each row is computed by itself: {', '.join(names)} would compute something else where it compares rows of a batch."
    if model.losses or any(getattr(layer, name, None) for layer in layers for name in ("kernel_regularizer", "bias_regularizer")):
        yield "Regularization is a part of each row's gradient, and is clipped with it."
    if any(probing.attribute(loss, "reduction", "") == "sum" for loss in _losses(model)):
        yield "A loss that is summed over the batch is averaged over the expected batch in private steps."


def _losses(model: Any) -> list[Any]:
    from keras import tree

    return [leaf for leaf in tree.flatten(getattr(model, "loss", None)) if leaf is not None]


def _is_adapted(layer: Any) -> bool:
    import keras

    kinds = (keras.layers.TextVectorization, keras.layers.StringLookup, keras.layers.IntegerLookup, keras.layers.Discretization)
    if isinstance(layer, keras.layers.Normalization):
        return getattr(layer, "input_mean", None) is None
    return isinstance(layer, kinds)


def _is_keras(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in {"keras", "builtins", "tensorflow"}


def _names(layers: Iterable[Any]) -> str:
    names = [str(layer.name) for layer in layers]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
