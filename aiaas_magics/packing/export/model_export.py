"""Model export: a live model as an artifact that a serving host can run and check without its code.

Owns the order of the steps, each of which is entered once: the request is parsed (`export_request`), Keras answers (`keras_answers`), a
format is written and compared (`export_formats`), and where fewer bits were asked for those are made (`quantization`), what they change
is measured (`accuracy_impact`), and the samples hold the answers of that form. Replaying the samples belongs to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from aiaas_magics.core import snippets
from aiaas_magics.core.precision import for_spread
from aiaas_magics.core.spec import TensorSpec
from aiaas_magics.packing.export import accuracy_impact, export_formats, quantization, sample_bytes
from aiaas_magics.packing.export.accuracy_impact import PrecisionChange
from aiaas_magics.packing.export.export_formats import ONNX, SAVED_MODEL, CannotServe
from aiaas_magics.packing.export.export_request import ExportRequest, QuantizationOptions, normalise
from aiaas_magics.packing.export.keras_answers import KerasAnswers, function_of, keras_answers, output_specs
from aiaas_magics.packing.export.onnx_session import onnx_form
from aiaas_magics.packing.live import model_state
from aiaas_magics.packing.live.model_state import ModelState

__all__ = ["CannotServe", "Servable", "carry_out", "export"]

TEXTS: Final = "texts go into it"  # why such a model is no ONNX file


@dataclass(frozen=True, slots=True, kw_only=True)
class Servable:
    """An exported model with sample rows and the answers to them, for the parity check."""

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
    preprocess: Callable[[Any], Any] | None = None  # what the kernel does to rows before it sends them
    notes: tuple[str, ...] = ()  # sentences on what is served, against what the model does here


def export(
    model: Any,
    sample: Any = None,
    *,
    other_samples: Sequence[Any] = (),
    format: str | None = None,
    quantization_options: QuantizationOptions | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Servable:
    """Export `model` with sample rows and Keras' own outputs on them; in fewer bits with those of that form. `model` stays as it is.

    Args:
        sample: up to 32 typical rows, as `fit` takes them for x; None for validation data, or else rows of the last fit.
        other_samples: rows that differ from `sample` in the size of a dimension, which is free then in what is served.
        format: "onnx" or "saved_model"; None for ONNX where it can be had.
        quantization_options: fewer bits for the weights, and the rows to measure on what that changes.
        on_step: called with what is done next, in words.

    Raises:
        NoSamples: typical rows are neither given nor known.
        DataMismatch: the rows do not go through the model.
        CannotServe: neither format can express it, or not in so few bits.
    """
    request = normalise(model, sample, other_samples=other_samples, format=format, quantization_options=quantization_options)
    return carry_out(request, on_step=on_step)


def carry_out(request: ExportRequest, *, on_step: Callable[[str], None] = lambda step: None) -> Servable:
    """`export` of a request that was parsed already."""
    with model_state.restored_after(request.model) as state:
        on_step(f"computing {len(next(iter(request.samples[0].values())))} sample rows in Keras")
        with export_formats.quiet():
            answers = keras_answers(request.model, request.interface, request.samples, state)
            function = function_of(request.model, request.interface)
            state.put_back()
            kind, artefact, note = _write(request, answers, function, state, on_step=on_step)
        note = TEXTS if request.has_texts and kind == SAVED_MODEL else note
        served, change = answers.arrays, None
        if request.quantization is not None:
            full, artefact = artefact, _quantized(request, kind, artefact, note)
            change = _change(request, answers, function, full, artefact)
            served = tuple(map(onnx_form(artefact), request.samples))
        return Servable(
            artefact=artefact,
            format=kind,
            samples=sample_bytes.as_safetensors(request.samples, served),
            inputs=request.interface.specs,
            outputs=output_specs(request.model, function, answers),
            note=note,
            change=change,
            spread=answers.spread,
            example=snippets.example_of(request.samples[0]),
            frozen=answers.moved,
            preprocess=request.preprocess,
            notes=request.notes,
        )


def _write(
    request: ExportRequest, answers: KerasAnswers, function: Any, state: ModelState, *, on_step: Callable[[str], None]
) -> tuple[str, bytes, str]:
    allowed = for_spread(answers.spread)
    expected = [export_formats.Expected(rows, own, allowed) for rows, own in zip(request.samples, answers.arrays, strict=True)]
    return export_formats.write_first_possible(
        request.model, function, list(request.formats), expected, put_back=state.put_back, on_step=on_step
    )


def _quantized(request: ExportRequest, kind: str, artefact: bytes, note: str) -> bytes:
    """The ONNX file in fewer bits."""
    assert request.quantization is not None
    model, precision = request.model, request.quantization.precision
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


def _change(request: ExportRequest, answers: KerasAnswers, function: Any, full: bytes, reduced: bytes) -> PrecisionChange:
    """What the reduced file changes against the model as it is."""
    assert request.quantization is not None

    def keras_form(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in function(*(rows[name] for name in request.interface.names)).items()}

    forms = accuracy_impact.Forms(full=keras_form, reduced=onnx_form(reduced), structured=answers.structured)
    return accuracy_impact.measure(request.model, request.quantization, forms, sizes=(len(full), len(reduced)))
