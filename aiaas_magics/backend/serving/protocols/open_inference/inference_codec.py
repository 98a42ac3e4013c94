"""Inference codec: the Open Inference Protocol's documents, its datatypes, and tensors as JSON or as raw bytes.

Owns how a value becomes a tensor and back, in both forms, and the sentences for those that do
not. Which route a body came by belongs to `open_inference_rest`; JSON values share their rules with
TensorFlow Serving's (`tfserving_json`).

Sources: kserve/open-inference-protocol, and docs/protocol/extension_binary_data.md of
https://github.com/triton-inference-server/server.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping
from typing import Annotated, Any, Final

import ml_dtypes
import msgspec
import numpy as np
import orjson
from msgspec import UNSET, Meta

from aiaas_magics.backend.serving.protocols import BadValue
from aiaas_magics.backend.serving.protocols.tfserving import tfserving_json
from aiaas_magics.core.spec import TensorSpec
from aiaas_magics.core.value import Value

# numpy's names -> the protocol's
DATATYPES: Final[Mapping[str, str]] = {
    "bool": "BOOL",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
    "string": "BYTES",
}
# What raw bytes are read as: little-endian, whatever this machine is. BOOL is a byte, looked at before it is believed.
LAYOUTS: Final[Mapping[str, np.dtype[Any]]] = {
    datatype: np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name).newbyteorder("<")
    for name, datatype in DATATYPES.items()
    if name != "string"
}
_DATATYPE_OF: Final[Mapping[np.dtype[Any], str]] = {layout: datatype for datatype, layout in LAYOUTS.items()}
BASE64: Final = "base64"  # https://mlserver.readthedocs.io/en/latest/user-guide/content-type.html
NO_JSON_FORM: Final = frozenset({"FP16", "BF16"})
SMALL: Final = 16 * 1024  # bytes; measured: twice as many take longer to copy than numpy to make a view
LENGTH: Final = struct.Struct("<I")


# --------------------------------------------------------------------------- documents


class InputParameters(Value, frozen=True, kw_only=True):
    binary_data_size: Annotated[int, Meta(ge=0)] | None = None
    content_type: str | None = None
    shared_memory_region: str | None = None


class Input(Value, frozen=True, kw_only=True):
    name: str
    datatype: str
    shape: tuple[Annotated[int, Meta(ge=0)], ...]
    parameters: InputParameters | None = None
    data: Any = UNSET

    @property
    def binary_size(self) -> int | None:
        return self.parameters.binary_data_size if self.parameters is not None else None

    @property
    def content_type(self) -> str | None:
        return self.parameters.content_type if self.parameters is not None else None


class RequestedOutputParameters(Value, frozen=True, kw_only=True):
    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: str | None = None


class RequestedOutput(Value, frozen=True, kw_only=True):
    name: str
    parameters: RequestedOutputParameters | None = None


class InferRequest(Value, frozen=True, kw_only=True):
    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: tuple[Input, ...]
    outputs: tuple[RequestedOutput, ...] | None = None


_DECODER: Final = msgspec.json.Decoder(InferRequest)


def parse(document: bytes | memoryview) -> InferRequest:
    """The request in a JSON document; the bare tokens NaN and Infinity are numbers.

    Raises:
        BadValue: it is none, with the place in it that is wrong.
    """
    try:
        return _DECODER.decode(document)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadValue(f"The inference request does not have its form: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if not bytes(document).strip():
            raise BadValue("The request's JSON is empty. Send an inference request.") from error
        fault = str(error)
    try:
        return msgspec.convert(tfserving_json.LENIENT.decode(bytes(document).decode("utf-8")), InferRequest)
    except msgspec.ValidationError as error:
        raise BadValue(f"The inference request does not have its form: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadValue(f"The request's JSON cannot be read: {fault}") from error


# --------------------------------------------------------------------------- in


def check_interface(tensor: Input, spec: TensorSpec) -> None:
    """Raises `BadValue` unless datatype and shape are those of the interface, and the content type one that they may have."""
    expected = DATATYPES.get(spec.dtype)
    if expected is None:
        raise BadValue(f"Input {spec.name} is of type {spec.dtype}, which this protocol has no datatype for", 501)
    if tensor.datatype != expected:
        raise BadValue(f"Input {spec.name} is of datatype {tensor.datatype[:20]}; the model expects {expected}")
    if tensor.content_type == BASE64 and expected != "BYTES":
        raise BadValue(f"Input {spec.name} is of datatype {expected}; content_type base64 is for BYTES. Leave it out.")
    check_shape(tensor.shape, spec)


def check_shape(shape: tuple[int, ...], spec: TensorSpec) -> None:
    if not tfserving_json.fits(shape, spec.shape):
        raise BadValue(
            f"Input {spec.name} has the shape {tfserving_json.dims(spec.shape)}; the request says {tfserving_json.dims(shape[:32])}"
        )
    if 0 in shape:
        raise BadValue(f"Input {spec.name} is empty: its shape in the request is {tfserving_json.dims(shape)}")


def from_json(tensor: Input, spec: TensorSpec) -> np.ndarray:
    """The tensor whose values stand in the document, in nested lists or in one flat list."""
    if tensor.datatype in NO_JSON_FORM:
        raise BadValue(f"{tensor.datatype} data in JSON is not supported. Send input {spec.name} as binary data.")
    if type(tensor.data) is not list:
        raise BadValue(
            f"Input {spec.name} needs its 'data' as a list, got {tfserving_json.shown(None if tensor.data is UNSET else tensor.data)}"
        )
    shape, flat = tfserving_json.flattened(tensor.data, spec)
    if shape != tensor.shape and shape != (math.prod(tensor.shape),):
        raise BadValue(f"Input {spec.name} says the shape {tfserving_json.dims(tensor.shape)}; its data has {tfserving_json.dims(shape)}")
    if spec.dtype == "string":
        return tfserving_json.strings(flat).reshape(tensor.shape)
    tfserving_json.check_types(flat, spec)
    return tfserving_json.numbers(flat, spec).reshape(tensor.shape)


def from_bytes(data: bytes | memoryview, datatype: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    """The tensor that lies in `data`, without copying it where it lies as the processor wants it."""
    if datatype == "BYTES":
        return _byte_strings(memoryview(data), math.prod(shape), name).reshape(shape)
    layout = LAYOUTS[datatype]
    expected = math.prod(shape) * layout.itemsize
    if len(data) != expected:
        raise BadValue(
            f"Input {name} of {datatype} and shape {tfserving_json.dims(shape)} has {expected} bytes; the request holds {len(data)}"
        )
    if datatype == "BOOL":
        raw = np.frombuffer(data, np.uint8)
        if raw.max(initial=0) > 1:
            raise BadValue(f"Input {name} is of datatype BOOL; each of its bytes is 0 or 1")
        return raw.view(np.bool_).reshape(shape)
    array = np.frombuffer(data, layout).reshape(shape)
    return array if array.flags.aligned else array.copy()  # engines read with instructions that may insist


def _byte_strings(data: memoryview, count: int, name: str) -> np.ndarray:
    """`count` times a length and that many bytes. `count` is the caller's word: it is held against the bytes first."""
    if count * LENGTH.size > len(data):
        raise BadValue(f"Input {name} says {count} strings; its {len(data)} bytes do not hold as many")
    strings = np.empty(count, dtype=object)
    at = 0
    for index in range(count):
        begin = at + LENGTH.size
        if begin > len(data):
            raise BadValue(f"Input {name} ends in the middle of string {index}")
        at = begin + LENGTH.unpack_from(data, begin - LENGTH.size)[0]
        if at > len(data):
            raise BadValue(f"Input {name} ends in the middle of string {index}")
        strings[index] = bytes(data[begin:at])
    if at != len(data):
        raise BadValue(f"Input {name} has {len(data) - at} bytes behind its last string")
    return strings


