"""Tensor protocol: the Open Inference Protocol v2 with binary tensors, on the caller's side.

Owns turning arrays into a request and an answer into arrays; no number becomes text on the way. Sending belongs to `transport`,
fitting a caller's data to the interface to `endpoint`. Source: docs/protocol/extension_binary_data.md of
https://github.com/triton-inference-server/server.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from aiaas_magics.core.errors import BackendRefused
from aiaas_magics.core.spec import TensorSpec
from aiaas_magics.core.value import Value

DATATYPES: Final[Mapping[str, str]] = {
    "bool": "BOOL",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
    "bfloat16": "BF16",
    "string": "BYTES",
}
NAMES: Final = {datatype: name for name, datatype in DATATYPES.items()}
LENGTH_HEADER: Final = "Inference-Header-Content-Length"
ALIGN: Final = 16  # bytes: then the server computes on the body itself, without a copy
LENGTH: Final = struct.Struct("<I")


class OutputTensorParameters(Value, frozen=True, kw_only=True):
    binary_data_size: int


class OutputTensor(Value, frozen=True, kw_only=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: OutputTensorParameters


class InferenceAnswer(Value, frozen=True, kw_only=True):
    outputs: list[OutputTensor]


_ANSWER: Final = msgspec.json.Decoder(InferenceAnswer)


def dtype_of(name: str) -> np.dtype[Any]:
    """numpy's type for a dtype's name; strings are objects."""
    if name == "string":
        return np.dtype(object)
    if name == "bfloat16":
        import ml_dtypes  # here: few models need it

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def encode(tensors: Mapping[str, np.ndarray], inputs: tuple[TensorSpec, ...]) -> tuple[bytes, dict[str, str]]:
    """A request's body and headers that ask for every output as raw bytes."""
    described, raw = [], []
    for spec in inputs:
        data = _strings(tensors[spec.name]) if spec.dtype == "string" else _bytes(tensors[spec.name])
        raw.append(data)
        described.append(
            {
                "name": spec.name,
                "shape": tensors[spec.name].shape,
                "datatype": DATATYPES[spec.dtype],
                "parameters": {"binary_data_size": len(data)},
            }
        )
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}, separators=(",", ":")).encode()
    head += b" " * (-len(head) % ALIGN)
    return b"".join([head, *raw]), {LENGTH_HEADER: str(len(head)), "Content-Type": "application/octet-stream"}


def decode(body: bytes, json_bytes: str | None) -> dict[str, np.ndarray]:
    """The outputs of an answer, by name; each in memory of its own.

    Raises:
        BackendRefused: it is no answer of that protocol.
    """
    try:
        at = int(json_bytes or "")
        outputs = _ANSWER.decode(body[:at]).outputs
        tensors = {}
        for output in outputs:
            data = memoryview(body)[at : at + output.parameters.binary_data_size]
            at += output.parameters.binary_data_size
            name = NAMES[output.datatype]
            values = _texts(data) if name == "string" else np.frombuffer(data, dtype_of(name).newbyteorder("<")).astype(dtype_of(name))
            tensors[output.name] = values.reshape(output.shape)
    except (ValueError, KeyError, msgspec.MsgspecError, struct.error) as error:
        raise BackendRefused(200, f"The endpoint's answer is not understood ({error}). Is it an aiaas_magics endpoint?") from error
    return tensors


def _bytes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _strings(array: np.ndarray) -> bytes:
    texts = [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel().tolist()]
    return b"".join(LENGTH.pack(len(text)) + text for text in texts)


def _texts(data: memoryview) -> np.ndarray:
    """Strings as `str`; one that is not UTF-8 stays bytes."""
    items, at = [], 0
    while at < len(data):
        (length,) = LENGTH.unpack_from(data, at)
        raw = bytes(data[at + LENGTH.size : at + LENGTH.size + length])
        at += LENGTH.size + length
        try:
            items.append(raw.decode())
        except UnicodeDecodeError:
            items.append(raw)  # type: ignore[arg-type]
    texts = np.empty(len(items), dtype=object)
    texts[:] = items
    return texts
