"""OpenAPI of live models: the names of its components, their schemas, and requests as examples.

Owns these three. What is the same for every model belongs to `openapi_schemas`, paths and operations to `openapi`.

A name in the document becomes a class, a function and a file in some language. So it has letters, digits and underscores
only, begins with a letter, and differs from all others also where case and underscores do not count: endpoints `net.v2` and
`net_v2` would both be `NetV2`. What is sent has the model's own names.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from aiaas_magics.backend.serving.protocols.discovery.openapi_schemas import (
    FREE,
    SCHEMAS,
    STRING,
    Schema,
    any_of,
    closed,
    fields,
    listed,
    ref,
)
from aiaas_magics.backend.serving.protocols.open_inference.inference_codec import DATATYPES
from aiaas_magics.backend.serving.protocols.tfserving import tfserving_examples
from aiaas_magics.core import snippets
from aiaas_magics.core.spec import DeploySpec, TensorSpec

FLOATS: Final[Mapping[str, Schema]] = {
    # IEEE 754: the largest number of each. A larger one is refused, not made infinite.
    "float32": {"type": "number", "format": "float", "minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38},
    "float64": {"type": "number", "format": "double"},
}
EXAMPLE_VALUES: Final = 64  # guess: a longer row hides the document around it


class Names:
    """Gives out names of one kind, each once."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._folded = {folded(name) for name in names}

    def take(self, preferred: str) -> str:
        """`preferred`, or that with a number behind it where a generator could not tell it from another."""
        name = next(name for name in numbered(preferred) if folded(name) not in self._folded)
        self._folded.add(folded(name))
        return name


def folded(name: str) -> str:
    """What is left of a name where only letters and digits count, and not their case.

    >>> folded("Predict_NetV2")
    'predictnetv2'
    """
    return re.sub(r"[\W_]", "", name.lower())


def numbered(name: str) -> Iterable[str]:
    return itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))


def words_of(name: str) -> list[str]:
    """The words of a model's or a tensor's name, in ASCII.

    >>> words_of("größe/0.v2")
    ['groe', '0', 'v2']
    """
    return re.findall("[A-Za-z0-9]+", unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode())


def snake(name: str) -> str:
    return "_".join(words_of(name)).lower()


def pascal(name: str) -> str:
    return "".join(word[0].upper() + word[1:] for word in words_of(name))


class Components:
    """The schemas of the document by their names, those of all models among them."""

    def __init__(self) -> None:
        self.schemas: dict[str, Schema] = dict(SCHEMAS)
        self._names = Names(SCHEMAS)

    def add(self, name: str, schema: Schema) -> str:
        """Returns the name that it is known by."""
        name = self._names.take(name)
        self.schemas[name] = schema
        return name


# --------------------------------------------------------------------------- bodies


def fits(action: str, spec: DeploySpec) -> bool:
    """Whether the model can answer a request of this kind."""
    if action == "infer":
        return all(tensor.dtype in DATATYPES for tensor in spec.inputs)
    if not snippets.takes_json(spec.inputs):
        return False
    if action == "explain" and spec.outputs[0].dtype == "string":
        return False
    method = tfserving_examples.METHODS.get(action)
    return method is None or (tfserving_examples.kind_fits(spec, method) and not any(map(is_ragged, spec.inputs)))


def is_ragged(tensor: TensorSpec) -> bool:
    """Whether rows have several free dimensions, which the flat list of an example does not tell."""
    return tensor.shape[1:].count(-1) > 1


def add_bodies(components: Components, spec: DeploySpec, name: str) -> dict[str, Schema]:
    """The body of each action that the model has, as a reference to the components that were added; `name` is in their names."""
    makers: Mapping[str, Callable[[Components, DeploySpec, str], Schema]] = {
        "predict": _predict,
        "classify": _examples,
        "regress": _examples,
        "infer": _infer,
        "explain": _explain,
    }
    bodies: dict[str, Schema] = {}
    for action, maker in makers.items():
        if fits(action, spec):
            shares = action == "regress" and "classify" in bodies
            bodies[action] = bodies["classify"] if shares else maker(components, spec, pascal(name))
    return bodies


def _predict(components: Components, spec: DeploySpec, name: str) -> Schema:
    """Rows or columns, by the inputs' names; for a single input also without its name."""
    rows = {tensor.name: _nested(tensor, tensor.shape[1:]) for tensor in spec.inputs}
    columns = {tensor.name: _nested(tensor, tensor.shape) for tensor in spec.inputs}
    signature = {"signature_name": ref("SignatureName")}

    def branch(kind: str, key: str, schema: Schema) -> str:
        return components.add(f"Predict{name}{kind}", closed({key: schema}, signature))

    def by_name(kind: str, schemas: Mapping[str, Schema]) -> Schema:
        return ref(components.add(f"Predict{name}{kind}", _by_name(schemas)))

    branches = []
    if len(spec.inputs) == 1:
        (tensor,) = spec.inputs
        branches.append(branch("Rows", "instances", listed(rows[tensor.name], **_length(tensor.shape[0]))))
        branches.append(branch("Columns", "inputs", columns[tensor.name]))
    batch = _length(spec.inputs[0].shape[0])
    branches.append(branch("NamedRows", "instances", listed(by_name("Row", rows), **batch)))
    branches.append(branch("NamedColumns", "inputs", by_name("Inputs", columns)))
    return ref(components.add(f"Predict{name}", any_of(*branches)))


def _explain(components: Components, spec: DeploySpec, name: str) -> Schema:
    """Rows, by the inputs' names where there are several."""
    rows = {tensor.name: _nested(tensor, tensor.shape[1:]) for tensor in spec.inputs}
    row = next(iter(rows.values())) if len(rows) == 1 else ref(components.add(f"Explain{name}Row", _by_name(rows)))
    more = {"parameters": ref("ExplainParameters"), "signature_name": ref("SignatureName")}
    return ref(components.add(f"Explain{name}", closed({"instances": listed(row, **_length(spec.inputs[0].shape[0]))}, more)))


