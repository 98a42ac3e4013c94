"""Inference calls: decoded requests of the Open Inference Protocol v2, and their answers.

Owns which outputs are wanted in which form and the document that they are told in, and the requests whose JSON came before: a
client that sends tensors as bytes mostly sends the same JSON before them, and it takes longer to read than small tensors to
compute. How a request is read the first time, and what is wrong with one, belongs to `open_inference_rest`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import orjson

from aiaas_magics.backend.serving.protocols import Response
from aiaas_magics.backend.serving.protocols.open_inference import inference_codec as tensors
from aiaas_magics.backend.serving.protocols.open_inference.inference_codec import Input

if TYPE_CHECKING:
    from aiaas_magics.backend.serving.models.registry import Version

OCTETS: Final = b"application/octet-stream"
JSON_LENGTH: Final = b"inference-header-content-length"
DOCUMENTS: Final = 256  # guess: of a version, which are known by their bytes; they differ in the number of rows
DOCUMENT_BYTES: Final = 4096  # guess: of longer ones too few are the same
PLAIN: Final = frozenset(tensors.LAYOUTS) - {"BOOL"}  # whose bytes need not be looked at


class OutputForm(msgspec.Struct, frozen=True):
    """An output that the caller asked for, and whether as raw bytes."""

    name: str
    binary: bool


class TensorSlice(msgspec.Struct, frozen=True):
    """Where an input lies in the bytes behind the document."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int


class KnownDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What a document says whose tensors all come behind it, and the documents that answer it, by the outputs' shapes."""

    places: tuple[TensorSlice, ...]
    nbytes: int
    rows: int | None
    output_forms: tuple[OutputForm, ...]
    timeout_s: float
    answers: dict[tuple[Any, ...], bytes] = {}

    def write(self, *outputs: np.ndarray) -> Response | None:
        """The answer, where one of such outputs was written before."""
        head = self.answers.get(_form(outputs))
        return None if head is None else _binary(head, [tensors.to_bytes(output) for output in outputs])

    def learn(self, outputs: Sequence[np.ndarray], head: bytes) -> None:
        """Remember the document of an answer."""
        if len(self.answers) >= DOCUMENTS:
            self.answers.clear()
        self.answers[_form(outputs)] = head


def _form(outputs: Sequence[np.ndarray]) -> tuple[Any, ...]:
    return tuple([part for output in outputs for part in (output.shape, output.dtype)])


class InferCall(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded inference request. `rows` is None where the inputs differ in their first dimension."""

    model: str
    version: int
    tensors: Mapping[str, np.ndarray]
    rows: int | None
    output_forms: tuple[OutputForm, ...]
    id: str | None = None
    timeout_s: float = math.inf
    document: KnownDocument | None = None

    def response(self, outputs: Mapping[str, np.ndarray]) -> Response:
        arrays = [np.asarray(outputs[output_form.name]) for output_form in self.output_forms]
        if self.document is not None and (answer := self.document.write(*arrays)) is not None:
            return answer
        described: list[dict[str, Any]] = []
        raw: list[bytes | memoryview] = []
        for wanted, array in zip(self.output_forms, arrays, strict=True):
            output: dict[str, Any] = {"name": wanted.name, "datatype": tensors.datatype_of(array), "shape": array.shape}
            if wanted.binary:
                raw.append(tensors.to_bytes(array))
                output["parameters"] = {"binary_data_size": len(raw[-1])}
            else:
                output["data"] = tensors.to_json(wanted.name, array)
            described.append(output)
        document: dict[str, Any] = {"model_name": self.model, "model_version": str(self.version), "outputs": described}
        if self.id is not None:
            document["id"] = self.id
        head = orjson.dumps(document)
        if not raw:
            return Response(200, head)
        if self.document is not None and all(entry["datatype"] in tensors.LAYOUTS for entry in described):
            self.document.learn(arrays, head)
        return _binary(head, raw)


def _binary(head: bytes, raw: Sequence[bytes | memoryview]) -> Response:
    return Response(200, b"".join((head, *raw)), ((JSON_LENGTH, b"%d" % len(head)),), OCTETS)


class Documents:
    """The documents of requests for one version that were read before and found in order."""

    def __init__(self, version: Version) -> None:
        self._name, self._number = version.spec.name, version.number
        self._by_bytes: dict[bytes, KnownDocument] = {}

    def look_up(self, body: bytes, size: int) -> KnownDocument | None:
        """What the `size` bytes of JSON at the start of `body` say, if they are known and the tensors behind them are whole."""
        document = self._by_bytes.get(body[:size]) if 0 < size <= DOCUMENT_BYTES else None
        return document if document is not None and len(body) - size == document.nbytes else None

    def find(self, body: bytes, size: int) -> InferCall | None:
        """The call that `body` holds, if its document is known."""
        document = self.look_up(body, size)
        if document is None:
            return None
        views = {}
        for place in document.places:
            array = np.ndarray(place.shape, place.dtype, body, size + place.start)
            views[place.name] = array if array.flags.aligned else array.copy()  # engines read with instructions that may insist
        return InferCall(
            model=self._name,
            version=self._number,
            tensors=views,
            rows=document.rows,
            output_forms=document.output_forms,
            timeout_s=document.timeout_s,
            document=document,
        )

    def learn(self, document: bytes, inputs: Sequence[Input], call: InferCall) -> None:
        """Remember a document that was read, if all that changes from one such request to the next are numbers in bytes."""
        if len(document) > DOCUMENT_BYTES or call.id is not None or not all(output_form.binary for output_form in call.output_forms):
            return
        places, start = [], 0
        for tensor in inputs:
            if tensor.binary_size is None or tensor.datatype not in PLAIN:
                return
            places.append(TensorSlice(tensor.name, tensors.LAYOUTS[tensor.datatype], tensor.shape, start))
            start += tensor.binary_size
        if len(self._by_bytes) >= DOCUMENTS:
            self._by_bytes.clear()
        self._by_bytes[document] = KnownDocument(
            places=tuple(places), nbytes=start, rows=call.rows, output_forms=call.output_forms, timeout_s=call.timeout_s
        )