def decoded(array: np.ndarray, tensor: Input) -> np.ndarray:
    """The tensor that is meant: MLServer's clients send bytes as base64, and say so in an input's `content_type`.

    Its other values ("str", "np", "pd") say what Python makes of a tensor there, which changes nothing here.
    """
    if tensor.content_type != BASE64:
        return array
    texts = np.empty(array.size, dtype=object)
    for index, value in enumerate(array.ravel().tolist()):
        try:
            texts[index] = base64.b64decode(value, validate=True)
        except ValueError as fault:  # binascii's is one
            text = tfserving_json.shown(value.decode("utf-8", "replace"))
            raise BadValue(
                f"Input {tensor.name} says content_type base64, and its value {index} is none: {text}. "
                "Send base64 without a prefix and line breaks, or leave content_type out."
            ) from fault
    return texts.reshape(array.shape)


# --------------------------------------------------------------------------- out


def datatype_of(array: np.ndarray) -> str:
    datatype = _DATATYPE_OF.get(array.dtype)  # asking a dtype for its name takes longer than all the rest
    if datatype is not None:
        return datatype
    if array.dtype.kind in "OSU":
        return "BYTES"
    raise BadValue(f"An output is of type {array.dtype.name}, which this protocol has no datatype for", 501)


def to_json(name: str, array: np.ndarray) -> orjson.Fragment:
    """The values in one flat list, as they stand in a response."""
    if (datatype := datatype_of(array)) in NO_JSON_FORM:
        raise BadValue(f"{datatype} data in JSON is not supported. Ask for output {name} as binary data.")
    if datatype != "BYTES":
        return orjson.Fragment(tfserving_json.json_of(name, array.reshape(-1)))
    try:
        return orjson.Fragment(orjson.dumps([value.decode() for value in _raw_strings(array)]))
    except UnicodeDecodeError as error:
        raise BadValue(f"Output {name} holds bytes that are no UTF-8. Ask for it as binary data.") from error


def to_bytes(array: np.ndarray) -> memoryview | bytes:
    """The tensor as raw bytes; many numbers are not copied where they lie in order."""
    if array.nbytes <= SMALL and array.dtype in _DATATYPE_OF:
        return array.tobytes()  # a view of them would take longer
    if array.dtype.kind in "OSU":
        return b"".join(piece for value in _raw_strings(array) for piece in (LENGTH.pack(len(value)), value))
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data


def _raw_strings(array: np.ndarray) -> list[bytes]:
    return [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel().tolist()]
