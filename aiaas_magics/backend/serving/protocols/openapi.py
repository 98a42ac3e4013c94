"""The OpenAPI document of all that this server answers to.

Owns schemas and words. Which paths there are, it reads from the protocols' own tables; what a
live model takes, from its interface. A path that holds a model's name stands beside the one
with {name}, so that a reader and a generator of clients see the model's own inputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from aiaas_magics import settings
from aiaas_magics.backend.serving.protocols import examples
from aiaas_magics.backend.serving.protocols.openinference_codec import DATATYPES
from aiaas_magics.backend.serving.protocols.paths import INFERRING, LARGEST_VERSION, Operation
from aiaas_magics.backend.serving.registry import Registry
from aiaas_magics.spec import DeploySpec, TensorSpec

Schema = dict[str, Any]

STRING: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
FREE: Final[Schema] = {"type": "object"}
B64: Final[Schema] = {
    "type": "object",
    "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
    "required": ["b64"],
    "additionalProperties": False,
}
VALUE: Final[Schema] = {"type": ["array", "number", "boolean", "string", "object"]}

# What comes back with 200, by action; what is not named here is a document without a narrower form.
ANSWERS: Final[Mapping[str, str]] = {
    "predict": "PredictAnswer",
    "classify": "ClassifyAnswer",
    "regress": "RegressAnswer",
    "status": "Status",
    "infer": "InferAnswer",
    "server": "Server",
    "metadata": "Metadata",
    "index": "Index",
    "statistics": "Statistics",
    "all_statistics": "Statistics",
}
BODIES: Final[Mapping[str, str]] = {
    "predict": "Predict",
    "classify": "Examples",
    "regress": "Examples",
    "infer": "Infer",
    "index": "IndexAsked",
    "load": "Control",
    "unload": "Control",
}
TAGS: Final[Mapping[str, str]] = {"/v1": "TensorFlow Serving", "/v2": "Open Inference Protocol"}
OPTIONAL_BODIES: Final = frozenset({"index", "load", "unload"})
MEDIA: Final[Mapping[str, str]] = {"infer": "application/octet-stream", "page": "text/html", "home": "text/html", "metrics": "text/plain"}
REFUSALS: Final[Mapping[str, str]] = {
    "400": "The request does not fit, and the sentence says where",
    "401": "A token is needed",
    "403": "Asked by a web page of another origin, or by a token for predictions where the API token is needed",
    "404": "No such path, model or version",
    "421": "Not a name of this server",
    "500": "A fault of the server's own",
    "501": "A type that this form cannot carry",
    "504": "The model did not compute the request in time",
    "503": "Busy, or not ready: Retry-After says when to come again",
}
WITH_A_BODY: Final[Mapping[str, str]] = {"408": "The body came too slowly", "413": "The body is too large", "429": "Too many requests wait"}


def document(operations: Iterable[Operation], registry: Registry, url: str) -> Schema:
    """The whole document. `operations` are the lines of every protocol's table."""
    operations = tuple(operations)
    live = [registry.find(name).spec for name in registry.names() if documentable(registry, name)]
    paths: dict[str, Schema] = {}
    for operation in operations:
        paths.setdefault(operation.template, {})[operation.method.lower()] = described(operation, operation.template, BODIES)
    for spec in live:
        for operation in operations:
            if operation.action in INFERRING and operation.template.count("{") == 1 and fits(operation.action, spec):
                path = operation.template.replace("{name}", spec.name)
                bodies = {**BODIES, operation.action: f"{spec.name}.{BODIES[operation.action]}"}
                paths.setdefault(path, {})[operation.method.lower()] = described(operation, path, bodies)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "aiaas_magics inference server",
            "version": settings.package_version(),
            "description": "TensorFlow Serving's REST interface below /v1, the Open Inference Protocol v2 below /v2.",
        },
        "servers": [{"url": url}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {**SCHEMAS, **{name: schema for spec in live for name, schema in schemas_of(spec)}},
        },
    }


def documentable(registry: Registry, name: str) -> bool:
    return any(version.state == "AVAILABLE" for version in registry.versions(name))


