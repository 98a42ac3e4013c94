"""Calls of an endpoint as text to paste: for a shell, for Python alone, for Triton's client.

Owns the texts, each with a row of the sample, or where that is long with zeros that fit the interface. They read the token from
$AIAAS_ENDPOINT_TOKEN, so that none of them shows it.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import numpy as np

from aiaas_magics.core.spec import TensorSpec

SHORT: Final = 48  # characters of an example row that still read well in a command line
MOST_EXAMPLE: Final = 2_000  # guess: characters of a sample row that one still pastes; an icon's bytes fit
TOKEN: Final = "AIAAS_ENDPOINT_TOKEN"
NO_JSON_FORM: Final = frozenset({"float16", "bfloat16", "complex64", "complex128"})
Language = Literal["json", "python"]


def takes_json(inputs: Sequence[TensorSpec]) -> bool:
    """Whether every input may stand in a JSON document; a half may not, in any of the protocols."""
    return all(spec.dtype not in NO_JSON_FORM for spec in inputs)


def example_of(rows: Mapping[str, np.ndarray]) -> str:
    """The first of `rows`, by input name, as JSON that a request may hold; "" where it is long, or JSON has no form for it."""
    if any(array.dtype.name in NO_JSON_FORM for array in rows.values()):
        return ""
    if sum(np.size(array[0]) for array in rows.values()) > MOST_EXAMPLE:
        return ""
    values = {name: _json_of(array[0]) for name, array in rows.items()}
    try:
        text = json.dumps(next(iter(values.values())) if len(values) == 1 else values, allow_nan=False, ensure_ascii=False)
    except ValueError:  # NaN and infinity
        return ""
    return text if len(text) <= MOST_EXAMPLE else ""


def arrays_of(example: str, inputs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """The row of `example_of` again, by input name."""
    row = json.loads(example)
    values = row if len(inputs) > 1 else {inputs[0].name: row}
    texts = {spec.name for spec in inputs if spec.dtype == "string"}
    return {name: np.array(_bytes_of(value), object) if name in texts else np.array(value) for name, value in values.items()}


def text_of(value: bytes) -> Any:
    """What stands for bytes in a JSON document: their text, or an object that a string input takes."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode("ascii")}


def _json_of(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_json_of(item) for item in value]
    if isinstance(value, bytes):
        return text_of(value)
    if isinstance(value, np.floating):
        return float(str(value))  # a float32's own digits, not those of the double that it becomes
    return value.item() if isinstance(value, np.generic) else str(value)


def curl(url: str, name: str, inputs: Sequence[TensorSpec], example: str = "") -> str:
    """A command line that asks the endpoint `name` of the server at `url` for one row, `example` where there is one."""
    # As this package's own client: HTTP_PROXY of the shell is for the web, and cannot reach an endpoint of this machine.
    head, where = f'curl -sS --noproxy "*" -H "Authorization: Bearer ${TOKEN}" -d', f"{url}/v1/models/{name}:predict"
    row = example or row_of_zeros(inputs, "json")
    if example or " * " not in row:
        body = f'{{"instances": [{row}]}}'
        return f"{head} {shlex.quote(body)} {where}"
    # Python's shorthand, which JSON does not know.
    script = f'import json; print(json.dumps({{"instances": [{row_of_zeros(inputs, "python")}]}}))'
    return f'{head} "$(python3 -c {shlex.quote(script)})" {where}'


def python(url: str, name: str, inputs: Sequence[TensorSpec], example: str = "") -> str:
    """Python that does the same with the standard library only."""
    row = repr(json.loads(example)) if example else row_of_zeros(inputs, "python")
    return (
        "import json, os, urllib.request\n"
        f"body = json.dumps({{'instances': [{row}]}}).encode()\n"
        f"request = urllib.request.Request({f'{url}/v1/models/{name}:predict'!r}, body,\n"
        f'    {{"Authorization": "Bearer " + os.environ["{TOKEN}"]}})\n'
        "direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))\n"
        'print(json.load(direct.open(request))["predictions"])'
    )


def triton(url: str, name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], example: str = "") -> str:
    """Python that sends the row as binary tensors, with `tritonclient[http]`."""
    split = urlsplit(url)
    row = json.loads(example) if example else None
    values = {} if row is None else row if len(inputs) > 1 else {inputs[0].name: row}
    arrays = ", ".join(f"{spec.name!r}: np.{_array(spec, values.get(spec.name))}" for spec in inputs)
    return (
        "import os\n"
        "import numpy as np\n"
        "import tritonclient.http as triton\n"
        "from tritonclient.utils import np_to_triton_dtype\n"
        f"client = triton.InferenceServerClient({split.netloc!r}{', ssl=True' if split.scheme == 'https' else ''})\n"
        f"arrays = {{{arrays}}}\n"
        "inputs = [triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)) for name, array in arrays.items()]\n"
        "for given, array in zip(inputs, arrays.values()):\n"
        "    given.set_data_from_numpy(array)\n"
        f'answer = client.infer({name!r}, inputs, headers={{"Authorization": "Bearer " + os.environ["{TOKEN}"]}})\n'
        f"print(answer.as_numpy({outputs[0].name!r}))"
    )


def row_of_zeros(inputs: Sequence[TensorSpec], language: Language) -> str:
    """One row that fits the interface: a value for one input, else an object by input name."""
    rows = {spec.name: _zeros([1 if width < 0 else width for width in spec.shape[1:]], spec.dtype, language) for spec in inputs}
    if len(rows) == 1:
        return next(iter(rows.values()))
    return "{" + ", ".join(f"{json.dumps(name)}: {row}" for name, row in rows.items()) + "}"


def _zeros(shape: Sequence[int], dtype: str, language: Language) -> str:
    """Zeros of this shape; a long row is a Python expression, which stays short: `[0.0] * 100`."""
    if not shape:
        return _zero(dtype, language)
    inner = _zeros(shape[1:], dtype, language)
    return "[" + ", ".join([inner] * shape[0]) + "]" if shape[0] * len(inner) <= SHORT else f"[{inner}] * {shape[0]}"


def _zero(dtype: str, language: Language) -> str:
    match dtype:
        case "string":
            return '""'
        case "bool":
            return "false" if language == "json" else "False"
        case _:
            return "0.0" if dtype.startswith("float") else "0"


def _array(spec: TensorSpec, row: Any = None) -> str:
    if row is not None:
        return f"array([{_bytes_of(row)!r}], object)" if spec.dtype == "string" else f"array([{row!r}], {spec.dtype!r})"
    shape = tuple(1 if width < 0 else width for width in spec.shape)
    return f"full({shape}, b'', object)" if spec.dtype == "string" else f"zeros({shape}, {spec.dtype!r})"


def _bytes_of(row: Any) -> Any:
    if isinstance(row, list):
        return [_bytes_of(item) for item in row]
    return base64.b64decode(row["b64"]) if isinstance(row, dict) else str(row).encode()
