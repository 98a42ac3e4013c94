"""TensorFlow Serving's JSON and numpy: bodies to tensors, tensors to bodies.

Owns the value rules of that protocol (which JSON value may stand for which dtype, row and
column format, how a float is written). Which route a body came by, and status codes beside
those of a bad value, belong to `protocols.tfserving`.

Values are checked where Python is as fast as it gets: level by level, with `set(map(type, ...))`
over whole levels instead of a function called for each value.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final, Literal

import msgspec
import numpy as np
import orjson

from aiaas_magics.backend.serving.engines import slices_of
from aiaas_magics.backend.serving.protocols import BadValue, Response, rows_of
from aiaas_magics.core.spec import TensorSpec

DEFAULT_SIGNATURE: Final = "serving_default"
FLOAT: Final = np.dtype(np.float32)
NO_JSON_FORM: Final = frozenset({"float16", "bfloat16", "complex64", "complex128"})
SHOWN: Final = 100  # characters of a wrong value that an error repeats: guess


class PredictCall(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded predict request. `rows` is None where the inputs differ in their first dimension."""

    layout: Literal["row", "column"]
    tensors: dict[str, np.ndarray]
    rows: int | None
    timeout_s: float = math.inf  # this protocol has no word for it
    id: str | None = None  # nor for this

    def response(self, outputs: Mapping[str, np.ndarray]) -> Response:
        return Response(200, write_predict(outputs, self.layout))


# --------------------------------------------------------------------------- in


def read_predict(body: bytes, inputs: Sequence[TensorSpec]) -> PredictCall:
    """The tensors that `body` holds for an interface of `inputs`.

    Raises:
        BadValue: with TF Serving's status code and, where it has one, its sentence.
    """
    return predict_call(parse(body), inputs)


def predict_call(document: Any, inputs: Sequence[TensorSpec]) -> PredictCall:
    """As `read_predict`, of a body that is parsed already."""
    if type(document) is not dict:
        raise BadValue(f"Malformed request: expected a JSON object, got {shown(document)}")
    check_signature(document.get("signature_name", ""))
    if "instances" in document and "inputs" in document:
        raise BadValue("Not formatted correctly: expected only one of the keys 'instances' and 'inputs'")
    if "instances" in document:
        layout: Literal["row", "column"] = "row"
        columns = columns_of(document["instances"], inputs)
    elif "inputs" in document:
        layout = "column"
        columns = named_inputs(document["inputs"], inputs)
    else:
        raise BadValue("Missing 'inputs' or 'instances' key")
    tensors = {spec.name: tensor_of(columns[spec.name], spec) for spec in inputs}
    return PredictCall(layout=layout, tensors=tensors, rows=rows_of(tensors, inputs))


class PlainRows(msgspec.Struct, forbid_unknown_fields=True):
    """What nearly every request is."""

    instances: list[list[float]]


_PLAIN_ROWS: Final = msgspec.json.Decoder(PlainRows)
_PLAIN: Final[Mapping[str, tuple[str, np.dtype[Any]]]] = {"float32": ("f", np.dtype("<f4")), "float64": ("d", np.dtype("<f8"))}
PACKED: Final = 65536  # guess: numbers of a row; formats of the last 64 widths are kept, 16 bytes a number


@lru_cache(maxsize=64)
def _packer(count: int, code: str) -> Callable[..., bytes]:
    return struct.Struct(f"<{count}{code}").pack


PlainRowsOf = Callable[[bytes, int], tuple[bytes, int, int] | None]  # the numbers as they lie in memory, rows, columns


