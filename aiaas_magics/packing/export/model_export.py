"""A live model to an artefact that a serving host can run and check, without its code.

Owns the export (ONNX, or a zip of a SavedModel where ONNX cannot) and Keras' own outputs on
sample rows. Choosing the rows belongs to `samples`; replaying them belongs to the host. Where fewer
bits were asked for, the samples hold the answers of that form; making it belongs to `quantization`,
what it changes to `accuracy_impact`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aiaas_magics.core import snippets
from aiaas_magics.core.agreement import compare, largest_of
from aiaas_magics.core.agreement import spread as spread_of
from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.core.precision import MOST_SPREAD, Precision, for_spread
from aiaas_magics.core.spec import TensorSpec
from aiaas_magics.packing.checks import fit_checks, model_state
from aiaas_magics.packing.checks.model_state import ModelState
from aiaas_magics.packing.export import accuracy_impact, export_formats, quantization, sample_bytes
from aiaas_magics.packing.export.accuracy_impact import PrecisionChange, Reduction
from aiaas_magics.packing.export.export_formats import ONNX, SAVED_MODEL, CannotServe, replayed
from aiaas_magics.packing.export.samples import Interface, original_names, samples_for, unique_names

__all__ = ["CannotServe", "Servable", "export"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Servable:
    """An exported model with the proof of what it computes."""

    artefact: bytes
    format: str  # "onnx" | "saved_model"
    samples: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    note: str = ""  # why it is no ONNX file, where it is none: a clause without a full stop
    change: PrecisionChange | None = None  # what fewer bits do to the answers; None as trained
    spread: float = 0.0  # how far Keras' own answers to a row differ with other rows beside it, as a part of the largest
    example: str = ""  # a sample row as JSON, for calls to paste; "" where it is long
    origin: str = "Keras"  # what computed the answers of the samples
    frozen: tuple[str, ...] = ()  # state that a call changes in Keras, and that no answer depends on


def export(
    model: Any,
    sample: Any = None,
    *,
    format: str | None = None,
    reduction: Reduction | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Servable:
    """Export `model` with sample rows and Keras' own outputs on them; in fewer bits with those of that form. `model` stays as it is.

    Args:
        sample: Up to 32 typical rows, as `fit` takes them for x; None for validation data, or else rows of the last fit.
        format: "onnx" or "saved_model"; None for ONNX where it can be had.
        reduction: fewer bits for the weights, and the rows to measure on what that changes.
        on_step: called with what is done next, in words.

    Raises:
        NoSamples: typical rows are neither given nor known.
        DataMismatch: the rows do not go through the model.
        CannotServe: neither format can express it, or not in so few bits.
    """
    import keras

    if not isinstance(model, keras.Model):
        raise CannotServe(f"{type(model).__name__} is no keras.Model. Give a model to deploy.")
    if keras.backend.backend() != "tensorflow":
        raise CannotServe(
            f"This kernel's Keras runs on {keras.backend.backend()}, and models are exported from TensorFlow. "
            "Set KERAS_BACKEND=tensorflow before importing keras, restart the kernel and load the model again."
        )
    fit_checks.check_free(model, "deploy")
    _refuse_stateful(model)
    if sample is None and reduction is not None:
        sample = accuracy_impact.split(reduction.validation_data)[0]
    interface, rows, which = samples_for(model, sample)
    with model_state.kept(model) as state:
        return _export(model, interface, rows, which, state, format=format, reduction=reduction, on_step=on_step)


def _export(
    model: Any,
    interface: Interface,
    rows: Mapping[str, np.ndarray],
    which: str,
    state: ModelState,
    *,
    format: str | None,
    reduction: Reduction | None,
    on_step: Callable[[str], None],
) -> Servable:
    import keras

    with export_formats.quiet():
        on_step(f"computing {len(next(iter(rows.values())))} sample rows in Keras")
        structure = _answers(model, interface, rows)
        found = _arrays(model, structure)
        moved = state.moved()
        _check_repeats(model, found, _outputs(model, interface, rows), moved)
        spread = _spread(model, interface, rows, found)
        function = _function(model, interface, found)
        has_texts = "string" in interface.dtypes
        wanted = [format] if format else [SAVED_MODEL] if has_texts else [ONNX, SAVED_MODEL]
        state.put_back()
        expected = export_formats.Expected(rows, found, for_spread(spread))
        kind, artefact, note = export_formats.written(model, function, wanted, expected, put_back=state.put_back, on_step=on_step)
    changed = None
    if reduction is not None:
        smaller = _smaller(model, reduction.precision, kind, artefact, "texts go into it" if has_texts else note)
        form = accuracy_impact.onnx_form(smaller)
        names = list(found)
        both = accuracy_impact.Forms(
            full=lambda part: {name: tensor.numpy() for name, tensor in function(*(part[name] for name in interface.names)).items()},
            reduced=form,
            structured=lambda answers: keras.tree.pack_sequence_as(structure, [answers[name] for name in names]),
        )
        sizes = len(artefact), len(smaller)
        changed = accuracy_impact.measure(model, reduction, both, interface=interface, sample=rows, of=which, sizes=sizes)
        artefact, found = smaller, form(rows)
    return Servable(
        artefact=artefact,
        format=kind,
        samples=sample_bytes.as_safetensors(rows, found),
        inputs=interface.specs,
        outputs=_output_specs(function, found, _output_names(model, structure)[1]),
        note="texts go into it" if has_texts and kind == SAVED_MODEL else note,
        change=changed,
        spread=spread,
        example=snippets.example_of(rows),
        frozen=moved,
    )


def _refuse_stateful(model: Any) -> None:
    """A recurrent layer that goes on from the call before has no meaning where calls come from anybody."""
    import keras

    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.RNN) and layer.stateful]
    if layers:
        raise CannotServe(
            f"Model {model.name!r} cannot be served: its layer {layers[0].name!r} is stateful, and requests to an endpoint do not follow "
            "one another. Build the model anew with stateful=False, and give it these weights with set_weights."
        )


def _check_repeats(model: Any, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], moved: Sequence[str]) -> None:
    """Raises `CannotServe` where two calls with the same rows differ: no engine could be compared with Keras then."""
    for name, array in first.items():
        if array.shape != second[name].shape or not _agrees(second[name], array, Precision(), largest=_largest(array)):
            cause = f"a call changes {', '.join(moved[:4])}" if moved else "it draws random numbers in each call"
            raise CannotServe(
                f"Model {model.name!r} answers the same rows differently from call to call (output {name!r}), since {cause}. "
                "Deploy a model without that part, whose answers depend on its inputs alone."
            )


def _spread(model: Any, interface: Interface, rows: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """How far Keras' own answers to a row differ with other rows beside it, as a part of the largest answer.

    Raises:
        CannotServe: by more than rounding: requests of others, which run together, would change an answer.
    """
    count, widest = len(next(iter(rows.values()))), 0.0
    for number in replayed(count):
        if number == count:
            continue
        chosen = np.arange(number) % count
        answers = _outputs(model, interface, {name: array[chosen] for name, array in rows.items()}, batch=number)
        for name, expected in found.items():
            if len(expected) != count:
                continue
            part, answer = expected[chosen], answers[name]
            if answer.shape != part.shape:
                apart = math.inf
            elif part.dtype.kind in "OSU":
                apart = 0.0 if (answer == part).all() else math.inf
            else:
                apart = spread_of(answer, part, largest=_largest(expected))
            if apart > MOST_SPREAD:
                raise CannotServe(
                    f"Model {model.name!r} cannot be served: what it answers to a row depends on the rows beside it (output {name!r}, "
                    f"{number} of the {count} sample rows alone). Requests come with any number of rows. "
                    "Deploy the part of the model whose answers to a row depend on that row alone."
                )
            widest = max(widest, apart)
    return widest


def _largest(array: np.ndarray) -> float:
    return 0.0 if array.dtype.kind in "OSU" else largest_of(array)


def _agrees(answers: np.ndarray, expected: np.ndarray, allowed: Precision, *, largest: float) -> bool:
    if expected.dtype.kind in "OSU":
        return bool((answers == expected).all())
    return bool(compare(answers, expected, allowed, largest=largest))


# --------------------------------------------------------------------------- fewer bits


def _smaller(model: Any, precision: str, kind: str, artefact: bytes, note: str) -> bytes:
    if kind != ONNX:
        why = f" ({note})"
        raise CannotServe(
            f"Model {model.name!r} can be served as a SavedModel only{why}; {precision} is to be had as ONNX. "
            "Leave --precision out, or deploy the part of the model that ONNX can express."
        )
    try:
        return quantization.reduce(artefact, precision)
    except quantization.NothingToReduce as error:
        raise CannotServe(f"Model {model.name!r} gains nothing from {precision}: {error}. Leave --precision out.") from error


# --------------------------------------------------------------------------- the model as a function of names


def _call(model: Any, interface: Interface, named: Mapping[str, Any]) -> Any:
    inputs = interface.arranged([named[name] for name in interface.names])
    return model(inputs, training=False) if model._call_has_training_arg else model(inputs)


def _answers(model: Any, interface: Interface, rows: Mapping[str, np.ndarray], *, batch: int = 0) -> Any:
    """What Keras answers to the rows, as the model's call gives it; never through `predict`, which may batch and wrap.

    Args:
        batch: where these are fewer rows than the sample has, which the model took: their number.
    """
    import tensorflow as tf

    try:
        return _call(model, interface, {name: tf.constant(sample_bytes.as_text(array)) for name, array in rows.items()})
    except Exception as error:
        reason = " ".join(str(error).split())[:400].rstrip(".")
        if batch:
            raise CannotServe(
                f"Model {model.name!r} cannot be served: it takes the whole sample, and not {batch} row{'s' if batch > 1 else ''} of it. "
                "Requests come with any number of rows: leave the first dimension free in its Input (no batch_size), and in its reshapes. "
                f"Keras says: {reason}."
            ) from error
        raise DataMismatch(
            f"Model {model.name!r} does not take these sample rows. Give typical ones with --sample ARRAY. Keras says: {reason}."
        ) from error


def _outputs(model: Any, interface: Interface, rows: Mapping[str, np.ndarray], *, batch: int = 0) -> dict[str, np.ndarray]:
    """Keras' own answers on the rows, by output name."""
    return _arrays(model, _answers(model, interface, rows, batch=batch))


