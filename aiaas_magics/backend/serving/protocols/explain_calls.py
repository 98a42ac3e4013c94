"""Explain calls: a decoded request for an explanation, in any protocol, and its answer.

Owns the parameters that a request may have, their bounds, and the order of computing. How rows are read and an answer is written belongs
to each protocol; which explanations may run belongs to `models.explaining`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import orjson

from aiaas_magics.backend.serving.models.explaining import EXPLAINER, output_of
from aiaas_magics.backend.serving.protocols import JSON, BadValue, Headers, Response, Run
from aiaas_magics.core.errors import UsageError
from aiaas_magics.core.explain_settings import AUTO, METHODS, ExplainSettings
from aiaas_magics.core.spec import TensorSpec

if TYPE_CHECKING:
    from aiaas_magics.backend.serving.models.registry import Version
    from aiaas_magics.explain.attribution_bytes import ExplainResult
    from aiaas_magics.explain.attributions import Attributions

EXPLAIN_ACTIONS: Final = frozenset({"explain", "infer_explain"})  # of operations
MOST_SAMPLES: Final = 10_000  # guess: of one row; a job on workers takes more
MOST_S: Final = 600.0  # guess: no client waits longer
USUAL_S: Final = 60.0  # guess: a client's own patience
BLACK_BOX: Final = tuple(name for name, info in METHODS.items() if info.family == "black_box")


class ExplainParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request says of how its rows are explained, as `ExplainSettings` has it. All of it may be left out."""

    method: str = AUTO
    samples: int = 0
    output: str = ""
    target: int | None = None
    seed: int = 0
    patch: int = 0
    faithfulness: bool = False
    timeout_s: float = USUAL_S


def parameters_of(value: Any) -> ExplainParameters:
    """The parameters in a request's document; None for none.

    Raises:
        BadValue: naming the one that is wrong.
    """
    if value is None:
        return ExplainParameters()
    try:
        parameters = msgspec.convert(value, ExplainParameters)
    except msgspec.ValidationError as error:
        names = ", ".join(ExplainParameters.__struct_fields__)
        raise BadValue(f"'parameters' cannot be read: {error}. Use these: {names}.") from error
    if not 0 <= parameters.samples <= MOST_SAMPLES:
        raise BadValue(
            f"samples={parameters.samples}: one request may have up to {MOST_SAMPLES} per row. Leave it out for the method's own number."
        )
    if not 0 < parameters.timeout_s <= MOST_S:
        raise BadValue(f"timeout_s={parameters.timeout_s:g}: a request may take up to {MOST_S:g} s. Leave it out for {USUAL_S:g} s.")
    return parameters


def settings_of(parameters: ExplainParameters, version: Version) -> ExplainSettings:
    """What is to be computed, by a method that needs predictions only, or by "auto".

    Raises:
        BadValue: an unknown method, one that needs the model itself, an output that there is not, or a number that is out of bounds.
    """
    fields = {name: getattr(parameters, name) for name in ("samples", "output", "target", "seed", "patch")}
    try:
        settings = ExplainSettings(method=parameters.method, **fields)
        output_of(version, settings)
    except UsageError as error:
        raise BadValue(str(error)) from error
    method = settings.resolved_method
    if method != AUTO and METHODS[method].family != "black_box":
        raise BadValue(
            f"An endpoint computes predictions only, and {METHODS[method].title} needs the model itself. Use one of "
            f"{', '.join(BLACK_BOX)} here, or explain the model in its notebook with %aiaas_explain."
        )
    return settings.with_method(method)


class ExplanationCall(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded request for an explanation; a `StreamCall` whose answer is one chunk of JSON.

    Args:
        write: makes the answer of the version's outputs for the rows and of the attributions.
    """

    version: Version
    tensors: Mapping[str, np.ndarray]
    rows: int | None
    settings: ExplainSettings
    write: Callable[[Mapping[str, np.ndarray], ExplainResult], bytes]
    measures: bool = False  # faithfulness too
    timeout_s: float = USUAL_S
    headers: Headers = ()
    content_type: bytes = JSON

    async def chunks(self, run: Run) -> AsyncGenerator[bytes, None]:
        if self.rows is None:
            raise BadValue("Rows are explained one by one, and the inputs do not hold the same number of rows.")
        try:
            explained = await EXPLAINER.explained(self.version, self.tensors, self.settings, run, measures=self.measures)
        except UsageError as error:
            raise BadValue(str(error)) from error
        yield self.write(await run(self.tensors, self.rows), explained)

    def closing_chunk(self, _: Response) -> bytes | None:
        """None: the one chunk is the whole answer, so that a fault after it is none of the explanation's."""
        return None


def method_document(explained: ExplainResult) -> dict[str, Any]:
    """What an answer says of how its rows were explained, and how far that can be trusted."""
    attributions, curves = explained.attributions, explained.faithfulness
    document: dict[str, Any] = {
        "method": attributions.method,
        "evaluations": attributions.evaluations,
        "columns": attributions.columns,
        "notes": list(attributions.notes),
    }
    if curves is not None:
        areas = {name: getattr(curves, f"{name}_area") for name in ("deletion", "insertion", "random")}
        document["faithfulness"] = {
            "verdict": curves.verdict,
            "areas": areas,
            "completeness": curves.completeness,
            "evaluations": curves.evaluations,
        }
    return document


def row_documents(attributions: Attributions, inputs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    """The explanation of each row: attributions in the shape of the row, by input name where there are several inputs."""
    return [_row_document(attributions, inputs, row) for row in range(attributions.rows)]


def _row_document(attributions: Attributions, inputs: Sequence[TensorSpec], row: int) -> dict[str, Any]:
    arrays = {spec.name: np.ascontiguousarray(values[row]) for spec, values in zip(inputs, attributions.values, strict=True)}
    document: dict[str, Any] = {
        "attributions": arrays if len(arrays) > 1 else next(iter(arrays.values())),
        "base": attributions.base[row],
        "output": attributions.outputs[row],
        "target": attributions.targets[row],
    }
    if attributions.tokens:
        document["tokens"] = list(attributions.tokens[row])
    return document


def dumped(document: object) -> bytes:
    """JSON; a number that is not finite is null, since the explanation has none there."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
