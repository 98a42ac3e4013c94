"""ONNX check: refuses what is unsafe before ONNX Runtime sees the file.

Owns a walk over the protobuf's wire format: no field is believed, no tensor is copied, and
nothing heavy is imported. It refuses tensors that live in other files (a path out of an
uploaded model reads the host's files) and operators outside the standard's own domains
(code that the file cannot carry and this host should not look for). Of ONNX Runtime's own domain the operators of
`RUNTIME_OPERATORS` pass, each of which computes on its tensors alone.

Field numbers: onnx/onnx.proto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aiaas_magics.backend.serving.engines import UnsafeArtefact

STANDARD_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})
RUNTIME_DOMAIN: Final = "com.microsoft"
RUNTIME_OPERATORS: Final = frozenset({b"MatMulNBits"})  # products by weights in 8 or 4 bits, of `packing.reduced`
CONTROL_FLOW: Final = frozenset({b"Loop", b"Scan", b"If"})
DEEPEST: Final = 32  # guess: ten graphs inside each other, at three messages each; a Keras export has three at most

# message -> {field: the message it holds}; whatever is not named here is skipped unread
MESSAGES: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
DOMAIN_FIELD: Final = {"node": 7, "function": 10}
OPERATOR_FIELD: Final = 4  # of a node
EXTERNAL_DATA, DATA_LOCATION = 13, 14


def check_onnx(data: bytes) -> None:
    """Raises `UnsafeArtefact` for a file that must not be opened."""
    try:
        if not any(number == 7 for number, _ in fields(memoryview(data))):
            raise UnsafeArtefact("it holds no ONNX graph")
        _check("model", memoryview(data), 0)
    except (IndexError, ValueError) as error:
        raise UnsafeArtefact(f"it is no ONNX file ({error})") from error


def _check(kind: str, data: memoryview, depth: int) -> None:
    if depth > DEEPEST:
        raise UnsafeArtefact("its graphs are nested too deeply")
    inner = MESSAGES.get(kind, {})
    for number, value in fields(data):
        if kind == "tensor" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value != 0)):
            raise UnsafeArtefact("a tensor of it lives in another file")
        if isinstance(value, int):
            continue
        if number == DOMAIN_FIELD.get(kind) and (domain := bytes(value).decode("utf-8", "replace")) not in STANDARD_DOMAINS:
            if kind == "node" and domain == RUNTIME_DOMAIN and (operators := _operators(data)) and operators <= RUNTIME_OPERATORS:
                continue
            raise UnsafeArtefact(f"it uses operators of the domain {domain[:60]!r}, which is not ONNX's own")
        if number in inner:
            _check(inner[number], value, depth + 1)


def has_control_flow(data: bytes) -> bool:
    """Whether a graph in a file that was checked repeats or chooses what it computes: then its time is not that of its samples."""
    return _has_control_flow("model", memoryview(data))


def _has_control_flow(kind: str, data: memoryview) -> bool:
    inner = MESSAGES.get(kind, {})
    for number, value in fields(data):
        if isinstance(value, int):
            continue
        if kind == "node" and number == OPERATOR_FIELD and bytes(value) in CONTROL_FLOW:
            return True
        if number in inner and inner[number] != "tensor" and _has_control_flow(inner[number], value):
            return True
    return False


def _operators(node: memoryview) -> set[bytes]:
    """What the node says it is; a field that comes twice counts twice, whichever of them a reader would take."""
    return {bytes(value) for number, value in fields(node) if number == OPERATOR_FIELD and not isinstance(value, int)}


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an int, or the bytes of what has a length."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
        elif wire == 2:
            length, at = _varint(data, at)
            if length > end - at:
                raise ValueError("a field is longer than the file")
            yield number, data[at : at + length]
            at += length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            if at > end:
                raise ValueError("it is cut off")
        else:
            raise ValueError(f"wire type {wire}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
