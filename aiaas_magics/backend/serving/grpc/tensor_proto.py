"""TensorProto: TensorFlow's tensor message to numpy and back.

Owns both directions, by TensorFlow's rules: a request's values lie in `tensor_content` as raw
bytes, or one by one in the field of their type, where the last one stands for all that follow.
Answers have the latter form, as TensorFlow Serving's have: programs read `float_val` off them.

Source: core/framework/tensor.cc of https://github.com/tensorflow/tensorflow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import ml_dtypes
import numpy as np

from aiaas_magics.backend.serving.grpc.tfserving_schema import tensorflow
from aiaas_magics.backend.serving.protocols import BadValue
from aiaas_magics.backend.serving.protocols.open_inference import inference_codec as raw
from aiaas_magics.backend.serving.protocols.tfserving import tfserving_json
from aiaas_magics.backend.serving.protocols.tfserving.tfserving_rest import DTYPES
from aiaas_magics.core.spec import TensorSpec

NUMBERS: Final[Mapping[str, int]] = {name: tensorflow.DataType.values_by_name[word].number for name, word in DTYPES.items()}
WORDS: Final[Mapping[int, str]] = {value.number: value.name for value in tensorflow.DataType.values}
# numpy's names -> the field for values one by one. The half types stand there as the bits of a whole number.
FIELDS: Final[Mapping[str, str]] = {
    "float32": "float_val",
    "float64": "double_val",
    "int8": "int_val",
    "int16": "int_val",
    "int32": "int_val",
    "int64": "int64_val",
    "uint8": "int_val",
    "uint16": "int_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "bool": "bool_val",
    "string": "string_val",
    "float16": "half_val",
    "bfloat16": "half_val",
}
LENGTH_DELIMITED: Final = 2  # a wire type
MOST_BYTES: Final = 64 * 1024 * 1024  # of a tensor whose last value stands for more: as large as one that is sent whole


def from_proto(proto: Any, spec: TensorSpec) -> np.ndarray:
    """The tensor in `proto`, which must be what `spec` asks for.

    Raises:
        BadValue: it is not.
    """
    if spec.dtype not in FIELDS:
        raise BadValue(f"Input {spec.name} is of type {spec.dtype}, which is not served over gRPC", 501)
    if proto.dtype != NUMBERS[spec.dtype]:
        raise BadValue(
            f"Input {spec.name} is of type {WORDS.get(proto.dtype, proto.dtype)}; the model expects {DTYPES[spec.dtype]}. Cast it to that."
        )
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or min(shape, default=0) < 0:
        raise BadValue(f"Input {spec.name} comes without a known shape")
    raw.check_shape(shape, spec)
    if proto.tensor_content:
        if spec.dtype == "string":
            raise BadValue(f"Input {spec.name} is of strings, which travel in string_val")
        return raw.from_bytes(proto.tensor_content, raw.DATATYPES[spec.dtype], shape, spec.name)
    values = list(getattr(proto, FIELDS[spec.dtype]))
    count = math.prod(shape)
    if not values or len(values) > count:
        raise BadValue(f"Input {spec.name} has the shape {tfserving_json.dims(shape)}; {FIELDS[spec.dtype]} holds {len(values)} values")
    if len(values) < count and count * 8 > MOST_BYTES:
        raise BadValue(
            f"Input {spec.name} of shape {tfserving_json.dims(shape)} is larger than what is taken. Send fewer rows at once.", 413
        )
    array = _from_values(values, spec)
    if len(values) < count:
        array = np.concatenate([array, np.full(count - len(values), array[-1], array.dtype)])
    return array.reshape(shape)


def _from_values(values: list[Any], spec: TensorSpec) -> np.ndarray:
    if spec.dtype == "string":
        strings = np.empty(len(values), dtype=object)
        strings[:] = values
        return strings
    if FIELDS[spec.dtype] == "half_val":
        bits = tfserving_json.numbers(values, TensorSpec(name=spec.name, dtype="uint16", shape=(-1,)))
        return bits.view(ml_dtypes.bfloat16 if spec.dtype == "bfloat16" else np.float16)
    return tfserving_json.numbers(values, spec)


def to_proto(array: np.ndarray) -> Any:
    name = "string" if array.dtype.kind in "OSU" else array.dtype.name
    field = FIELDS.get(name)
    if field is None:
        raise BadValue(f"An output is of type {name}, which is not served over gRPC", 501)
    proto = tensorflow.TensorProto(dtype=NUMBERS[name])
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if name in ("float32", "float64"):
        # Packed floats of a message are their raw bytes: merged as such, none of them becomes an object of Python's.
        content = bytes(raw.to_bytes(array))
        tag = tensorflow.TensorProto.DESCRIPTOR.fields_by_name[field].number << 3 | LENGTH_DELIMITED
        proto.MergeFromString(b"".join((varint(tag), varint(len(content)), content)))
    elif name == "string":
        proto.string_val.extend(value if isinstance(value, bytes) else str(value).encode() for value in array.ravel().tolist())
    else:
        flat = array.reshape(-1)
        getattr(proto, field).extend((flat.view(np.uint16) if field == "half_val" else flat).tolist())
    return proto


def varint(number: int) -> bytes:
    """
    >>> varint(300)
    b'\\xac\\x02'
    """
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