def fits(action: str, spec: DeploySpec) -> bool:
    method = examples.METHODS.get(action)
    return method is None or examples.kind_fits(spec, method)


# --------------------------------------------------------------------------- operations


def described(operation: Operation, path: str, bodies: Mapping[str, str]) -> Schema:
    action = operation.action
    found: Schema = {
        "operationId": f"{operation.method} {path}",
        "summary": operation.summary,
        "tags": [TAGS.get(path[:3], "This server")],
        "responses": responses(action, has_body=action in bodies),
    }
    if parameters := [parameter(name) for name in re.findall(r"{(\w+)}", path)]:
        found["parameters"] = parameters
    if action in bodies:
        content = {"application/json": {"schema": ref(bodies[action])}}
        if action == "infer":
            content["application/octet-stream"] = {"schema": {"description": "JSON, and behind it the binary tensors' bytes"}}
            found["parameters"] = [*parameters, LENGTH_HEADER]
        found["requestBody"] = {"required": action not in OPTIONAL_BODIES, "content": content}
    return found


def responses(action: str, *, has_body: bool) -> Schema:
    content: Schema = {"application/json": {"schema": ref(ANSWERS[action]) if action in ANSWERS else {}}}
    if action in MEDIA:
        content[MEDIA[action]] = {"schema": {}}
    refusals = {**REFUSALS, **(WITH_A_BODY if has_body else {})}
    return {
        "200": {"description": "The answer", "content": content},
        **{status: {"description": text, "content": {"application/json": {"schema": ref("Error")}}} for status, text in refusals.items()},
    }


def parameter(name: str) -> Schema:
    schema = {"type": "integer", "minimum": 0, "maximum": LARGEST_VERSION} if name == "version" else {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": PARAMETERS[name]}


PARAMETERS: Final[Mapping[str, str]] = {
    "name": "The endpoint's name",
    "version": "The version's number; 0 is the latest",
    "label": "The label of a version",
}
LENGTH_HEADER: Final[Schema] = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "required": False,
    "schema": COUNT,
    "description": "How many bytes of the body are JSON, where binary tensors follow; 0 where the body is one tensor and no JSON",
}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


# --------------------------------------------------------------------------- schemas