def plain_rows(inputs: Sequence[TensorSpec]) -> PlainRowsOf | None:
    """Reads rows of plain numbers for this interface, checking types while they are parsed; None for interfaces of another kind.

    It is made once for a version and called for nearly every request. Of a body that is not plain, or wrong, it decides
    nothing (None): that is read again, slower, by rules with a sentence for each fault.
    """
    spec = inputs[0]
    kind = _PLAIN.get(spec.dtype)
    if kind is None or len(inputs) > 1 or len(spec.shape) != 2:
        return None
    code, (wanted_rows, wanted_columns) = kind[0], spec.shape
    any_rows, any_columns, decode = wanted_rows == -1, wanted_columns == -1, _PLAIN_ROWS.decode

    def read(body: bytes, _: int) -> tuple[bytes, int, int] | None:
        try:
            rows = decode(body).instances
            count, columns = len(rows), len(rows[0])
            if not ((any_rows or count == wanted_rows) and (any_columns or columns == wanted_columns) and 0 < columns <= PACKED):
                return None
            # Several times as quick as numpy or `array`; a row of another length, and a number that the dtype cannot hold, is refused.
            pack = _packer(columns, code)
            packed = pack(*rows[0]) if count == 1 else b"".join([pack(*row) for row in rows])
        except (msgspec.MsgspecError, UnicodeDecodeError, struct.error, OverflowError, IndexError):
            return None
        return packed, count, columns

    return read


def plain_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """What `plain_rows` has packed."""
    return _PLAIN[spec.dtype][1]


