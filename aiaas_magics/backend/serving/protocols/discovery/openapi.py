"""OpenAPI document: every operation of this server.

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
from aiaas_magics.backend.serving.protocols.discovery.openapi_schemas import COUNT, SCHEMAS, STRING, Schema, ref
from aiaas_magics.backend.serving.protocols.operations import BINARY_TYPE, JSON_TYPE, LARGEST_VERSION, Operation
from aiaas_magics.backend.serving.protocols.route_table import RestProtocol
from aiaas_magics.core import settings

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


def document(protocols: Iterable[RestProtocol], registry: Registry, url: str) -> Schema:
    """The whole document, of every row of every protocol's table."""
    protocols = tuple(protocols)
    rows = [(protocol.TITLE, operation) for protocol in protocols for operation in protocol.PATHS.operations]
    live = [registry.find(name).spec for name in registry.names() if documentable(registry, name)]
    live.sort(key=lambda spec: (models.snake(spec.name) != spec.name, spec.name))  # whose name is safe as it is keeps it
    paths: dict[str, Schema] = {}
    ids, names, components = models.Names(), models.Names(), models.Components()
    for tag, operation in rows:
        described_here = described(operation, operation.template, tag, known_ref(operation.body))
        paths.setdefault(operation.template, {})[operation.method.lower()] = {"operationId": ids.take(id_of(operation)), **described_here}
    for spec in live:
        name = names.take(models.snake(spec.name))
        bodies = models.add_bodies(components, spec, name)
        for tag, operation in rows:
            if operation.action in bodies and operation.template.count("{") == 1:
                path = operation.template.replace("{name}", spec.name)
                its = described(operation, path, tag, bodies[operation.action], models.requests_of(operation.action, spec))
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
        "tags": [{"name": protocol.TITLE, "description": protocol.ABOUT} for protocol in (*protocols[1:], protocols[0])],
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
    qualifier = "".join(f"_{parameter}" for parameter in ("version", "label") if f"{{{parameter}}}" in operation.template)
    return (operation.id or operation.action) + qualifier


def known_ref(component: str) -> Schema:
    """A reference to a component of the document; a free document where it has none of this name."""
    return ref(component) if component in SCHEMAS else {}


def described(operation: Operation, path: str, tag: str, body: Schema, requests: Mapping[str, Any] | None = None) -> Schema:
    """An operation; `requests` are bodies of it to show."""
    operation_schema: Schema = {"summary": operation.summary, "tags": [tag], "responses": responses(operation)}
    if parameters := [parameter(name) for name in re.findall(r"{(\w+)}", path)]:
        operation_schema["parameters"] = parameters
    if operation.body:
        content: Schema = {JSON_TYPE: {"schema": body}}
        if requests:
            content[JSON_TYPE]["examples"] = {name: {"value": body} for name, body in requests.items()}
        if BINARY_TYPE in operation.takes:
            content[BINARY_TYPE] = {"schema": BINARY}
            operation_schema["parameters"] = [*parameters, LENGTH_HEADER]
        operation_schema["requestBody"] = {"required": operation.body_required, "content": content}
    return operation_schema


def responses(operation: Operation) -> Schema:
    forms: Mapping[str, Schema] = {JSON_TYPE: known_ref(operation.answer), "text/plain": STRING}
    content = {media: {"schema": forms.get(media, {})} for media in operation.gives}
    refusals = {**REFUSALS, **(WITH_A_BODY if operation.body else {})}
    return {
        "200": {"description": "The answer", "content": content},
        **{status: {"description": text, "content": {JSON_TYPE: {"schema": ref("Error")}}} for status, text in refusals.items()},
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
