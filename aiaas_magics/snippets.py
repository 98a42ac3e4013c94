"""Calls of an endpoint as text to paste: for a shell, for Python alone, for Triton's client.

Owns the texts, each with a row of zeros that fits the interface. They read the token from
$AIAAS_ENDPOINT_TOKEN, so that none of them shows it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Final, Literal
from urllib.parse import urlsplit

from aiaas_magics.spec import TensorSpec

SHORT: Final = 48  # characters of an example row that still read well in a command line
TOKEN: Final = "AIAAS_ENDPOINT_TOKEN"
NO_JSON_FORM: Final = frozenset({"float16", "bfloat16", "complex64", "complex128"})
Language = Literal["json", "python"]


def takes_json(inputs: Sequence[TensorSpec]) -> bool:
    """Whether every input may stand in a JSON document; a half may not, in any of the protocols."""
    return all(spec.dtype not in NO_JSON_FORM for spec in inputs)


def curl(url: str, name: str, inputs: Sequence[TensorSpec]) -> str:
    """A command line that asks the endpoint `name` of the server at `url` for one row."""
    # As this package's own client: HTTP_PROXY of the shell is for the web, and cannot reach an endpoint of this machine.
    head, where = f'curl -sS --noproxy "*" -H "Authorization: Bearer ${TOKEN}" -d', f"{url}/v1/models/{name}:predict"
    row = row_of_zeros(inputs, "json")
    if " * " not in row:
        body = f'{{"instances": [{row}]}}'
        return f"{head} {shlex.quote(body)} {where}"
    # Python's shorthand, which JSON does not know.
    script = f'import json; print(json.dumps({{"instances": [{row_of_zeros(inputs, "python")}]}}))'
    return f'{head} "$(python3 -c {shlex.quote(script)})" {where}'


def python(url: str, name: str, inputs: Sequence[TensorSpec]) -> str:
    """Python that does the same with the standard library only."""
    return (
        "import json, os, urllib.request\n"
        f"body = json.dumps({{'instances': [{row_of_zeros(inputs, 'python')}]}}).encode()\n"
        f"request = urllib.request.Request({f'{url}/v1/models/{name}:predict'!r}, body,\n"
        f'    {{"Authorization": "Bearer " + os.environ["{TOKEN}"]}})\n'
        "direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))\n"
        'print(json.load(direct.open(request))["predictions"])'
    )


def triton(url: str, name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """Python that sends the row as binary tensors, with `tritonclient[http]`."""
    split = urlsplit(url)
    arrays = ", ".join(f"{spec.name!r}: np.{_array(spec)}" for spec in inputs)
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


def _array(spec: TensorSpec) -> str:
    shape = tuple(1 if width < 0 else width for width in spec.shape)
    return f"full({shape}, b'', object)" if spec.dtype == "string" else f"zeros({shape}, {spec.dtype!r})"
