"""Request for an export: what is exported and the rows that it is compared on, parsed once.

Owns `ExportRequest` and making it of a live Keras model (`normalise`). Which rows they are belongs to `samples`, the export itself
to `model_export`, models of other libraries to `foreign_models`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.packing.checks import fit_checks
from aiaas_magics.packing.data import batch_sources, fit_data
from aiaas_magics.packing.export import samples
from aiaas_magics.packing.export.export_formats import ONNX, SAVED_MODEL, CannotServe
from aiaas_magics.packing.export.preprocessing import as_rows, preprocessor_of
from aiaas_magics.packing.export.samples import Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationOptions:
    """Fewer bits for the weights, as asked for. `validation_data` is x, (x,) or (x, y), as arrays; None measures on the sample rows."""

    precision: str
    validation_data: Any = None
    max_change: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRows:
    """The rows that fewer bits are measured on, by input name, and what is true of them, as `fit` takes y; None where nobody says."""

    rows: Mapping[str, np.ndarray]
    truth: Any
    origin: str  # "your validation data", for showing
    is_validation: bool  # else they are sample rows


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationRequest:
    """A quantization with the rows it is measured on."""

    precision: str
    max_change: float | None
    validation: ValidationRows


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """A Keras model with its inputs, and up to 32 rows for each size that was given of its free dimensions."""

    model: Any
    interface: Interface
    samples: tuple[Mapping[str, np.ndarray], ...]  # by input name, one for each size
    formats: tuple[str, ...]  # to be tried in this order
    quantization: QuantizationRequest | None
    preprocess: Callable[[Any], Any] | None = None  # what the kernel does to rows before it sends them, as the model's own `predict` does
    notes: tuple[str, ...] = ()  # sentences on what is served, against what the model does here

    @property
    def has_texts(self) -> bool:
        return "string" in self.interface.dtypes


def normalise(
    model: Any,
    sample: Any = None,
    *,
    other_samples: Sequence[Any] = (),
    format: str | None = None,
    quantization_options: QuantizationOptions | None = None,
) -> ExportRequest:
    """Check what can be checked before anything is computed.

    Args:
        sample: typical rows, as `fit` takes them for x; None for validation data, or else rows of the last fit.
        other_samples: rows that differ from `sample` in the size of a dimension; what differs is free in what is served.
        format: "onnx" or "saved_model"; None for ONNX where it can be had.
        quantization_options: fewer bits for the weights, and the rows to measure on what that changes.

    Raises:
        NoSamples: typical rows are neither given nor known.
        DataMismatch: rows do not fit the model's inputs, or one another.
        CannotServe: it is no model that can be served.
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
    x_val, y_val = (None, None) if quantization_options is None else _split(quantization_options.validation_data)
    front = _front_of(model, x_val if sample is None else sample, other_samples)
    interface, rows, origin = samples.samples_for(model, front.sample, front.other_samples, prepare=front.prepare)
    formats = (SAVED_MODEL,) if "string" in interface.dtypes else (ONNX, SAVED_MODEL)
    request = None
    if quantization_options is not None:
        validation = ValidationRows(rows=rows[0], truth=None, origin=origin, is_validation=False)
        if quantization_options.validation_data is not None:
            validation = _validation(model, interface, x_val if front.preprocess is None else front.preprocess(x_val), y_val)
        request = QuantizationRequest(
            precision=quantization_options.precision, max_change=quantization_options.max_change, validation=validation
        )
    return ExportRequest(
        model=model,
        interface=interface,
        samples=rows,
        formats=formats if format is None else (format,),
        quantization=request,
        preprocess=front.preprocess,
        notes=_notes(model, interface, front),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Front:
    """What stands before the model, and the rows: as `predict` takes them where `prepare` is served, else as the model does."""

    sample: Any
    other_samples: tuple[Any, ...]
    prepare: Callable[[Any], Any] | None = None  # served with the model
    preprocess: Callable[[Any], Any] | None = None  # stays in the kernel
    why: str = ""  # it stays there


def _front_of(model: Any, sample: Any, other_samples: Sequence[Any]) -> _Front:
    preprocessor = preprocessor_of(model)
    if preprocessor is None:
        return _Front(sample=sample, other_samples=tuple(other_samples))
    if sample is None:
        why = "what it takes is not known. Give rows of that with --sample ARRAY to have it served"
        return _Front(sample=None, other_samples=(), preprocess=preprocessor.arrays, why=why)
    if samples.is_by_input_names(model, sample):
        why = "the sample is what it makes. Give rows of what it takes to have it served"
        return _Front(sample=sample, other_samples=tuple(other_samples), preprocess=preprocessor.arrays, why=why)
    raw = tuple(map(_raw_rows, (sample, *other_samples)))
    try:
        mapped = tuple(map(preprocessor.arrays, raw))
    except Exception as error:
        raise DataMismatch(
            f"The preprocessor of {model.name!r} does not take this sample ({' '.join(str(error).split())[:300].rstrip('.')}). "
            "Give rows as the model's predict takes them, texts say."
        ) from error
    if not (why := preprocessor.why_not_served(raw[0])):
        return _Front(sample=raw[0], other_samples=raw[1:], prepare=preprocessor)
    return _Front(sample=mapped[0], other_samples=mapped[1:], preprocess=preprocessor.arrays, why=why)


def _raw_rows(sample: Any) -> Any:
    """The first rows of what `predict` of a task takes."""
    import keras

    rows = as_rows(samples.first_batch(sample) if batch_sources.is_source(sample) else sample)
    return keras.tree.map_structure(lambda leaf: np.asarray(leaf)[: samples.ROWS], rows)


def _notes(model: Any, interface: Interface, front: _Front) -> tuple[str, ...]:
    notes = []
    if front.preprocess is not None:
        takes = ", ".join(f"{spec.name} {spec.dtype} [{', '.join(spec.dimensions)}]" for spec in interface.specs)
        notes.append(
            f"The preprocessor of {model.name!r} is not a part of what is served: {front.why}. endpoint.predict takes what "
            f"{model.name}.predict takes, and maps it in this kernel; over HTTP and gRPC the endpoint takes what the preprocessor makes: "
            f"{takes}."
        )
    if callable(getattr(model, "generate", None)):
        notes.append(f"What is served is {model.name}.predict: scores for the next token at each place. generate() is not served.")
    return tuple(notes)


def _refuse_stateful(model: Any) -> None:
    """A recurrent layer that goes on from the call before has no meaning where calls come from anybody."""
    import keras

    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.RNN) and layer.stateful]
    if layers:
        raise CannotServe(
            f"Model {model.name!r} cannot be served: its layer {layers[0].name!r} is stateful, and requests to an endpoint do not follow "
            "one another. Build the model anew with stateful=False, and give it these weights with set_weights."
        )


def _split(validation_data: Any) -> tuple[Any, Any]:
    """x and y of validation data; y of None where there is none.

    Raises:
        DataMismatch: it is a tuple of something else.
    """
    if not isinstance(validation_data, tuple):
        return validation_data, None
    if not 1 <= len(validation_data) <= 2:
        raise DataMismatch(f"validation_data has {len(validation_data)} parts. Give x_val, or (x_val, y_val).")
    return validation_data[0], validation_data[1] if len(validation_data) > 1 else None


def _validation(model: Any, interface: Interface, x_val: Any, y_val: Any) -> ValidationRows:
    rows = samples.rows_for(model, interface, x_val, "x_val")
    truth = None if y_val is None else fit_data.mapped(y_val, "y_val")
    count = len(next(iter(rows.values())))
    if any(len(array) != count for _, array in fit_data.leaves(truth, "y_val")):
        raise DataMismatch("x_val and y_val have different numbers of rows. Give as many rows in each.")
    return ValidationRows(rows=rows, truth=truth, origin="your validation data", is_validation=True)
