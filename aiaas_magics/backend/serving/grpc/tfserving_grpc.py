"""TensorFlow Serving over gRPC: predict, classify, regress, status and metadata.

Owns its methods. Sentences and the versions' states belong to `protocols.tfserving`, tensors to
`tensor_proto`, examples to `example_proto`.

Version 0 means the latest, as over REST. Models come and go by deploying them: the calls that
reload a server's configuration, and MultiInference, are not offered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
from google.protobuf.json_format import ParseDict

from aiaas_magics.backend.serving.grpc.example_proto import read_examples
from aiaas_magics.backend.serving.grpc.methods import GrpcCall, Infer, Look, MessageRoute, Method, Refused
from aiaas_magics.backend.serving.grpc.tensor_proto import from_proto, to_proto
from aiaas_magics.backend.serving.grpc.tfserving_schema import MODEL_SERVICE, PREDICTION_SERVICE, serving
from aiaas_magics.backend.serving.models.registry import Version
from aiaas_magics.backend.serving.protocols import BadValue, Response, rows_of
from aiaas_magics.backend.serving.protocols.tfserving import tfserving_examples, tfserving_json, tfserving_rest
from aiaas_magics.core.spec import TensorSpec

SIGNATURES: Final = "signature_def"


def number_of(spec: Any) -> int | None:
    """The version that a request names; what is wrong with a ModelSpec comes out here."""
    if not spec.name:
        raise BadValue("Missing ModelSpec: the request names no model")
    tfserving_json.check_signature(spec.signature_name)
    number = spec.version.value if spec.HasField("version") else None
    if number is not None and number < 0:
        raise BadValue(f"Versions are not below zero, got {number}")
    return number


# --------------------------------------------------------------------------- infer


def route(message: Any) -> MessageRoute:
    spec = message.model_spec
    return MessageRoute(message=message, name=spec.name, version=number_of(spec), label=spec.version_label or None)


def answered_by(answer: Any, version: Version) -> None:
    """Which version a request was answered by."""
    spec = answer.model_spec
    spec.name, spec.signature_name, spec.version.value = version.spec.name, tfserving_json.DEFAULT_SIGNATURE, version.number


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcPredictCall:
    """A decoded predict message. `rows` is None where the inputs differ in their first dimension."""

    version: Version
    tensors: Mapping[str, np.ndarray]
    rows: int | None
    output_names: list[str]
    timeout_s: float
    id: str | None = None  # this protocol has none

    def response(self, outputs: Mapping[str, np.ndarray]) -> Response:
        answer = serving.PredictResponse()
        answered_by(answer, self.version)
        for name in self.output_names:
            answer.outputs[name].CopyFrom(to_proto(np.asarray(outputs[name])))
        return Response(200, answer.SerializeToString())


def read_predict(route: MessageRoute, version: Version) -> GrpcPredictCall:
    message = route.message
    inputs = read_inputs(message.inputs, version.spec.inputs)
    names = [spec.name for spec in version.spec.outputs]
    output_names = list(message.output_filter) or names
    if unknown := next((name for name in output_names if name not in names), None):
        raise BadValue(
            f"output tensor alias not found in signature: {unknown[:100]} Outputs expected to be in the set {tfserving_json.listed(names)}"
        )
    return GrpcPredictCall(
        version=version, tensors=inputs, rows=rows_of(inputs, version.spec.inputs), output_names=output_names, timeout_s=route.timeout_s
    )


def read_inputs(messages: Any, specs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
    names = {spec.name for spec in specs}
    if set(messages) != names:
        raise BadValue(
            f"input size does not match signature: {len(messages)}!={len(names)} "
            f"The request holds {tfserving_json.listed(messages)}, the model has the inputs {tfserving_json.listed(names)}"
        )
    return {spec.name: from_proto(messages[spec.name], spec) for spec in specs}


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcExamplesCall:
    """A decoded classify or regress message."""

    method: tfserving_examples.Method
    version: Version
    tensors: Mapping[str, np.ndarray]
    rows: int | None
    timeout_s: float
    id: str | None = None  # this protocol has none

    def response(self, outputs: Mapping[str, np.ndarray]) -> Response:
        (output,) = outputs.values()
        if len(output) != self.rows:
            raise BadValue(f"Expected output batch size of {self.rows}. Got: {len(output)}")
        answer = classified(output) if self.method == "classify" else regressed(output)
        answered_by(answer, self.version)
        return Response(200, answer.SerializeToString())


def classified(output: np.ndarray) -> Any:
    answer = serving.ClassificationResponse()
    for row in tfserving_examples.scores_of(output).tolist():
        classes = answer.result.classifications.add().classes
        for label, score in enumerate(row):
            classes.add(label=str(label), score=score)
    return answer


def regressed(output: np.ndarray) -> Any:
    answer = serving.RegressionResponse()
    for value in output.reshape(-1).tolist():
        answer.result.regressions.add(value=value)
    return answer


def read_classify(route: MessageRoute, version: Version) -> GrpcExamplesCall:
    return _read_examples(route, version, "classify")


def read_regress(route: MessageRoute, version: Version) -> GrpcExamplesCall:
    return _read_examples(route, version, "regress")


def _read_examples(route: MessageRoute, version: Version, method: tfserving_examples.Method) -> GrpcExamplesCall:
    inputs = read_examples(route.message.input, version.spec, method)
    return GrpcExamplesCall(
        method=method, version=version, tensors=inputs, rows=rows_of(inputs, version.spec.inputs), timeout_s=route.timeout_s
    )


# --------------------------------------------------------------------------- status and metadata


def model_status(call: GrpcCall) -> Any:
    document = rest_document(call, "status")
    return ParseDict(document, serving.GetModelStatusResponse(), ignore_unknown_fields=True)


def model_metadata(call: GrpcCall) -> Any:
    fields = call.message.metadata_field
    if not fields:
        raise BadValue("GetModelMetadataRequest must specify at least one metadata_field")
    if unknown := next((field for field in fields if field != SIGNATURES), None):
        raise BadValue(f"Metadata field {unknown[:100]} is not supported")
    document = rest_document(call, "signatures")
    signatures = ParseDict(document["metadata"][SIGNATURES], serving.SignatureDefMap())
    answer = serving.GetModelMetadataResponse(model_spec={"name": document["model_spec"]["name"]})
    answer.model_spec.version.value = int(document["model_spec"]["version"])
    answer.metadata[SIGNATURES].type_url = f"type.googleapis.com/{serving.SignatureDefMap.DESCRIPTOR.full_name}"
    answer.metadata[SIGNATURES].value = signatures.SerializeToString()
    return answer


def rest_document(call: GrpcCall, action: str) -> Any:
    """REST's document, which is these messages in their JSON form."""
    spec = call.message.model_spec
    route = tfserving_rest.PATHS.route(action, name=spec.name, version=number_of(spec), label=spec.version_label or None)
    response = tfserving_rest.look(call.registry, route, call.request)
    if response.status != 200:
        raise Refused(response)
    return orjson.loads(response.body)


def _name(message: Any) -> str:
    return str(message.model_spec.name)


METHODS: Final[Mapping[str, Method]] = {
    f"/{PREDICTION_SERVICE}/Predict": Infer(takes=serving.PredictRequest, rest=tfserving_rest, route=route, call=read_predict),
    f"/{PREDICTION_SERVICE}/Classify": Infer(takes=serving.ClassificationRequest, rest=tfserving_rest, route=route, call=read_classify),
    f"/{PREDICTION_SERVICE}/Regress": Infer(takes=serving.RegressionRequest, rest=tfserving_rest, route=route, call=read_regress),
    f"/{PREDICTION_SERVICE}/GetModelMetadata": Look(serving.GetModelMetadataRequest, model_metadata, names=_name),
    f"/{MODEL_SERVICE}/GetModelStatus": Look(serving.GetModelStatusRequest, model_status, names=_name),
}