def _arrays(model: Any, answers: Any) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(tensor.numpy()) for name, tensor in _named_outputs(model, answers).items()}
    single = next((name for name, array in arrays.items() if array.ndim == 0), None)
    if single is not None:
        raise CannotServe(
            f"Model {model.name!r} cannot be served: its output {single!r} is one number for all rows together. "
            "Deploy a model that gives an answer for each row, its first dimension the batch."
        )
    return arrays


def _output_names(model: Any, answers: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The outputs' names, and for each the name in Keras where that is another."""
    import keras

    from aiaas_magics.core.internals.keras_internals import to_snake_case

    count = len(keras.tree.flatten(answers))
    if isinstance(answers, Mapping):
        own: list[Any] = ["_".join(map(str, path)) for path, _ in keras.tree.flatten_with_path(answers)]
    else:
        own = list(getattr(model, "output_names", None) or [])
    if len(own) != count:
        own = ["output"] * count
    automatic = frozenset({"output", *(to_snake_case(type(layer).__name__) for layer in model._flatten_layers())})
    automatic = frozenset() if isinstance(answers, Mapping) else automatic
    return unique_names(own, "output", automatic), original_names(own, "output", automatic)


def _named_outputs(model: Any, answers: Any) -> dict[str, Any]:
    import keras
    import tensorflow as tf

    flat = keras.tree.flatten(answers)
    if any(leaf is None for leaf in flat):
        raise CannotServe(f"Model {model.name!r} cannot be served: None is among its outputs. Let call return tensors only.")
    names, _ = _output_names(model, answers)
    # numpy has no bfloat16, and neither have the clients.
    plain = [tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tf.convert_to_tensor(tensor) for tensor in flat]
    return dict(zip(names, plain, strict=True))


def _function(model: Any, interface: Interface, found: Mapping[str, np.ndarray]) -> Any:
    """A `tf.function` with the interface's names for its arguments and outputs."""
    import tensorflow as tf

    specs = [
        tf.TensorSpec(shape, dtype, name=name)
        for name, shape, dtype in zip(interface.names, interface.shapes, interface.dtypes, strict=True)
    ]

    @tf.function(input_signature=specs, autograph=False)  # type: ignore[untyped-decorator]
    def serve(*tensors: Any) -> dict[str, Any]:
        outputs = _named_outputs(model, _call(model, interface, dict(zip(interface.names, tensors, strict=True))))
        return {name: tf.identity(tensor, name=name) for name, tensor in outputs.items()}

    return serve


def _output_specs(function: Any, found: Mapping[str, np.ndarray], originals: Sequence[str]) -> tuple[TensorSpec, ...]:
    structured = function.get_concrete_function().structured_outputs
    specs = []
    for (name, array), original in zip(found.items(), originals, strict=True):
        shape = structured[name].shape
        dims = [-1] * array.ndim if shape.rank is None else [-1 if n is None else int(n) for n in shape]
        dtype = "string" if array.dtype.kind in "OSU" else array.dtype.name
        specs.append(TensorSpec(name=name, dtype=dtype, shape=tuple(dims), original=original))
    return tuple(specs)
