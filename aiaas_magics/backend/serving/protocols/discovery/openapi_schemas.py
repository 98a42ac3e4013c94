"""OpenAPI schemas: the components that are the same for every model, and functions to build others.

Owns schemas only. Those of a live model belong to `openapi_models`, paths and operations to `openapi`.

Generators of clients make a class of each named object and of each branch of a union, so every branch of an `anyOf`
is a component with a name: nameless ones become `PredictType0`, or cannot be imported at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiaas_magics.backend.serving.protocols.explain_calls import BLACK_BOX, MOST_S, MOST_SAMPLES
from aiaas_magics.backend.serving.protocols.open_inference.inference_codec import DATATYPES
from aiaas_magics.core.explain_settings import ALIASES, AUTO

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def any_of(*names: str) -> Schema:
    """One of these components; a union of one is that component itself."""
    return ref(names[0]) if len(names) == 1 else {"anyOf": [ref(name) for name in names]}


def listed(item: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": item, **more}


def fields(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def closed(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """As `fields`, with nothing else in it: what a caller sends."""
    return {**fields(required, optional), "additionalProperties": False}


STRING: Final[Schema] = {"type": "string"}
BOOLEAN: Final[Schema] = {"type": "boolean"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
FREE: Final[Schema] = {"type": "object"}
VALUE: Final[Schema] = {"type": ["array", "number", "boolean", "string", "object"], "items": {}}
DATATYPE: Final[Schema] = {"type": "string", "enum": list(DATATYPES.values())}

TENSOR: Final = fields({"name": STRING, "datatype": DATATYPE, "shape": listed({"type": "integer"})})
TIMES: Final = fields({"count": COUNT, "ns": COUNT})

EXPLAIN_PARAMETERS: Final[Mapping[str, Schema]] = {
    "method": {**STRING, "enum": [AUTO, *BLACK_BOX, *(alias for alias, name in ALIASES.items() if name in BLACK_BOX)]},
    "samples": {**COUNT, "maximum": MOST_SAMPLES, "description": "Coalitions per row; 0 is the method's own number"},
    "output": {**STRING, "description": "The output to explain; the first where it is left out"},
    "target": {
        "type": ["integer", "null"],
        "minimum": 0,
        "description": "Its column; each row's largest where it is left out",
    },
    "seed": COUNT,
    "faithfulness": {**BOOLEAN, "description": "Measure also how the output changes when parts are hidden in the order of the explanation"},
    "patch": {**COUNT, "description": "Edge of the squares that an image is hidden in, or length of the windows of a series"},
    "timeout_s": {"type": "number", "exclusiveMinimum": 0, "maximum": MOST_S},
}

# TensorFlow Serving writes them so; Python's parser reads them, JavaScript's does not.
NOT_FINITE: Final = "Numbers that are not finite are the bare tokens NaN, Infinity and -Infinity"

SCHEMAS: Final[Mapping[str, Schema]] = {
    "Error": fields({"error": STRING}),
    "Text": {**STRING, "description": "A text, sent as UTF-8"},
    "Base64": closed({"b64": {"type": "string", "contentEncoding": "base64"}}),
    # TensorFlow Serving
    "SignatureName": {**STRING, "enum": ["", "serving_default"]},
    "Predict": any_of("PredictRows", "PredictColumns"),
    "PredictRows": closed({"instances": listed(VALUE, minItems=1)}, {"signature_name": ref("SignatureName")}),
    "PredictColumns": closed({"inputs": VALUE}, {"signature_name": ref("SignatureName")}),
    "PredictAnswer": any_of("PredictedRows", "PredictedColumns"),
    "PredictedRows": fields({"predictions": {**listed({}), "description": NOT_FINITE}}),
    "PredictedColumns": fields({"outputs": {"description": NOT_FINITE}}),
    "Examples": fields({"examples": listed(FREE, minItems=1)}, {"context": FREE, "signature_name": ref("SignatureName")}),
    "ClassifyAnswer": fields({"results": listed(listed(listed({"type": ["string", "number"]}, minItems=2, maxItems=2)))}),
    "RegressAnswer": fields({"results": listed({"type": "number"})}),
    # KServe's explain
    "Explain": closed(
        {"instances": listed(VALUE, minItems=1)}, {"parameters": ref("ExplainParameters"), "signature_name": ref("SignatureName")}
    ),
    "ExplainParameters": closed({}, EXPLAIN_PARAMETERS),
    "ExplainAnswer": fields(
        {
            "predictions": {**listed({}), "description": NOT_FINITE},
            "explanations": listed(ref("RowExplanation")),
            "explainer": ref("Explainer"),
        }
    ),
    "RowExplanation": fields(
        {"attributions": VALUE, "base": {"type": ["number", "null"]}, "output": {"type": ["number", "null"]}, "target": COUNT},
        {"tokens": listed(STRING)},
    ),
    "Explainer": fields({"method": STRING, "evaluations": COUNT, "columns": COUNT, "notes": listed(STRING)}, {"faithfulness": FREE}),
    "Status": fields({"name": STRING, "ready": BOOLEAN, "model_version_status": listed(ref("VersionStatus"))}),
    "VersionStatus": fields({"version": STRING, "state": STRING, "status": ref("VersionFault")}),
    "VersionFault": fields({"error_code": STRING, "error_message": STRING}),
    "Signatures": fields({"model_spec": FREE, "metadata": FREE}),
    # the Open Inference Protocol
    "Server": fields({"name": STRING, "version": STRING, "extensions": listed(STRING)}),
    "Metadata": fields(
        {
            "name": STRING,
            "versions": listed(STRING),
            "platform": STRING,
            "inputs": listed(ref("TensorMetadata")),
            "outputs": listed(ref("TensorMetadata")),
        }
    ),
    "TensorMetadata": TENSOR,
    "Infer": fields(
        {"inputs": listed(any_of("InferJson", "InferBinary"), minItems=1)},
        {"id": STRING, "parameters": ref("InferParameters"), "outputs": listed(ref("InferOutput"))},
    ),
    "InferJson": fields(
        {"name": STRING, "datatype": DATATYPE, "shape": listed(COUNT), "data": listed({})}, {"parameters": ref("JsonInput")}
    ),
    "InferBinary": fields({"name": STRING, "datatype": DATATYPE, "shape": listed(COUNT), "parameters": ref("BinaryInput")}),
    "InferParameters": fields({}, {"binary_data_output": BOOLEAN, "timeout": COUNT}),
    "InferOutput": fields({"name": STRING}, {"parameters": ref("InferOutputParameters")}),
    "InferOutputParameters": fields({}, {"binary_data": BOOLEAN}),
    "JsonInput": fields({}, {"content_type": {**STRING, "description": "base64: the data are bytes in base64, of datatype BYTES"}}),
    "BinaryInput": fields({"binary_data_size": COUNT}),
    "InferAnswer": fields(
        {"model_name": STRING, "model_version": STRING, "outputs": listed(ref("InferredOutput"))},
        {"id": STRING},
    ),
    "InferredOutput": fields({"name": STRING, "datatype": STRING, "shape": listed(COUNT)}, {"data": listed({})}),
    "InferExplain": fields(
        {"inputs": listed(any_of("InferJson", "InferBinary"), minItems=1)},
        {"id": STRING, "parameters": ref("ExplainParameters"), "outputs": listed(ref("InferOutput"))},
    ),
    "InferExplainAnswer": fields(
        {"model_name": STRING, "model_version": STRING, "outputs": listed(ref("InferredOutput")), "parameters": ref("Explainer")},
        {"id": STRING},
    ),
    "Statistics": fields({"model_stats": listed(ref("ModelStatistics"))}),
    "ModelStatistics": fields(
        {
            "name": STRING,
            "version": STRING,
            "last_inference": COUNT,
            "inference_count": COUNT,
            "execution_count": COUNT,
            "inference_stats": {"type": "object", "additionalProperties": ref("Times")},
            "batch_stats": listed(ref("BatchStatistics")),
        }
    ),
    "BatchStatistics": fields({"batch_size": COUNT, "compute_infer": ref("Times")}),
    "Times": TIMES,
    "RepositoryQuery": fields({}, {"ready": BOOLEAN}),
    "Repository": listed(ref("RepositoryModel")),
    "RepositoryModel": fields({"name": STRING, "version": STRING, "state": STRING, "reason": STRING}),
    "Control": fields({}, {"parameters": FREE}),
}
