"""Endpoint explanation: an explanation that an endpoint computes, asked for and read.

Owns the request, in the Open Inference Protocol's form with our operation `explain`, and reading its answer. Sending belongs to `endpoint`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from aiaas_magics.client.serving import tensor_protocol
from aiaas_magics.core.errors import BackendRefused
from aiaas_magics.core.explain_settings import ExplainSettings
from aiaas_magics.core.spec import EndpointView, TensorSpec
from aiaas_magics.core.value import Value
from aiaas_magics.explain.attribution_bytes import CURVES, ExplainResult
from aiaas_magics.explain.attributions import Attributions
from aiaas_magics.explain.faithfulness import Faithfulness

if TYPE_CHECKING:
    from aiaas_magics.explain.explanation import Explanation

PREFIX: Final = "explanation."
CHOSEN: Final = "auto chose"  # how the sentence on the choice begins
FIELDS: Final = ("method", "samples", "output", "target", "seed", "patch")  # of the settings, those that an endpoint takes


class JsonTensor(Value, frozen=True, kw_only=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any]


class MeasuredFaithfulness(Value, frozen=True, kw_only=True):
    completeness: float | None = None
    evaluations: int = 0


class ExplainerFacts(Value, frozen=True, kw_only=True):
    method: str
    evaluations: int
    columns: int = 1
    notes: tuple[str, ...] = ()
    faithfulness: MeasuredFaithfulness | None = None


class ExplainAnswer(Value, frozen=True, kw_only=True):
    outputs: tuple[JsonTensor, ...]
    parameters: ExplainerFacts


def encode(
    columns: Mapping[str, np.ndarray],
    inputs: tuple[TensorSpec, ...],
    settings: ExplainSettings,
    *,
    timeout_s: float,
    faithfulness: bool = True,
) -> tuple[bytes, dict[str, str]]:
    """A request's body and headers; rows travel as bytes."""
    default = ExplainSettings()
    parameters = {name: value for name in FIELDS if (value := getattr(settings, name)) != getattr(default, name)}
    body, headers = tensor_protocol.encode(columns, inputs)
    length = int(headers[tensor_protocol.LENGTH_HEADER])
    document = {**json.loads(body[:length]), "parameters": {**parameters, "timeout_s": timeout_s, "faithfulness": faithfulness}}
    head = json.dumps(document, separators=(",", ":")).encode()
    head += b" " * (-len(head) % tensor_protocol.ALIGN)
    return head + body[length:], {**headers, tensor_protocol.LENGTH_HEADER: str(len(head))}


def decode(answer: bytes, inputs: tuple[TensorSpec, ...]) -> ExplainResult:
    """The attributions in an answer, with their faithfulness where it was measured.

    Raises:
        BackendRefused: it is no such answer.
    """
    try:
        document = msgspec.convert(json.loads(answer), ExplainAnswer)  # json's parser knows the bare token NaN of other outputs
        tensors = {tensor.name.removeprefix(PREFIX): tensor for tensor in document.outputs if tensor.name.startswith(PREFIX)}
        tokens = tensors.get("tokens")
        outputs = _floats(tensors["output"])
        values = tuple(_floats(tensors[f"attributions.{spec.name}"]) for spec in inputs)
        if tokens is not None:  # there is no attribution behind a text's last word
            padding = np.array(tokens.data, object).reshape(tokens.shape) == ""
            values = tuple(
                np.where(padding, np.nan, array).astype(np.float32) if array.shape == padding.shape else array for array in values
            )
        attributions = Attributions(
            method=document.parameters.method,
            values=values,
            base=_floats(tensors["base"]) if "base" in tensors else np.full(len(outputs), np.nan, np.float32),
            outputs=outputs,
            targets=np.array(tensors["target"].data, np.int64),
            evaluations=document.parameters.evaluations,
            columns=document.parameters.columns,
            tokens=() if tokens is None else _words(tokens),
            notes=document.parameters.notes,
        )
        measured, curves = document.parameters.faithfulness, None
        if measured is not None:
            arrays: dict[str, Any] = {name: _floats(tensors[f"faithfulness.{name}"]).astype(np.float64) for name in CURVES}
            facts: dict[str, Any] = {"completeness": measured.completeness, "evaluations": measured.evaluations}
            curves = Faithfulness(method=attributions.method, **arrays, **facts)
        return ExplainResult(attributions=attributions, faithfulness=curves)
    except (KeyError, ValueError, TypeError, msgspec.MsgspecError) as error:
        raise BackendRefused(200, f"The endpoint's explanation is not understood ({error}). Is it an aiaas_magics endpoint?") from error


def _floats(tensor: JsonTensor) -> np.ndarray:
    """Numbers; null stands for one that there is not."""
    return np.array([np.nan if value is None else value for value in tensor.data], np.float32).reshape(tensor.shape)


def _words(tensor: JsonTensor) -> tuple[tuple[str, ...], ...]:
    rows = np.array(tensor.data, object).reshape(tensor.shape)
    return tuple(tuple(word for word in row if word) for row in rows)


def explanation_of(
    explained: ExplainResult,
    rows: Any,
    columns: Mapping[str, np.ndarray],
    view: EndpointView,
    *,
    class_names: tuple[str, ...],
    seconds: float,
) -> Explanation:
    """The explanation of `rows` as its caller gave them, with the names that they have."""
    from aiaas_magics.explain.explanation import Explanation

    names = tuple(spec.original or spec.name for spec in view.inputs)
    own = tuple(map(str, getattr(rows, "columns", ())))
    arrays = tuple(columns[spec.name] for spec in view.inputs)
    notes = explained.attributions.notes
    why = next((note for note in notes if note.startswith(CHOSEN)), "")
    return Explanation(
        attributions=replace(explained.attributions, notes=tuple(note for note in notes if note != why)),
        faithfulness=explained.faithfulness,
        inputs=arrays,
        input_names=names,
        columns=tuple(_column_names(array, name, own, several=len(arrays) > 1) for array, name in zip(arrays, names, strict=True)),
        class_names=class_names,
        model=view.name,
        why=why,
        seconds=seconds,
    )


def _column_names(array: np.ndarray, name: str, own: tuple[str, ...], *, several: bool) -> tuple[str, ...]:
    """Names of a table's columns or a series' channels: those of the caller's frame, or numbers."""
    if array.dtype.kind in "OSU":
        return ()
    width = array.shape[-1] if array.ndim > 1 else 1
    if len(own) == width and not several:
        return own
    if several and width == 1:
        return (name,)
    return tuple(f"{name}[{place}]" if several else f"x{place}" for place in range(width))