def parse(body: bytes) -> Any:
    """The first JSON document in `body`; what follows it is ignored, as TF Serving does.

    The fast parser is strict. What it refuses is tried again with the standard library's,
    which knows the bare tokens NaN and Infinity and stops after the first document.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if not body.strip():
            raise BadValue("JSON Parse error: The document is empty") from error
        fault = str(error)
    try:
        return LENIENT.raw_decode(body.decode("utf-8").lstrip(" \t\r\n"))[0]
    except (ValueError, RecursionError) as error:
        raise BadValue(f"JSON Parse error: {fault}") from error


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number too big: {text[:20]}")
    return value


ENCODER: Final = json.JSONEncoder()
LENIENT: Final = json.JSONDecoder(parse_float=_finite_float)


def check_signature(name: object) -> None:
    if type(name) is not str:
        raise BadValue(f"'signature_name' must be a string, got {shown(name)}")
    if name not in ("", DEFAULT_SIGNATURE):
        raise BadValue(f'Serving signature name: "{name[:SHOWN]}" not found in signature def')


def columns_of(instances: Any, inputs: Sequence[TensorSpec]) -> Mapping[str, Any]:
    """Row format: a list of rows, turned into one list for each input."""
    if type(instances) is not list:
        raise BadValue(f"Request 'instances' is not a list: {shown(instances)}")
    if not instances:
        raise BadValue("Request 'instances' holds no row")
    if len(inputs) == 1 and not is_named_row(instances[0], inputs[0]):
        return {inputs[0].name: instances}
    names = {spec.name for spec in inputs}
    for index, row in enumerate(instances):
        if type(row) is not dict:
            raise BadValue(f"Failed to process element: {index} of 'instances' list. Expected an object by input name, got {shown(row)}")
        if row.keys() != names:
            raise BadValue(
                f"Failed to process element: {index} of 'instances' list. Its keys are {listed(row)} and must equal {listed(names)}"
            )
    return {name: [row[name] for row in instances] for name in names}


def is_named_row(row: Any, only: TensorSpec) -> bool:
    """For a single input a row may be `{input: value}`; `{"b64": ...}` is a value of a string input."""
    return type(row) is dict and not (only.dtype == "string" and row.keys() == {"b64"} and only.name != "b64")


def named_inputs(value: Any, inputs: Sequence[TensorSpec]) -> Mapping[str, Any]:
    """Column format: one nested list, or one for each input name; other names are ignored."""
    if type(value) is dict and not (len(inputs) == 1 and not is_named_row(value, inputs[0])):
        for spec in inputs:
            if spec.name not in value:
                raise BadValue(f"Missing named input: {spec.name} in 'inputs' object.")
        return value
    if len(inputs) > 1:
        raise BadValue(f"Expected 'inputs' to be an object with the keys {listed(spec.name for spec in inputs)}, got {shown(value)}")
    return {inputs[0].name: value}


def tensor_of(values: Any, spec: TensorSpec) -> np.ndarray:
    """`values`, nested lists, as the tensor `spec` asks for: dtype and every fixed dimension agree."""
    if spec.dtype in NO_JSON_FORM:
        raise BadValue(f"Tensor {spec.name} is of type {spec.dtype}, which has no form in JSON", 501)
    shape, flat = flattened(values, spec)
    if not fits(shape, spec.shape):
        alone = len(shape) + 1 == len(spec.shape) and fits(shape, spec.shape[1:])
        move = ". One row is a list in a list" if alone else ""
        raise BadValue(f"Tensor {spec.name} has the shape {dims(spec.shape)}; the request holds {dims(shape)}{move}")
    if 0 in shape:
        raise BadValue(f"Tensor {spec.name} is empty: its shape in the request is {dims(shape)}")
    if spec.dtype == "string":
        return strings(flat).reshape(shape)
    check_types(flat, spec)
    return numbers(flat, spec).reshape(shape)


def fits(shape: Sequence[int], pattern: Sequence[int]) -> bool:
    return len(shape) == len(pattern) and all(want in (-1, size) for want, size in zip(pattern, shape, strict=True))


def flattened(values: Any, spec: TensorSpec) -> tuple[tuple[int, ...], list[Any]]:
    """Shape and values of nested lists; every list of a level must have the same length."""
    shape: list[int] = []
    level = [values]
    while level and type(level[0]) is list:
        if len(shape) == len(spec.shape):
            raise BadValue(f"Tensor {spec.name} has {len(spec.shape)} dimensions; the request holds lists nested deeper than that")
        size = len(level[0])
        if set(map(type, level)) != {list}:
            raise BadValue(f"Tensor {spec.name}: lists and values side by side at level {len(shape)}")
        if len(level) > 1 and set(map(len, level)) != {size}:
            raise BadValue(f"Tensor {spec.name}: lists of different lengths at level {len(shape)}, expected size: {size}")
        shape.append(size)
        level = level[0] if len(level) == 1 else list(chain.from_iterable(level))
    return tuple(shape), level


JSON_TYPES: Final[Mapping[str, frozenset[type]]] = {
    "b": frozenset({bool}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "f": frozenset({int, float}),
}


def check_types(flat: list[Any], spec: TensorSpec) -> None:
    allowed = JSON_TYPES[np.dtype(spec.dtype).kind]
    if not allowed.issuperset(set(map(type, flat))):
        raise wrong_type(next(value for value in flat if type(value) not in allowed), spec)


def numbers(flat: list[Any], spec: TensorSpec) -> np.ndarray:
    """`flat` in the dtype of `spec`; a number that the dtype cannot hold is refused, not wrapped or made infinite."""
    dtype = np.dtype(spec.dtype)
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype=dtype)
    except OverflowError as error:
        raise wrong_type(max(flat, key=abs), spec) from error
    if dtype.kind == "f" and not np.isfinite(array).all():
        for index in np.flatnonzero(np.isinf(array)):
            if math.isfinite(flat[index]):
                raise wrong_type(flat[index], spec)
    return array


def strings(flat: list[Any]) -> np.ndarray:
    """Byte strings; a value is a JSON string, or an object with the one key "b64"."""
    texts = np.empty(len(flat), dtype=object)
    for index, value in enumerate(flat):
        if type(value) is str:
            try:
                texts[index] = value.encode()
            except UnicodeEncodeError as error:
                raise BadValue("A string holds half of a surrogate pair") from error
        elif type(value) is dict and value.keys() == {"b64"} and type(value["b64"]) is str:
            try:
                texts[index] = base64.b64decode(value["b64"], validate=True)
            except (binascii.Error, ValueError) as error:
                raise BadValue(f"JSON Value: {shown(value)} Unable to base64 decode") from error
        else:
            raise BadValue(f"JSON Value: {shown(value)} Type: {json_type(value)} is not of expected type: string")
    return texts


def wrong_type(value: Any, spec: TensorSpec) -> BadValue:
    names = {"float32": "float", "float64": "double"}
    return BadValue(f"JSON Value: {shown(value)} Type: {json_type(value)} is not of expected type: {names.get(spec.dtype, spec.dtype)}")


# --------------------------------------------------------------------------- out


def write_predict(outputs: Mapping[str, np.ndarray], layout: Literal["row", "column"]) -> bytes:
    """The answer to a predict request in the layout that it came in.

    Raises:
        BadValue: row format, and the outputs do not agree in their number of rows.
    """
    if layout == "column":
        if len(outputs) == 1:
            ((name, array),) = outputs.items()
            return b'{"outputs":' + json_of(name, array) + b"}"
        return b'{"outputs":{' + b",".join(orjson.dumps(name) + b":" + json_of(name, a) for name, a in outputs.items()) + b"}}"
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        if array.ndim:
            return b'{"predictions":%b}' % json_of(name, array)
    sizes = {array.shape[0] if array.ndim else -1 for array in outputs.values()}
    if len(sizes) != 1 or -1 in sizes:
        raise BadValue(f"The outputs {listed(outputs)} have inconsistent batch sizes. Ask in column format ('inputs')")
    rows = (
        b"{" + b",".join(orjson.dumps(name) + b":" + json_of(name, array[row]) for name, array in outputs.items()) + b"}"
        for row in range(sizes.pop())
    )
    return b'{"predictions":[' + b",".join(rows) + b"]}"


def json_of(name: str, array: Any) -> bytes:
    """A tensor as JSON; floats in the shortest form that is exact at their width, with bare NaN and Infinity."""
    if type(array) is np.ndarray and array.dtype is FLOAT and array.ndim and array.flags.c_contiguous:  # what nearly every output is
        text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
        return text if b"null" not in text else _with_tokens(text, array)
    array = np.asarray(array)
    kind = array.dtype.kind
    if kind in "OSU":
        return orjson.dumps(_texts(array.tolist(), as_bytes=name.endswith("_bytes")))
    if array.ndim == 0:
        return json_of(name, array.reshape(1))[1:-1]
    if kind == "f" and array.itemsize == 2:
        array = array.astype(np.float32)  # TF Serving has no JSON for half at all; a wider float loses nothing
    text = orjson.dumps(array if array.flags.c_contiguous else np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)
    return text if kind != "f" or b"null" not in text else _with_tokens(text, array)


def json_of_each(name: str, array: np.ndarray, counts: Sequence[int]) -> Sequence[bytes]:
    """`array` cut along its first dimension into so many rows each, as JSON. Rows alone, mostly, are cut from the text of all."""
    if len(counts) == len(array) and array.size and array.dtype.kind == "f":
        inner = array.ndim - 1
        opens, closes = b"[" * inner, b"]" * inner
        texts = json_of(name, array)[1 + inner : -1 - inner].split(closes + b"," + opens)
        return [b"[%b%b%b]" % (opens, text, closes) for text in texts]
    return [json_of(name, array[place]) for place in slices_of(counts)]


def _with_tokens(text: bytes, array: np.ndarray) -> bytes:
    """`text` of `array`, in which the writer has put null for each value that JSON has no word for, in order."""
    odd = array[~np.isfinite(array)].tolist()
    tokens = ["NaN" if value != value else "Infinity" if value > 0 else "-Infinity" for value in odd]
    pieces = text.split(b"null")
    return b"".join(chain.from_iterable(zip(pieces, [*(token.encode() for token in tokens), b""], strict=True)))


def _texts(values: Any, *, as_bytes: bool) -> Any:
    if isinstance(values, list):
        return [_texts(value, as_bytes=as_bytes) for value in values]
    raw = values if isinstance(values, bytes) else str(values).encode()
    return {"b64": base64.b64encode(raw).decode()} if as_bytes else raw.decode("utf-8", "replace")


# --------------------------------------------------------------------------- words


def shown(value: Any) -> str:
    """A value of a request for an error's text, bounded."""
    if isinstance(value, (dict, list)) and len(value) > 20:
        return f"{json_type(value)} of {len(value)}"
    text = ""
    try:
        for piece in ENCODER.iterencode(value):  # piece by piece: a request's value may be its whole body
            text += piece[: SHOWN + 1]
            if len(text) > SHOWN:
                return text[:SHOWN] + "..."
    except (TypeError, ValueError, RecursionError):
        return json_type(value)
    return text


def json_type(value: Any) -> str:
    names = {dict: "Object", list: "Array", str: "String", bool: "Boolean", type(None): "Null"}
    return names.get(type(value), "Number")


def dims(shape: Sequence[int]) -> str:
    return "(" + ", ".join("any" if size < 0 else str(size) for size in shape) + ")"


def listed(names: Any) -> str:
    text = ", ".join(sorted(map(str, names)))
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
