"""The OpenAPI document of all that this server answers to.

Owns paths, operations and their words. Which paths there are, it reads from the protocols' own tables. Schemas belong to
`openapi_schemas`, what a live model takes to `openapi_models`. A path that holds a model's name stands beside the one
with {name}, so that a reader and a generator of clients see the model's own inputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from aiaas_magics.backend.serving.models.registry import Registry
from aiaas_magics.backend.serving.protocols.discovery import openapi_models as models
from aiaas_magics.backend.serving.protocols.discovery.openapi_schemas import COUNT, STRING, Schema, ref
from aiaas_magics.backend.serving.protocols.operations import LARGEST_VERSION, Operation
from aiaas_magics.core import settings

# What comes back with 200, by action; what is not named here is a document without a narrower form.
ANSWERS: Final[Mapping[str, str]] = {
    "predict": "PredictAnswer",
    "classify": "ClassifyAnswer",
    "regress": "RegressAnswer",
    "status": "Status",
    "infer": "InferAnswer",
    "server": "Server",
    "metadata": "Metadata",
    "signatures": "Signatures",
    "index": "Repository",
    "statistics": "Statistics",
    "all_statistics": "Statistics",
}
BODIES: Final[Mapping[str, Schema]] = {
    "predict": ref("Predict"),
    "classify": ref("Examples"),
    "regress": ref("Examples"),
    "infer": ref("Infer"),
    "index": ref("RepositoryQuery"),
    "load": ref("Control"),
    "unload": ref("Control"),
}
# Paths whose action has another path of the same kind.
OTHER_PATHS: Final[Mapping[str, str]] = {"/v2/": "server_with_slash", "/monitoring/prometheus/metrics": "tfserving_metrics"}
TAGS: Final[Mapping[str, tuple[str, str]]] = {
    "/v1": ("TensorFlow Serving", "Its REST interface"),
    "/v2": ("Open Inference Protocol", "Version 2, with binary tensors and Triton's repository requests"),
    "": ("This server", "Its pages, this document and its metrics"),
}
OPTIONAL_BODIES: Final = frozenset({"index", "load", "unload"})
# Beside JSON, or instead of it.
MEDIA: Final[Mapping[str, str]] = {"infer": "application/octet-stream", "page": "text/html", "home": "text/html"}
ONLY_MEDIA: Final[Mapping[str, str]] = {"metrics": "text/plain"}
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
    live.sort(key=lambda spec: (models.snake(spec.name) != spec.name, spec.name))  # whose name is safe as it is keeps it
    paths: dict[str, Schema] = {}
    ids, names, components = models.Names(), models.Names(), models.Components()
    for operation in operations:
        described_here = described(operation, operation.template, BODIES)
        paths.setdefault(operation.template, {})[operation.method.lower()] = {"operationId": ids.take(id_of(operation)), **described_here}
    for spec in live:
        name = names.take(models.snake(spec.name))
        bodies = models.add_bodies(components, spec, name)
        for operation in operations:
            if operation.action in bodies and operation.template.count("{") == 1:
                path = operation.template.replace("{name}", spec.name)
                its = described(operation, path, bodies, models.requests_of(operation.action, spec))
                id = ids.take(f"{id_of(operation)}_{name}")
                paths.setdefault(path, {})[operation.method.lower()] = {"operationId": id, **its}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "aiaas_magics inference server",
            "version": settings.package_version(),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "TensorFlow Serving's REST interface below /v1, the Open Inference Protocol v2 below /v2.",
        },
        "servers": [{"url": url}],
        "security": [{"token": []}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.values()],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": components.schemas,
        },
    }


def documentable(registry: Registry, name: str) -> bool:
    return any(version.state == "AVAILABLE" for version in registry.versions(name))


# --------------------------------------------------------------------------- operations


def id_of(operation: Operation) -> str:
    """A name for the function that a generated client calls: the action, and what the path says besides the model's name."""
    which = "".join(f"_{parameter}" for parameter in ("version", "label") if f"{{{parameter}}}" in operation.template)
    return OTHER_PATHS.get(operation.template, operation.action) + which


def described(operation: Operation, path: str, bodies: Mapping[str, Schema], requests: Mapping[str, Any] | None = None) -> Schema:
    """An operation; `requests` are bodies of it to show."""
    action = operation.action
    made: Schema = {
        "summary": operation.summary,
        "tags": [TAGS.get(path[:3], TAGS[""])[0]],
        "responses": responses(action, has_body=action in bodies),
    }
    if parameters := [parameter(name) for name in re.findall(r"{(\w+)}", path)]:
        made["parameters"] = parameters
    if action in bodies:
        content: Schema = {"application/json": {"schema": bodies[action]}}
        if requests:
            content["application/json"]["examples"] = {name: {"value": body} for name, body in requests.items()}
        if action == "infer":
            content["application/octet-stream"] = {"schema": BINARY}
            made["parameters"] = [*parameters, LENGTH_HEADER]
        made["requestBody"] = {"required": action not in OPTIONAL_BODIES, "content": content}
    return made


def responses(action: str, *, has_body: bool) -> Schema:
    content: Schema = {"application/json": {"schema": ref(ANSWERS[action]) if action in ANSWERS else {}}}
    if action in MEDIA:
        content[MEDIA[action]] = {"schema": {}}
    if action in ONLY_MEDIA:
        content = {ONLY_MEDIA[action]: {"schema": STRING}}
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
# Clients that are generated need the type: without one they cannot tell these bytes from the JSON.
BINARY: Final[Schema] = {**STRING, "format": "binary", "description": "JSON, and behind it the binary tensors' bytes"}
LENGTH_HEADER: Final[Schema] = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "required": False,
    "schema": COUNT,
    "description": "How many bytes of the body are JSON, where binary tensors follow; 0 where the body is one tensor and no JSON",
}