def _by_name(schemas: Mapping[str, Schema]) -> Schema:
    """An object by the inputs' names. Where a generator would take two of them for one it could make no class: words name them instead."""
    if len({folded(name) for name in schemas}) == len(schemas):
        return closed(schemas)
    return {**FREE, "description": f"By the inputs' names: {', '.join(schemas)}"}


def _examples(components: Components, spec: DeploySpec, name: str) -> Schema:
    example = components.add(f"Example{name}", _by_name({tensor.name: _feature(tensor) for tensor in spec.inputs}))
    body = closed({"examples": listed(ref(example), minItems=1)}, {"context": FREE, "signature_name": ref("SignatureName")})
    return ref(components.add(f"Examples{name}", body))


def _feature(tensor: TensorSpec) -> Schema:
    size = tfserving_examples.row_size(tensor)
    return _value(tensor.dtype) if size == 1 else listed(_value(tensor.dtype), **_length(size or -1))


def _infer(components: Components, spec: DeploySpec, name: str) -> Schema:
    """The tensors in their order, which a caller need not keep to: so that none is missing, and none comes twice."""
    tensors = []
    for tensor in spec.inputs:
        its = f"Infer{name}{pascal(tensor.name) or 'Input'}"
        datatype = DATATYPES[tensor.dtype]
        head = {"name": _only(tensor.name), "datatype": _only(datatype), "shape": _shape(tensor)}
        branches = [components.add(f"{its}Binary", fields({**head, "parameters": ref("BinaryInput")}))]
        if snippets.takes_json([tensor]):
            branches.insert(
                0, components.add(f"{its}Json", fields({**head, "data": listed({}, minItems=1)}, {"parameters": ref("JsonInput")}))
            )
        tensors.append(any_of(*branches))
    inputs = (
        listed(tensors[0], minItems=1, maxItems=1)
        if len(tensors) == 1
        else {"type": "array", "prefixItems": tensors, "minItems": len(tensors), "maxItems": len(tensors)}
    )
    outputs = listed(ref("InferOutput"), maxItems=len(spec.outputs))
    return ref(
        components.add(f"Infer{name}", closed({"inputs": inputs}, {"id": STRING, "parameters": ref("InferParameters"), "outputs": outputs}))
    )


def _only(text: str) -> Schema:
    return {"type": "string", "const": text}


def _shape(tensor: TensorSpec) -> Schema:
    sizes = [{"type": "integer", "minimum": 1} if size < 0 else {"type": "integer", "const": size} for size in tensor.shape]
    return {"type": "array", "prefixItems": sizes, "minItems": len(sizes), "maxItems": len(sizes)}


def _nested(tensor: TensorSpec, sizes: Sequence[int]) -> Schema:
    """Nested lists of these sizes."""
    return listed(_nested(tensor, sizes[1:]), **_length(sizes[0])) if sizes else _value(tensor.dtype)


def _length(size: int) -> Schema:
    """Of a list; negative is any."""
    return {"minItems": 1} if size < 0 else {"minItems": size, "maxItems": size}


def _value(dtype: str) -> Schema:
    if dtype == "string":
        return any_of("Text", "Base64")
    if dtype == "bool":
        return {"type": "boolean"}
    bits = re.fullmatch(r"(u?)int(\d+)", dtype)
    if bits is None:
        return dict(FLOATS.get(dtype, {"type": "number"}))
    width = int(bits[2])
    least, most = (0, 2**width - 1) if bits[1] else (-(2 ** (width - 1)), 2 ** (width - 1) - 1)
    return {"type": "integer", "minimum": least, "maximum": most}


# --------------------------------------------------------------------------- requests


def requests_of(action: str, spec: DeploySpec) -> dict[str, Any]:
    """Bodies that the model takes, by what they show: one row of zeros in each form. None of a long row."""
    if any(math.prod(map(abs, tensor.shape)) > EXAMPLE_VALUES for tensor in spec.inputs) or not snippets.takes_json(spec.inputs):
        return {}
    columns = {tensor.name: _zeros(tensor, [abs(size) for size in tensor.shape]) for tensor in spec.inputs}
    match action:
        case "predict":
            only = next(iter(columns)) if len(columns) == 1 else None
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            return {
                "rows": {"instances": rows if only is None else columns[only]},
                "columns": {"inputs": columns if only is None else columns[only]},
            }
        case "explain":
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            return {"rows": {"instances": rows if len(columns) > 1 else next(iter(columns.values()))}}
        case "infer":
            inputs = [
                {"name": tensor.name, "datatype": DATATYPES[tensor.dtype], "shape": [abs(size) for size in tensor.shape], "data": data}
                for tensor, data in zip(spec.inputs, columns.values(), strict=True)
            ]
            return {"json": {"inputs": inputs}}
        case _:
            sizes = {tensor.name: tfserving_examples.row_size(tensor) or 1 for tensor in spec.inputs}
            flat = {
                tensor.name: _zeros(tensor, [sizes[tensor.name]] if sizes[tensor.name] > 1 or -1 in tensor.shape[1:] else [])
                for tensor in spec.inputs
            }
            return {"examples": {"examples": [flat]}}


def _zeros(tensor: TensorSpec, sizes: Sequence[int]) -> Any:
    if sizes:
        return [_zeros(tensor, sizes[1:]) for _ in range(sizes[0])]
    return "" if tensor.dtype == "string" else False if tensor.dtype == "bool" else 0.0 if tensor.dtype.startswith("float") else 0
