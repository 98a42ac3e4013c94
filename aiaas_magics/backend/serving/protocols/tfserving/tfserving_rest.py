"""TensorFlow Serving's REST interface: predict, classify, regress, status, metadata, and their errors; with KServe's explain.

Owns routes, documents, status codes and sentences. How a value becomes a tensor belongs to
`tfserving_json` and `tfserving_examples`; sockets, tokens and body limits belong to `inference_app`.

Source of truth: model_servers/http_rest_api_handler.cc, http_rest_api_util.cc and
util/json_tensor.cc of https://github.com/tensorflow/serving. Where we answer more than it
does: the status document also has "name" and "ready", as the Open Inference Protocol wants,
and version 0 means the latest. `:explain` is KServe's, whose protocol v1 is this one with that verb
(https://kserve.github.io/website, Data Plane V1): "instances" in, "predictions" and "explanations" out. The form of an explanation,
which KServe leaves open, and "parameters" are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
import orjson

from aiaas_magics.backend.serving import protocols
from aiaas_magics.backend.serving.models.registry import NotServed, Registry, UnknownLabel, Version
from aiaas_magics.backend.serving.protocols import Plain, PlainForm, Request, Response, error
from aiaas_magics.backend.serving.protocols.explain_calls import (
    ExplanationCall,
    dumped,
    method_document,
    parameters_of,
    row_documents,
    settings_of,
)
from aiaas_magics.backend.serving.protocols.operations import Missed, Operation, OperationRoute, PathTable
from aiaas_magics.backend.serving.protocols.tfserving.tfserving_examples import METHODS, ExamplesCall, read_examples
from aiaas_magics.backend.serving.protocols.tfserving.tfserving_json import (
    PlainRowsOf,
    PredictCall,
    json_of_each,
    parse,
    plain_dtype,
    plain_rows,
    predict_call,
    read_predict,
    write_predict,
)
from aiaas_magics.core.spec import DeploySpec, TensorSpec

if TYPE_CHECKING:
    from aiaas_magics.explain.attribution_bytes import ExplainResult

NAME: Final = "tensorflow-serving"
TITLE: Final = "TensorFlow Serving"
ABOUT: Final = "Its REST interface"
NAMELESS: Final = frozenset({"/v1/models", "/v1/models/"})

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


def no_route(method: str, path: str, missed: Missed) -> OperationRoute | Response | None:
    """What a request line below `/v1/` is answered with that is no operation. `path` is as it came, still percent-encoded.

    A wrong verb is 400 here, not 405. TRACE alone is 405, as HTTP has it: no client of TensorFlow Serving sends it, scanners do.
    """
    folded = path.lower()
    if missed.bad_version:
        return error(400, f"Failed to convert version: {missed.bad_version[:100]} to numeric.")
    if not folded.startswith("/v1/"):
        return None
    if method == "OPTIONS":
        return OperationRoute(operation=PREFLIGHT)
    if method == "TRACE" and missed.allowed:
        return error(
            405, "Method Not Allowed. GET /openapi.json has every path with its verb.", ((b"allow", ", ".join(missed.allowed).encode()),)
        )
    if method == "GET" and folded in NAMELESS:
        return error(400, "Missing model name in request.")
    return error(400, f"Malformed request: {method[:20]} {path[:200]}. GET /openapi.json has every path with its verb.")


# --------------------------------------------------------------------------- predict


def read(route: protocols.InferenceRoute, request: Request, version: Version) -> PredictCall | ExamplesCall:
    """The tensors of a predict, classify or regress request.

    Raises:
        BadValue: with this protocol's status code and sentence.
    """
    assert isinstance(route, OperationRoute)
    if route.action != "predict":
        return read_examples(request.body, version.spec, METHODS[route.action])
    plainly = version.once(_plain_rows)
    if plainly is None or (plain_request := plainly(request.body, 0)) is None:
        return read_predict(request.body, version.spec.inputs)
    (spec,), (packed, rows, columns) = version.spec.inputs, plain_request
    return PredictCall(layout="row", tensors={spec.name: np.ndarray((rows, columns), plain_dtype(spec), packed)}, rows=rows)


def _plain_rows(version: Version) -> PlainRowsOf | None:
    return plain_rows(version.spec.inputs)


def plain_form(version: Version) -> PlainForm | None:
    """How `predict` reads plain rows; None for a model of another kind."""
    plainly = version.once(_plain_rows)
    if plainly is None or len(version.spec.outputs) > 1 or version.spec.inputs[0].shape[0] >= 0 or version.spec.inputs[0].shape[1] < 0:
        return None
    (spec,), name = version.spec.inputs, version.spec.outputs[0].name

    def write(output: np.ndarray, requests: Sequence[Plain]) -> Sequence[Response]:
        texts = json_of_each(name, output, [rows for _, rows, _ in requests])
        return [Response(200, b'{"predictions":%b}' % text) for text in texts]

    return PlainForm(name=spec.name, row=spec.shape[1:], dtype=plain_dtype(spec), read=plainly, write=write)


def not_found(route: protocols.InferenceRoute) -> Response:
    if not route.version:
        return error(404, f"Servable not found for request: Latest({route.name[:100]}). GET / lists the endpoints.")
    servable = f"Specific({route.name[:100]}, {route.version})"
    return error(404, f"Servable not found for request: {servable}. Ask without a version for the one that is live.")


def not_ready(route: protocols.InferenceRoute) -> Response:
    """TensorFlow Serving tells no version that is still being loaded from one that is not there."""
    return not_found(route)


def unknown_label(label: str) -> Response:
    return error(400, f"Unrecognized servable version label: {label[:100]}. Ask without one, or set it with endpoint.label.")


# --------------------------------------------------------------------------- explain


def read_explain(_route: OperationRoute, request: Request, version: Version) -> ExplanationCall:
    """The rows of an explain request, which are those of a predict request, and how they are to be explained.

    Raises:
        BadValue: the rows do not fit the version's interface, or the parameters are not possible.
    """
    document = parse(request.body)
    call = predict_call(document, version.spec.inputs)
    parameters = parameters_of(document.get("parameters"))
    return ExplanationCall(
        version=version,
        tensors=call.tensors,
        rows=call.rows,
        settings=settings_of(parameters, version),
        measures=parameters.faithfulness,
        timeout_s=parameters.timeout_s,
        write=partial(write_explained, call, version.spec.inputs),
    )


def write_explained(call: PredictCall, inputs: Sequence[TensorSpec], outputs: Mapping[str, np.ndarray], explained: ExplainResult) -> bytes:
    """The answer to a predict request, with an explanation for each row behind it."""
    explanations = dumped(row_documents(explained.attributions, inputs))
    explainer = dumped(method_document(explained))
    return b'%b,"explanations":%b,"explainer":%b}' % (write_predict(outputs, call.layout)[:-1], explanations, explainer)


# --------------------------------------------------------------------------- status and metadata


def look(registry: Registry, route: protocols.InferenceRoute, request: Request) -> Response:
    """The answer to a preflight, status or metadata request."""
    assert isinstance(route, OperationRoute)
    if route.action == "preflight":
        return preflight(request)
    try:
        return metadata(registry, route) if route.action == "signatures" else status(registry, route)
    except UnknownLabel:
        return unknown_label(route.label or "")


def preflight(request: Request) -> Response:
    """What a browser asks before a page calls; the guard has refused every page but this server's own."""
    origin = request.header(b"origin") or b""
    if origin.startswith((b"http://", b"https://")):
        return Response(200, b"")
    return error(400, "Origin header is missing in CORS preflight")


