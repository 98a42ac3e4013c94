"""TensorFlow Serving's REST interface: predict, status, metadata, and their errors.

Owns routes, documents, status codes and sentences. How a value becomes a tensor belongs to
`codec`; sockets, tokens and body limits belong to `app`.

Source of truth: model_servers/http_rest_api_handler.cc, http_rest_api_util.cc and
util/json_tensor.cc of https://github.com/tensorflow/serving. Where we answer more than it
does: the status document also has "name" and "ready", as the Open Inference Protocol wants,
and version 0 means the latest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import unquote

import orjson

from aiaas_magics.backend.serving import protocols
from aiaas_magics.backend.serving.codec import PredictCall, read_predict
from aiaas_magics.backend.serving.protocols import BadValue, Request, Response, error
from aiaas_magics.backend.serving.registry import NotServed, Registry, Version
from aiaas_magics.spec import DeploySpec, TensorSpec

Action = Literal["predict", "classify", "regress", "status", "metadata"]

ACTIONS: Final[Mapping[str, Action]] = {"predict": "predict", "classify": "classify", "regress": "regress"}

LARGEST_VERSION: Final = 2**63 - 1
_WHICH = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
INFER: Final = re.compile(_WHICH + r":(?P<method>predict|classify|regress)", re.IGNORECASE | re.ASCII)
LOOK: Final = re.compile(_WHICH + r"(?P<metadata>/metadata)?", re.IGNORECASE | re.ASCII)
NAMELESS: Final = re.compile(r"/v1/models/?", re.IGNORECASE | re.ASCII)

# numpy's names -> those of tensorflow/core/framework/types.proto
DTYPES: Final = {
    "float16": "DT_HALF",
    "float32": "DT_FLOAT",
    "float64": "DT_DOUBLE",
    "bfloat16": "DT_BFLOAT16",
    "int8": "DT_INT8",
    "int16": "DT_INT16",
    "int32": "DT_INT32",
    "int64": "DT_INT64",
    "uint8": "DT_UINT8",
    "uint16": "DT_UINT16",
    "uint32": "DT_UINT32",
    "uint64": "DT_UINT64",
    "bool": "DT_BOOL",
    "string": "DT_STRING",
    "complex64": "DT_COMPLEX64",
    "complex128": "DT_COMPLEX128",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What a request line asks for. A `name` is percent-decoded; `version` of None is the latest."""

    action: Action
    name: str
    version: int | None = None
    label: str | None = None

    @property
    def infers(self) -> bool:
        return self.action in ACTIONS


def find_route(method: str, path: str) -> Route | Response:
    """The route of a request line, or the answer to one that is none. `path` is as it came, still percent-encoded.

    A wrong verb is 400 here, never 405, and below `/v1/` nothing is 404.
    """
    match = INFER.fullmatch(path) if method == "POST" else LOOK.fullmatch(path) if method == "GET" else None
    if match is None:
        if method == "GET" and NAMELESS.fullmatch(path):
            return error(400, "Missing model name in request.")
        if not path.lower().startswith("/v1/"):
            return Response(404, b"")
        return error(400, f"Malformed request: {method[:20]} {path[:200]}")
    digits = match["version"]
    if digits is not None and (len(digits) > 19 or int(digits) > LARGEST_VERSION):
        return error(400, f"Failed to convert version: {digits[:100]} to numeric.")
    action: Action = ACTIONS[match["method"].lower()] if method == "POST" else "metadata" if match["metadata"] else "status"
    return Route(
        action=action,
        name=unquote(match["name"]),
        version=int(digits) if digits is not None else None,
        label=unquote(match["label"]) if match["label"] else None,
    )


# --------------------------------------------------------------------------- predict


def read(route: protocols.Route, request: Request, version: Version) -> PredictCall:
    """The tensors of a predict request.

    Raises:
        BadValue: with this protocol's status code and sentence.
    """
    assert isinstance(route, Route)
    if route.action != "predict":
        raise wrong_signature(route.action)
    return read_predict(request.body, version.spec.inputs)


def not_found(route: protocols.Route) -> Response:
    which = f"Latest({route.name[:100]})" if not route.version else f"Specific({route.name[:100]}, {route.version})"
    return error(404, f"Servable not found for request: {which}")


def unknown_label(label: str) -> Response:
    return error(400, f"Unrecognized servable version label: {label[:100]}")


def wrong_signature(method: str) -> BadValue:
    kind = "classification" if method == "classify" else "regression"
    return BadValue(
        f"Expected {kind} signature method_name to be tensorflow/serving/{method}. Was: tensorflow/serving/predict. Use :predict instead.",
    )


# --------------------------------------------------------------------------- status and metadata


def look(registry: Registry, route: protocols.Route, _request: Request) -> Response:
    """The answer to a status or metadata request."""
    assert isinstance(route, Route)
    if route.label is not None:
        return unknown_label(route.label)
    return metadata(registry, route) if route.action == "metadata" else status(registry, route)


def status(registry: Registry, route: Route) -> Response:
    try:
        versions = registry.versions(route.name)
    except NotServed:
        return error(404, f"Could not find any versions of model {route.name[:100]}")
    if route.version == 0:
        versions = [version for version in versions if version.state == "AVAILABLE"][:1]
    elif route.version is not None:
        versions = [version for version in versions if version.number == route.version]
    if not versions:
        return error(404, f"Could not find version {route.version} of model {route.name[:100]}")
    document = {
        "name": route.name,
        "ready": any(version.state == "AVAILABLE" for version in versions),
        "model_version_status": [
            {
                "version": str(version.number),
                "state": version.state,
                "status": {"error_code": "UNKNOWN" if version.fault else "OK", "error_message": version.fault},
            }
            for version in versions
        ],
    }
    return Response(200, orjson.dumps(document))


def metadata(registry: Registry, route: Route) -> Response:
    try:
        version = registry.find(route.name, route.version)
    except NotServed:
        return not_found(route)
    document = {
        "model_spec": {"name": route.name, "signature_name": "", "version": str(version.number)},
        "metadata": {"signature_def": {"signature_def": {"serving_default": signature(version.spec)}}},
    }
    return Response(200, orjson.dumps(document))


def signature(spec: DeploySpec) -> dict[str, object]:
    return {
        "inputs": {tensor.name: tensor_info(tensor) for tensor in spec.inputs},
        "outputs": {tensor.name: tensor_info(tensor) for tensor in spec.outputs},
        "method_name": "tensorflow/serving/predict",
    }


def tensor_info(tensor: TensorSpec) -> dict[str, object]:
    return {
        "dtype": DTYPES.get(tensor.dtype, "DT_INVALID"),
        "tensor_shape": {"dim": [{"size": str(size), "name": ""} for size in tensor.shape], "unknown_rank": False},
        "name": tensor.name,
    }
