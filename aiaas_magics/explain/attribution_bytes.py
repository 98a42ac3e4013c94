"""Attribution bytes: attributions, with the rows that they explain, as one safetensors file and back.

Owns the form in which they travel between workers, backend and kernel. Numbers are tensors; words, names and notes stand in the header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from aiaas_magics.core.errors import AiaasBug
from aiaas_magics.explain.attributions import Attributions
from aiaas_magics.explain.faithfulness import Faithfulness
from aiaas_magics.explain.players import is_text

HEADER: Final = "aiaas"
CURVES: Final = ("fractions", "deletion", "insertion", "random")
MEASURED: Final = ("completeness", "sanity", "evaluations")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExplainResult:
    """Attributions with the rows that they explain, and what is known of these: plain JSON by name."""

    attributions: Attributions
    inputs: tuple[np.ndarray, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    faithfulness: Faithfulness | None = None


def write_explain_result(explained: ExplainResult) -> bytes:
    """The file for `explained`."""
    from safetensors.numpy import save

    attributions = explained.attributions
    tensors = {f"values/{place}": values for place, values in enumerate(attributions.values)}
    tensors |= {"base": attributions.base, "outputs": attributions.outputs, "targets": attributions.targets}
    tensors |= {f"inputs/{place}": array for place, array in enumerate(explained.inputs) if not is_text(array)}
    curves = explained.faithfulness
    if curves is not None:
        tensors |= {f"faithfulness/{name}": getattr(curves, name) for name in CURVES}
    header = {
        "method": attributions.method,
        "evaluations": attributions.evaluations,
        "columns": attributions.columns,
        "tokens": attributions.tokens,
        "notes": attributions.notes,
        "inputs": len(explained.inputs),
        "texts": {f"{place}": _texts(array) for place, array in enumerate(explained.inputs) if is_text(array)},
        "facts": dict(explained.facts),
        "faithfulness": None if curves is None else {name: getattr(curves, name) for name in MEASURED},
    }
    metadata = {HEADER: json.dumps(header)}
    return bytes(save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata=metadata))


def read_explain_result(data: bytes) -> ExplainResult:
    """What `write_explain_result` wrote.

    Raises:
        AiaasBug: the bytes are no such file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][HEADER])
        tensors = load(data)
        values = [tensors[f"values/{place}"] for place in range(sum(name.startswith("values/") for name in tensors))]
        texts = {int(place): _text_array(*text) for place, text in header["texts"].items()}
        attributions = Attributions(
            method=header["method"],
            values=tuple(values),
            base=tensors["base"],
            outputs=tensors["outputs"],
            targets=tensors["targets"],
            evaluations=header["evaluations"],
            columns=header["columns"],
            tokens=tuple(map(tuple, header["tokens"])),
            notes=tuple(header["notes"]),
        )
        inputs = tuple(texts[place] if place in texts else tensors[f"inputs/{place}"] for place in range(header["inputs"]))
        faithfulness = None
        if header["faithfulness"] is not None:
            curves = {name: tensors[f"faithfulness/{name}"] for name in CURVES}
            faithfulness = Faithfulness(method=attributions.method, **curves, **header["faithfulness"])
        return ExplainResult(attributions=attributions, inputs=inputs, facts=header["facts"], faithfulness=faithfulness)
    except (KeyError, ValueError, TypeError, SafetensorError, RecursionError) as error:
        raise AiaasBug(f"an explanation cannot be read ({type(error).__name__}: {error})") from error


def _texts(array: np.ndarray) -> tuple[list[int], list[str]]:
    """Shape and texts; bytes that are no UTF-8 are shown as well as they can be."""
    return list(array.shape), [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in array.ravel()]


def _text_array(shape: Sequence[int], texts: Sequence[str]) -> np.ndarray:
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array.reshape(tuple(shape))