def status(registry: Registry, route: OperationRoute) -> Response:
    try:
        versions = registry.versions(route.name)
    except NotServed:
        return error(404, f"Could not find any versions of model {route.name[:100]}. GET / lists the endpoints.")
    if route.label is not None or route.version == 0:
        versions = [registry.find(route.name, label=route.label)] if route.label or registry.routing(route.name) else []
    elif route.version is not None:
        versions = [version for version in versions if version.number == route.version]
    if not versions:
        return error(404, f"Could not find version {route.version} of model {route.name[:100]}. Ask without a version for all.")
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


def metadata(registry: Registry, route: OperationRoute) -> Response:
    try:
        version = registry.find(route.name, route.version, label=route.label)
    except UnknownLabel:
        raise
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


# --------------------------------------------------------------------------- operations

PREFLIGHT: Final = Operation("OPTIONS", "", "preflight", "What a browser asks before a page calls")
CLASSIFY: Final = "Labels and scores of examples"
REGRESS: Final = "One number for each example"
EXPLAIN: Final = "Outputs for rows, and what each input contributed to them"
WHICH: Final = ("/v1/models/{name}", "/v1/models/{name}/versions/{version}", "/v1/models/{name}/labels/{label}")
PATHS: Final = PathTable(
    (
        operation
        for which in WHICH
        for operation in (
            Operation(
                "POST",
                f"{which}:predict",
                "predict",
                "Outputs for rows or columns of inputs",
                infers=True,
                body="Predict",
                answer="PredictAnswer",
                plain_form=plain_form,
            ),
            Operation(
                "POST",
                f"{which}:classify",
                "classify",
                CLASSIFY,
                infers=True,
                body="Examples",
                answer="ClassifyAnswer",
            ),
            Operation("POST", f"{which}:regress", "regress", REGRESS, infers=True, body="Examples", answer="RegressAnswer"),
            Operation(
                "POST",
                f"{which}:explain",
                "explain",
                EXPLAIN,
                infers=True,
                body="Explain",
                answer="ExplainAnswer",
                read_stream=read_explain,
            ),
            Operation("GET", which, "status", "The state of the model's versions", answer="Status"),
            Operation("GET", f"{which}/metadata", "signatures", "The model's inputs and outputs", answer="Signatures"),
        )
    ),
    any_case=True,
)