def listed(item: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": item, **more}


def fields(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


TENSOR: Final = fields({"name": STRING, "datatype": {"enum": list(DATATYPES.values())}, "shape": listed({"type": "integer"})})
SCHEMAS: Final[Mapping[str, Schema]] = {
    "Error": fields({"error": STRING}),
    "Predict": {
        "oneOf": [
            fields({"instances": listed(VALUE, minItems=1)}, {"signature_name": {"enum": ["", "serving_default"]}}),
            fields({"inputs": VALUE}, {"signature_name": {"enum": ["", "serving_default"]}}),
        ]
    },
    "PredictAnswer": {"oneOf": [fields({"predictions": listed({})}), fields({"outputs": {}})]},
    "Examples": fields({"examples": listed(FREE, minItems=1)}, {"context": FREE, "signature_name": {"enum": ["", "serving_default"]}}),
    "ClassifyAnswer": fields({"results": listed(listed(listed({"type": ["string", "number"]}, minItems=2, maxItems=2)))}),
    "RegressAnswer": fields({"results": listed({"type": "number"})}),
    "Status": fields(
        {
            "name": STRING,
            "ready": {"type": "boolean"},
            "model_version_status": listed(
                fields({"version": STRING, "state": STRING, "status": fields({"error_code": STRING, "error_message": STRING})})
            ),
        }
    ),
    "Server": fields({"name": STRING, "version": STRING, "extensions": listed(STRING)}),
    "Metadata": {
        "oneOf": [
            fields({"name": STRING, "versions": listed(STRING), "platform": STRING, "inputs": listed(TENSOR), "outputs": listed(TENSOR)}),
            fields({"model_spec": FREE, "metadata": FREE}),
        ]
    },
    "Infer": fields(
        {
            "inputs": listed(
                fields(
                    {"name": STRING, "datatype": {"enum": list(DATATYPES.values())}, "shape": listed(COUNT)},
                    {"data": listed({}), "parameters": fields({}, {"binary_data_size": COUNT})},
                )
            )
        },
        {
            "id": STRING,
            "parameters": fields({}, {"binary_data_output": {"type": "boolean"}}),
            "outputs": listed(fields({"name": STRING}, {"parameters": fields({}, {"binary_data": {"type": "boolean"}})})),
        },
    ),
    "InferAnswer": fields(
        {
            "model_name": STRING,
            "model_version": STRING,
            "outputs": listed(fields({"name": STRING, "datatype": STRING, "shape": listed(COUNT)}, {"data": listed({})})),
        },
        {"id": STRING},
    ),
    "Statistics": fields(
        {
            "model_stats": listed(
                fields(
                    {
                        "name": STRING,
                        "version": STRING,
                        "last_inference": COUNT,
                        "inference_count": COUNT,
                        "execution_count": COUNT,
                        "inference_stats": {"type": "object", "additionalProperties": fields({"count": COUNT, "ns": COUNT})},
                        "batch_stats": listed(fields({"batch_size": COUNT, "compute_infer": fields({"count": COUNT, "ns": COUNT})})),
                    }
                )
            )
        }
    ),
    "IndexAsked": fields({}, {"ready": {"type": "boolean"}}),
    "Index": listed(fields({"name": STRING, "version": STRING, "state": STRING, "reason": STRING})),
    "Control": fields({}, {"parameters": FREE}),
}


def schemas_of(spec: DeploySpec) -> Iterator[tuple[str, Schema]]:
    """What the model `spec` takes, in each form that a live model has a path for."""
    rows = {tensor.name: row(tensor, tensor.shape[1:]) for tensor in spec.inputs}
    columns = {name: listed(schema, minItems=1) for name, schema in rows.items()}
    only = next(iter(rows)) if len(rows) == 1 else None
    by_name = {**fields(rows), "additionalProperties": False}
    instances = listed({"anyOf": [rows[only], by_name]} if only is not None else by_name, minItems=1)
    inputs = {"anyOf": [columns[only], fields(columns)]} if only is not None else fields(columns)
    yield f"{spec.name}.Predict", {"oneOf": [fields({"instances": instances}), fields({"inputs": inputs})]}
    yield f"{spec.name}.Examples", fields({"examples": listed(fields({t.name: flat(t) for t in spec.inputs}), minItems=1)})
    tensors = [
        fields(
            {
                "name": {"const": tensor.name},
                "datatype": {"const": DATATYPES.get(tensor.dtype, tensor.dtype)},
                "shape": {
                    "type": "array",
                    "prefixItems": [{"type": "integer", "minimum": 1} if width < 0 else {"const": width} for width in tensor.shape],
                    "minItems": len(tensor.shape),
                    "maxItems": len(tensor.shape),
                },
            },
            {"data": listed({}), "parameters": fields({}, {"binary_data_size": COUNT})},
        )
        for tensor in spec.inputs
    ]
    yield (
        f"{spec.name}.Infer",
        {"allOf": [ref("Infer"), fields({"inputs": listed({"anyOf": tensors}, minItems=len(tensors), maxItems=len(tensors))})]},
    )


def row(tensor: TensorSpec, widths: tuple[int, ...]) -> Schema:
    if not widths:
        return value(tensor.dtype)
    items = row(tensor, widths[1:])
    return listed(items, minItems=1) if widths[0] < 0 else listed(items, minItems=widths[0], maxItems=widths[0])


def flat(tensor: TensorSpec) -> Schema:
    return {"anyOf": [value(tensor.dtype), listed(value(tensor.dtype), minItems=1)]}


def value(dtype: str) -> Schema:
    if dtype == "string":
        return {"anyOf": [STRING, B64]}
    if dtype == "bool":
        return {"type": "boolean"}
    bits = re.fullmatch(r"(u?)int(\d+)", dtype)
    if bits is None:
        return {"type": "number"}
    width = int(bits[2])
    least, most = (0, 2**width - 1) if bits[1] else (-(2 ** (width - 1)), 2 ** (width - 1) - 1)
    return {"type": "integer", "minimum": least, "maximum": most}
