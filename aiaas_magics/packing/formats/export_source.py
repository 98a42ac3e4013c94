"""Export source: a model to be written to a file, with its own answers to sample rows.

Owns making it of a live Keras model, of a file or estimator, and of what an endpoint serves. Writing belongs to the module of each
format, comparing to `output_differences`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from aiaas_magics.core.errors import UsageError
from aiaas_magics.core.precision import Precision, for_spread
from aiaas_magics.core.spec import TensorSpec
from aiaas_magics.packing.export import export_formats, export_request, foreign_models, sample_bytes
from aiaas_magics.packing.export.export_formats import ONNX, CannotServe
from aiaas_magics.packing.export.keras_answers import function_of, keras_answers, output_specs
from aiaas_magics.packing.export.model_export import Servable
from aiaas_magics.packing.export.samples import Interface
from aiaas_magics.packing.live import model_state


class CannotExport(UsageError):
    """The model cannot be written in that form. The argument is the whole sentence, next move included."""


class NotExpressible(Exception):
    """The format cannot hold this model. The argument is a clause without a full stop."""


@dataclass(frozen=True, slots=True)
class SampleSet:
    """Rows of one size by input name, rows first, and the model's own answers by output name."""

    rows: Mapping[str, np.ndarray]
    answers: Mapping[str, np.ndarray]

    @property
    def count(self) -> int:
        return len(next(iter(self.rows.values())))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSource:
    """A model as formats see it. A live Keras model has `model`, `interface` and `function`; all others have `artefact`."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: tuple[SampleSet, ...]  # one for each size of the free dimensions
    allowed: Precision  # how near the file's answers must come
    origin: str  # what computed the answers of the samples
    model: Any = None
    interface: Interface | None = None
    function: Any = None  # a `tf.function` with the inputs' names for its arguments
    artefact: bytes = b""  # an ONNX file, or a zip of a SavedModel
    format: str = ""  # "onnx" | "saved_model": of the artefact
    notes: tuple[str, ...] = ()  # sentences on what is written, against what the model does here

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"Model {self.name!r}"

    @property
    def is_onnx(self) -> bool:
        return self.format == ONNX

    def layers_with(self, operators: Collection[str]) -> tuple[str, ...]:
        """The layers of a live model that compute one of TensorFlow's `operators`; empty for others."""
        if self.function is None:
            return ()
        names = [layer.name for layer in self.model._flatten_layers(include_self=False)]
        operations = self.function.get_concrete_function().graph.get_operations()
        paths = [operation.name for operation in operations if operation.type in operators]
        return tuple(dict.fromkeys(layer for path in paths if (layer := layer_in(path, names))))


def layer_in(path: str, layer_names: Sequence[str]) -> str:
    """The innermost layer in the name of an operation; "" where there is none. A scope that is entered again has a number more.

    >>> layer_in("net_1/spectrum_1/Igamma", ["dense", "spectrum"])
    'spectrum'
    """
    for scope in reversed(path.split("/")[:-1]):
        for name in (re.sub(r"_\d+$", "", scope), scope):
            if name in layer_names:
                return name
    return ""


def no_operator_for(operators: Sequence[str], source: ExportSource) -> str:
    """The clause for operators that a runtime lacks, with the layers that they are in."""
    layers = source.layers_with(operators)
    which = f" (layer{'s' if len(layers) > 1 else ''} {', '.join(layers[:3])})" if layers else ""
    return f"its runtime has no operator for {', '.join(operators[:4])}{which}"


@contextmanager
def source_of(model: Any, sample: Any = None, other_samples: Sequence[Any] = (), *, name: str = "") -> Iterator[ExportSource]:
    """The source for a Keras model, or for anything that `%aiaas_deploy` takes. A live model is as it was at the end.

    Args:
        sample: typical rows, as `fit` takes them for x; None for rows of the last fit, or made-up ones.
        other_samples: rows that differ from `sample` in the size of a dimension, which is free then in what is written.
        name: what messages call the model; "" is its own name.

    Raises:
        NoSamples, DataMismatch: typical rows are not known, or do not go through the model.
        CannotExport: it is no model, or its answers cannot be compared.
    """
    import keras

    try:
        opened = foreign_models.open_model(model, sample, compiled=True)
        if isinstance(opened, keras.Model):
            with _live(opened, sample, other_samples, name or foreign_models.name_of(model)) as source:
                yield source
            return
        servable = foreign_models.export_form(opened, sample, other_samples)
    except CannotServe as error:
        raise CannotExport(_of_export(str(error))) from error
    yield of_servable(servable, name or foreign_models.name_of(model))


@contextmanager
def _live(model: Any, sample: Any, other_samples: Sequence[Any], name: str) -> Iterator[ExportSource]:
    request = export_request.normalise(model, sample, other_samples=other_samples)
    with model_state.restored_after(model) as state:
        with export_formats.quiet():
            answers = keras_answers(model, request.interface, request.samples, state)
            function = function_of(model, request.interface)
            state.put_back()
            outputs = output_specs(model, function, answers)
        yield ExportSource(
            name=name,
            inputs=request.interface.specs,
            outputs=outputs,
            samples=tuple(map(SampleSet, request.samples, answers.arrays)),
            allowed=for_spread(answers.spread),
            origin="Keras",
            model=model,
            interface=request.interface,
            function=function,
            notes=request.notes,
        )


def of_servable(servable: Servable, name: str) -> ExportSource:
    """The source for an export that was made for serving."""
    return of_artefact(
        servable.artefact,
        servable.format,
        servable.samples,
        inputs=servable.inputs,
        outputs=servable.outputs,
        allowed=for_spread(servable.spread),
        origin=servable.origin,
        name=name,
    )


def of_artefact(
    artefact: bytes,
    kind: str,
    samples: bytes,
    *,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    allowed: Precision,
    origin: str,
    name: str,
) -> ExportSource:
    """The source for what an endpoint serves.

    Args:
        artefact: an ONNX file, or a zip of a SavedModel.
        kind: "onnx" or "saved_model".
        samples: rows and answers, as `sample_bytes` writes them.
    """
    sets = tuple(SampleSet(rows, answers) for rows, answers in sample_bytes.from_safetensors(samples))
    return ExportSource(
        name=name, inputs=inputs, outputs=outputs, samples=sets, allowed=allowed, origin=origin, artefact=artefact, format=kind
    )


def _of_export(sentence: str) -> str:
    """The sentence of a refusal to serve, in the words of an export."""
    return sentence.replace("cannot be served", "cannot be exported")
